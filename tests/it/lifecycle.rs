//! Start and stop: what is refused and how it is said, what a signal does.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;

use rustix::process::Signal;

use crate::backend::Backend;
use crate::client::{Client, Event};
use crate::content::Content;
use crate::http::{Connection, request_bytes};
use crate::server::{
    Driver, Place, Server, Setup, on_every_driver, start_refused, storage, wait_until,
};

on_every_driver! { signals_stop_cleanly }

fn signals_stop_cleanly(setup: &Setup) {
    for signal in [Signal::TERM, Signal::INT] {
        let mut server = setup.start();
        let backend = Backend::done();
        let id = backend.ticket(&server);
        let content = Content::new(70, 1_000_000);
        let mut sending = Client::open(&server, &id, content.length_bytes);
        sending.chunk(content.piece(0, 300_001));
        sending.chunk_ack();
        let mut handshaking = Client::connect(&server);
        let mut idle = Connection::open(server.address);
        idle.send("GET /incoming/0.1/health HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(idle.response().status, 200);
        server.signal(signal);
        sending.assert_closed(1001);
        let event = handshaking.receive();
        assert!(matches!(event, Event::Close(Some(1001), _)), "{event:?}");
        idle.assert_closed();
        assert_eq!(server.exit_status().code(), Some(0));
        assert!(!server.log().contains("panicked"));
    }
}

/// A server starts on this directory.
fn assert_starts(storage_dir: &Path) {
    let mut child = Setup::default().command(storage_dir).spawn().expect("start the server");
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).expect("a line");
    child.kill().expect("kill");
    child.wait().expect("wait");
    assert!(line.starts_with("listening on http://"), "{line}");
}

#[test]
fn a_stopped_server_leaves_its_address_and_directory() {
    let storage = storage(Place::Disk);
    let path = storage.path().to_owned();
    let mut first = Server::start(&Setup::default(), storage);
    first.signal(Signal::TERM);
    assert_eq!(first.exit_status().code(), Some(0));
    assert_starts(&path);
}

#[test]
fn a_killed_server_leaves_its_directory_usable() {
    let storage = storage(Place::Disk);
    let path = storage.path().to_owned();
    let mut first = Server::start(&Setup::default(), storage);
    let backend = Backend::done();
    let id = backend.ticket(&first);
    let mut client = Client::open(&first, &id, 10_000_000);
    client.chunk(vec![1; 5_000_000]);
    first.signal(Signal::KILL);
    assert!(!first.exit_status().success());
    assert_starts(&path);
}

#[test]
fn a_hanging_app_does_not_hold_up_the_end() {
    let mut server = Setup::default().start();
    let (backend, gate) = Backend::gated();
    let id = backend.ticket(&server);
    let mut client = Client::open(&server, &id, 1000);
    client.send_rest(Content::new(71, 1000), || 1000);
    backend.call(&id, 1);
    server.signal(Signal::TERM);
    client.assert_closed(1001);
    assert_eq!(server.exit_status().code(), Some(0));
    gate.open();
}

#[test]
fn the_number_of_cores_does_not_matter() {
    for cores in [1, 3, 8] {
        let server = Setup { cores, ..Setup::default() }.start();
        let backend = Backend::done();
        let content = Content::new(72, 200_000);
        for _ in 0..16 {
            let id = backend.ticket_kept(&server);
            Client::upload(&server, &id, content, 70_000);
            content.assert_file(&backend.call(&id, 1).path());
        }
        // Every ticket has its core, and one connection asks them all in turn.
        let ids: Vec<String> = (0..40).map(|_| backend.ticket(&server)).collect();
        let mut connection = Connection::open(server.address);
        let mut requests = String::new();
        for id in &ids {
            let target = format!("/incoming/0.1/backend/cancel_upload?id={id}");
            requests += &request_bytes("POST", &target, &[], "");
            requests += &request_bytes("POST", &target, &[], "");
            requests += &request_bytes("GET", "/nothing", &[], "");
        }
        connection.send(requests);
        for _ in &ids {
            connection.response().assert(200, "ok");
            connection.response().assert(200, "ok");
            assert_eq!(connection.response().status, 404);
        }
    }
}

#[test]
fn tokio_uring_without_io_uring_says_what_to_do() {
    let storage = storage(Place::Disk);
    let setup = Setup::new(Driver::TokioUringRefused, Place::Disk);
    let (status, said) = start_refused(setup.command(storage.path()));
    assert!(!status.success());
    assert!(said.contains("--runtime monoio"), "{said}");
    assert!(said.contains("io_uring"), "{said}");
}

#[test]
fn monoio_without_io_uring_says_so_and_serves() {
    let server = Setup::new(Driver::MonoioRefused, Place::Disk).start();
    // The last that is logged at the start: what was to be said before has been.
    let is_ready = |server: &Server| server.log().contains(r#""message":"ready""#);
    wait_until("the server logs that it is ready", || is_ready(&server));
    let log = server.log();
    let line = log.lines().find(|it| it.contains("io_uring is refused"));
    let line = line.unwrap_or_else(|| panic!("{log}"));
    assert!(line.contains(r#""reason":""#) && line.contains("seccomp profile"), "{line}");
    assert_eq!(server.get("/incoming/0.1/health").status, 200);
    let server = Setup::new(Driver::Monoio, Place::Disk).start();
    wait_until("the server logs that it is ready", || is_ready(&server));
    assert!(
        !server.log().contains("refused"),
        "this machine refuses io_uring (sysctl kernel.io_uring_disabled=0): {}",
        server.log()
    );
}

#[test]
fn an_unusable_storage_directory_is_refused() {
    let storage = storage(Place::Disk);
    let file = storage.path().join("a-file");
    std::fs::write(&file, "").unwrap();
    for path in [file.clone(), file.join("below"), "/proc/incoming".into()] {
        let (status, said) = start_refused(Setup::default().command(&path));
        assert!(!status.success(), "{}", path.display());
        assert!(said.contains(path.to_str().unwrap()), "{said}");
    }
}

#[test]
fn what_is_in_the_storage_directory_stays() {
    let storage = storage(Place::Disk);
    let precious = storage.path().join("precious.txt");
    std::fs::write(&precious, "keep me").unwrap();
    let server = Server::start(&Setup::default(), storage);
    assert_eq!(std::fs::read_to_string(&precious).unwrap(), "keep me");
    assert_eq!(server.get("/precious.txt").status, 404);
}

#[test]
fn an_address_in_use_is_refused() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let storage = storage(Place::Disk);
    let setup = Setup { listen: address.clone(), ..Setup::default() };
    let (status, said) = start_refused(setup.command(storage.path()));
    assert!(!status.success());
    assert!(said.contains(&address), "{said}");
}

#[test]
fn wrong_flags_are_refused_with_their_name() {
    let storage = storage(Place::Disk);
    for (flag, value) in [
        ("--runtime", "uring"),
        ("--cores", "0"),
        ("--cores", "many"),
        ("--memory", "64 apples"),
        ("--memory", "1"),
        ("--listen", "nowhere"),
    ] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_incoming"));
        command.arg("serve").arg("--storage-dir").arg(storage.path()).args([flag, value]);
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let (status, said) = start_refused(command);
        assert!(!status.success(), "{flag} {value}");
        assert!(said.contains(flag.trim_start_matches('-')), "{flag} {value}: {said}");
    }
}
