//! Reads the golden vectors that are shared with JavaScript; `README.md` describes them.

use bytes::BytesMut;
use engine::mask::unmask_in_place;
use incoming::codec::frame::{OpCode, encode};
use incoming::codec::message::{MessageDecoder, MessageEvent, MessageLimits};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Frames {
    limits: Limits,
    client_to_server: Vec<Received>,
    server_to_client: Vec<Sent>,
}

#[derive(Deserialize)]
struct Limits {
    binary_bytes_max: u64,
    text_bytes_max: usize,
    frames_max: u32,
}

#[derive(Deserialize)]
struct Received {
    name: String,
    wire: String,
    events: Vec<Value>,
}

#[derive(Deserialize)]
struct Sent {
    name: String,
    opcode: String,
    payload: String,
    wire: String,
}

#[derive(Deserialize)]
struct Messages {
    client_to_server: Vec<Message>,
    client_to_server_refused: Vec<Refused>,
    server_to_client: Vec<Message>,
}

#[derive(Deserialize)]
struct Message {
    name: String,
    text: String,
    #[serde(rename = "type")]
    kind: String,
    data: Value,
    wire: Option<String>,
}

#[derive(Deserialize)]
struct Refused {
    name: String,
    text: String,
}

#[test]
fn frames_of_clients() {
    let frames: Frames = serde_json::from_str(FRAMES).expect("frames.json");
    assert!(!frames.client_to_server.is_empty());
    for it in &frames.client_to_server {
        let wire = from_hex(&it.wire);
        for step in [wire.len(), 1, 3] {
            assert_eq!(decode(&wire, &frames.limits, step), it.events, "{} by {step}", it.name);
        }
    }
}

#[test]
fn frames_of_the_server() {
    let frames: Frames = serde_json::from_str(FRAMES).expect("frames.json");
    assert!(!frames.server_to_client.is_empty());
    for it in &frames.server_to_client {
        let opcode = match it.opcode.as_str() {
            "text" => OpCode::Text,
            "binary" => OpCode::Binary,
            "close" => OpCode::Close,
            "ping" => OpCode::Ping,
            "pong" => OpCode::Pong,
            other => panic!("{}: opcode {other}", it.name),
        };
        let mut out = BytesMut::new();
        encode(&mut out, opcode, &from_hex(&it.payload));
        assert_eq!(to_hex(&out), it.wire, "{}", it.name);
    }
}

#[test]
fn messages_say_what_they_claim() {
    let messages: Messages = serde_json::from_str(MESSAGES).expect("messages.json");
    assert!(!messages.client_to_server.is_empty() && !messages.server_to_client.is_empty());
    for it in &messages.client_to_server {
        let said: Value = serde_json::from_str(&it.text).expect(&it.name);
        let names: Vec<String> =
            said.as_object().expect(&it.name).keys().map(|it| it.to_lowercase()).collect();
        assert_eq!(names.len(), 2, "{}", it.name);
        assert!(names.contains(&"msgtype".into()) && names.contains(&"msgdata".into()));
    }
    for it in &messages.server_to_client {
        let said: Value = serde_json::from_str(&it.text).expect(&it.name);
        assert_eq!(said, json!({ "MsgType": it.kind, "MsgData": it.data }), "{}", it.name);
        assert!(it.text.starts_with(r#"{"MsgType":"#), "{}", it.name);
        let mut out = BytesMut::new();
        encode(&mut out, OpCode::Text, it.text.as_bytes());
        assert_eq!(Some(to_hex(&out)), it.wire, "{}", it.name);
    }
    for it in &messages.client_to_server_refused {
        let said: Result<Value, _> = serde_json::from_str(&it.text);
        let length = said.map(|it| it["MsgData"]["LengthBytes"].clone()).unwrap_or_default();
        assert!(length.as_u64().is_none(), "{} would be understood", it.name);
    }
}

fn decode(wire: &[u8], limits: &Limits, step: usize) -> Vec<Value> {
    let mut decoder = MessageDecoder::new(MessageLimits {
        binary_bytes_max: limits.binary_bytes_max,
        text_bytes_max: limits.text_bytes_max,
        frames_max: limits.frames_max,
    });
    let mut events = Vec::new();
    let mut binary = Vec::new();
    for mut input in wire.chunks(step) {
        loop {
            events.push(match decoder.decode(&mut input) {
                Ok(None) => break,
                Ok(Some(MessageEvent::BinaryData { bytes, mask })) => {
                    let before = binary.len();
                    binary.extend_from_slice(bytes);
                    unmask_in_place(&mut binary[before..], mask);
                    continue;
                }
                Ok(Some(MessageEvent::BinaryEnd { .. })) => {
                    json!({ "event": "binary", "bytes": to_hex(&std::mem::take(&mut binary)) })
                }
                Ok(Some(MessageEvent::Text(text))) => json!({ "event": "text", "text": text }),
                Ok(Some(MessageEvent::Ping(payload))) => {
                    json!({ "event": "ping", "bytes": to_hex(&payload) })
                }
                Ok(Some(MessageEvent::Pong)) => json!({ "event": "pong" }),
                Ok(Some(MessageEvent::Close { code, reason })) => {
                    json!({ "event": "close", "code": code, "reason": reason })
                }
                Err(error) => json!({
                    "event": "error",
                    "close_code": error.close_code(),
                    "reason": error.reason(),
                }),
            });
        }
    }
    events
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> =
        text.chars().map(|it| it.to_digit(16).expect("hexadecimal digits")).collect();
    digits.chunks(2).map(|it| (it[0] << 4 | it[1]) as u8).collect()
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|it| format!("{it:02x}")).collect()
}

const FRAMES: &str = include_str!("frames.json");
const MESSAGES: &str = include_str!("messages.json");
