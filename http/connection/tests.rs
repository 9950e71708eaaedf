use std::time::SystemTime;

use super::*;
use crate::assets::Library;

const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
const HEALTH: &str = "GET /incoming/health HTTP/1.1\r\nHost: a\r\n\r\n";
const CANCEL: &str = "POST /incoming/backend/cancel_upload?id=\
    00112233-4455-6677-8899-aabbccddeeff HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";

fn router() -> Router {
    let library = Library::new(SystemTime::UNIX_EPOCH);
    Router {
        library,
        backend_behind_proxy: false,
        is_draining: false,
        dest_roots: Vec::new(),
        keys: Default::default(),
    }
}

/// Hands `bytes` in and says what came of it, in words.
fn read(connection: &mut Connection, bytes: &[u8]) -> (Vec<String>, Vec<u8>) {
    let mut input = bytes;
    let mut events = Vec::new();
    while let Some(event) = connection.poll_event(&router(), DATE, &mut input) {
        events.push(format!("{event:?}"));
    }
    (events, input.to_vec())
}

fn upgraded() -> Connection {
    let mut connection = Connection::new();
    let upgrade = "GET /incoming/frontend/upload_ws HTTP/1.1\r\nHost: a\r\n\
        Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    read(&mut connection, upgrade.as_bytes());
    assert!(connection.is_websocket());
    connection.out().clear();
    connection
}

/// A client's frame whose mask is zero.
fn frame(first_byte: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    [&[first_byte, 0x80 | length, 0, 0, 0, 0], payload].concat()
}

fn statuses(connection: &mut Connection) -> Vec<String> {
    let out = String::from_utf8_lossy(&connection.out().split()).into_owned();
    out.split("HTTP/1.1 ").skip(1).map(|it| it[..3].to_owned()).collect()
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let mut connection = Connection::new();
    let (events, rest) = read(&mut connection, [HEALTH, CANCEL, HEALTH].concat().as_bytes());
    assert_eq!(events.len(), 1);
    assert_eq!(rest, HEALTH.as_bytes(), "not before the answer that is due");
    assert_eq!(connection.wants(), Wants::Nothing);
    connection.on_response(DATE, &Response::text(400, "id unknown"));
    assert_eq!(read(&mut connection, &rest), (vec![], vec![]));
    assert_eq!(statuses(&mut connection), ["200", "400", "200"]);
}

#[test]
fn a_broken_request_is_answered_and_ends_the_connection() {
    let mut connection = Connection::new();
    let bytes = [HEALTH, "GET / HTTP/1.1\r\n\r\n", HEALTH].concat();
    assert_eq!(read(&mut connection, bytes.as_bytes()), (vec![], vec![]));
    assert_eq!(statuses(&mut connection), ["200", "400"]);
    assert!(connection.may_shut());
    assert_eq!(connection.wants(), Wants::Discard);
}

#[test]
fn our_direction_stays_open_until_both_have_closed() {
    let mut connection = upgraded();
    connection.close(1001, "bye");
    assert!(connection.is_ending() && !connection.may_shut());
    read(&mut connection, &frame(0x82, b"still under way"));
    read(&mut connection, &frame(0x89, b"ping"));
    assert!(!connection.may_shut());
    read(&mut connection, &frame(0x88, &1001u16.to_be_bytes()));
    assert!(connection.may_shut());
}

#[test]
fn who_closes_first_is_answered() {
    let mut connection = upgraded();
    assert_eq!(read(&mut connection, &frame(0x88, &[])), (vec![], vec![]));
    assert!(connection.may_shut());
    assert_eq!(&connection.out()[..], [0x88, 2, 0x03, 0xe8]);
}

#[test]
fn an_unmasked_frame_fails_the_connection_at_once() {
    let mut connection = upgraded();
    assert_eq!(read(&mut connection, &[0x82, 0]), (vec![], vec![]));
    assert!(connection.may_shut());
    assert_eq!(connection.out()[2..4], 1002u16.to_be_bytes());
}

#[test]
fn nothing_is_said_after_the_end() {
    let mut connection = upgraded();
    connection.close(1001, "bye");
    connection.out().clear();
    connection.on_attached(0, 1);
    connection.on_refused(PeerError::TicketUnknown);
    connection.on_finished();
    connection.close(1001, "bye");
    connection.ping();
    assert_eq!(connection.on_committed(1), None);
    assert!(connection.out().is_empty());
}
