//! Hand-overs that fail, and what becomes of them then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;

use crate::backend::{Answer, Backend};
use crate::client::Client;
use crate::content::Content;
use crate::restart::restart;
use crate::server::{Server, Setup, wait_until};

const CANCEL: &str = "/incoming/0.1/backend/cancel_upload";
const FINISH: &str = "/incoming/0.1/backend/finish_upload";
const RETRY: &str = "/incoming/0.1/backend/retry_upload";
const NOTHING: &str = "nothing to retry: no hand-over of this upload has failed";
const NOT_TAKEN: &str = "File was received, but the web app could not take it yet";
const LENGTH: u64 = 300_000;

fn content() -> Content {
    Content::new(210, LENGTH)
}

/// A web app that refuses everything until it is told to be good.
fn moody() -> (Backend, Arc<AtomicBool>) {
    let good = Arc::new(AtomicBool::new(false));
    let is_good = Arc::clone(&good);
    let backend = Backend::scripted(move |_| match is_good.load(Ordering::SeqCst) {
        true => Answer::Done,
        false => Answer::Status(404, "no such page"),
    });
    (backend, good)
}

/// A server that gives up after two refusals, and what it has given up.
fn given_up(setup: &Setup, backend: &Backend, form: &[(&str, &str)]) -> (Server, String) {
    let server = setup.start();
    let id = backend.ticket_with(&server, form);
    let mut client = Client::open(&server, &id, LENGTH);
    client.send_rest(content(), || 100_000);
    client.finish_with_error(400, NOT_TAKEN);
    assert_eq!(backend.call_count(&id), 2);
    (server, id)
}

fn setup() -> Setup {
    Setup::default().with_environment("INCOMING_REFUSALS_MAX", "2")
}

fn late_browser(server: &Server, id: &str, code: u16, text: &str) {
    let mut client = Client::connect(server);
    client.request(id, LENGTH, "x");
    client.finish_with_error(code, text);
}

#[test]
fn what_is_refused_is_kept_and_told_again_on_demand() {
    let (backend, good) = moody();
    let (server, id) = given_up(&setup(), &backend, &[("backendSecret", "s"), ("metadata", "a=b")]);
    let first = backend.call(&id, 1);
    let form = [("id", id.as_str()), ("backendSecret", "s")];
    server.post(RETRY, &[("id", &id)]).assert(403, "backendSecret not given or wrong");
    content().assert_file(&first.path());

    // Also by the next server, and by the one after it.
    let server = restart(server, &setup(), Signal::KILL);
    late_browser(&server, &id, 400, NOT_TAKEN);
    assert_eq!(backend.call_count(&id), 2, "it is not tried by itself");
    server.post(RETRY, &form).assert(200, "ok");
    backend.call(&id, 4);
    wait_until("it is given up again", || server.log().contains("everything is kept"));
    content().assert_file(&first.path());

    good.store(true, Ordering::SeqCst);
    wait_until("it is told again", || server.post(RETRY, &form).status == 200);
    let last = backend.call(&id, 5);
    assert_eq!((last.form, last.attempt_said), (first.form, 1));
    wait_until("the web app has it", || server.post(RETRY, &form).status == 412);
    Client::open(&server, &id, LENGTH).finish();
    server.wait_without_files();
}

#[test]
fn what_is_given_up_can_be_finished() {
    let (backend, _) = moody();
    let (server, id) = given_up(&setup(), &backend, &[("removeFileWhenFinished", "false")]);
    content().assert_file(&backend.call(&id, 1).path());
    server.post(FINISH, &[("id", &id)]).assert(200, "ok");
    server.post(FINISH, &[("id", &id)]).assert(200, "ok");
    server.post(RETRY, &[("id", &id)]).assert(412, NOTHING);
    server.post(CANCEL, &[("id", &id)]).assert(412, "too late to cancel");
    Client::open(&server, &id, LENGTH).finish();
    content().assert_file(&backend.call(&id, 1).path());
}

#[test]
fn what_is_given_up_can_be_thrown_away() {
    let (backend, _) = moody();
    let (server, id) = given_up(&setup(), &backend, &[("removeFileWhenFinished", "false")]);
    content().assert_file(&backend.call(&id, 1).path());
    server.post(CANCEL, &[("id", &id)]).assert(200, "ok");
    server.wait_without_files();
    server.post(CANCEL, &[("id", &id)]).assert(200, "ok");
    server.post(RETRY, &[("id", &id)]).assert(412, NOTHING);
    late_browser(&server, &id, 301, "upload already finished or cancelled");
    assert_eq!(backend.call_count(&id), 2);
}

/// Without that they would wait for an hour.
#[test]
fn the_first_success_brings_others_forward() {
    let server = Setup::default().start();
    let busy = "HTTP/1.1 503 Busy\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n";
    let backend =
        Backend::scripted(move |call| match (call.field("filenameFromBrowser"), call.attempt) {
            ("it.bin", 1) if call.field("metadata") == "late" => Answer::Raw(busy),
            _ => Answer::Done,
        });
    let waiting: Vec<String> = (0..5)
        .map(|_| {
            let id = backend.ticket_with(&server, &[("metadata", "late")]);
            let mut client = Client::open(&server, &id, LENGTH);
            client.send_rest(content(), || 100_000);
            backend.call(&id, 1);
            id
        })
        .collect();
    wait_until("all have been put off", || server.log().matches("could not be told").count() == 5);
    let id = backend.ticket_with(&server, &[("metadata", "now")]);
    Client::upload(&server, &id, content(), 100_000);
    for id in &waiting {
        assert_eq!(backend.call(id, 2).attempt_said, 2);
    }
}

#[test]
fn what_is_not_whole_in_its_time_is_cancelled() {
    let server = Setup::default().start();
    let backend = Backend::done();
    let unused = backend.ticket_with(&server, &[("expiresIn", "2")]);
    let begun = backend.ticket_with(&server, &[("expiresIn", "2")]);
    let whole =
        backend.ticket_with(&server, &[("expiresIn", "2"), ("removeFileWhenFinished", "false")]);
    Client::upload(&server, &whole, content(), 100_000);
    let mut client = Client::open(&server, &begun, LENGTH);
    client.chunk(content().piece(0, 100_000));
    client.chunk_ack();
    for id in [&unused, &begun] {
        assert_eq!(backend.call(id, 1).cancel_reason(), "upload expired");
        server.wait_until_cancelled(id);
    }
    content().assert_file(&backend.call(&whole, 1).path());
}
