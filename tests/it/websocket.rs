//! RFC 6455 as the server keeps it: opening handshake, control frames, framing errors, closing.

use std::net::TcpStream;

use tungstenite::Message;
use tungstenite::client::IntoClientRequest;
use tungstenite::protocol::frame::CloseFrame;
use tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};

use crate::backend::Backend;
use crate::client::{Client, Event, binary_frame, frame, text_frame};
use crate::content::Content;
use crate::http::{Connection, request_bytes};
use crate::server::{Server, Setup};

const TARGET: &str = "/incoming/0.1/frontend/upload_ws";
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// What RFC 6455, section 1.3 derives from the key.
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

const UPGRADE: [(&str, &str); 4] = [
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", KEY),
];

/// The four headers, one of them changed; `None` leaves it out.
fn upgrade_with(name: &str, value: Option<&'static str>) -> Vec<(&'static str, &'static str)> {
    let headers = UPGRADE.into_iter();
    let changed = headers.map(|it| if it.0 == name { (it.0, value) } else { (it.0, Some(it.1)) });
    changed.filter_map(|it| Some((it.0, it.1?))).collect()
}

#[test]
fn the_handshake_answers_the_key() {
    let server = Setup::default().start();
    for target in [TARGET, "/incoming/frontend/upload_ws"] {
        let mut connection = Connection::open(server.address);
        connection.send(request_bytes("GET", target, &UPGRADE, ""));
        let response = connection.response_head();
        assert_eq!(response.status, 101);
        assert_eq!(response.header("Sec-WebSocket-Accept"), Some(ACCEPT));
        assert!(response.header_lists("Connection", "upgrade"));
        assert!(response.header_lists("Upgrade", "websocket"));
        assert_eq!(response.header("Content-Length"), None);
    }
}

#[test]
fn the_handshake_reads_headers_as_lists_in_any_case() {
    let server = Setup::default().start();
    let mut connection = Connection::open(server.address);
    let headers = [
        ("connection", "keep-alive, UPGRADE"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", KEY),
    ];
    connection.send(request_bytes("GET", TARGET, &headers, ""));
    assert_eq!(connection.response_head().status, 101);
}

#[test]
fn a_used_connection_can_upgrade() {
    let server = Setup::default().start();
    let mut connection = Connection::open(server.address);
    let health = request_bytes("GET", "/incoming/0.1/health", &[], "");
    connection.send(health + &request_bytes("GET", TARGET, &UPGRADE, ""));
    assert_eq!(connection.response().status, 200);
    assert_eq!(connection.response_head().status, 101);
}

#[test]
fn every_origin_is_accepted_and_nothing_is_negotiated() {
    let server = Setup::default().start();
    let url = format!("ws://{}{TARGET}", server.address);
    let mut request = url.into_client_request().unwrap();
    for (name, value) in [
        ("Origin", "https://elsewhere.example"),
        ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits"),
        ("X-Forwarded-For", "192.0.2.1"),
    ] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let stream = TcpStream::connect(server.address).unwrap();
    let (_, response) = tungstenite::client(request, stream).expect("the opening handshake");
    assert!(response.headers().get("Sec-WebSocket-Extensions").is_none());

    let mut connection = Connection::open(server.address);
    let mut headers = UPGRADE.to_vec();
    headers.push(("Sec-WebSocket-Protocol", "a, b"));
    connection.send(request_bytes("GET", TARGET, &headers, ""));
    let response = connection.response_head();
    assert_eq!(response.status, 101);
    assert_eq!(response.header("Sec-WebSocket-Protocol"), None);
}

#[test]
fn a_request_that_is_no_handshake_is_400() {
    let server = Setup::default().start();
    for headers in [
        vec![],
        upgrade_with("Connection", None),
        upgrade_with("Connection", Some("keep-alive")),
        upgrade_with("Upgrade", None),
        upgrade_with("Upgrade", Some("h2c")),
        upgrade_with("Sec-WebSocket-Key", None),
        upgrade_with("Sec-WebSocket-Key", Some("")),
        upgrade_with("Sec-WebSocket-Key", Some("short")),
        upgrade_with("Sec-WebSocket-Key", Some("dGhlIHNhbXBsZSBub25jZSEh")),
        upgrade_with("Sec-WebSocket-Key", Some("dGhlIHNhbXBsZSBub25j!!==")),
    ] {
        let response = server.request("GET", TARGET, &headers, "");
        response.assert(400, "Bad Request\n");
        assert_eq!(response.header("Sec-WebSocket-Version"), Some("13"), "{headers:?}");
        assert_eq!(response.header("X-Content-Type-Options"), Some("nosniff"), "{headers:?}");
    }
}

#[test]
fn another_version_is_426() {
    let server = Setup::default().start();
    for version in ["8", "7", "14", "0", "013", "x"] {
        let headers = upgrade_with("Sec-WebSocket-Version", Some(version));
        let response = server.request("GET", TARGET, &headers, "");
        assert_eq!(response.status, 426, "{version}");
        assert_eq!(response.header("Sec-WebSocket-Version"), Some("13"));
        assert!(response.header_lists("Upgrade", "websocket"), "RFC 9110, section 15.5.22");
        assert!(response.header_lists("Connection", "upgrade"), "RFC 9110, section 7.8");
    }
}

#[test]
fn only_get_of_http_1_1_upgrades() {
    let server = Setup::default().start();
    assert_eq!(server.request("POST", TARGET, &UPGRADE, "").status, 405);
    let mut connection = Connection::open(server.address);
    let request = request_bytes("GET", TARGET, &UPGRADE, "").replace("HTTP/1.1", "HTTP/1.0");
    connection.send(request);
    assert_ne!(connection.response_head().status, 101);
}

#[test]
fn pings_are_answered_everywhere() {
    let server = Setup::default().start();
    let backend = Backend::done();
    let content = Content::new(10, 200_000);
    let mut client = Client::connect(&server);
    let ping = |client: &mut Client, payload: &[u8]| {
        client.raw(&frame(OpCode::Control(Control::Ping), true, payload));
    };
    ping(&mut client, b"before");
    assert_eq!(client.receive(), Event::Pong(b"before".to_vec()));
    let id = backend.ticket_kept(&server);
    client.request(&id, content.length_bytes, "x");
    client.conf();
    ping(&mut client, &[7; 125]);
    assert_eq!(client.receive(), Event::Pong(vec![7; 125]));
    client.ack();

    // In the middle of a fragmented message, between two of its frames.
    let bytes = content.piece(0, 100_000);
    client.note_sent(bytes.len());
    client.raw(&frame(OpCode::Data(Data::Binary), false, &bytes[..60_001]));
    ping(&mut client, b"");
    assert_eq!(client.receive(), Event::Pong(Vec::new()));
    client.raw(&frame(OpCode::Control(Control::Pong), true, b"unsolicited"));
    client.raw(&frame(OpCode::Data(Data::Continue), true, &bytes[60_001..]));
    client.chunk_ack();
    client.send_rest(content, || 50_000);
    client.finish();
    content.assert_file(&backend.call(&id, 1).path());
}

#[test]
fn broken_frames_close_the_connection_and_spare_the_upload() {
    let server = Setup::default().start();
    let backend = Backend::done();
    let id = backend.ticket(&server);
    let mut reserved = binary_frame(b"abc");
    reserved[0] |= 0x40;
    let unmasked = [0x82, 0x03, b'a', b'b', b'c'];
    let long_ping = [&[0x89, 0x80 | 126, 0, 126, 1, 2, 3, 4][..], &[0; 126]].concat();
    let first = frame(OpCode::Data(Data::Binary), false, b"abc");
    let text_in_binary = [first.clone(), text_frame("x")].concat();
    let binary_in_binary = [first, binary_frame(b"x")].concat();
    let long_form = [&[0x82, 0x80 | 126, 0, 3, 0, 0, 0, 0][..], b"abc"].concat();
    let longest_form =
        [&[0x82, 0x80 | 127, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0][..], b"abc"].concat();
    let top_bit = [0x82, 0x80 | 127, 0x80, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
    for (name, bytes, codes) in [
        ("a reserved bit", &reserved[..], &[1002][..]),
        ("an unmasked frame", &unmasked, &[1002]),
        ("opcode 3", &frame(OpCode::Data(Data::Reserved(3)), true, b""), &[1002]),
        ("opcode 11", &frame(OpCode::Control(Control::Reserved(11)), true, b""), &[1002]),
        ("a fragmented ping", &frame(OpCode::Control(Control::Ping), false, b""), &[1002]),
        ("a ping of 126 bytes", &long_ping, &[1002]),
        ("a continuation of nothing", &frame(OpCode::Data(Data::Continue), true, b"x"), &[1002]),
        ("a text in a fragmented message", &text_in_binary, &[1002]),
        ("a binary in a fragmented message", &binary_in_binary, &[1002]),
        ("a length in too long a form", &long_form, &[1002]),
        ("a length in the longest form", &longest_form, &[1002]),
        ("a length with its top bit set", &top_bit, &[1002, 1009]),
        ("a text that is not UTF-8", &frame(OpCode::Data(Data::Text), true, b"\xff\xfe"), &[1007]),
        ("a close of one byte", &frame(OpCode::Control(Control::Close), true, b"x"), &[1002]),
        ("close code 1005", &frame(OpCode::Control(Control::Close), true, b"\x03\xed"), &[1002]),
        ("close code 999", &frame(OpCode::Control(Control::Close), true, b"\x03\xe7"), &[1002]),
        (
            "a close reason that is not UTF-8",
            &frame(OpCode::Control(Control::Close), true, b"\x03\xe8\xff"),
            &[1007, 1002],
        ),
    ] {
        let mut client = Client::open(&server, &id, 100_000);
        client.raw(bytes);
        match client.receive() {
            Event::Close(Some(code), _) if codes.contains(&code) => {}
            other => panic!("{other:?} after {name}"),
        }
        assert_eq!(client.receive(), Event::Lost, "after {name}");
    }
    let mut client = Client::open(&server, &id, 100_000);
    // It goes on, if only to be cancelled: what came of broken messages is not this file.
    client.cancel("over");
    client.finish_cancelled();
}

#[test]
fn a_message_of_eight_mebibytes_is_the_longest() {
    let server = Setup::default().start();
    let backend = Backend::done();
    let content = Content::new(12, MESSAGE_BYTES_MAX + 1);
    let id = backend.ticket_kept(&server);

    let mut client = Client::open(&server, &id, content.length_bytes);
    let mut head = vec![0x82, 0x80 | 127];
    head.extend_from_slice(&(MESSAGE_BYTES_MAX + 1).to_be_bytes());
    head.extend_from_slice(&[1, 2, 3, 4]);
    client.raw(&head);
    client.assert_closed(1009);

    // In frames that are short enough each.
    let mut client = Client::open(&server, &id, content.length_bytes);
    assert_eq!(client.position, 0, "nothing came of a message refused by its head");
    let bytes = content.piece(0, MESSAGE_BYTES_MAX);
    client.raw(&frame(OpCode::Data(Data::Binary), false, &bytes));
    client.raw(&frame(OpCode::Data(Data::Continue), true, &[0; 1])[..6]);
    client.assert_closed(1009);

    let mut client = Client::open(&server, &id, content.length_bytes);
    client.send_rest(content, || MESSAGE_BYTES_MAX);
    client.finish();
    content.assert_file(&backend.call(&id, 1).path());
}

#[test]
fn a_close_is_answered_with_its_code() {
    let server = Setup::default().start();
    let backend = Backend::done();
    let close = |code: u16| CloseFrame { code: CloseCode::from(code), reason: "why".into() };
    for (sent, answered) in [
        (None, None),
        (Some(close(1000)), Some(1000)),
        (Some(close(1001)), Some(1001)),
        (Some(close(4999)), Some(4999)),
    ] {
        let client = Client::connect(&server);
        // Without a code the answer has none either, or says 1000.
        let code = client.close(sent.clone());
        assert!(code == answered || sent.is_none() && code == Some(1000), "{code:?}");
        let id = backend.ticket(&server);
        assert_eq!(Client::open(&server, &id, 10).close(sent.clone()), code);
    }
}

#[test]
fn a_close_in_a_fragmented_message_is_answered() {
    let server = Setup::default().start();
    let id = Backend::done().ticket(&server);
    let mut client = Client::open(&server, &id, 1000);
    client.raw(&frame(OpCode::Data(Data::Binary), false, &[1; 100]));
    client.close(None);
}

#[test]
fn control_messages_may_be_fragmented() {
    let server = Setup::default().start();
    let backend = Backend::done();
    let id = backend.ticket(&server);
    let mut client = Client::connect(&server);
    let text = format!(
        "{{\"MsgType\":\"MsgUploadReq\",\"MsgData\":{{\"Id\":\"{id}\",\"LengthBytes\":0,\
         \"Name\":\"\u{e9}\u{1f600}\"}}}}"
    );
    // Cut between any two bytes, also within a character.
    let bytes = text.as_bytes();
    for (index, byte) in bytes.iter().enumerate() {
        let data = if index == 0 { Data::Text } else { Data::Continue };
        client.raw(&frame(OpCode::Data(data), index + 1 == bytes.len(), &[*byte]));
    }
    client.conf();
    client.ack();
    client.finish();
    assert_eq!(backend.call(&id, 1).field("filenameFromBrowser"), "\u{e9}\u{1f600}");
}

#[test]
fn a_text_may_not_grow_without_end() {
    let server = Setup::default().start();
    for (length, sent) in [(100_000, 0), (MESSAGE_BYTES_MAX + 1, 0), (100_000, 100_000)] {
        let mut client = Client::connect(&server);
        let mut head = vec![0x81, 0x80 | 127];
        head.extend_from_slice(&u64::to_be_bytes(length));
        head.extend_from_slice(&[0; 4]);
        client.raw(&head);
        client.raw(&vec![b' '; sent]);
        client.assert_closed(1009);
    }
    let mut client = Client::connect(&server);
    client.raw(&frame(OpCode::Data(Data::Text), false, b"["));
    for _ in 0..40 {
        client.raw(&frame(OpCode::Data(Data::Continue), false, &[b'['; 1000]));
    }
    client.assert_closed(1009);
}

#[test]
fn a_connection_that_never_speaks_harms_nobody() {
    let server: Server = Setup::default().start();
    let backend = Backend::done();
    let silent: Vec<Client> = (0..20).map(|_| Client::connect(&server)).collect();
    let id = backend.ticket(&server);
    Client::upload(&server, &id, Content::new(13, 100_000), 10_000);
    for client in silent {
        client.reset();
    }
    let mut client = Client::connect(&server);
    client.send(Message::Ping(b"alive".to_vec().into()));
    assert_eq!(client.receive(), Event::Pong(b"alive".to_vec()));
}

const MESSAGE_BYTES_MAX: u64 = 8 * 1024 * 1024;
