//! `new_upload`, `cancel_upload`, `finish_upload`: parameters, errors, order of the checks.

use std::os::unix::fs::MetadataExt;

use crate::backend::Backend;
use crate::client::Client;
use crate::content::Content;
use crate::http::{Response, encode};
use crate::server::{Server, Setup};

const NEW: &str = "/incoming/0.1/backend/new_upload";
const CANCEL: &str = "/incoming/0.1/backend/cancel_upload";
const FINISH: &str = "/incoming/0.1/backend/finish_upload";
const RETRY: &str = "/incoming/0.1/backend/retry_upload";
const URL: &str = "http://127.0.0.1:9/hand_over";

fn assert_ticket(response: &Response) -> String {
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(response.header("Content-Type"), Some("text/plain; charset=utf-8"));
    assert_eq!(response.header("Content-Length"), Some("36"));
    let id = response.text();
    for (index, byte) in id.bytes().enumerate() {
        match index {
            8 | 13 | 18 | 23 => assert_eq!(byte, b'-'),
            14 => assert_eq!(byte, b'4', "version 4: {id}"),
            19 => assert!(matches!(byte, b'8'..=b'b'), "the RFC 9562 variant: {id}"),
            _ => assert!(byte.is_ascii_digit() || matches!(byte, b'a'..=b'f'), "{id}"),
        }
    }
    id.to_owned()
}

/// Whether a ticket's secret is this one, seen from outside: a wrong one answers 403.
fn secret_is(server: &Server, id: &str, secret: &str) -> bool {
    let response = server.post(FINISH, &[("id", id), ("backendSecret", secret)]);
    match response.status {
        412 => true,
        403 => false,
        other => panic!("{other} {}", response.text()),
    }
}

#[test]
fn tickets_are_random_uuids() {
    let server = Setup::default().start();
    let ids: Vec<String> =
        (0..20).map(|_| assert_ticket(&server.post(NEW, &[("signalFinishURL", URL)]))).collect();
    for (index, id) in ids.iter().enumerate() {
        assert!(!ids[..index].contains(id));
    }
}

#[test]
fn parameters_come_by_query_form_and_multipart() {
    let server = Setup::default().start();
    let form = [("signalFinishURL", URL), ("backendSecret", "s &=+%é"), ("unknown", "x")];
    let query = format!("{NEW}?{}", encode(&form));

    let by_query = assert_ticket(&server.request("POST", &query, &[], ""));
    let by_form = assert_ticket(&server.post(NEW, &form));
    let parts: String = form
        .iter()
        .map(|(name, value)| {
            format!("--xYz\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
        })
        .collect();
    let body = format!("{parts}--xYz--\r\n");
    let by_multipart = assert_ticket(&server.request(
        "POST",
        NEW,
        &[("Content-Type", "multipart/form-data; boundary=xYz")],
        &body,
    ));
    let quoted = assert_ticket(&server.request(
        "POST",
        NEW,
        &[("Content-Type", "Multipart/Form-Data; charset=utf-8; boundary=\"xYz\"")],
        &body,
    ));
    for id in [by_query, by_form, by_multipart, quoted] {
        assert!(secret_is(&server, &id, "s &=+%é"));
        assert!(!secret_is(&server, &id, "s"));
    }
}

#[test]
fn the_body_wins_over_the_query() {
    let server = Setup::default().start();
    let target =
        format!("{NEW}?{}", encode(&[("signalFinishURL", ""), ("backendSecret", "query")]));
    let form = [("signalFinishURL", URL), ("backendSecret", "body")];
    let id = assert_ticket(&server.post(&target, &form));
    assert!(secret_is(&server, &id, "body"));
    assert!(!secret_is(&server, &id, "query"));

    // What stands in one of them only counts as well.
    let target = format!("{NEW}?{}", encode(&[("backendSecret", "query")]));
    let id = assert_ticket(&server.post(&target, &[("signalFinishURL", URL)]));
    assert!(secret_is(&server, &id, "query"));
}

#[test]
fn json_is_not_a_form() {
    let server = Setup::default().start();
    let body = format!("{{\"signalFinishURL\": \"{URL}\"}}");
    let response = server.request("POST", NEW, &[("Content-Type", "application/json")], &body);
    assert_eq!(response.status, 400);
    assert!(response.text().starts_with("signalFinishURL invalid"), "{}", response.text());
}

#[test]
fn new_upload_names_the_first_wrong_parameter() {
    let server = Setup::default().start();
    for (form, prefix) in [
        (vec![], "signalFinishURL invalid:"),
        (vec![("signalFinishURL", "")], "signalFinishURL invalid:"),
        (vec![("signalFinishURL", "foo")], "signalFinishURL invalid:"),
        (vec![("signalfinishurl", URL)], "signalFinishURL invalid:"),
        (
            vec![("signalFinishURL", URL), ("removeFileWhenFinished", "yes")],
            "removeFileWhenFinished invalid:",
        ),
        (vec![("signalFinishURL", URL), ("fileOwnerUid", "bob")], "fileOwnerUid invalid:"),
        (vec![("signalFinishURL", URL), ("fileOwnerUid", "1.5")], "fileOwnerUid invalid:"),
        (
            vec![
                ("fileOwnerUid", "bob"),
                ("removeFileWhenFinished", "maybe"),
                ("signalFinishURL", "foo"),
            ],
            "signalFinishURL invalid:",
        ),
        (
            vec![
                ("fileOwnerUid", "bob"),
                ("removeFileWhenFinished", "maybe"),
                ("signalFinishURL", URL),
            ],
            "removeFileWhenFinished invalid:",
        ),
    ] {
        let response = server.post(NEW, &form);
        assert_eq!(response.status, 400, "{form:?}");
        assert_eq!(response.header("Content-Type"), Some("text/plain; charset=utf-8"));
        assert!(response.text().starts_with(prefix), "{form:?}: {}", response.text());
        assert!(!response.text().ends_with('\n'));
    }
}

#[test]
fn every_spelling_of_a_truth_value_counts() {
    let server = Setup::default().start();
    for value in "1 t T TRUE true True 0 f F FALSE false False".split(' ') {
        let form = [("signalFinishURL", URL), ("removeFileWhenFinished", value)];
        assert_ticket(&server.post(NEW, &form));
    }
    for value in ["tRUE", "on", "2", "-1", "true "] {
        let form = [("signalFinishURL", URL), ("removeFileWhenFinished", value)];
        assert_eq!(server.post(NEW, &form).status, 400, "{value}");
    }
}

#[test]
fn any_dest_type_is_accepted() {
    let server = Setup::default().start();
    for value in ["", "file", "ceph"] {
        assert_ticket(&server.post(NEW, &[("signalFinishURL", URL), ("destType", value)]));
    }
}

#[test]
fn all_check_id_then_secret_then_state() {
    let server = Setup::default().start();
    let backend = Backend::done();
    let id = backend.ticket_with(&server, &[("backendSecret", "s3cret")]);
    for target in [CANCEL, FINISH, RETRY] {
        server.post(target, &[]).assert(400, "id not given");
        server.post(target, &[("id", "")]).assert(400, "id not given");
        server.post(target, &[("backendSecret", "s3cret")]).assert(400, "id not given");
        for unknown in ["x", "00000000-0000-4000-8000-000000000000", &id[1..], &format!("{id} ")] {
            server.post(target, &[("id", unknown)]).assert(400, "id unknown");
        }
        let wrong = "backendSecret not given or wrong";
        server.post(target, &[("id", &id)]).assert(403, wrong);
        server.post(target, &[("id", &id), ("backendSecret", "")]).assert(403, wrong);
        server.post(target, &[("id", &id), ("backendSecret", "S3cret")]).assert(403, wrong);
    }
    let form = [("id", id.as_str()), ("backendSecret", "s3cret")];
    server.post(FINISH, &form).assert(412, "uploader is not in 'handing over' state");
    let by_query = format!("{CANCEL}?{}", encode(&form));
    server.request("POST", &by_query, &[], "").assert(200, "ok");
    server.post(CANCEL, &form).assert(200, "ok");
    server.post(FINISH, &form).assert(412, "uploader is not in 'handing over' state");
    server
        .post(RETRY, &form)
        .assert(412, "nothing to retry: no hand-over of this upload has failed");
    assert_eq!(backend.call_count(&id), 0, "cancel_upload never causes a callback");
}

#[test]
fn an_empty_secret_is_a_secret() {
    let server = Setup::default().start();
    let id = Backend::done().ticket(&server);
    let wrong = "backendSecret not given or wrong";
    server.post(CANCEL, &[("id", &id), ("backendSecret", "x")]).assert(403, wrong);
    server.post(CANCEL, &[("id", &id)]).assert(200, "ok");
}

#[test]
fn ids_are_the_same_in_upper_case() {
    let server = Setup::default().start();
    let backend = Backend::done();
    let id = backend.ticket(&server);
    Client::upload(&server, &id.to_uppercase(), Content::new(1, 1000), 300);
    assert_eq!(backend.call(&id, 1).field("id"), id);
    let id = backend.ticket(&server);
    server.post(CANCEL, &[("id", &id.to_uppercase())]).assert(200, "ok");
}

#[test]
fn the_older_generation_of_the_api_works() {
    let server = Setup::default().start();
    let backend = Backend::scripted(|_| crate::backend::Answer::Wait);
    let form = [("signalFinishURL", backend.url()), ("signalFinishSecret", "old".to_owned())];
    let form: Vec<(&str, &str)> = form.iter().map(|it| (it.0, it.1.as_str())).collect();
    let id = assert_ticket(&server.post("/incoming/backend/new_upload", &form));
    let mut client = Client::open(&server, &id, 10);
    client.send_rest(Content::new(2, 10), || 10);
    let call = backend.call(&id, 1);
    assert_eq!((call.field("secret"), call.field("backendSecret")), ("old", "old"));

    let finish = "/incoming/backend/finish_upload";
    let wrong = "backendSecret not given or wrong";
    server.post(finish, &[("id", &id), ("backendSecret", "new")]).assert(403, wrong);
    // `wait` may still be on its way: then the answer is 412, and the web app asks again.
    crate::server::wait_until("finish_upload without a secret is accepted", || {
        server.post(finish, &[("id", &id)]).status == 200
    });
    client.finish();

    let id = assert_ticket(&server.post("/incoming/backend/new_upload", &form));
    let form = [("id", id.as_str()), ("secret", "old")];
    server.post("/incoming/backend/cancel_upload", &form).assert(200, "ok");
}

#[test]
fn callbacks_say_everything() {
    let server = Setup::default().start();
    let backend = Backend::done();
    let form = [("backendSecret", "s &=+%é"), ("removeFileWhenFinished", "0")];
    let id = backend.ticket_with(&server, &form);
    let content = Content::new(3, 70_000);
    let name = "../../été \u{1f600} <b>&\"'\\\u{1}x.tar.gz";
    let mut client = Client::connect(&server);
    client.request(&id, content.length_bytes, name);
    client.conf();
    client.ack();
    client.send_rest(content, || 33_333);
    client.finish();
    let call = backend.call(&id, 1);
    assert_eq!(call.target, "/api/backend/hand_over_upload");
    assert_eq!(call.field("backendSecret"), "s &=+%é");
    assert_eq!(call.field("secret"), "s &=+%é");
    assert_eq!(call.field("cancelled"), "no");
    assert_eq!(call.field("cancelReason"), "");
    assert_eq!(call.field("filenameFromBrowser"), name);
    let path = call.path();
    assert!(path.is_absolute());
    assert!(path.starts_with(server.storage_dir().canonicalize().unwrap()));
    content.assert_file(&path);
}

#[test]
fn the_query_of_the_callback_url_is_kept() {
    let server = Setup::default().start();
    let backend = Backend::done();
    let url = format!("{}?app=1&x=%20y", backend.url());
    let id = assert_ticket(&server.post(NEW, &[("signalFinishURL", &url)]));
    Client::upload(&server, &id, Content::new(4, 5), 5);
    assert_eq!(backend.call(&id, 1).target, "/api/backend/hand_over_upload?app=1&x=%20y");
}

#[test]
fn files_have_the_mode_and_owner_of_their_app() {
    let server = Setup::default().start();
    let backend = Backend::scripted(|call| {
        let mode = call.path().metadata().expect("metadata").mode() & 0o7777;
        let uid = call.path().metadata().expect("metadata").uid();
        assert_eq!(
            (mode, uid),
            match call.field("backendSecret") {
                "removed" => (0o644, rustix::process::getuid().as_raw()),
                _ => (0o770, 1234),
            }
        );
        crate::backend::Answer::Done
    });
    assert!(rustix::process::getuid().is_root(), "run this as root: it gives files away");
    let removed = backend.ticket_with(&server, &[("backendSecret", "removed")]);
    let form = [("removeFileWhenFinished", "false"), ("fileOwnerUid", "1234")];
    let kept = backend.ticket_with(&server, &form);
    for id in [&removed, &kept] {
        Client::upload(&server, id, Content::new(5, 10_000), 10_000);
    }
    let path = backend.call(&removed, 1).path();
    crate::server::wait_until("the file of a finished upload is removed", || !path.exists());
    assert!(backend.call(&kept, 1).path().exists());
}
