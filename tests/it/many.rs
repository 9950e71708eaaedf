//! Many files at once: every one bit-exact, within the memory that was configured.

use std::sync::Mutex;
use std::thread;

use crate::backend::Backend;
use crate::client::Client;
use crate::content::{Content, Random};
use crate::server::{Driver, Place, Setup};

/// 64 files of 0 B to 300 MB on 64 connections, chunks of 0 B to 8 MiB; some connections are cut.
fn sixty_four_files(driver: Driver, place: Place) {
    // One at a time: each of them keeps all cores busy, and gigabytes of files exist meanwhile.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(|it| it.into_inner());
    let setup = Setup::new(driver, place);
    let server = setup.start();
    let backend = Backend::done();
    let lengths = lengths();
    thread::scope(|scope| {
        for (index, length) in lengths.iter().enumerate() {
            let (server, backend) = (&server, &backend);
            scope.spawn(move || {
                let content = Content::new(index as u64, *length);
                let mut random = Random(1000 + index as u64);
                let id = backend.ticket_kept(server);
                let mut client = Client::open(server, &id, *length);
                if index % 8 == 3 {
                    let lost = content.piece(0, (length / 3).min(8 * MIB));
                    let sent = lost.len() as u64;
                    client.chunk(lost);
                    client.reset();
                    client = Client::open(server, &id, *length);
                    assert!(client.position <= sent);
                }
                client.send_rest(content, || chunk_bytes(&mut random));
                client.finish();
                let path = backend.call(&id, 1).path();
                content.assert_file(&path);
                std::fs::remove_file(path).expect("the web app removes the file");
            });
        }
    });
    let resident = server.resident_bytes_max();
    let pools = u64::from(setup.cores) * u64::from(setup.memory_mib) * MIB;
    assert!(
        resident <= pools + RESIDENT_BESIDE_POOLS_BYTES,
        "{resident} bytes resident with {pools} bytes of pools"
    );
    assert!(server.upload_files().is_empty());
}

#[test]
fn sixty_four_files_on_monoio() {
    sixty_four_files(Driver::Monoio, Place::Disk);
}

#[test]
fn sixty_four_files_on_epoll() {
    sixty_four_files(Driver::MonoioRefused, Place::Disk);
}

#[test]
fn sixty_four_files_on_tokio_uring() {
    sixty_four_files(Driver::TokioUring, Place::Disk);
}

#[test]
fn sixty_four_files_on_monoio_tmpfs() {
    sixty_four_files(Driver::Monoio, Place::Tmpfs);
}

/// More uploads than staging buffers: each one progresses.
#[test]
fn two_hundred_uploads_share_a_small_pool() {
    let server = Setup { memory_mib: 8, ..Setup::default() }.start();
    let backend = Backend::done();
    let content = Content::new(80, 300_001);
    let mut uploads: Vec<(String, Client)> = (0..200)
        .map(|_| {
            let id = backend.ticket_kept(&server);
            let client = Client::open(&server, &id, content.length_bytes);
            (id, client)
        })
        .collect();
    while uploads[0].1.position < content.length_bytes {
        for (_, client) in &mut uploads {
            client.chunk(content.piece(client.position, 60_001));
        }
        for (_, client) in &mut uploads {
            client.chunk_ack();
        }
    }
    for (id, client) in uploads {
        client.finish();
        content.assert_file(&backend.call(&id, 1).path());
    }
}

/// Clients that stop in the middle of a chunk cannot pin the pool.
#[test]
fn stalled_clients_harm_nobody() {
    let server = Setup { memory_mib: 8, ..Setup::default() }.start();
    let backend = Backend::done();
    let stalled: Vec<Client> = (0..100)
        .map(|_| {
            let id = backend.ticket(&server);
            let mut client = Client::open(&server, &id, 10_000_000);
            let frame = crate::client::binary_frame(&vec![1; 100_000]);
            client.raw(&frame[..70_001]);
            client
        })
        .collect();
    let content = Content::new(81, 20_000_000);
    let id = backend.ticket_kept(&server);
    Client::upload(&server, &id, content, 500_000);
    content.assert_file(&backend.call(&id, 1).path());
    drop(stalled);
}

/// The default is 1.5 GB in 64 files, some of 300 MB; the long form 8 GB.
fn lengths() -> Vec<u64> {
    let mut random = Random(64);
    let mut lengths = vec![300_000_000, 299_999_999, 0, 1, 4095, 4096, 4097, 0];
    lengths.extend([MIB, 8 * MIB, 8 * MIB + 1]);
    let is_long = std::env::var_os("INCOMING_TEST_LONG").is_some();
    let limit = if is_long { 300_000_001 } else { 35_000_001 };
    while lengths.len() < 64 {
        lengths.push(random.below(limit));
    }
    lengths
}

/// Every size occurs, small ones more often; tiny ones seldom, because each is acknowledged.
fn chunk_bytes(random: &mut Random) -> u64 {
    match random.below(20) {
        0 => 0,
        1 => 1 + random.below(4096),
        2 => 8 * MIB,
        3..8 => 1 + random.below(8 * MIB),
        8..14 => 512 * 1024,
        _ => 1 + random.below(MIB),
    }
}

const MIB: u64 = 1024 * 1024;

/// What the process may take beside its staging pools: code, stacks, the receive buffers and
/// rings of its cores, 64 connections with their output, the control thread.
const RESIDENT_BESIDE_POOLS_BYTES: u64 = 32 * MIB;
