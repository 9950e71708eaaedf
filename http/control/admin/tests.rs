//! The admin socket from both of its ends.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use std::sync::Weak;

use engine::driver::StorageDir;
use engine::op::CoreId;
use engine::ticket::TicketId;
use engine::tickets::TicketError;
use tokio::sync::oneshot;

use super::*;
use crate::control::cores::Cores;
use crate::mail::Mail;
use crate::query::{CoreSummary, Page, Retried, Retry, RetryResult, Totals, UploadState};

/// A socket that is served for as long as this lives.
struct Served {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

fn serve(storage_dir: &Path) -> Served {
    let socket = AdminSocket::bind(storage_dir).unwrap();
    let storage = Arc::new(StorageDir::open(storage_dir).unwrap());
    let operator = Operator::new(cores(), storage);
    let desk = Desk { listen: vec!["127.0.0.1:4000".parse().unwrap()], operator };
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

/// Two cores that answer at once.
fn cores() -> Arc<Cores> {
    Arc::new_cyclic(|cores: &Weak<Cores>| {
        let cores = cores.clone();
        Cores::new(2, move |core, mail| {
            let answer = match mail {
                Mail::Query { asker, query } => {
                    let mut totals = Totals::default();
                    totals.add(UploadState::Failed);
                    let summary = CoreSummary::new(core, query.limit, 1);
                    let page =
                        Page { uploads: Vec::new(), next: None, totals, cores: vec![summary] };
                    Mail::QueryAnswer { asker, page }
                }
                Mail::Retry { number, retry } => {
                    Mail::RetryAnswer { number, result: retried(core, retry) }
                }
                other => panic!("{other:?}"),
            };
            assert!(cores.upgrade().expect("it asks").on_mail(answer));
        })
    })
}

/// The first core has 300 that have failed.
fn retried(core: CoreId, retry: Retry) -> RetryResult {
    match retry {
        Retry::One(TicketId(2)) => Ok(Retried { count: 1, next: None }),
        Retry::One(TicketId(4)) => Err(TicketError::NothingToRetry),
        Retry::One(_) => Err(TicketError::Unknown),
        Retry::Failed { .. } if core.0 == 1 => Ok(Retried { count: 0, next: None }),
        Retry::Failed { after: None } => Ok(Retried { count: 256, next: Some(TicketId(256)) }),
        Retry::Failed { after: Some(it) } => {
            assert_eq!(it, TicketId(256));
            Ok(Retried { count: 44, next: None })
        }
    }
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

#[test]
fn status_joins_what_all_cores_say() {
    let temp = tempfile::tempdir().unwrap();
    let _served = serve(temp.path());
    let mut client = AdminClient::connect(temp.path()).unwrap();
    let status = client.ask(&json!({ "command": "status", "limit": 7 })).unwrap();
    assert_eq!(status["pid"], std::process::id());
    assert_eq!(status["storage_dir"], temp.path().to_str().unwrap());
    assert_eq!(status["storage"], "good");
    assert!(status["storage_free_bytes"].is_u64() && status["uptime_s"].is_u64());
    assert_eq!(status["totals"]["failed"], 2);
    assert_eq!(status["totals"]["issued"], 0);
    assert_eq!(status["uploads"], json!([]));
    let core = |core| json!({ "core": core, "uploads": 7, "connections": 1 });
    assert_eq!(status["cores"], json!([core(0), core(1)]));

    let id = TicketId(2).to_string();
    for (request, part) in [
        (json!({ "command": "status", "limit": 0 }), "limit invalid: "),
        (json!({ "command": "status", "state": "x" }), "state invalid: "),
        (json!({ "command": "status", "id": "x" }), "no upload with this id"),
        (json!({ "command": "status", "id": id }), "no upload with this id"),
    ] {
        let answer = client.ask(&request).unwrap();
        assert!(answer["error"].as_str().is_some_and(|it| it.contains(part)), "{answer}");
    }
}

#[test]
fn retry_of_one_and_of_all() {
    let temp = tempfile::tempdir().unwrap();
    let _served = serve(temp.path());
    let mut client = AdminClient::connect(temp.path()).unwrap();
    let mut retry = |mut request: Value| {
        request["command"] = json!("retry");
        client.ask(&request).unwrap()
    };
    let id = |number| TicketId(number).to_string();
    assert_eq!(retry(json!({ "id": id(2) })), json!({ "retried": 1 }));
    assert_eq!(retry(json!({ "all": true })), json!({ "retried": 300 }));
    for (request, part) in [
        (json!({ "id": id(4) }), "nothing to retry"),
        (json!({ "id": id(6) }), "no upload with this id"),
        (json!({ "id": "x" }), "no upload with this id"),
        (json!({ "all": false }), "needs an id"),
        (json!({}), "needs an id"),
    ] {
        let answer = retry(request);
        assert!(answer["error"].as_str().is_some_and(|it| it.contains(part)), "{answer}");
    }
}
