//! What an operator sets, seen from outside: time-outs, proxies, connections.

use crate::backend::{Answer, Backend};
use crate::client::{Client, Event};
use crate::content::Content;
use crate::http::Connection;
use crate::server::{Setup, wait_until};

const HEALTH: &str = "GET /incoming/0.1/health HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn an_idle_ticket_times_out() {
    let server = Setup::default().with_environment("INCOMING_IDLE_TIMEOUT", "5s").start();
    let backend = Backend::done();
    let content = Content::new(90, 100_000);
    // One that no browser has used, one whose browser has gone, one whose browser says nothing.
    let unused = backend.ticket(&server);
    let left = backend.ticket(&server);
    let mut client = Client::open(&server, &left, content.length_bytes);
    client.chunk(content.piece(0, 50_000));
    client.chunk_ack();
    client.reset();
    let silent = backend.ticket(&server);
    let mut client = Client::open(&server, &silent, content.length_bytes);
    client.chunk(content.piece(0, 50_000));
    client.chunk_ack();

    for (id, name) in [(&unused, ""), (&left, "it.bin"), (&silent, "it.bin")] {
        let call = backend.call(id, 1);
        assert_eq!(call.cancel_reason(), "upload timed out");
        assert_eq!(call.field("filenameFromBrowser"), name);
    }
    let event = client.receive();
    assert!(matches!(event, Event::Close(..) | Event::Lost), "{event:?}: never MsgError");
    for id in [&unused, &left, &silent] {
        server.wait_until_forgotten(id);
    }
    server.wait_without_files();
}

#[test]
fn an_app_that_hangs_is_called_again() {
    let server = Setup::default().with_environment("INCOMING_CALLBACK_TIMEOUT", "1s").start();
    let never = crate::backend::Gate::default();
    let closed = never.clone();
    let backend = Backend::scripted(move |call| {
        if call.attempt == 1 {
            closed.pass();
        }
        Answer::Done
    });
    let id = backend.ticket(&server);
    Client::upload(&server, &id, Content::new(91, 1000), 1000);
    // On a busy machine the second answer may come too late as well, and there is a third call.
    backend.call(&id, 2);
    never.open();
}

#[test]
fn an_app_that_forgets_to_finish_is_called_again() {
    let server = Setup::default().with_environment("INCOMING_FINISH_TIMEOUT", "1s").start();
    let content = Content::new(92, 1000);
    let backend = Backend::scripted(move |call| {
        content.assert_file(&call.path());
        if call.attempt == 1 { Answer::Wait } else { Answer::Done }
    });
    let id = backend.ticket(&server);
    Client::upload(&server, &id, content, 1000);
    assert_eq!(backend.call_count(&id), 2);
}

#[test]
fn backend_routes_may_be_opened_for_proxies() {
    let setup = Setup::default().with_environment("INCOMING_BACKEND_BEHIND_PROXY", "true");
    let server = setup.start();
    let target = "/incoming/0.1/backend/new_upload?signalFinishURL=http%3A%2F%2F127.0.0.1%3A9%2F";
    let headers = [("X-Forwarded-For", "192.0.2.1"), ("Via", "1.1 proxy")];
    assert_eq!(server.request("POST", target, &headers, "").status, 200);
}

#[test]
fn connections_beyond_the_limit_wait_for_their_turn() {
    let setup = Setup { cores: 1, ..Setup::default() };
    let server = setup.with_environment("INCOMING_CONNECTIONS_MAX", "4").start();
    let mut served: Vec<Client> = (0..4).map(|_| Client::connect(&server)).collect();
    let mut waiting = Connection::open(server.address);
    waiting.send(HEALTH);
    served.pop().unwrap().close(None);
    assert_eq!(waiting.response().status, 200);
    drop(waiting);
    for client in served {
        client.close(None);
    }
    wait_until("all places are free again", || server.get("/incoming/0.1/health").status == 200);
}
