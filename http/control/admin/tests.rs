//! The admin socket from both of its ends.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use tokio::sync::oneshot;

use super::*;

/// A socket that is served for as long as this lives.
struct Served {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

fn serve(storage_dir: &Path) -> Served {
    let socket = AdminSocket::bind(storage_dir).unwrap();
    let desk = Desk { listen: vec!["127.0.0.1:4000".parse().unwrap()], on_replace: None };
    let (stop, stopped) = oneshot::channel();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            tokio::select! {
                ended = desk.serve(socket) => ended.unwrap(),
                _ = stopped => {}
            }
        });
    });
    Served { stop: Some(stop), thread: Some(thread) }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

fn version() -> Value {
    json!({ "command": "version" })
}

#[test]
fn answers_line_by_line() {
    let temp = tempfile::tempdir().unwrap();
    let _served = serve(temp.path());
    let mut client = AdminClient::connect(temp.path()).unwrap();
    for _ in 0..2 {
        let answer = client.ask(&version()).unwrap();
        let expected = json!({
            "pid": std::process::id(),
            "version": env!("CARGO_PKG_VERSION"),
            "listen": ["127.0.0.1:4000"],
        });
        assert_eq!(answer, expected);
    }
    let refused = |answer: &Value, part: &str| {
        assert!(answer["error"].as_str().is_some_and(|it| it.contains(part)), "{answer}");
    };
    refused(&client.ask(&json!({ "command": "dance" })).unwrap(), "no command \"dance\"");
    refused(&client.ask(&json!({ "command": "replace" })).unwrap(), "not one that hands over");
    refused(&client.ask(&json!([1])).unwrap(), "a request is");
    refused(&client.ask(&json!({ "command": 7 })).unwrap(), "a request is");

    let mut raw = UnixStream::connect(temp.path().join(SOCKET_NAME)).unwrap();
    raw.write_all(b"no json\n{\"command\":\"ver").unwrap();
    raw.write_all(b"sion\"}\n").unwrap();
    raw.shutdown(std::net::Shutdown::Write).unwrap();
    let mut text = String::new();
    raw.read_to_string(&mut text).unwrap();
    let lines: Vec<Value> = text.lines().map(|it| serde_json::from_str(it).unwrap()).collect();
    refused(&lines[0], "JSON object on one line");
    assert_eq!(lines[1]["pid"], std::process::id());
}

#[test]
fn a_line_without_an_end_is_not_collected_for_ever() {
    let temp = tempfile::tempdir().unwrap();
    let _served = serve(temp.path());
    let mut raw = UnixStream::connect(temp.path().join(SOCKET_NAME)).unwrap();
    let piece = [b'x'; 4096];
    // It hangs up somewhere on the way.
    let sent = (0..1000).take_while(|_| raw.write_all(&piece).is_ok()).count() * piece.len();
    assert!(sent < 4 * 1024 * 1024, "{sent}");
}

#[test]
fn is_for_its_owner_and_replaces_what_a_dead_server_left() {
    let temp = tempfile::tempdir().unwrap();
    let refused = AdminClient::connect(temp.path()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotFound);
    drop(serve(temp.path()));
    let refused = AdminClient::connect(temp.path()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    fs::write(temp.path().join(NEW_NAME), "of a start that was cut short").unwrap();
    let _served = serve(temp.path());
    let mode = fs::metadata(temp.path().join(SOCKET_NAME)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(!temp.path().join(NEW_NAME).exists());
    AdminClient::connect(temp.path()).unwrap().ask(&version()).unwrap();
}

#[test]
fn a_path_may_be_longer_than_an_address() {
    let temp = tempfile::tempdir().unwrap();
    let long = temp.path().join("d".repeat(100)).join("d".repeat(100));
    fs::create_dir_all(&long).unwrap();
    let _served = serve(&long);
    AdminClient::connect(&long).unwrap().ask(&version()).unwrap();
    assert!(long.join(SOCKET_NAME).exists());
}
