//! The file goes to the web app: `done`, `wait`, failures, retries.

use std::net::SocketAddr;
use std::sync::{Arc, Barrier};
use std::thread;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use socket2::{Domain, Socket, Type};

use crate::backend::{Answer, Backend, Call, Gate};
use crate::client::Client;
use crate::content::Content;
use crate::server::{Server, Setup, on_every_driver, wait_until};

const FINISH: &str = "/incoming/0.1/backend/finish_upload";

on_every_driver! { an_app_that_waits_finishes_later }

fn finish_until_ok(server: &Server, form: &[(&str, &str)]) {
    // The web app's `wait` may still be on its way: then the answer is 412.
    wait_until("finish_upload is accepted", || {
        let response = server.post(FINISH, form);
        match response.status {
            200 => assert_eq!(response.text(), "ok"),
            status => assert_eq!((status, response.text()), (412, "no waiting handover routine")),
        }
        response.status == 200
    });
}

fn an_app_that_waits_finishes_later(setup: &Setup) {
    let server = setup.start();
    let backend = Backend::scripted(|_| Answer::Wait);
    for remove in ["true", "false"] {
        let content = Content::new(60, 1_234_567);
        let form = [("backendSecret", "s"), ("removeFileWhenFinished", remove)];
        let id = backend.ticket_with(&server, &form);
        let mut client = Client::open(&server, &id, content.length_bytes);
        client.send_rest(content, || 500_000);
        let path = backend.call(&id, 1).path();
        let wrong = "backendSecret not given or wrong";
        server.post(FINISH, &[("id", &id)]).assert(403, wrong);
        content.assert_file(&path);
        let form = [("id", id.as_str()), ("backendSecret", "s")];
        finish_until_ok(&server, &form);
        client.finish();
        // The answer may have been lost.
        server.post(FINISH, &form).assert(200, "ok");
        let late = "too late to cancel";
        server.post("/incoming/0.1/backend/cancel_upload", &form).assert(412, late);
        if remove == "true" {
            wait_until("the file is removed", || !path.exists());
        } else {
            content.assert_file(&path);
        }
        assert_eq!(backend.call_count(&id), 1);
    }
}

#[test]
fn a_browser_may_leave_while_the_app_waits() {
    let server = Setup::default().start();
    let backend = Backend::scripted(|_| Answer::Wait);
    let content = Content::new(61, 10_000);
    for back in [true, false] {
        let id = backend.ticket(&server);
        let mut client = Client::open(&server, &id, content.length_bytes);
        client.send_rest(content, || 5000);
        backend.call(&id, 1);
        client.reset();
        let waiting = back.then(|| Client::open(&server, &id, content.length_bytes));
        finish_until_ok(&server, &[("id", &id)]);
        if let Some(waiting) = waiting {
            waiting.finish();
        }
        Client::open(&server, &id, content.length_bytes).finish();
    }
}

#[test]
fn finish_before_the_answer_is_412() {
    let server = Setup::default().start();
    let gate = Gate::default();
    let closed = gate.clone();
    let backend = Backend::scripted(move |_| {
        closed.pass();
        Answer::Wait
    });
    let id = backend.ticket(&server);
    let over = "uploader is not in 'handing over' state";
    server.post(FINISH, &[("id", &id)]).assert(412, over);
    let mut client = Client::open(&server, &id, 100);
    server.post(FINISH, &[("id", &id)]).assert(412, over);
    client.send_rest(Content::new(62, 100), || 100);
    backend.call(&id, 1);
    server.post(FINISH, &[("id", &id)]).assert(412, "no waiting handover routine");
    gate.open();
    finish_until_ok(&server, &[("id", &id)]);
    client.finish();
}

#[test]
fn a_callback_is_repeated_until_the_app_takes_the_file() {
    let server = Setup::default().start();
    let content = Content::new(63, 50_000);
    let script = move |call: &Call| {
        content.assert_file(&call.path());
        match call.attempt {
            1 => Answer::Status(500, "boom"),
            2 => Answer::Raw(""),
            _ => Answer::Status(200, "done\n"),
        }
    };
    let backend = Backend::scripted(script);
    let id = backend.ticket(&server);
    let mut client = Client::open(&server, &id, content.length_bytes);
    client.send_rest(content, || 50_000);
    // The browser stays connected, hears nothing of it, and then that all is done.
    client.finish();
    let calls: Vec<Call> = (1..=3).map(|attempt| backend.call(&id, attempt)).collect();
    assert!(calls.iter().all(|it| it.form == calls[0].form));
    assert!(calls.is_sorted_by(|one, next| one.attempt_said < next.attempt_said));
}

#[test]
fn callbacks_are_signed_with_the_secret_of_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    std::fs::write(&file, "a secret of 16 bytes or more\n").unwrap();
    let setup =
        Setup::default().with_environment("INCOMING_CALLBACK_SECRET_FILE", file.to_str().unwrap());
    let server = setup.start();
    let backend = Backend::done();
    let id = backend.ticket(&server);
    Client::upload(&server, &id, Content::new(68, 1000), 1000);
    let call = backend.call(&id, 1);
    let signature = call.signature.expect("it is signed");
    let (time, code) = signature.strip_prefix("t=").unwrap().split_once(",v1=").unwrap();
    let mut mac = Hmac::<Sha256>::new_from_slice(b"a secret of 16 bytes or more").unwrap();
    mac.update([time.as_bytes(), b".", &call.body].concat().as_slice());
    let expected: String =
        mac.finalize().into_bytes().iter().map(|it| format!("{it:02x}")).collect();
    assert_eq!(code, expected);
    assert!(!server.log().contains("16 bytes or more"));
}

#[test]
fn every_failure_of_the_app_is_tried_again() {
    let server = Setup::default().start();
    let content = Content::new(64, 1000);
    let threads: Vec<_> = [
        Answer::Status(201, "done"),
        Answer::Status(204, ""),
        Answer::Status(404, "done"),
        Answer::Status(503, "wait"),
        Answer::Status(200, "DONE!"),
        Answer::Status(200, "done done"),
        Answer::Status(200, ""),
        Answer::Raw("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\ndone"),
        Answer::Raw("HTTP/1.1 200 OK\r\nContent-Le"),
        Answer::Raw("SSH-2.0-OpenSSH\r\n"),
    ]
    .into_iter()
    .map(|first| {
        let backend =
            Backend::scripted(
                move |call| {
                    if call.attempt == 1 { first.clone() } else { Answer::Done }
                },
            );
        let id = backend.ticket(&server);
        let mut client = Client::open(&server, &id, content.length_bytes);
        client.send_rest(content, || 1000);
        thread::spawn(move || {
            client.finish();
            assert_eq!(backend.call_count(&id), 2);
        })
    })
    .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn every_form_of_done_is_understood() {
    let server = Setup::default().start();
    for answer in [
        Answer::Done,
        Answer::Status(200, "done\n"),
        Answer::Status(200, " done\r\n"),
        Answer::Raw("HTTP/1.0 200 OK\r\n\r\ndone"),
        Answer::Raw("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\ndone\n"),
        Answer::Raw(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\ndo\r\n2\r\nne\r\n0\r\n\r\n",
        ),
    ] {
        let backend = Backend::scripted(move |_| answer.clone());
        let id = backend.ticket(&server);
        Client::upload(&server, &id, Content::new(65, 1000), 1000);
        assert_eq!(backend.call_count(&id), 1);
    }
}

#[test]
fn an_app_that_comes_up_late_gets_its_file() {
    let server = Setup::default().start();
    // A port that nothing listens on for now, and that nobody else can take meanwhile.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let url = format!("http://{address}/api/backend/hand_over_upload");
    let response = server.post("/incoming/0.1/backend/new_upload", &[("signalFinishURL", &url)]);
    let id = response.text().to_owned();
    let content = Content::new(66, 1000);
    let mut client = Client::open(&server, &id, content.length_bytes);
    client.send_rest(content, || 1000);
    socket.listen(16).unwrap();
    let backend = Backend::on(socket.into(), |_| Answer::Done);
    client.finish();
    assert_eq!(backend.call(&id, 1).field("id"), id);
}

#[test]
fn two_callbacks_run_at_once() {
    let server = Setup::default().start();
    let both = Arc::new(Barrier::new(2));
    let meeting = Arc::clone(&both);
    let backend = Backend::scripted(move |_| {
        meeting.wait();
        Answer::Done
    });
    let content = Content::new(67, 1000);
    let clients: Vec<Client> = (0..2)
        .map(|_| {
            let id = backend.ticket(&server);
            let mut client = Client::open(&server, &id, content.length_bytes);
            client.send_rest(content, || 1000);
            client
        })
        .collect();
    for client in clients {
        client.finish();
    }
}

#[test]
fn a_slow_app_holds_up_nobody_else() {
    let server = Setup::default().start();
    let (slow, gate) = Backend::gated();
    let content = Content::new(68, 1000);
    let waiting: Vec<Client> = (0..12)
        .map(|_| {
            let id = slow.ticket(&server);
            let mut client = Client::open(&server, &id, content.length_bytes);
            client.send_rest(content, || 1000);
            client
        })
        .collect();
    let quick = Backend::done();
    let id = quick.ticket(&server);
    Client::upload(&server, &id, content, 1000);
    gate.open();
    for client in waiting {
        client.finish();
    }
}
