//! Limits at the handshake: what is too large, or does not fit on the disk, is refused before a byte
//! of it comes, and the ticket is good for another file.

use std::path::Path;

use rustix::fs::statvfs;
use rustix::process::Signal;

use crate::backend::Backend;
use crate::client::Client;
use crate::content::Content;
use crate::disk::on_sixteen_mebibytes;
use crate::server::{Server, Setup};

#[test]
fn a_file_that_is_too_large_is_refused_and_the_ticket_stays() {
    let server = Setup::default().with_environment("INCOMING_MAX_SIZE", "1MiB").start();
    let backend = Backend::done();
    // What is allowed at most counts, whoever says it.
    for (parameters, max_bytes) in [
        (&[][..], 1 << 20),
        (&[("maxSize", "500000")][..], 500_000),
        (&[("maxSize", "2000000")][..], 1 << 20),
        (&[("maxSize", "0")][..], 0),
    ] {
        let id = backend.ticket_with(&server, parameters);
        for length_bytes in [max_bytes + 1, (1 << 53) - 1] {
            let mut client = Client::connect(&server);
            client.request(&id, length_bytes, "x");
            client.finish_with_error(107, "File is larger than this upload may be");
        }
        assert!(server.upload_files().is_empty(), "nothing is written");
        assert_eq!(backend.call_count(&id), 0);
        Client::upload(&server, &id, Content::new(110, max_bytes), 300_000);
        backend.call(&id, 1).path();
        server.wait_without_files();
    }
}

#[test]
fn what_has_begun_goes_on_under_a_smaller_limit() {
    let mut server = Setup::default().start();
    let backend = Backend::done();
    let id = backend.ticket_kept(&server);
    let content = Content::new(111, 1_000_000);
    let mut client = Client::open(&server, &id, content.length_bytes);
    client.chunk(content.piece(0, 300_000));
    client.chunk_ack();
    server.signal(Signal::KILL);
    server.exit_status();
    let server =
        server.start_again(&Setup::default().with_environment("INCOMING_MAX_SIZE", "1KiB"));
    let mut client = Client::open(&server, &id, content.length_bytes);
    assert_eq!(client.position, 300_000);
    client.send_rest(content, || 200_000);
    client.finish();
    content.assert_file(&backend.call(&id, 1).path());
}

#[test]
fn what_does_not_fit_is_refused_and_the_ticket_stays() {
    assert!(rustix::process::getuid().is_root(), "run this as root: it mounts a small tmpfs");
    let within = Some(on_sixteen_mebibytes as fn(&Path) -> Vec<String>);
    let setup = Setup { within, ..Setup::default() };
    let server = setup.with_environment("INCOMING_RESERVE", "1MiB").start();
    let backend = Backend::done();
    let disk = statvfs(server.seen_by_server(server.storage_dir())).unwrap();
    let room_bytes = disk.f_bavail * disk.f_frsize - (1 << 20);
    assert_no_room(&server, &backend, room_bytes + 1);

    let left_bytes = 2_000_000;
    let id = backend.ticket(&server);
    let mut first = Client::open(&server, &id, room_bytes - left_bytes);
    // Whichever core asks, and however much of what is reserved is written.
    for _ in 0..3 {
        for _ in 0..4 {
            let id = assert_no_room(&server, &backend, left_bytes + 500_000);
            let mut second = Client::open(&server, &id, left_bytes - 500_000);
            assert_no_room(&server, &backend, 600_000);
            second.cancel("it fits");
            second.finish_cancelled();
        }
        first.chunk(vec![1; 1_000_000]);
        first.chunk_ack();
    }
    first.cancel("make room");
    first.finish_cancelled();
    let content = Content::new(112, left_bytes + 500_000);
    let id = backend.ticket_kept(&server);
    Client::upload(&server, &id, content, 300_000);
    content.assert_file(&server.seen_by_server(&backend.call(&id, 1).path()));
}

/// A ticket is good for a smaller file after this.
fn assert_no_room(server: &Server, backend: &Backend, length_bytes: u64) -> String {
    let id = backend.ticket(server);
    let mut client = Client::connect(server);
    client.request(&id, length_bytes, "x");
    client.finish_with_error(201, "Not enough room on the server for this file now");
    assert_eq!(backend.call_count(&id), 0);
    id
}
