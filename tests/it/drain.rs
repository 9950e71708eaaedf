//! The end of a server: what is due is still said, what was acknowledged is kept, nothing waits for
//! those who do not answer.

use std::io::Write;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use crate::backend::Backend;
use crate::client::{Client, Event};
use crate::content::Content;
use crate::http::{Connection, URLENCODED, encode, request_bytes};
use crate::server::{Server, Setup, on_every_driver};

on_every_driver! {
    what_was_received_is_acknowledged_before_the_end,
    requests_under_way_are_answered,
}

const HEALTH: &str = "/incoming/0.1/health";

/// An upload that runs until the server sends its browser away. Returns how much it acknowledged.
fn upload_until_sent_away(server: &Server, id: &str, content: Content) -> u64 {
    let mut client = Client::open(server, id, content.length_bytes);
    loop {
        client.chunk(content.piece(client.position, CHUNK_BYTES));
        while client.in_flight_count() >= 4 {
            match client.try_chunk_ack() {
                Ok(()) => {}
                Err(Event::Close(Some(1001), _)) => return client.acknowledged(),
                Err(other) => panic!("{other:?} instead of MsgChunkAck or close 1001"),
            }
        }
    }
}

fn what_was_received_is_acknowledged_before_the_end(setup: &Setup) {
    let mut server = setup.start();
    let backend = Backend::done();
    // Nobody comes to its end before the signal.
    let contents: Vec<Content> = (0..4).map(|it| Content::new(200 + it, 512 << 20)).collect();
    let ids: Vec<String> = contents.iter().map(|_| backend.ticket(&server)).collect();
    let acknowledged: Vec<u64> = thread::scope(|scope| {
        let uploads: Vec<_> = contents
            .iter()
            .zip(&ids)
            .map(|(content, id)| scope.spawn(|| upload_until_sent_away(&server, id, *content)))
            .collect();
        thread::sleep(Duration::from_millis(300));
        server.signal(Signal::TERM);
        uploads.into_iter().map(|it| it.join().expect("no other end")).collect()
    });
    assert_eq!(server.exit_status().code(), Some(0));
    assert!(!server.log().contains("have not ended"), "{}", server.log());

    let server = server.start_again(setup);
    for ((id, content), acknowledged) in ids.iter().zip(&contents).zip(acknowledged) {
        let mut client = Client::open(&server, id, content.length_bytes);
        let file_pos = client.position;
        assert!(file_pos >= acknowledged, "{file_pos} is less than {acknowledged} acknowledged");
        let unsaid = file_pos - acknowledged;
        assert!(unsaid < CHUNK_BYTES, "a whole chunk was kept and not acknowledged: {unsaid}");
        content.assert_begins(&server.storage_dir().join("parts").join(id), file_pos);
        client.cancel("enough");
        client.finish_cancelled();
    }
}

fn requests_under_way_are_answered(setup: &Setup) {
    let setup = &Setup { cores: 1, ..setup.clone() };
    let mut server = setup.start();
    let backend = Backend::done();
    let id = backend.ticket(&server);
    let mut upload = Client::open(&server, &id, 1_000_000);
    upload.chunk(vec![0; 1000]);
    upload.chunk_ack();
    let health = request_bytes("GET", HEALTH, &[], "");
    let (head, rest) = health.split_at(10);
    let form = encode(&[("signalFinishURL", &backend.url())]);
    let fields = [("Content-Type", URLENCODED)];
    let wanted = request_bytes("POST", "/incoming/0.1/backend/new_upload", &fields, &form);
    let (wanted_head, wanted_rest) = wanted.split_at(wanted.len() - 5);

    let mut idle = Connection::open(server.address);
    idle.send(&health);
    assert_eq!(idle.response().status, 200);
    let mut half = Connection::open(server.address);
    half.send(head);
    let mut new = Connection::open(server.address);
    new.send(wanted_head);
    let mut silent = Connection::open(server.address);
    // All of them are accepted when this one is answered.
    assert_eq!(server.get(HEALTH).status, 200);
    server.signal(Signal::TERM);
    upload.assert_closed(1001);
    silent.send(&health);
    half.send(rest);
    for mut connection in [silent, half] {
        let response = connection.response();
        response.assert(503, "stopping");
        assert!(response.header_lists("connection", "close"));
        connection.assert_closed();
    }
    new.send(wanted_rest);
    let ticket = new.response();
    assert_eq!(ticket.status, 200, "{}", ticket.text());
    new.assert_closed();
    idle.assert_closed();
    assert_eq!(server.exit_status().code(), Some(0));

    let server = server.start_again(setup);
    let form = [("id", ticket.text())];
    server.post("/incoming/0.1/backend/cancel_upload", &form).assert(200, "ok");
}

#[test]
fn an_outcome_that_is_near_is_heard() {
    let mut server = Setup::default().start();
    let (backend, gate) = Backend::gated();
    let [first, other] = [backend.ticket(&server), backend.ticket(&server)];
    let mut client = Client::open(&server, &first, 1000);
    client.send_rest(Content::new(220, 1000), || 1000);
    backend.call(&first, 1);
    let mut sent_away = Client::open(&server, &other, 1000);
    server.signal(Signal::TERM);
    sent_away.assert_closed(1001);
    gate.open();
    client.finish();
    assert_eq!(server.exit_status().code(), Some(0));
    let server = server.start_again(&Setup::default());
    assert_eq!(server.get(HEALTH).status, 200);
    assert_eq!(backend.call_count(&first), 1, "it is finished");
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut server = Setup::default().start();
    let mut half = Connection::open(server.address);
    half.send("GET /incoming/0.1/heal");
    assert_eq!(server.get(HEALTH).status, 200);
    let backend = Backend::done();
    let id = backend.ticket(&server);
    let mut upload = Client::open(&server, &id, 1000);
    server.signal(Signal::TERM);
    // It has begun to end, and waits for the request.
    upload.assert_closed(1001);
    server.signal(Signal::TERM);
    assert_eq!(server.exit_status().code(), Some(128 + 15));
}

#[test]
fn who_does_not_answer_does_not_hold_it_up() {
    let mut server = Setup::default().start();
    let backend = Backend::done();
    let mut mute = Vec::new();
    for _ in 0..20 {
        let id = backend.ticket(&server);
        let mut client = Client::open(&server, &id, 1 << 30);
        client.chunk(vec![7; 100_000]);
        client.chunk_ack();
        mute.push(client);
    }
    let mut half = Connection::open(server.address);
    half.send("GET /incoming/0.1/heal");
    server.signal(Signal::TERM);
    assert_eq!(server.exit_status().code(), Some(0));
    assert!(!server.log().contains("have not ended"), "{}", server.log());
    for mut client in mute {
        assert!(matches!(client.receive(), Event::Close(Some(1001), _)));
    }
    // It is over: writing fails sooner or later.
    let _ = half.into_parts().0.write_all(b"th");
}

const CHUNK_BYTES: u64 = 300_000;
