//! One whole upload, from the ticket to the web app's `done`, on each runtime: a real server in
//! this process, a cheap client with frames masked in advance, real sockets and a real disk.

mod client;

use std::path::Path;
use std::thread;
use std::time::Duration;

use client::{CHUNK_BYTES, masked_frame, start_backend, upload};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use engine::driver::Runtime;
use incoming::config::{Config, Home, Layers};
use incoming::server::Server;

fn whole_upload(criterion: &mut Criterion) {
    // As a test (`cargo test --benches`) a small file is enough.
    let is_test = std::env::args().any(|it| it == "--test");
    let length: usize = if is_test { 3 * CHUNK_BYTES + 5 } else { 256 << 20 };
    let backend = start_backend();
    let frame = masked_frame(CHUNK_BYTES);
    let mut group = criterion.benchmark_group("whole upload");
    group.throughput(Throughput::Bytes(length as u64));
    group.sample_size(10);
    group.measurement_time(Duration::from_secs(10));
    for runtime in [Runtime::Monoio, Runtime::TokioUring] {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let server = Server::start(&config(directory.path(), runtime)).unwrap();
        let (address, stopper) = (server.address(), server.stopper());
        let serving = thread::spawn(move || server.run());
        group.bench_function(runtime.to_string(), |it| {
            it.iter(|| upload(address, backend, length, &frame));
        });
        stopper.stop();
        serving.join().unwrap().unwrap();
    }
    group.finish();
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
