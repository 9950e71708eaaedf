//! The canonical workload against the real server.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use workload::{Outcome, Progress, Report, Step, Verify, Workload, WorkloadError, run};

#[test]
fn every_file_arrives_whatever_its_messages_look_like() {
    let server = Server::start();
    let base = Workload {
        clients: 5,
        file_bytes: 3_000_001,
        chunk_bytes: 1 << 20,
        server_process: Some(server.child.id()),
        ..Workload::new(server.address)
    };
    for workload in [
        base.clone(),
        Workload { announced: true, ..base.clone() },
        Workload { frame_bytes: Some(131_000), send_ahead: 4, ..base.clone() },
        Workload { chunk_bytes: 40_000, in_flight_bytes_max: Some(80_000), ..base.clone() },
        Workload { idle_clients: 20, clients: 1, ..base.clone() },
    ] {
        let outcome = whole(&workload);
        assert_eq!(outcome.verified_count, workload.clients);
        let chunk_bytes = if workload.announced { 512 << 10 } else { workload.chunk_bytes };
        let chunk_count = workload.file_bytes.div_ceil(u64::from(chunk_bytes));
        assert_eq!(outcome.ack_latency_us.len(), workload.clients as u64 * chunk_count);
        assert!(outcome.memory.unwrap().rss_bytes_max > 0);
        assert!(outcome.phases.transfer.cpu.unwrap().process_ns > 0);
        assert!((0.1..=1.0).contains(&outcome.fairness), "{}", outcome.fairness);
        // Verified files are removed, and idle uploads cancelled.
        assert!(server.files().is_empty());
    }
}

#[test]
fn one_wrong_byte_on_the_disk_is_found() {
    let server = Server::start();
    let workload = Workload { clients: 3, file_bytes: 2_000_003, ..Workload::new(server.address) };
    let mut changed = None;
    let error = run(&workload, &mut |it| {
        if it.step == Step::Verify && changed.is_none() {
            let path = server.files().pop().unwrap();
            let file = File::options().read(true).write(true).open(&path).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, 1_234_567).unwrap();
            file.write_all_at(&[byte[0] ^ 1], 1_234_567).unwrap();
            changed = Some(path);
        }
    });
    let Err(WorkloadError::Corrupt(it)) = error else { panic!("{error:?}") };
    assert_eq!((it.offset, it.length_bytes), (1_234_567, 2_000_003));
    assert_eq!(Some(&it.path), changed.as_ref());
    assert_eq!(server.files(), [it.path], "only what is wrong is kept");
}

#[test]
fn files_that_nobody_here_reads_are_removed_by_the_server() {
    let server = Server::start();
    let workload = Workload {
        clients: 3,
        file_bytes: 100_000,
        verify: Verify::Off,
        ..Workload::new(server.address)
    };
    assert_eq!(run(&workload, &mut |_| {}).unwrap().verified_count, 0);
    // That an upload is over does not wait for it.
    server.wait_for_file_count(0);
}

#[test]
fn a_run_that_fails_cancels_what_it_has_begun() {
    let server = Server::start();
    let workload = Workload {
        clients: 1,
        idle_clients: 5,
        chunk_bytes: 9 << 20,
        file_bytes: 18 << 20,
        ..Workload::new(server.address)
    };
    let error = run(&workload, &mut |_| {}).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("client 0, during the transfer: the server closed with 1009"),
        "{text}"
    );
    // The server was told about the others.
    server.wait_for_file_count(1);
}

#[test]
fn the_example_prints_a_table_and_json_and_says_what_is_wrong() {
    let server = Server::start();
    let load = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO"));
        command.args(["run", "--quiet", "--example", "load", "--"]).args(arguments);
        // What cargo says to a test makes it build everything anew.
        let said = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_BIN_"];
        for (name, _) in std::env::vars().filter(|it| said.iter().any(|to| it.0.starts_with(to))) {
            command.env_remove(name);
        }
        let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (address, pid) = (server.address.to_string(), server.child.id().to_string());
    let base = ["--server", &address, "--clients", "2", "--file", "1MiB", "--pid", &pid];
    let (status, table, log) = load(&base);
    assert_eq!(status, Some(0), "{log}");
    assert!(table.contains("verified            2 of 2 files\n"), "{table}");
    assert!(table.contains(" s/GiB ("), "{table}");
    assert!(log.contains("uploading: ") && log.contains("verifying: "), "{log}");

    let (status, json, log) =
        load(&[&base[..], &["--json", "-", "--chunk", "64KiB", "--ahead", "3"]].concat());
    assert_eq!(status, Some(0), "{log}");
    let report: Report = serde_json::from_str(&json).unwrap();
    assert_eq!((report.verified_count, report.payload_bytes), (2, 2 << 20));
    assert_eq!((report.chunk_bytes, report.send_ahead), (Some(64 << 10), Some(3)));
    assert!(report.cpu_s_per_gib > Some(0.0) && report.ack_p50_us <= report.ack_max_us);

    let (status, _, log) = load(&["--server", &address, "--file", "64"]);
    assert_eq!(status, Some(2));
    assert!(log.contains("\"64\" has no unit"), "{log}");
    drop(server);
    let (status, _, log) = load(&["--server", &address]);
    assert_eq!(status, Some(1));
    let help = format!("incoming serve --listen {address} --storage-dir");
    assert!(log.contains(&help), "{log}");
}

fn whole(workload: &Workload) -> Outcome {
    let mut steps = Vec::new();
    let outcome = run(workload, &mut |it: &Progress| steps.push(it.step)).unwrap();
    assert!(steps.is_sorted() && steps.contains(&Step::Finish));
    outcome
}

struct Server {
    child: Child,
    address: SocketAddr,
    storage: TempDir,
}

impl Server {
    fn start() -> Self {
        let storage = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut child = command(storage.path()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().rsplit('/').next().unwrap().parse().unwrap();
        Self { child, address, storage }
    }

    fn wait_for_file_count(&self, count: usize) {
        let began = Instant::now();
        while self.files().len() != count {
            assert!(began.elapsed() < PATIENCE, "{} files, not {count}", self.files().len());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Of all uploads, those that are under way too.
    fn files(&self) -> Vec<PathBuf> {
        let folders = ["parts", "arrived"].map(|it| self.storage.path().join(it));
        let entries = folders.into_iter().flat_map(|it| fs::read_dir(it).unwrap());
        entries.map(|it| it.unwrap().path()).collect()
    }
}

fn command(storage: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_incoming"));
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--cores", "1", "--log", "warn"])
        .args(["--reserve", "0B", "--storage-dir"])
        .arg(storage)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Longer than anything here takes on any machine.
const PATIENCE: Duration = Duration::from_secs(60);
