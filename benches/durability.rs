//! What durable acknowledgements cost: the CPU time of the server's process and of the kernel's
//! threads together, per GiB, with `synced` and with `written`, in turns.
//!
//! Wall time says little on a shared machine, and the process alone not all: the file system's
//! journal and the end of writes are the work of kernel threads.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use workload::{Verify, Workload, run};

fn main() {
    // As a test (`cargo test --benches`) a small file is enough.
    let is_test = !std::env::args().any(|it| it == "--bench");
    let (file_bytes, rounds) = if is_test { ((3 << 19) + 5, 1) } else { (512 << 20, 9) };
    println!("CPU-s/GiB of process and kernel threads, {UPLOADS} uploads at a time, one core");
    for runtime in ["monoio", "tokio-uring"] {
        let servers = [Server::start(runtime, "synced"), Server::start(runtime, "written")];
        let mut figures = [Vec::new(), Vec::new()];
        for round in 0..=rounds {
            for (server, figures) in servers.iter().zip(&mut figures) {
                let figure = server.measure(file_bytes, is_test);
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
    fn measure(&self, file_bytes: u64, is_test: bool) -> f64 {
        let workload = Workload {
            clients: UPLOADS,
            file_bytes,
            announced: true,
            verify: if is_test { Verify::Hash } else { Verify::Off },
            server_process: Some(self.child.id()),
            ..Workload::new(self.address)
        };
        let outcome = run(&workload, &mut |_| {}).unwrap();
        outcome.cpu_s_per_gib().expect("the server's process is measured")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

const UPLOADS: usize = 4;
