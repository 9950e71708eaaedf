//! Connections that die, are taken over, or pause: no acknowledged byte is lost, and the upload
//! goes on at exactly what is stored.

use serde_json::json;

use crate::backend::Backend;
use crate::client::{Client, binary_frame};
use crate::content::{Content, Random};
use crate::server::{Setup, on_every_driver};

on_every_driver! {
    resets_at_random_offsets_lose_nothing,
    a_second_connection_takes_over,
    a_pause_is_a_close_and_a_resume,
}

fn resets_at_random_offsets_lose_nothing(setup: &Setup) {
    let server = setup.start();
    let backend = Backend::done();
    let mut random = Random(40);
    let content = Content::new(40, 6 * 1024 * 1024 + 777);
    let id = backend.ticket_kept(&server);
    let (mut acknowledged, mut sent) = (0, 0);
    for connection in 0.. {
        let mut client = Client::open(&server, &id, content.length_bytes);
        let file_pos = client.position;
        assert!(file_pos >= acknowledged, "{file_pos} below the acknowledged {acknowledged}");
        assert!(file_pos <= sent, "{file_pos} above the {sent} sent");
        if connection >= 12 {
            client.send_rest(content, || 400_000);
            client.finish();
            break;
        }
        let chunk_bytes = 1 + random.below(300_000);
        for _ in 0..random.below(4) {
            client.chunk(content.piece(client.position, chunk_bytes));
            if random.below(2) == 0 {
                client.chunk_ack();
            }
        }
        // Cut within a frame, sometimes within its header.
        acknowledged = client.acknowledged();
        let whole = content.piece(client.position, chunk_bytes);
        let part = binary_frame(&whole);
        let cut = random.below(part.len() as u64) as usize;
        client.raw(&part[..cut]);
        sent = sent.max(client.position + whole.len() as u64);
        client.reset();
    }
    content.assert_file(&backend.call(&id, 1).path());
    assert_eq!(backend.call_count(&id), 1);
}

fn a_second_connection_takes_over(setup: &Setup) {
    let server = setup.start();
    let backend = Backend::done();
    let content = Content::new(41, 4_000_000);
    let id = backend.ticket_kept(&server);
    let mut older = Client::open(&server, &id, content.length_bytes);
    for round in 0..6 {
        older.chunk(content.piece(older.position, 500_001));
        older.chunk_ack();
        let stored = older.position;
        let mut newer = Client::connect(&server);
        newer.request(&id, content.length_bytes, "x");
        assert_eq!(newer.conf(), stored, "round {round}");
        assert_eq!(older.assert_closed(4001), "taken over");
        newer.ack();
        older = newer;
    }
    older.send_rest(content, || 500_000);
    older.finish();
    content.assert_file(&backend.call(&id, 1).path());
}

fn a_pause_is_a_close_and_a_resume(setup: &Setup) {
    let server = setup.start();
    let backend = Backend::done();
    let content = Content::new(42, 3_000_000);
    let id = backend.ticket_kept(&server);
    for _ in 0..3 {
        let mut client = Client::open(&server, &id, content.length_bytes);
        let from = client.position;
        client.chunk(content.piece(from, 300_001));
        client.chunk(content.piece(client.position, 300_001));
        client.say("MsgPause", json!({ "Pause": true }));
        client.close(None);
        let mut client = Client::connect(&server);
        client.request(&id, content.length_bytes, "x");
        assert_eq!(client.conf(), from + 600_002, "what came before the close is stored");
        client.reset();
    }
    // A client that pauses and goes on without closing is not paused any more.
    let mut client = Client::open(&server, &id, content.length_bytes);
    client.say("MsgPause", json!({ "Pause": true }));
    client.send_rest(content, || 250_000);
    client.finish();
    content.assert_file(&backend.call(&id, 1).path());
}

#[test]
fn taken_over_in_the_middle_of_a_chunk() {
    let server = Setup::default().start();
    let backend = Backend::done();
    let content = Content::new(43, 9_000_000);
    let id = backend.ticket_kept(&server);
    let mut connections = Vec::new();
    for _ in 0..8 {
        let mut client = Client::open(&server, &id, content.length_bytes);
        let acknowledged = client.position;
        let frame = binary_frame(&content.piece(acknowledged, 900_000));
        client.raw(&frame[..700_000]);
        connections.push(client);
    }
    let mut last = Client::open(&server, &id, content.length_bytes);
    for mut older in connections {
        assert_eq!(older.assert_closed(4001), "taken over");
    }
    last.send_rest(content, || 700_000);
    last.finish();
    content.assert_file(&backend.call(&id, 1).path());
}

#[test]
fn the_newer_connection_wins_whichever_speaks_first() {
    let server = Setup::default().start();
    let backend = Backend::done();
    let content = Content::new(45, 100_000);
    let id = backend.ticket_kept(&server);
    let mut older = Client::connect(&server);
    let mut newer = Client::open(&server, &id, content.length_bytes);
    newer.chunk(content.piece(0, 10_000));
    newer.chunk_ack();
    older.request(&id, content.length_bytes, "x");
    assert_eq!(older.assert_closed(4001), "taken over");
    newer.send_rest(content, || 10_000);
    newer.finish();
    content.assert_file(&backend.call(&id, 1).path());
}

#[test]
fn taken_over_before_the_ack() {
    let server = Setup::default().start();
    let backend = Backend::done();
    let content = Content::new(44, 100_000);
    let id = backend.ticket_kept(&server);
    let mut first = Client::connect(&server);
    first.request(&id, content.length_bytes, "x");
    first.conf();
    let mut second = Client::connect(&server);
    second.request(&id, content.length_bytes, "x");
    second.conf();
    assert_eq!(first.assert_closed(4001), "taken over");
    second.ack();
    second.send_rest(content, || 10_000);
    second.finish();
}

#[test]
fn a_late_reconnect_hears_that_all_is_done() {
    let server = Setup::default().start();
    let backend = Backend::done();
    for (length, remove) in [(100_000, "true"), (100_000, "false"), (0, "true")] {
        let id = backend.ticket_with(&server, &[("removeFileWhenFinished", remove)]);
        Client::upload(&server, &id, Content::new(45, length), 50_000);
        for _ in 0..3 {
            let client = Client::open(&server, &id, length);
            assert_eq!(client.position, length);
            client.finish();
        }
        assert_eq!(backend.call_count(&id), 1);
    }
}

#[test]
fn a_browser_that_left_during_the_hand_over_comes_back() {
    let server = Setup::default().start();
    let (backend, gate) = Backend::gated();
    let content = Content::new(46, 300_000);
    let id = backend.ticket(&server);
    let mut client = Client::open(&server, &id, content.length_bytes);
    client.send_rest(content, || 100_000);
    backend.call(&id, 1);
    client.reset();
    // Back while the web app still works.
    let early = Client::open(&server, &id, content.length_bytes);
    assert_eq!(early.position, content.length_bytes);
    let mut taken_over = early;
    let waiting = Client::open(&server, &id, content.length_bytes);
    assert_eq!(taken_over.assert_closed(4001), "taken over");
    gate.open();
    waiting.finish();
    Client::open(&server, &id, content.length_bytes).finish();
    assert_eq!(backend.call_count(&id), 1);
}

#[test]
fn a_browser_may_leave_before_the_last_acknowledgement() {
    let server = Setup::default().start();
    let backend = Backend::done();
    for _ in 0..10 {
        let content = Content::new(47, 1_000_000);
        let id = backend.ticket_kept(&server);
        let mut client = Client::open(&server, &id, content.length_bytes);
        client.chunk(content.piece(0, content.length_bytes));
        client.reset();
        let mut client = Client::open(&server, &id, content.length_bytes);
        client.send_rest(content, || 100_000);
        client.finish();
        content.assert_file(&backend.call(&id, 1).path());
    }
}
