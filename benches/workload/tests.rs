//! Whole runs against servers that are good, bad or mute: each a few lines in a thread.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tungstenite::protocol::CloseFrame;
use tungstenite::{Message, WebSocket};

use crate::{Mismatch, Problem, Protocol, Step, Verify, Workload, WorkloadError, run};

#[test]
fn files_are_sent_acknowledged_and_verified() {
    let directory = tempfile::tempdir().unwrap();
    let stored_in = directory.path().to_owned();
    let server = serve(move |socket| store(socket, &stored_in));
    let workload = Workload { stored_in: Some(directory.path().to_owned()), ..small(server) };
    for workload in [
        Workload { frame_bytes: Some(3001), idle_clients: 4, ..workload.clone() },
        Workload { announced: true, ..workload.clone() },
        Workload { in_flight_bytes_max: Some(10_000), send_ahead: 9, ..workload.clone() },
    ] {
        let mut acked_bytes = Vec::new();
        let outcome = run(&workload, &mut |it| acked_bytes.push(it.acked_bytes)).unwrap();
        assert_eq!(outcome.verified_count, 3);
        assert_eq!(outcome.payload_bytes, 300_003);
        assert!(acked_bytes.is_sorted());
        assert_eq!(acked_bytes.last(), Some(&300_003));
        assert_eq!(outcome.memory, None);
        assert!(outcome.ack_latency_us.len() >= 30 || workload.announced);
        assert_eq!(directory.path().read_dir().unwrap().count(), 0, "verified files are removed");
    }
    let unseen = Workload { stored_in: None, verify: Verify::Off, ..workload };
    assert_eq!(run(&unseen, &mut |_| {}).unwrap().verified_count, 0);
}

#[test]
fn one_wrong_byte_is_found_and_its_file_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let stored_in = directory.path().to_owned();
    let server = serve(move |socket| store(socket, &stored_in));
    let workload = Workload { stored_in: Some(directory.path().to_owned()), ..small(server) };
    let path = directory.path().join("file-1");
    let mut flip = |it: &crate::Progress| {
        if it.step == Step::Verify && it.verified_count == 0 {
            let file = File::options().read(true).write(true).open(&path).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, 77_777).unwrap();
            file.write_all_at(&[byte[0] ^ 0x10], 77_777).unwrap();
        }
    };
    let mismatch = Mismatch {
        client: 1,
        path: path.clone(),
        offset: 77_777,
        length_bytes: 100_001,
        expected_length_bytes: 100_001,
    };
    assert_eq!(error(&workload, &mut flip), WorkloadError::Corrupt(mismatch));
    assert!(path.exists());
    assert!(!directory.path().join("file-0").exists());
}

#[test]
fn no_more_is_under_way_than_allowed_whatever_windows_are_open() {
    let received = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&received);
    let server = serve(move |socket| {
        let mut socket = confirmed(socket);
        while let Ok(message) = socket.read() {
            if let Message::Binary(it) = message {
                count.fetch_add(it.len(), Ordering::Relaxed);
            }
        }
    });
    let stall_timeout = Duration::from_millis(500);
    for (in_flight_bytes_max, expected) in [(Some(29_999), 20_000), (None, 3 * 40_000)] {
        let workload =
            Workload { in_flight_bytes_max, send_ahead: 4, stall_timeout, ..small(server) };
        let error = error(&workload, &mut |_| {});
        assert!(matches!(error, WorkloadError::Stalled { step: Step::Transfer, .. }), "{error}");
        // The server's threads may still be reading.
        let began = Instant::now();
        while received.load(Ordering::Relaxed) < expected && began.elapsed() < PATIENCE {
            thread::yield_now();
        }
        assert_eq!(received.swap(0, Ordering::Relaxed), expected);
    }
}

#[test]
fn put_and_tus_upload_whole_files() {
    let directory = tempfile::tempdir().unwrap();
    let stored_in = directory.path().to_owned();
    let server = serve(move |socket| store_over_http(&socket, &stored_in));
    let base = Workload { stored_in: Some(directory.path().to_owned()), ..small(server) };
    for (protocol, requests) in [
        (Protocol::Put { path: "/".into() }, 3),
        (Protocol::Tus { path: "/".into(), patch_bytes: None }, 3),
        (Protocol::Tus { path: "/".into(), patch_bytes: Some(30_000) }, 12),
    ] {
        let workload = Workload { protocol, ..base.clone() };
        let outcome = run(&workload, &mut |_| {}).unwrap();
        assert_eq!((outcome.verified_count, outcome.ack_latency_us.len()), (3, requests));
    }
}

#[test]
fn a_server_that_stops_in_the_middle_is_named_with_its_last_words() {
    let expect =
        |server: SocketAddr, step: Step, problem: Problem| match error(&small(server), &mut |_| {})
        {
            WorkloadError::Client { step: found, problem: told, .. } => {
                assert_eq!((found, told), (step, problem));
            }
            other => panic!("{other}"),
        };
    let server = serve(|socket| {
        let mut socket = confirmed(socket);
        socket.read().unwrap();
        let reason = "the disk failed".into();
        socket.close(Some(CloseFrame { code: 1011.into(), reason })).unwrap();
        while socket.read().is_ok() {}
    });
    let problem = Problem::CloseFrame { code: Some(1011), reason: "the disk failed".into() };
    expect(server, Step::Transfer, problem);

    let server = serve(|socket| {
        let mut socket = confirmed(socket);
        socket.read().unwrap();
        say(&mut socket, r#"{"MsgType":"MsgError","MsgData":{"ErrorCode":201,"Msg":"no room"}}"#);
        while socket.read().is_ok() {}
    });
    expect(server, Step::Transfer, Problem::Refused { code: 201, message: "no room".into() });

    let server = serve(|mut socket| {
        read_head(&socket);
        let refusal = "HTTP/1.1 403 Forbidden\r\nContent-Length: 6\r\n\r\nno key";
        socket.write_all(refusal.as_bytes()).unwrap();
    });
    expect(server, Step::Prepare, Problem::Status { status: 403, body: "no key".into() });

    let server = serve(|mut socket| {
        read_head(&socket);
        socket.write_all(b"220 mail.example ESMTP\r\n").unwrap();
    });
    expect(server, Step::Prepare, Problem::Garbage("no HTTP response"));

    // A close with unread bytes is a reset.
    let server = serve(|socket| drop(confirmed(socket)));
    match error(&Workload { clients: 1, ..small(server) }, &mut |_| {}) {
        WorkloadError::Client { problem: Problem::Closed | Problem::Broken(_), .. } => {}
        other => panic!("{other}"),
    }
}

#[test]
fn a_refusal_while_the_body_is_on_its_way_is_heard() {
    let server = serve(|mut socket| {
        read_head(&socket);
        let refusal = "HTTP/1.1 507 Insufficient Storage\r\nContent-Length: 4\r\n\r\nfull";
        socket.write_all(refusal.as_bytes()).unwrap();
        let _ = socket.shutdown(std::net::Shutdown::Both);
    });
    let protocol = Protocol::Put { path: "/".into() };
    let workload = Workload { protocol, file_bytes: 1 << 30, clients: 1, ..small(server) };
    let problem = Problem::Status { status: 507, body: "full".into() };
    let expected = WorkloadError::Client { client: 0, step: Step::Transfer, problem };
    assert_eq!(error(&workload, &mut |_| {}), expected);
}

#[test]
fn nothing_hangs_at_a_server_that_says_nothing() {
    let silence = Duration::from_millis(300);
    let stalled = |server: SocketAddr, step: Step| {
        let workload = Workload { stall_timeout: silence, clients: 1, ..small(server) };
        let expected = WorkloadError::Stalled { client: 0, step, silence };
        assert_eq!(error(&workload, &mut |_| {}), expected);
    };
    // Connected by the kernel, accepted by nobody.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    stalled(listener.local_addr().unwrap(), Step::Prepare);
    // Reads everything, pings, and acknowledges nothing.
    let server = serve(|socket| {
        let mut socket = confirmed(socket);
        while socket.read().is_ok() {
            let _ = socket.send(Message::Ping(b"?".to_vec().into()));
        }
    });
    stalled(server, Step::Transfer);
    // Acknowledges everything, and never says that it is done.
    let server = serve(|socket| {
        let mut socket = confirmed(socket);
        while let Ok(message) = socket.read() {
            if let Message::Binary(it) = message {
                acknowledge(&mut socket, it.len());
            }
        }
    });
    stalled(server, Step::Finish);
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_sent() {
    // Nobody listens at port 1. (A port that was listened to may live on in a process that another
    // test is about to start.)
    let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
    let refused = WorkloadError::Connect { server: nobody, errno: Errno::CONNREFUSED };
    assert_eq!(error(&small(nobody), &mut |_| {}), refused);
    assert!(refused.to_string().contains("incoming serve --listen"), "{refused}");

    let pid = 0x3fff_fff0;
    let workload = Workload { server_process: Some(pid), ..small(nobody) };
    assert_eq!(error(&workload, &mut |_| {}), WorkloadError::NoProcess { pid });

    let base = small(nobody);
    let put = Protocol::Put { path: "/".into() };
    for (workload, wrong) in [
        (Workload { clients: 0, ..base.clone() }, "clients"),
        (Workload { clients: 1 << 40, ..base.clone() }, "clients"),
        (Workload { file_bytes: 0, ..base.clone() }, "file_bytes"),
        (Workload { chunk_bytes: 0, ..base.clone() }, "chunk_bytes"),
        (Workload { chunk_bytes: (64 << 20) + 1, ..base.clone() }, "chunk_bytes"),
        (Workload { send_ahead: 0, ..base.clone() }, "send_ahead"),
        (Workload { frame_bytes: Some(0), ..base.clone() }, "frame_bytes"),
        (Workload { in_flight_bytes_max: Some(9_999), ..base.clone() }, "in_flight_bytes_max"),
        (Workload { protocol: put, idle_clients: 1, ..base.clone() }, "idle_clients"),
    ] {
        match error(&workload, &mut |_| {}) {
            WorkloadError::Setting { field, .. } => assert_eq!(field, wrong),
            other => panic!("{wrong}: {other}"),
        }
    }
}

/// Three files of 100,001 bytes in messages of 10,000.
fn small(server: SocketAddr) -> Workload {
    Workload {
        protocol: Protocol::WebSocketOnly,
        clients: 3,
        file_bytes: 100_001,
        chunk_bytes: 10_000,
        ..Workload::new(server)
    }
}

fn error(workload: &Workload, on_progress: &mut dyn FnMut(&crate::Progress)) -> WorkloadError {
    run(workload, on_progress).expect_err("this cannot go well")
}

/// Until the test's process ends.
fn serve(answer: impl Fn(TcpStream) + Send + Sync + Clone + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let answer = answer.clone();
            thread::spawn(move || answer(socket.unwrap()));
        }
    });
    address
}

/// A connection whose client may send.
fn confirmed(socket: TcpStream) -> WebSocket<TcpStream> {
    confirmed_as(socket).0
}

/// With the file's name and length.
fn confirmed_as(socket: TcpStream) -> (WebSocket<TcpStream>, String, u64) {
    let mut socket = tungstenite::accept(socket).unwrap();
    let request = socket.read().unwrap().into_text().unwrap();
    let request: serde_json::Value = serde_json::from_str(&request).unwrap();
    assert_eq!(request["MsgType"], "MsgUploadReq");
    let name = request["MsgData"]["Id"].as_str().unwrap().to_owned();
    let length = request["MsgData"]["LengthBytes"].as_u64().unwrap();
    say(
        &mut socket,
        r#"{"MsgType":"MsgUploadConf","MsgData":{"ChunkSizeKB":16,"FilePos":0,"SendAhead":3}}"#,
    );
    let ack = socket.read().unwrap().into_text().unwrap();
    assert_eq!(ack.as_str(), r#"{"MsgType":"MsgAck","MsgData":{"Ack":true}}"#);
    (socket, name, length)
}

fn store(socket: TcpStream, directory: &Path) {
    let (mut socket, name, length) = confirmed_as(socket);
    let mut file = None;
    let mut received = 0;
    while let Ok(message) = socket.read() {
        let Message::Binary(bytes) = message else { break };
        let file = file.get_or_insert_with(|| File::create(directory.join(&name)).unwrap());
        file.write_all(&bytes).unwrap();
        acknowledge(&mut socket, bytes.len());
        received += bytes.len() as u64;
        if received == length {
            say(&mut socket, r#"{"MsgType":"MsgAllDone","MsgData":{"Success":true}}"#);
        }
    }
}

fn acknowledge(socket: &mut WebSocket<TcpStream>, length: usize) {
    say(socket, &format!(r#"{{"MsgType":"MsgChunkAck","MsgData":{{"ChunkSize":{length}}}}}"#));
}

fn say(socket: &mut WebSocket<TcpStream>, text: &str) {
    // Whoever has heard enough may be gone.
    let _ = socket.send(Message::text(text));
}

/// PUT and tus, as far as the tests need it.
fn store_over_http(mut socket: &TcpStream, directory: &Path) {
    loop {
        let head = read_head(socket);
        let Some(first) = head.lines().next() else { return };
        let field = |name: &str| {
            let value = head.lines().find_map(|it| it.strip_prefix(name)).unwrap_or("0");
            value.parse::<u64>().unwrap()
        };
        let mut body = vec![0; field("Content-Length: ") as usize];
        socket.read_exact(&mut body).unwrap();
        let words: Vec<&str> = first.split(' ').collect();
        let path = directory.join(words[1].trim_start_matches('/'));
        let answer = match words[0] {
            "POST" => {
                let port = socket.peer_addr().unwrap().port();
                format!("201 Created\r\nLocation: http://host/made-{port}\r\nContent-Length: 0")
            }
            "PATCH" => {
                let offset = field("Upload-Offset: ");
                let file = File::options().create(true).truncate(false).write(true).open(path);
                file.unwrap().write_all_at(&body, offset).unwrap();
                format!("204 No Content\r\nUpload-Offset: {}", offset + body.len() as u64)
            }
            _ => {
                std::fs::write(path, body).unwrap();
                "201 Created\r\nContent-Length: 0".to_owned()
            }
        };
        socket.write_all(format!("HTTP/1.1 {answer}\r\n\r\n").as_bytes()).unwrap();
    }
}

/// Empty at the end of the connection.
fn read_head(mut socket: &TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && matches!(socket.read(&mut byte), Ok(1)) {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// Longer than anything here takes on any machine.
const PATIENCE: Duration = Duration::from_secs(60);
