//! The upload dialect, message by message: the handshake's leniency and every `MsgError`.

use serde_json::json;
use tungstenite::Message;

use crate::backend::{Answer, Backend};
use crate::client::{Client, text_frame};
use crate::content::Content;
use crate::server::{Setup, wait_until};

const UNKNOWN: &str = "Unknown upload id - maybe upload timed out?";
const NO_REQUEST: &str = "Couldn't read upload request";
const NO_ACK: &str = "Didn't receive ack";
const NO_JSON: &str = "Did not understand text message";
const UNEXPECTED: &str = "Expected file chunk or text but got sth else";
const TOO_LONG: &str = "Error while consuming file chunk: File would get larger than declared";

#[test]
fn messages_are_compact_and_ordered() {
    let server = Setup::default().start();
    let backend = Backend::done();
    let id = backend.ticket(&server);
    let stream = std::net::TcpStream::connect(server.address).unwrap();
    let url = format!("ws://{}/incoming/0.1/frontend/upload_ws", server.address);
    let (mut socket, _) = tungstenite::client(url, stream).expect("the opening handshake");
    let mut receive = |message: Message| {
        socket.send(message).unwrap();
        socket.read().unwrap().into_text().unwrap().to_string()
    };
    let request = json!({"MsgType": "MsgUploadReq", "MsgData":
        {"Id": id, "LengthBytes": 3, "Name": "x"}});
    let conf = receive(Message::text(request.to_string()));
    let numbers: Vec<&str> = conf.split(|it: char| !it.is_ascii_digit()).collect();
    let numbers: Vec<&str> = numbers.into_iter().filter(|it| !it.is_empty()).collect();
    let [chunk_size_kb, "0", send_ahead] = numbers[..] else { panic!("{conf}") };
    assert_eq!(
        conf,
        format!(
            "{{\"MsgType\":\"MsgUploadConf\",\"MsgData\":{{\"ChunkSizeKB\":{chunk_size_kb},\
             \"FilePos\":0,\"SendAhead\":{send_ahead}}}}}"
        )
    );
    socket.send(Message::text("{\"MsgType\":\"MsgAck\",\"MsgData\":{\"Ack\":true}}")).unwrap();
    socket.send(Message::binary(vec![1, 2, 3])).unwrap();
    let mut next = || socket.read().unwrap().into_text().unwrap().to_string();
    assert_eq!(next(), "{\"MsgType\":\"MsgChunkAck\",\"MsgData\":{\"ChunkSize\":3}}");
    assert_eq!(next(), "{\"MsgType\":\"MsgAllDone\",\"MsgData\":{\"Success\":true}}");
}

#[test]
fn the_handshake_is_as_lenient_as_the_original() {
    let server = Setup::default().start();
    let backend = Backend::done();
    let requests = |id: &str| {
        [
            // Only the content of the first two messages counts, not their type.
            format!("{{\"MsgType\":\"Hello\",\"MsgData\":{{\"Id\":\"{id}\",\"LengthBytes\":5}}}}"),
            format!("{{\"MsgData\":{{\"Id\":\"{id}\",\"LengthBytes\":5,\"Name\":null}}}}"),
            format!("{{\"msgtype\":\"x\",\"MSGDATA\":{{\"iD\":\"{id}\",\"lengthbytes\":5}}}}"),
            format!(
                " {{ \"More\" : [1,{{}}], \"MsgData\" : {{ \"Name\":\"\\u0078\", \
                 \"LengthBytes\" : 5, \"Id\" : \"{id}\", \"Features\": [\"window\"] }} }}\n"
            ),
        ]
    };
    for index in 0..4 {
        for binary in [false, true] {
            let id = backend.ticket(&server);
            let text = requests(&id)[index].clone();
            let mut client = Client::connect(&server);
            client.send(if binary { Message::binary(text) } else { Message::text(text) });
            client.conf();
            let ack = "{\"msgdata\":{\"ACK\":true}}";
            client.send(if binary { Message::binary(ack) } else { Message::text(ack) });
            client.send_rest(Content::new(20, 5), || 5);
            client.finish();
        }
    }
    let id = backend.ticket(&server);
    let mut client = Client::connect(&server);
    client.say("MsgUploadReq", json!({"Id": id, "LengthBytes": null}));
    assert_eq!(client.conf(), 0);
    client.ack();
    client.finish();
}

#[test]
fn an_unreadable_request_is_an_error() {
    let server = Setup::default().start();
    let id = Backend::done().ticket(&server);
    for text in [
        String::new(),
        "hello".to_owned(),
        "{".to_owned(),
        "[]".to_owned(),
        "\"MsgUploadReq\"".to_owned(),
        "{}".to_owned(),
        "{\"MsgType\":\"MsgUploadReq\"}".to_owned(),
        "{\"MsgType\":\"MsgUploadReq\",\"MsgData\":null}".to_owned(),
        "{\"MsgType\":\"MsgUploadReq\",\"MsgData\":[]}".to_owned(),
        "{\"MsgType\":\"MsgUploadReq\",\"MsgData\":{\"Id\":7,\"LengthBytes\":5}}".to_owned(),
        format!("{{\"MsgData\":{{\"Id\":\"{id}\",\"LengthBytes\":5.0}}}}"),
        format!("{{\"MsgData\":{{\"Id\":\"{id}\",\"LengthBytes\":1e3}}}}"),
        format!("{{\"MsgData\":{{\"Id\":\"{id}\",\"LengthBytes\":\"5\"}}}}"),
        format!("{{\"MsgData\":{{\"Id\":\"{id}\",\"LengthBytes\":-1}}}}"),
        format!("{{\"MsgData\":{{\"Id\":\"{id}\",\"LengthBytes\":18446744073709551616}}}}"),
        format!("{{\"MsgData\":{{\"Id\":\"{id}\",\"LengthBytes\":5}}}} and more"),
        "[".repeat(16_000),
        "{\"a\":".repeat(3_000),
    ] {
        let mut client = Client::connect(&server);
        client.send(Message::text(text.clone()));
        client.finish_with_error(100, NO_REQUEST);
    }
    let mut client = Client::connect(&server);
    client.send(Message::binary(vec![0; 100]));
    client.finish_with_error(100, NO_REQUEST);
    // None of it has harmed the ticket.
    Client::upload(&server, &id, Content::new(21, 5), 5);
}

#[test]
fn an_unknown_id_is_an_error() {
    let server = Setup::default().start();
    for id in
        ["", "x", "00000000-0000-4000-8000-000000000000", "ffffffff-ffff-4fff-bfff-ffffffffffff"]
    {
        let mut client = Client::connect(&server);
        client.request(id, 5, "x");
        client.finish_with_error(300, UNKNOWN);
    }
}

#[test]
fn a_missing_ack_is_an_error() {
    let server = Setup::default().start();
    let id = Backend::done().ticket(&server);
    for message in [
        Message::text("hello"),
        Message::text("[]"),
        Message::text("{\"MsgType\":\"MsgAck\",\"MsgData\":{\"Ack\":\"yes\"}}"),
        Message::binary(vec![1, 2, 3, 4, 5]),
    ] {
        let mut client = Client::connect(&server);
        client.request(&id, 5, "x");
        client.conf();
        client.send(message);
        client.finish_with_error(101, NO_ACK);
    }
    let mut client = Client::connect(&server);
    client.request(&id, 5, "x");
    client.conf();
    client.say("MsgAck", json!({"Ack": false}));
    let error = client.message("MsgError");
    assert_eq!(error, json!({"ErrorCode": 102, "Msg": "you nack-ed"}));
    assert_eq!(client.assert_closed(1000), "you nack-ed");
    Client::upload(&server, &id, Content::new(22, 5), 5);
}

#[test]
fn what_is_no_chunk_and_no_known_message_is_an_error() {
    let server = Setup::default().start();
    let backend = Backend::done();
    let id = backend.ticket_kept(&server);
    let content = Content::new(23, 1_000_000);
    for (text, code, message) in [
        ("hello", 103, NO_JSON),
        ("", 103, NO_JSON),
        ("{\"MsgType\":", 103, NO_JSON),
        ("{\"MsgType\":\"MsgAck\",\"MsgData\":{\"Ack\":true}}", 104, UNEXPECTED),
        ("{\"MsgType\":\"MsgUploadReq\",\"MsgData\":{}}", 104, UNEXPECTED),
        ("{\"MsgType\":\"MsgSurprise\",\"MsgData\":{}}", 104, UNEXPECTED),
        ("{\"MsgType\":\"MsgUploadConf\",\"MsgData\":{}}", 104, UNEXPECTED),
    ] {
        let mut client = Client::open(&server, &id, content.length_bytes);
        client.chunk(content.piece(client.position, 100_001));
        client.chunk_ack();
        client.send(Message::text(text));
        client.finish_with_error(code, message);
    }
    // The upload goes on where it was.
    let mut client = Client::open(&server, &id, content.length_bytes);
    assert_eq!(client.position, 7 * 100_001);
    client.send_rest(content, || 100_000);
    client.finish();
    content.assert_file(&backend.call(&id, 1).path());
    assert_eq!(backend.call_count(&id), 1);
}

#[test]
fn more_bytes_than_declared_cancel_the_upload() {
    let server = Setup::default().start();
    let backend = Backend::done();
    for (length, first, second) in [(10, 0, 11), (100_000, 60_000, 40_001), (0, 0, 1)] {
        let id = backend.ticket(&server);
        let mut client = Client::open(&server, &id, length);
        if first > 0 {
            client.chunk(vec![1; first]);
            client.chunk_ack();
        }
        if length == 0 {
            // An empty file is being handed over already: what comes now is not looked at.
            client.finish();
            continue;
        }
        client.chunk(vec![2; second]);
        client.finish_with_error(105, TOO_LONG);
        assert_eq!(backend.call(&id, 1).cancel_reason(), TOO_LONG);
        server.wait_until_cancelled(&id);
    }
    server.wait_without_files();
}

#[test]
fn another_length_is_an_error_once_something_is_stored() {
    let server = Setup::default().start();
    let backend = Backend::done();
    let id = backend.ticket_kept(&server);
    let content = Content::new(24, 100_000);
    // Nothing is stored yet: size and name may still change.
    for length in [5, 500, 0x7fff_ffff] {
        let mut client = Client::connect(&server);
        client.request(&id, length, "wrong");
        assert_eq!(client.conf(), 0);
        client.reset();
    }
    let mut client = Client::connect(&server);
    client.request(&id, content.length_bytes, "right");
    client.conf();
    client.ack();
    client.chunk(content.piece(0, 40_000));
    client.chunk_ack();
    client.reset();
    for length in [99_999, 100_001, 40_000, 0] {
        let mut client = Client::connect(&server);
        client.request(&id, length, "right");
        client.finish_with_error(106, "File size has changed");
    }
    let mut client = Client::connect(&server);
    client.request(&id, content.length_bytes, "another name is ignored");
    assert_eq!(client.conf(), 40_000);
    client.ack();
    client.send_rest(content, || 10_000);
    client.finish();
    let call = backend.call(&id, 1);
    assert_eq!(call.field("filenameFromBrowser"), "right");
    content.assert_file(&call.path());
}

#[test]
fn an_empty_file_that_is_handed_over_stays_empty() {
    let server = Setup::default().start();
    let backend = Backend::scripted(|_| Answer::Wait);
    let id = backend.ticket(&server);
    let mut waiting = Client::connect(&server);
    waiting.request(&id, 0, "empty");
    assert_eq!(waiting.conf(), 0);
    waiting.ack();
    backend.call(&id, 1);
    // Nobody is told that bytes are stored which never came.
    let mut longer = Client::connect(&server);
    longer.request(&id, 1000, "longer");
    longer.finish_with_error(106, "File size has changed");
    wait_until("the app may finish", || {
        server.post("/incoming/0.1/backend/finish_upload", &[("id", &id)]).status == 200
    });
    waiting.finish();
}

#[test]
fn an_error_of_the_browser_cancels_the_upload() {
    let server = Setup::default().start();
    let backend = Backend::done();
    let id = backend.ticket(&server);
    let mut client = Client::open(&server, &id, 100_000);
    client.chunk(vec![1; 50_000]);
    client.say("MsgError", json!({"ErrorCode": 7, "Msg": "no <disk>"}));
    client.assert_closed(1000);
    assert_eq!(backend.call(&id, 1).cancel_reason(), "error from frontend: no <disk>");
    server.wait_until_cancelled(&id);
    server.wait_without_files();
}

#[test]
fn the_last_error_reaches_a_client_that_still_sends() {
    let server = Setup::default().start();
    let id = Backend::done().ticket(&server);
    for _ in 0..5 {
        let mut client = Client::open(&server, &id, 100_000_000);
        let mut stream = client.stream().try_clone().unwrap();
        client.raw(&text_frame("hello"));
        let sender = std::thread::spawn(move || {
            let chunk = crate::client::binary_frame(&vec![0; 512 * 1024]);
            for _ in 0..16 {
                // The server may give up on a peer that does not answer its close.
                if std::io::Write::write_all(&mut stream, &chunk).is_err() {
                    return;
                }
            }
        });
        // Nothing is read until the sender has sent what it can: a reset would discard the error.
        sender.join().unwrap();
        client.finish_with_error(103, NO_JSON);
    }
}
