//! One whole upload, from the ticket to the web app's `done`, on each runtime: a real server in
//! this process, the cheap client of the canonical workload, real sockets and a real disk.

use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use engine::driver::Runtime;
use incoming::config::{Config, Home, Layers};
use incoming::server::Server;
use workload::{Verify, Workload, run};

fn whole_upload(criterion: &mut Criterion) {
    // As a test (`cargo test --benches`) a small file is enough.
    let is_test = std::env::args().any(|it| it == "--test");
    let file_bytes: u64 = if is_test { (3 << 19) + 5 } else { 256 << 20 };
    let mut group = criterion.benchmark_group("whole upload");
    group.throughput(Throughput::Bytes(file_bytes));
    group.sample_size(10);
    group.measurement_time(Duration::from_secs(10));
    for runtime in [Runtime::Monoio, Runtime::TokioUring] {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let server = Server::start(&config(directory.path(), runtime)).unwrap();
        let (address, stopper) = (server.address(), server.stopper());
        let serving = thread::spawn(move || server.run());
        group.bench_function(runtime.to_string(), |it| {
            it.iter_custom(|count| (0..count).map(|_| upload(address, file_bytes, is_test)).sum());
        });
        stopper.stop();
        serving.join().unwrap().unwrap();
    }
    group.finish();
}

/// As a browser does it: chunks as the server announces them.
fn upload(server: SocketAddr, file_bytes: u64, is_test: bool) -> Duration {
    let verify = if is_test { Verify::Hash } else { Verify::Off };
    let workload =
        Workload { clients: 1, file_bytes, announced: true, verify, ..Workload::new(server) };
    let outcome = run(&workload, &mut |_| {}).unwrap();
    assert_eq!(outcome.verified_count, usize::from(is_test));
    let phases = outcome.phases;
    phases.prepare.wall + phases.transfer.wall + phases.finish.wall
}

fn config(storage_dir: &Path, runtime: Runtime) -> Config {
    let mut layers = Layers::default();
    layers.add_flag("storage_dir", storage_dir.display().to_string());
    layers.add_flag("listen", "127.0.0.1:0".to_owned());
    layers.add_flag("cores", "1".to_owned());
    let config = Config::resolve(&layers, &Home::default()).expect("right settings");
    Config { runtime, ..config }
}

criterion_group!(benches, whole_upload);
criterion_main!(benches);
