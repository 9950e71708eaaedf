//! Cancelled from either side, in every phase.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::backend::{Answer, Backend};
use crate::client::{Client, binary_frame};
use crate::content::Content;
use crate::server::{Server, Setup, on_every_driver};

const CANCEL: &str = "/incoming/0.1/backend/cancel_upload";
const CANCELLED: &str =
    "Error while consuming file chunk: upload is in no state for this. might be cancelled.";

on_every_driver! {
    the_browser_cancels_in_every_phase,
    the_backend_cancels_in_every_phase,
}

/// Everybody hears that it is cancelled, and nothing of it is left on the disk.
fn assert_gone(server: &Server, id: &str) {
    server.wait_until_cancelled(id);
    server.wait_without_files();
}

fn the_browser_cancels_in_every_phase(setup: &Setup) {
    let server = setup.start();
    let backend = Backend::done();
    let content = Content::new(50, 1_000_000);
    for (phase, reason) in
        ["changed my mind", "", "été <&>", "\"x\\\n", "5"].into_iter().enumerate()
    {
        let id = backend.ticket(&server);
        let mut client = Client::connect(&server);
        client.request(&id, content.length_bytes, "name");
        client.conf();
        match phase {
            0 => {}
            1 => client.ack(),
            2 => {
                client.ack();
                client.chunk(content.piece(0, 400_001));
                client.chunk_ack();
            }
            3 => {
                client.ack();
                for _ in 0..4 {
                    client.chunk(content.piece(client.position, 200_000));
                }
            }
            _ => {
                client.ack();
                client.chunk(content.piece(0, 999_999));
                client.say("MsgPause", json!({ "Pause": true }));
            }
        }
        client.cancel(reason);
        client.finish_cancelled();
        let call = backend.call(&id, 1);
        assert_eq!(call.cancel_reason(), reason, "phase {phase}");
        assert_eq!(call.field("filenameFromBrowser"), "name");
        assert_gone(&server, &id);
        assert_eq!(backend.call_count(&id), 1);
    }
}

fn the_backend_cancels_in_every_phase(setup: &Setup) {
    let server = setup.start();
    let backend = Backend::done();
    let content = Content::new(51, 1_000_000);
    // No browser has come yet.
    let id = backend.ticket(&server);
    server.post(CANCEL, &[("id", &id)]).assert(200, "ok");
    assert_gone(&server, &id);

    // The browser has been and gone.
    let id = backend.ticket(&server);
    let mut client = Client::open(&server, &id, content.length_bytes);
    client.chunk(content.piece(0, 400_001));
    client.chunk_ack();
    client.reset();
    server.post(CANCEL, &[("id", &id)]).assert(200, "ok");
    assert_gone(&server, &id);
    assert_eq!(backend.call_count(&id), 0, "cancel_upload never causes a callback");

    // The browser is in the handshake, where it does not expect MsgCancel.
    let id = backend.ticket(&server);
    let mut client = Client::connect(&server);
    client.request(&id, content.length_bytes, "x");
    client.conf();
    server.post(CANCEL, &[("id", &id)]).assert(200, "ok");
    client.finish_with_error(
        302,
        "Error while consuming file chunk: upload is in no state for this. might be cancelled.",
    );
    assert_gone(&server, &id);

    // The browser is there: before its first chunk, after one, within one.
    for phase in 0..3 {
        let id = backend.ticket(&server);
        let mut client = Client::open(&server, &id, content.length_bytes);
        if phase > 0 {
            client.chunk(content.piece(0, 300_001));
            client.chunk_ack();
        }
        client.sync();
        let whole = binary_frame(&content.piece(client.position, 300_000));
        let cut = if phase == 2 { 200_000 } else { 0 };
        client.raw(&whole[..cut]);
        server.post(CANCEL, &[("id", &id)]).assert(200, "ok");
        // The answer may have been lost.
        server.post(CANCEL, &[("id", &id)]).assert(200, "ok");
        let data = client.message("MsgCancel");
        let reason = data["Reason"].as_str().expect("a reason").to_owned();
        if phase == 2 {
            client.raw(&whole[cut..]);
            client.note_sent(300_000);
        }
        client.cancel(&reason);
        client.finish_cancelled();
        assert_gone(&server, &id);
        assert_eq!(backend.call_count(&id), 0, "phase {phase}");
    }
}

#[test]
fn a_library_that_has_sent_everything_is_told_of_the_backends_cancel() {
    let server = Setup::default().start();
    let id = Backend::done().ticket(&server);
    let mut client = Client::open(&server, &id, 500_000);
    let whole = binary_frame(&vec![1; 500_000]);
    client.raw(&whole[..200_000]);
    server.post(CANCEL, &[("id", &id)]).assert(200, "ok");
    client.message("MsgCancel");
    // The original library is deaf to it: the rest of its last chunk is under way.
    client.raw(&whole[200_000..]);
    client.finish_with_error(302, CANCELLED);
    assert_gone(&server, &id);
}

#[test]
fn chunks_that_cross_the_backends_cancel_are_no_error() {
    let server = Setup::default().start();
    let id = Backend::done().ticket(&server);
    let mut client = Client::open(&server, &id, 10_000_000);
    client.chunk(vec![1; 1000]);
    client.chunk_ack();
    server.post(CANCEL, &[("id", &id)]).assert(200, "ok");
    for _ in 0..4 {
        client.chunk(vec![2; 500_000]);
    }
    let data = client.message_after_acks("MsgCancel");
    client.cancel(data["Reason"].as_str().expect("a reason"));
    client.finish_cancelled();
    assert_gone(&server, &id);
}

#[test]
fn the_app_is_told_before_the_browser() {
    let server = Setup::default().start();
    let told = Arc::new(AtomicBool::new(false));
    let answered = Arc::clone(&told);
    let backend = Backend::scripted(move |_| {
        // A slow web app, not a wait for something.
        thread::sleep(Duration::from_millis(500));
        answered.store(true, Ordering::SeqCst);
        Answer::Done
    });
    let id = backend.ticket(&server);
    let mut client = Client::open(&server, &id, 1000);
    client.cancel("later");
    client.message("MsgCancelAck");
    assert!(told.load(Ordering::SeqCst), "MsgCancelAck comes after the web app's answer");
    client.assert_closed(1000);
}

#[test]
fn an_app_that_is_away_does_not_keep_the_browser_and_is_told_later() {
    let server = Setup::default().start();
    let backend = Backend::scripted(|call| match call.attempt {
        1 => Answer::Raw(""),
        _ => Answer::Done,
    });
    let id = backend.ticket(&server);
    let mut client = Client::open(&server, &id, 1000);
    client.chunk(vec![1; 999]);
    client.cancel("x");
    client.finish_cancelled();
    assert_eq!(backend.call(&id, 1).form, backend.call(&id, 2).form);
    server.wait_until_cancelled(&id);
    server.wait_without_files();
}

#[test]
fn what_the_app_says_to_a_cancellation_hardly_matters() {
    let server = Setup::default().start();
    for answer in [Answer::Status(200, "what?"), Answer::Status(404, "boom"), Answer::Wait] {
        let backend = Backend::scripted(move |_| answer.clone());
        let id = backend.ticket(&server);
        let mut client = Client::open(&server, &id, 1000);
        client.cancel("x");
        client.finish_cancelled();
        assert_gone(&server, &id);
        assert_eq!(backend.call_count(&id), 1);
    }
}

#[test]
fn it_is_too_late_once_the_file_is_handed_over() {
    let server = Setup::default().start();
    let (backend, gate) = Backend::gated();
    let content = Content::new(52, 100_000);
    let id = backend.ticket_kept(&server);
    let mut client = Client::open(&server, &id, content.length_bytes);
    client.send_rest(content, || 40_000);
    let path = backend.call(&id, 1).path();
    server.post(CANCEL, &[("id", &id)]).assert(412, "too late to cancel");
    // What the browser says now is read and not answered.
    client.cancel("too late");
    client.say("MsgPause", json!({ "Pause": true }));
    client.raw(&binary_frame(b"even this"));
    gate.open();
    client.finish();
    server.post(CANCEL, &[("id", &id)]).assert(412, "too late to cancel");
    content.assert_file(&path);
    assert_eq!(backend.call_count(&id), 1);
}
