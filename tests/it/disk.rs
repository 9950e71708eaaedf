//! A disk that is full or broken: nothing acknowledged is lost, and the browser comes back until
//! there is no hope.

use std::path::Path;

use serde_json::json;

use crate::backend::Backend;
use crate::client::{Client, Event};
use crate::content::Content;
use crate::server::{Driver, Place, Setup, on_every_driver};

on_every_driver! { a_broken_disk_ends_the_upload_at_the_third_time }

#[test]
fn a_full_disk_is_waited_for() {
    assert!(rustix::process::getuid().is_root(), "run this as root: it mounts a small tmpfs");
    for driver in [Driver::Monoio, Driver::MonoioRefused, Driver::TokioUring] {
        let within = Some(on_sixteen_mebibytes as fn(&Path) -> Vec<String>);
        let setup = Setup { within, ..Setup::new(driver, Place::Disk) };
        let server = setup.with_environment("INCOMING_RESERVE", "0B").start();
        let backend = Backend::done();
        let content = Content::new(100, 6_000_000);
        let id = backend.ticket_kept(&server);
        let mut client = Client::open(&server, &id, content.length_bytes);
        // It fitted. Then somebody else came.
        let filler = server.seen_by_server(&server.storage_dir().join("filler"));
        std::fs::write(&filler, vec![1; 5_000_000]).unwrap();

        let mut acknowledged = 0;
        // Full is not broken: however often it is tried, the upload stays.
        for attempt in 0..5 {
            if attempt > 0 {
                client = Client::open(&server, &id, content.length_bytes);
            }
            assert!(client.position >= acknowledged, "{} < {acknowledged}", client.position);
            let event = send_until_refused(&mut client, content);
            assert!(matches!(event, Event::Close(Some(1013), _)), "{event:?}");
            acknowledged = client.acknowledged();
        }
        assert!(acknowledged > 0);

        std::fs::remove_file(&filler).unwrap();
        let mut client = Client::open(&server, &id, content.length_bytes);
        assert!(client.position >= acknowledged);
        client.send_rest(content, || 500_000);
        client.finish();
        content.assert_file(&server.seen_by_server(&backend.call(&id, 1).path()));
    }
}

#[test]
fn a_ticket_needs_room() {
    assert!(rustix::process::getuid().is_root(), "run this as root: it mounts a small tmpfs");
    let within = Some(on_sixteen_mebibytes as fn(&Path) -> Vec<String>);
    let server = Setup { within, ..Setup::default() }.start();
    let url = Backend::done().url();
    let form = [("signalFinishURL", url.as_str())];
    let answer = server.post("/incoming/0.1/backend/new_upload", &form);
    assert_eq!(answer.status, 507, "less than the reserve is free");
    assert_eq!(answer.text(), "the disk is full: no new uploads before there is room");
}

fn a_broken_disk_ends_the_upload_at_the_third_time(setup: &Setup) {
    let within = Some(with_files_of_one_mebibyte as fn(&Path) -> Vec<String>);
    let server = Setup { within, ..setup.clone() }.start();
    let backend = Backend::done();
    let content = Content::new(101, 3_000_000);
    let id = backend.ticket(&server);
    let mut acknowledged = 0;
    for attempt in 1..=3 {
        let mut client = Client::open(&server, &id, content.length_bytes);
        assert!(client.position >= acknowledged, "{} < {acknowledged}", client.position);
        let event = send_until_refused(&mut client, content);
        acknowledged = client.acknowledged();
        if attempt < 3 {
            assert!(matches!(event, Event::Close(Some(1011), _)), "{event:?}");
            continue;
        }
        let text = "Error while consuming file chunk: storage error";
        let data = json!({ "ErrorCode": 200, "Msg": text });
        assert_eq!(event, Event::Message { kind: "MsgError".to_owned(), data });
        client.assert_closed(1000);
    }
    assert_eq!(backend.call(&id, 1).cancel_reason(), "storage error");
    assert_eq!(server.upload_files().len(), 1, "the file stays for the operator");
    server.wait_until_cancelled(&id);

    // What fits is still stored.
    let small = Content::new(102, 500_000);
    let id = backend.ticket_kept(&server);
    Client::upload(&server, &id, small, 100_000);
    small.assert_file(&backend.call(&id, 1).path());
}

/// Sends the rest of a file, a chunk at a time, until something else comes than its
/// acknowledgement.
fn send_until_refused(client: &mut Client, content: Content) -> Event {
    while client.position < content.length_bytes {
        client.chunk(content.piece(client.position, 400_000));
        if let Err(event) = client.try_chunk_ack() {
            return event;
        }
    }
    panic!("all of it was stored");
}

/// A file system of its own for the storage directory. Half goes to the journal.
pub fn on_sixteen_mebibytes(storage_dir: &Path) -> Vec<String> {
    let script = format!(
        "mount -t tmpfs -o size=16m tmpfs '{}' && exec \"$0\" \"$@\"",
        storage_dir.display()
    );
    ["unshare", "--mount", "sh", "-c", &script].map(str::to_owned).into()
}

/// Writes beyond the first MiB of a file fail. The unit of `ulimit -f` is 512 bytes.
fn with_files_of_one_mebibyte(_: &Path) -> Vec<String> {
    ["sh", "-c", "trap '' XFSZ && ulimit -f 2048 && exec \"$0\" \"$@\""].map(str::to_owned).into()
}
