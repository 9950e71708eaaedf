//! What durable acknowledgements cost: the CPU time of the server's process and of the kernel's
//! threads together, per GiB, with `synced` and with `written`, in turns.
//!
//! Wall time says little on a shared machine, and the process alone not all: the file system's
//! journal and the end of writes are the work of kernel threads.

mod client;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use client::{CHUNK_BYTES, masked_frame, start_backend, upload};

fn main() {
    // As a test (`cargo test --benches`) a small file is enough.
    let is_test = !std::env::args().any(|it| it == "--bench");
    let (length, rounds) = if is_test { (3 * CHUNK_BYTES + 5, 1) } else { (512 << 20, 9) };
    let backend = start_backend();
    let frame = masked_frame(CHUNK_BYTES);
    println!("CPU-s/GiB of process and kernel threads, {UPLOADS} uploads at a time, one core");
    for runtime in ["monoio", "tokio-uring"] {
        let servers = [Server::start(runtime, "synced"), Server::start(runtime, "written")];
        let mut figures = [Vec::new(), Vec::new()];
        for round in 0..=rounds {
            for (server, figures) in servers.iter().zip(&mut figures) {
                let figure = server.measure(backend, length, &frame);
                // The first round makes the files of the journal known to the file system.
                if round > 0 {
                    figures.push(figure);
                }
            }
        }
        let ratios = figures[0].iter().zip(&figures[1]).map(|(synced, written)| synced / written);
        let ratio = median(ratios.collect());
        let [synced, written] = figures.map(median);
        println!("{runtime:12} synced {synced:.3}  written {written:.3}  ratio {ratio:.2}");
    }
}

struct Server {
    child: Child,
    address: SocketAddr,
    _storage: tempfile::TempDir,
}

impl Server {
    fn start(runtime: &str, durability: &str) -> Self {
        let storage = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_incoming"))
            .args(["serve", "--listen", "127.0.0.1:0", "--cores", "1", "--log", "warn"])
            .args(["--runtime", runtime, "--durability", durability, "--reserve", "0B"])
            .arg("--storage-dir")
            .arg(storage.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().rsplit('/').next().unwrap().parse().unwrap();
        Self { child, address, _storage: storage }
    }

    /// Several whole uploads beside each other. CPU seconds per GiB.
    fn measure(&self, backend: SocketAddr, length: usize, frame: &[u8]) -> f64 {
        let before = self.cpu_ns();
        thread::scope(|scope| {
            for _ in 0..UPLOADS {
                scope.spawn(|| upload(self.address, backend, length, frame));
            }
        });
        let gibibytes = (UPLOADS * length) as f64 / (1u64 << 30) as f64;
        (self.cpu_ns() - before) as f64 / 1e9 / gibibytes
    }

    /// Of all threads of the process, and of all threads of the kernel.
    fn cpu_ns(&self) -> u64 {
        let own = Path::new("/proc").join(self.child.id().to_string());
        let kernel = fs::read_dir("/proc").unwrap().flatten().map(|it| it.path());
        let kernel = kernel.filter(|it| is_kernel_thread(it)).map(|it| threads_ns(&it));
        threads_ns(&own) + kernel.sum::<u64>()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A child of `kthreadd`, whose process id is 2 (proc_pid_stat(5): the name stands in parentheses,
/// then state and parent).
fn is_kernel_thread(process: &Path) -> bool {
    let stat = fs::read_to_string(process.join("stat")).unwrap_or_default();
    let fields = stat.rsplit_once(") ").map_or("", |it| it.1);
    fields.split(' ').nth(1) == Some("2")
}

/// The time that the threads of a process have run, ended ones left out (sched-stats).
fn threads_ns(process: &Path) -> u64 {
    let threads = fs::read_dir(process.join("task")).into_iter().flatten().flatten();
    let times = threads.map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
        text.split(' ').next().and_then(|it| it.parse().ok()).unwrap_or(0)
    });
    times.sum()
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

const UPLOADS: usize = 4;
