//! What web apps with a key may ask and have, and what operators see and do.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::backend::{Answer, Backend};
use crate::client::Client;
use crate::content::Content;
use crate::http::{Connection, Response, URLENCODED, encode, request_bytes};
use crate::server::{Server, Setup, wait_until};

const UPLOADS: &str = "/incoming/0.1/backend/uploads";
const SHOP: &str = "key-of-the-shop-";
const PRESS: &str = "key-of-the-press";

/// A server whose web apps need keys. The second is what it reads them from.
fn start_with_keys(limits_of_shop: &str) -> (Server, Setup, TempDir) {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("keys.toml");
    let text = format!("[shop]\nkey = '{SHOP}'\n{limits_of_shop}\n[press]\nkey = '{PRESS}'\n");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let path = path.to_str().unwrap();
    let setup = Setup::default().with_environment("INCOMING_BACKEND_KEYS", path);
    (setup.start(), setup, temp)
}

fn get(server: &Server, key: &str, target: &str) -> Response {
    let bearer = format!("Bearer {key}");
    server.request("GET", target, &[("Authorization", &bearer)], "")
}

fn get_json(server: &Server, key: &str, target: &str) -> Value {
    let response = get(server, key, target);
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(response.header("Content-Type"), Some("application/json"));
    assert_eq!(response.header("Cache-Control"), Some("no-store"));
    serde_json::from_str(response.text()).expect("JSON")
}

fn post(server: &Server, key: &str, route: &str, form: &[(&str, &str)]) -> Response {
    let bearer = format!("Bearer {key}");
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", URLENCODED)];
    let target = format!("/incoming/0.1/backend/{route}");
    server.request("POST", &target, &headers, &encode(form))
}

fn ticket(server: &Server, key: &str, backend: &Backend, more: &[(&str, &str)]) -> String {
    let url = backend.url();
    let form = [&[("signalFinishURL", url.as_str())], more].concat();
    let response = post(server, key, "new_upload", &form);
    assert_eq!(response.status, 200, "{}", response.text());
    response.text().to_owned()
}

fn command(server: &Server, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_incoming"));
    command.args(arguments).arg("--storage-dir").arg(server.storage_dir());
    command.output().expect("runs")
}

fn said(server: &Server, arguments: &[&str]) -> String {
    let output = command(server, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn status(server: &Server, arguments: &[&str]) -> Value {
    serde_json::from_str(&said(server, &[&["status", "--json"], arguments].concat())).unwrap()
}

#[test]
fn a_web_app_sees_its_own_uploads_page_by_page() {
    let (server, _, _temp) = start_with_keys("");
    let backend = Backend::done();
    let mut ids: Vec<String> =
        (0..5).map(|_| ticket(&server, SHOP, &backend, &[("metadata", "a \"b\"")])).collect();
    let others = ticket(&server, PRESS, &backend, &[]);
    let begun = ids[0].clone();
    ids.sort();
    let mut client = Client::connect(&server);
    client.request(&begun, 100_000, "a.bin");
    client.conf();
    client.ack();
    client.chunk(vec![7; 60_000]);
    client.chunk_ack();

    let mut found = Vec::new();
    let mut target = format!("{UPLOADS}?limit=2");
    loop {
        let page = get_json(&server, SHOP, &target);
        assert_eq!(page["totals"]["issued"], 4);
        assert_eq!(page["totals"]["receiving"], 1);
        assert_eq!(page["totals"]["failed"], 0);
        assert_eq!(page.get("cores"), None, "that is the operator's business");
        let uploads = page["uploads"].as_array().unwrap();
        found.extend(uploads.iter().map(|it| it["id"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        assert_eq!(next, found.last().unwrap());
        target = format!("/incoming/backend/uploads?limit=2&after={next}");
    }
    assert_eq!(found, ids);

    let page = get_json(&server, SHOP, &format!("{UPLOADS}?state=receiving,failed"));
    assert_eq!(page["uploads"].as_array().unwrap().len(), 1);
    let upload = get_json(&server, SHOP, &format!("{UPLOADS}/{begun}"));
    assert_eq!(page["uploads"][0]["id"], upload["id"]);
    for (name, value) in [
        ("id", Value::from(begun.as_str())),
        ("state", "receiving".into()),
        ("length_bytes", 100_000.into()),
        ("received_bytes", 60_000.into()),
        ("committed_bytes", 60_000.into()),
        ("connected", true.into()),
        ("attempts", 0.into()),
        ("last_error", Value::Null),
        ("next_attempt_in_ms", Value::Null),
        ("filename_from_browser", "a.bin".into()),
        ("metadata", "a \"b\"".into()),
        ("remove_when_finished", true.into()),
        ("key", "shop".into()),
    ] {
        assert_eq!(upload[name], value, "{name} of {upload}");
    }
    assert!(upload["rate_bytes_per_s"].as_u64().unwrap() > 0, "{upload}");
    assert!(upload["expires_in_ms"].as_u64().unwrap() > 0);

    let unknown = get(&server, SHOP, &format!("{UPLOADS}/{others}"));
    unknown.assert(404, "{\"error\":\"id unknown\"}");
    let wrong = get(&server, SHOP, &format!("{UPLOADS}?after=x"));
    assert_eq!(wrong.status, 400);
    assert!(wrong.text().contains("after invalid"), "{}", wrong.text());
    let mut connection = Connection::open(server.address);
    let bearer = format!("Bearer {SHOP}");
    for target in [UPLOADS.to_owned(), format!("{UPLOADS}/{begun}")] {
        connection.send(request_bytes("HEAD", &target, &[("Authorization", &bearer)], ""));
        assert_eq!(connection.response_head().status, 200);
    }

    client.chunk(vec![8; 40_000]);
    client.chunk_ack();
    client.finish();
    let upload = get_json(&server, SHOP, &format!("{UPLOADS}/{begun}"));
    assert_eq!(
        (&upload["state"], &upload["committed_bytes"]),
        (&"finished".into(), &100_000.into())
    );
}

#[test]
fn a_web_app_needs_a_key_and_has_no_others_tickets() {
    let (server, _, _temp) = start_with_keys("");
    let backend = Backend::done();
    let id = ticket(&server, SHOP, &backend, &[("backendSecret", "s")]);
    let form = [("id", id.as_str()), ("backendSecret", "s")];
    for route in ["new_upload", "cancel_upload", "finish_upload", "retry_upload"] {
        for key in ["", "key-of-the-shot-"] {
            let refused = post(&server, key, route, &form);
            assert_eq!((refused.status, refused.header("WWW-Authenticate")), (401, Some("Bearer")));
        }
    }
    for route in ["cancel_upload", "finish_upload", "retry_upload"] {
        post(&server, PRESS, route, &form).assert(400, "id unknown");
    }
    assert_eq!(get(&server, "", UPLOADS).status, 401);
    // Browsers need none.
    Client::upload(&server, &id, Content::new(130, 1000), 1000);
    post(&server, SHOP, "finish_upload", &form).assert(200, "ok");

    let open = Setup::default().start();
    let refused = open.get(UPLOADS);
    assert_eq!(refused.status, 403);
    assert!(refused.text().contains("set backend_keys"), "{}", refused.text());
}

#[test]
fn a_key_may_have_so_many_tickets_and_bytes() {
    let (mut server, setup, _temp) = start_with_keys("quota = '1MiB'\ntickets_max = 3");
    let backend = Backend::done();
    let ids = [0, 1, 2].map(|_| ticket(&server, SHOP, &backend, &[]));
    let url = [("signalFinishURL", "http://127.0.0.1:9/")];
    let refused = post(&server, SHOP, "new_upload", &url);
    assert_eq!(refused.status, 429, "{}", refused.text());
    assert!(refused.header("Retry-After").is_some());
    ticket(&server, PRESS, &backend, &[]);

    let message = "Too much is being uploaded for this web app now";
    let refused = |server: &Server, id: &str, length_bytes| {
        let mut client = Client::connect(server);
        client.request(id, length_bytes, "it.bin");
        client.finish_with_error(303, message);
    };
    let first = Content::new(131, 700_000);
    let mut client = Client::open(&server, &ids[0], first.length_bytes);
    client.chunk(first.piece(0, 300_000));
    client.chunk_ack();
    refused(&server, &ids[1], 400_000);
    // The ticket is good for a smaller file, which counts as declared before a byte has come.
    drop(Client::open(&server, &ids[1], 300_000));
    refused(&server, &ids[2], 100_000);
    // All of that holds after a restart.
    server.signal(Signal::KILL);
    server.exit_status();
    let server = server.start_again(&setup);
    assert_eq!(post(&server, SHOP, "new_upload", &url).status, 429);
    refused(&server, &ids[2], 100_000);

    let mut client = Client::open(&server, &ids[0], first.length_bytes);
    client.send_rest(first, || 100_000);
    client.finish();
    Client::upload(&server, &ids[2], Content::new(132, 600_000), 100_000);
    assert_eq!(post(&server, SHOP, "cancel_upload", &[("id", &ids[1])]).status, 200);
    // Nothing is left under way: everything may be had again.
    let again = [0, 1, 2].map(|_| ticket(&server, SHOP, &backend, &[]));
    Client::upload(&server, &again[0], Content::new(133, 1 << 20), 100_000);
    assert_eq!(post(&server, SHOP, "new_upload", &url).status, 200);
}

#[test]
fn tickets_from_before_keys_can_still_be_finished() {
    let mut server = Setup::default().start();
    let backend = Backend::scripted(|_| Answer::Wait);
    let id = backend.ticket_with(&server, &[("backendSecret", "s")]);
    let content = Content::new(134, 1000);
    let mut client = Client::open(&server, &id, content.length_bytes);
    client.send_rest(content, || 1000);
    backend.call(&id, 1);
    server.signal(Signal::TERM);
    server.exit_status();
    let (_, setup, _temp) = start_with_keys("");
    let server = server.start_again(&setup);
    let form = [("id", id.as_str()), ("backendSecret", "s")];
    wait_until("it is finished", || post(&server, SHOP, "finish_upload", &form).status == 200);
    assert_eq!(get_json(&server, SHOP, UPLOADS)["uploads"], Value::Array(Vec::new()));
}

#[test]
fn an_operator_sees_what_failed_and_has_it_told_again() {
    let server = Setup::default().with_environment("INCOMING_REFUSALS_MAX", "1").start();
    let backend = Backend::scripted(|call| {
        if call.attempt == 1 { Answer::Status(404, "not \u{1b}[2Jthere") } else { Answer::Done }
    });
    let content = Content::new(135, 2000);
    let failed: Vec<String> = (0..3)
        .map(|_| {
            let id = backend.ticket_kept(&server);
            let mut client = Client::open(&server, &id, content.length_bytes);
            client.send_rest(content, || 2000);
            client
                .finish_with_error(400, "File was received, but the web app could not take it yet");
            id
        })
        .collect();
    let issued = backend.ticket(&server);

    let all = status(&server, &[]);
    assert_eq!(all["pid"], server.process_id());
    assert_eq!(all["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(all["listen"][0], server.address.to_string());
    assert_eq!((&all["totals"]["failed"], &all["totals"]["issued"]), (&3.into(), &1.into()));
    assert_eq!(all["cores"].as_array().unwrap().len(), 2);
    assert_eq!(all["uploads"].as_array().unwrap().len(), 4);
    assert!(all["storage_free_bytes"].as_u64().unwrap() > 0);
    let one = status(&server, &[&failed[0]]);
    let upload = &one["uploads"][0];
    assert_eq!((&upload["id"], &upload["state"]), (&failed[0].as_str().into(), &"failed".into()));
    assert_eq!((&upload["attempts"], &upload["refusals"]), (&1.into(), &1.into()));
    assert!(upload["last_error"].as_str().unwrap().contains("404"), "{upload}");

    let table = said(&server, &["status", "--state", "failed"]);
    assert!(table.contains("uploads: 3 failed, 1 issued; "), "{table}");
    for id in &failed {
        assert!(table.lines().any(|it| it.starts_with(&format!("{id} failed "))), "{table}");
    }
    assert!(!table.contains(&issued) && !table.contains('\u{1b}'), "{table}");
    let text = said(&server, &["status", &issued]);
    assert!(text.contains(&issued) && text.contains("state                  issued\n"), "{text}");

    assert_eq!(said(&server, &["retry", &failed[0]]), "1 upload is handed over again\n");
    backend.call(&failed[0], 2);
    wait_until("the web app has it", || status(&server, &[])["totals"]["finished"] == 1);
    assert_eq!(said(&server, &["retry", "--all"]), "2 uploads are handed over again\n");
    failed.iter().for_each(|id| drop(backend.call(id, 2)));
    wait_until("the web app has all", || status(&server, &[])["totals"]["finished"] == 3);
    assert_eq!(said(&server, &["retry", "--all"]), "0 uploads are handed over again\n");
    failed.iter().for_each(|id| content.assert_file(&backend.call(id, 2).path()));

    for (arguments, told) in [
        (["retry", issued.as_str()], "nothing to retry"),
        (["retry", "00112233-4455-6677-8899-aabbccddeeff"], "there is no upload with this id"),
        (["status", "00112233-4455-6677-8899-aabbccddeeff"], "there is no upload with this id"),
        (["status", "--state=done"], "state invalid"),
    ] {
        let output = command(&server, &arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains(told), "{error}");
    }
}
