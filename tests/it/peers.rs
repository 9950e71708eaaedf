//! Peers that are silent, dead or deaf: none of them costs much, none of them is told that its
//! upload is over.

use std::io::{ErrorKind, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::backend::Backend;
use crate::client::{Client, Event, binary_frame};
use crate::content::Content;
use crate::http::Connection;
use crate::server::{Setup, wait_until};

#[test]
fn the_silent_and_the_dead_are_disconnected_and_may_come_back() {
    let server = Setup::default().start();
    let backend = Backend::done();
    let content = Content::new(110, 1_000_000);

    // An opening handshake that is not followed by a request, and a request that stops half-way.
    let mut wordless = Client::connect(&server);
    let mut half = Connection::open(server.address);
    half.send("GET /incoming/0.1/health HTTP/1.1\r\nHost:");
    // One that stops in its own handshake.
    let id_in_handshake = backend.ticket_kept(&server);
    let mut in_handshake = Client::connect(&server);
    in_handshake.request(&id_in_handshake, content.length_bytes, "x");
    in_handshake.conf();
    // Two uploads that have begun: one client answers pings, the other one is dead.
    let open = |id: &str| {
        let mut client = Client::open(&server, id, content.length_bytes);
        client.chunk(content.piece(0, 300_001));
        client.chunk_ack();
        client
    };
    let id_alive = backend.ticket_kept(&server);
    let mut alive = open(&id_alive);
    let id_dead = backend.ticket_kept(&server);
    let dead = open(&id_dead);

    let alive = thread::spawn(move || alive.receive());
    half.assert_closed_after_error(408);
    for client in [&mut wordless, &mut in_handshake] {
        let event = client.receive();
        assert!(matches!(event, Event::Close(..) | Event::Lost), "{event:?}: never MsgError");
    }
    // What the dead one's system has received: pings, and perhaps a close frame, but no message.
    let mut received = Vec::new();
    let end = dead.stream().read_to_end(&mut received).map_err(|error| error.kind());
    assert!(matches!(end, Ok(_) | Err(ErrorKind::ConnectionReset)), "{end:?}");
    assert!(!received.contains(&b'{'), "{}", String::from_utf8_lossy(&received));
    drop(Client::open(&server, &id_alive, content.length_bytes));
    assert_eq!(alive.join().unwrap(), Event::Close(Some(4001), "taken over".to_owned()));
    for (id, stored) in [(&id_in_handshake, 0), (&id_alive, 300_001), (&id_dead, 300_001)] {
        let mut client = Client::open(&server, id, content.length_bytes);
        assert_eq!(client.position, stored);
        client.send_rest(content, || 200_000);
        client.finish();
        content.assert_file(&backend.call(id, 1).path());
    }
}

/// Acknowledgements that nobody reads do not pile up: the server stops reading first.
#[test]
fn a_client_that_does_not_read_costs_no_memory() {
    let server = Setup::default().start();
    let backend = Backend::done();
    let chunk_count = 400_000;
    let content = Content::new(111, chunk_count);
    let id = backend.ticket_kept(&server);
    let mut client = Client::open(&server, &id, content.length_bytes);
    let mut stream = client.stream().try_clone().unwrap();
    let before = server.resident_bytes_max();
    let sent = Arc::new(AtomicU64::new(0));
    let progress = Arc::clone(&sent);
    let sender = thread::spawn(move || {
        for offset in (0..chunk_count).step_by(100) {
            let piece = content.piece(offset, 100);
            let frames: Vec<u8> = piece.chunks(1).flat_map(binary_frame).collect();
            stream.write_all(&frames).expect("write");
            progress.fetch_add(100, Ordering::Relaxed);
        }
    });
    // Until the sender is stuck, or through.
    let mut last = u64::MAX;
    wait_until("the sender is stuck", || {
        thread::sleep(Duration::from_millis(300));
        let now = sent.load(Ordering::Relaxed);
        std::mem::replace(&mut last, now) == now
    });
    for _ in 0..chunk_count {
        client.note_sent(1);
    }
    client.all_acks();
    sender.join().expect("the sender");
    client.finish();
    content.assert_file(&backend.call(&id, 1).path());
    let grown = server.resident_bytes_max() - before;
    assert!(grown <= GROWN_BYTES_MAX, "{grown} bytes");
}

/// Staging that is touched for the first time, and one connection's output.
const GROWN_BYTES_MAX: u64 = 16 * 1024 * 1024;
