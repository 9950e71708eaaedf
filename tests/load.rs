//! The canonical workload against the real server.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;
use workload::{Outcome, Progress, Step, Workload, run};

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
    }
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
    _storage: TempDir,
}

impl Server {
    fn start() -> Self {
        let storage = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut child = command(storage.path()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().rsplit('/').next().unwrap().parse().unwrap();
        Self { child, address, _storage: storage }
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
