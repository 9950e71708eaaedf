//! A client that uploads over WebSocket: what it says, and what it makes of the answers. Inert.

use serde::Deserialize;

use crate::content::{BLOCK_BYTES, Content, Piece, Shape};
use crate::conversation::{Conversation, Messages, Stage};
use crate::error::Problem;
use crate::frame::{self, BINARY, CLOSE, CONTINUATION, FIN, PING, PONG, TEXT};
use crate::http::{request_head, response};
use crate::outbox::Outbox;
use crate::{Protocol, Verify, Workload};

#[derive(Debug)]
pub(crate) struct Upload {
    state: State,
    host: String,
    /// What to ask for at `new_upload`; without it there is no ticket, and the file has a name.
    ticket_query: Option<String>,
    backend_key: Option<String>,
    id: String,
    messages: Messages,
    send_ahead: u64,
    announced: bool,
    frame_bytes: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ticket,
    Upgrade,
    Confirm,
    Sending,
    Cancelling,
    Done,
}

impl Upload {
    /// `done_url`: where the web app of this run is, if there is one.
    pub(crate) fn new(workload: &Workload, client: usize, done_url: Option<&str>) -> Self {
        let ticket_query = (workload.protocol == Protocol::Incoming).then(|| {
            let keep = workload.verify == Verify::Hash;
            form_urlencoded::Serializer::new(String::new())
                .append_pair("signalFinishURL", done_url.unwrap_or_default())
                .append_pair("removeFileWhenFinished", if keep { "false" } else { "true" })
                .finish()
        });
        Self {
            state: if ticket_query.is_some() { State::Ticket } else { State::Upgrade },
            host: workload.host.clone(),
            ticket_query,
            backend_key: workload.backend_key.clone(),
            id: format!("file-{client}"),
            messages: Messages::new(Content {
                seed: workload.seed,
                file: client as u64,
                // Servers reserve space for what is announced, also for those who never send.
                length_bytes: match client < workload.clients {
                    true => workload.file_bytes,
                    false => IDLE_FILE_BYTES,
                },
                shape: Shape::Messages(workload.chunk_bytes),
            }),
            send_ahead: u64::from(workload.send_ahead),
            announced: workload.announced,
            frame_bytes: workload.frame_bytes.unwrap_or(u32::MAX),
        }
    }

    fn push_upgrade(&mut self, out: &mut Outbox) {
        out.push(
            request_head("GET", "/incoming/0.1/frontend/upload_ws", &self.host)
                .with("Connection", "Upgrade")
                .with("Upgrade", "websocket")
                .with("Sec-WebSocket-Version", "13")
                .with("Sec-WebSocket-Key", HANDSHAKE_KEY)
                .into_bytes(),
        );
        self.state = State::Upgrade;
    }

    fn on_message(&mut self, text: &[u8], out: &mut Outbox) -> Result<(), Problem> {
        let message: Message = serde_json::from_slice(text)
            .map_err(|_| Problem::Garbage("a text message that is none of the protocol's"))?;
        match (self.state, message) {
            (_, Message::Error { code, message }) => Err(Problem::Refused { code, message }),
            (State::Confirm, Message::UploadConf { chunk_size_kb, file_pos, send_ahead }) => {
                if file_pos != 0 {
                    return Err(Problem::Garbage("FilePos of a new upload is not 0"));
                }
                if self.announced {
                    let chunk_bytes = chunk_size_kb
                        .checked_mul(1024)
                        .filter(|it| (1..=CHUNK_BYTES_MAX).contains(it) && send_ahead > 0)
                        .ok_or(Problem::Garbage("ChunkSizeKB or SendAhead is out of range"))?;
                    let shape = Shape::Messages(chunk_bytes);
                    self.messages = Messages::new(Content { shape, ..self.messages.content });
                    self.send_ahead = u64::from(send_ahead);
                }
                out.push(frame::text(r#"{"MsgType":"MsgAck","MsgData":{"Ack":true}}"#));
                self.state = State::Sending;
                Ok(())
            }
            (State::Sending | State::Cancelling, Message::ChunkAck { chunk_size }) => {
                self.messages.acked(Some(chunk_size))
            }
            (State::Sending, Message::AllDone { .. }) if self.messages.all_acked() => {
                out.push(frame::whole(CLOSE, &1000u16.to_be_bytes()));
                self.state = State::Done;
                Ok(())
            }
            (State::Cancelling, Message::CancelAck { .. }) => {
                self.state = State::Done;
                Ok(())
            }
            (_, Message::Cancel { reason }) => Err(Problem::Cancelled { reason }),
            _ => Err(Problem::Garbage("a message out of turn")),
        }
    }

    /// One frame from the server.
    fn on_frame(&mut self, opcode: u8, payload: &[u8], out: &mut Outbox) -> Result<(), Problem> {
        match opcode {
            TEXT => self.on_message(payload, out),
            PING => {
                out.push(frame::whole(PONG, payload));
                Ok(())
            }
            PONG => Ok(()),
            // What comes after the last word is of no interest.
            CLOSE if self.state == State::Done => Ok(()),
            CLOSE => {
                let (code, reason) = payload.split_at(payload.len().min(2));
                let code = code.try_into().ok().map(u16::from_be_bytes);
                let reason = String::from_utf8_lossy(reason).into_owned();
                Err(Problem::CloseFrame { code, reason })
            }
            _ => Err(Problem::Garbage("a frame that is neither text nor control")),
        }
    }
}

impl Conversation for Upload {
    fn on_connected(&mut self, out: &mut Outbox) {
        let Some(query) = &self.ticket_query else { return self.push_upgrade(out) };
        let path = format!("/incoming/0.1/backend/new_upload?{query}");
        let mut head = request_head("POST", &path, &self.host).with("Content-Length", "0");
        if let Some(key) = &self.backend_key {
            head = head.with("Authorization", &format!("Bearer {key}"));
        }
        out.push(head.into_bytes());
    }

    fn on_bytes(&mut self, bytes: &[u8], out: &mut Outbox) -> Result<usize, Problem> {
        match self.state {
            State::Ticket => {
                let Some((response, length)) = response(bytes)? else { return Ok(0) };
                let id = response.success()?.body.clone();
                self.id = id.trim().to_owned();
                if self.id.is_empty() || self.id.len() > ID_BYTES_MAX {
                    return Err(Problem::Garbage("the answer to new_upload is no ticket"));
                }
                self.push_upgrade(out);
                Ok(length)
            }
            State::Upgrade => {
                let Some((response, length)) = response(bytes)? else { return Ok(0) };
                if response.status != 101 {
                    return Err(Problem::Status { status: response.status, body: response.body });
                }
                if response.accept.as_deref() != Some(HANDSHAKE_ACCEPT) {
                    return Err(Problem::Garbage("Sec-WebSocket-Accept is missing or wrong"));
                }
                let request = serde_json::json!({
                    "MsgType": "MsgUploadReq",
                    "MsgData": {
                        "Id": self.id,
                        "LengthBytes": self.messages.content.length_bytes,
                        "Name": format!("file-{}", self.messages.content.file),
                    },
                });
                out.push(frame::text(&request.to_string()));
                self.state = State::Confirm;
                Ok(length)
            }
            _ => {
                let Some((opcode, payload)) = frame::parse(bytes)? else { return Ok(0) };
                let end = payload.end;
                self.on_frame(opcode, &bytes[payload], out)?;
                Ok(end)
            }
        }
    }

    fn stage(&self) -> Stage {
        match self.state {
            State::Done => Stage::Done,
            State::Sending if self.messages.all_acked() => Stage::Whole,
            State::Sending => Stage::Ready,
            State::Cancelling => Stage::Whole,
            State::Ticket | State::Upgrade | State::Confirm => Stage::Preparing,
        }
    }

    fn messages(&self) -> &Messages {
        &self.messages
    }

    fn may_send(&self) -> bool {
        self.messages.under_way() < self.send_ahead
    }

    fn send_message(&mut self, out: &mut Outbox) {
        let Some(message) = self.messages.send() else { return };
        let mut sent_bytes = 0;
        while sent_bytes < message.length_bytes {
            let left_bytes = message.length_bytes - sent_bytes;
            let length_bytes = left_bytes.min(u64::from(self.frame_bytes));
            let opcode = if sent_bytes == 0 { BINARY } else { CONTINUATION };
            let fin = if length_bytes == left_bytes { FIN } else { 0 };
            // Masks count from the beginning of a frame (RFC 6455, 5.3), keys of contents from
            // that of a message.
            let mut key = message.key;
            key.rotate_left((sent_bytes % 4) as usize);
            let head = frame::head(fin | opcode, length_bytes, key);
            match sent_bytes {
                0 => out.push_beginning(head),
                _ => out.push(head),
            }
            let start = message.start + sent_bytes;
            out.push_block(Piece { start, length_bytes, key });
            sent_bytes += length_bytes;
        }
    }

    fn cancel(&mut self, out: &mut Outbox) {
        if self.ticket_query.is_some() {
            let text = r#"{"MsgType":"MsgCancel","MsgData":{"Reason":"the load test is over"}}"#;
            out.push(frame::text(text));
            self.state = State::Cancelling;
        } else {
            out.push(frame::whole(CLOSE, &1000u16.to_be_bytes()));
            self.state = State::Done;
        }
    }

    fn name(&self) -> &str {
        &self.id
    }
}

/// What the server says.
#[derive(Deserialize)]
#[serde(tag = "MsgType", content = "MsgData")]
enum Message {
    #[serde(rename = "MsgUploadConf")]
    UploadConf {
        #[serde(rename = "ChunkSizeKB")]
        chunk_size_kb: u32,
        #[serde(rename = "FilePos")]
        file_pos: u64,
        #[serde(rename = "SendAhead")]
        send_ahead: u32,
    },
    #[serde(rename = "MsgChunkAck")]
    ChunkAck {
        #[serde(rename = "ChunkSize")]
        chunk_size: u64,
    },
    #[serde(rename = "MsgAllDone")]
    AllDone {},
    #[serde(rename = "MsgCancel")]
    Cancel {
        #[serde(rename = "Reason", default)]
        reason: String,
    },
    #[serde(rename = "MsgCancelAck")]
    CancelAck {},
    #[serde(rename = "MsgError")]
    Error {
        #[serde(rename = "ErrorCode", default)]
        code: i64,
        #[serde(rename = "Msg", default)]
        message: String,
    },
}

/// The example of RFC 6455, 1.3, and what is to be answered to it.
const HANDSHAKE_KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const HANDSHAKE_ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
const IDLE_FILE_BYTES: u64 = 64 << 10;
const ID_BYTES_MAX: usize = 256;
const CHUNK_BYTES_MAX: u32 = BLOCK_BYTES as u32;

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::content::Block;

    fn workload(file_bytes: u64, chunk_bytes: u32, frame_bytes: Option<u32>) -> Workload {
        let server: SocketAddr = ([127, 0, 0, 1], 1).into();
        let protocol = Protocol::WebSocketOnly;
        Workload { protocol, file_bytes, chunk_bytes, frame_bytes, ..Workload::new(server) }
    }

    /// An upload that may send.
    fn confirmed(workload: &Workload) -> Upload {
        let mut upload = Upload::new(workload, 3, None);
        let mut out = Outbox::default();
        upload.on_connected(&mut out);
        let switch = format!(
            "HTTP/1.1 101 Switching Protocols\r\nsec-websocket-accept: {HANDSHAKE_ACCEPT}\r\n\r\n"
        );
        assert_eq!(upload.on_bytes(switch.as_bytes(), &mut out), Ok(switch.len()));
        let conf = unmasked(
            TEXT,
            br#"{"MsgType":"MsgUploadConf","MsgData":{"ChunkSizeKB":3,"FilePos":0,"SendAhead":5}}"#,
        );
        assert_eq!(upload.stage(), Stage::Preparing);
        assert_eq!(upload.on_bytes(&conf, &mut out), Ok(conf.len()));
        assert_eq!(upload.stage(), Stage::Ready);
        upload
    }

    fn unmasked(opcode: u8, payload: &[u8]) -> Vec<u8> {
        assert!(payload.len() < 126);
        let mut frame = vec![FIN | opcode, payload.len() as u8];
        frame.extend_from_slice(payload);
        frame
    }

    fn ack(length: u64) -> Vec<u8> {
        let text = format!(r#"{{"MsgType":"MsgChunkAck","MsgData":{{"ChunkSize":{length}}}}}"#);
        unmasked(TEXT, text.as_bytes())
    }

    /// The messages that a server would read, by the book and byte by byte, and the longest frame.
    fn read_messages(mut wire: &[u8]) -> (Vec<Vec<u8>>, usize) {
        let (mut messages, mut longest) = (Vec::new(), 0);
        let mut message = None;
        while !wire.is_empty() {
            let (first, second) = (wire[0], wire[1]);
            assert_ne!(second & 0x80, 0, "clients mask");
            let (length, rest) = match second & 0x7f {
                126 => (u64::from(u16::from_be_bytes(wire[2..4].try_into().unwrap())), &wire[4..]),
                127 => (u64::from_be_bytes(wire[2..10].try_into().unwrap()), &wire[10..]),
                short => (u64::from(short), &wire[2..]),
            };
            let (key, rest) = rest.split_at(4);
            let (payload, rest) = rest.split_at(length as usize);
            longest = longest.max(payload.len());
            let plain = payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key);
            match (first & 0xf, &mut message) {
                (2, None) => message = Some(plain.collect::<Vec<u8>>()),
                (0, Some(message)) => message.extend(plain),
                other => panic!("{other:?}"),
            }
            if first & 0x80 != 0 {
                messages.extend(message.take());
            }
            wire = rest;
        }
        assert_eq!(message, None);
        (messages, longest)
    }

    #[test]
    fn messages_carry_the_file_whatever_frames_they_are_cut_into() {
        let block = Block::shared();
        for (file_bytes, chunk_bytes, frame_bytes) in [
            (1_000_001, 300_000, None),
            (1_000_001, 300_000, Some(131_000)),
            (1_000_000, 1_000_000, Some(131_001)),
            (100_000, 70_000, Some(65_535)),
            (1000, 126, Some(125)),
            (10, 1, None),
            (40, 10, Some(3)),
        ] {
            let workload = workload(file_bytes, chunk_bytes, frame_bytes);
            let mut upload = confirmed(&workload);
            let mut out = Outbox::default();
            while !upload.messages.all_sent() {
                upload.send_message(&mut out);
            }
            let (messages, longest) = read_messages(&out.flat(block));
            assert!(longest <= frame_bytes.unwrap_or(u32::MAX) as usize);
            let lengths = messages.iter().map(|it| it.len() as u64);
            assert!(lengths.eq((0..messages.len() as u64).map(|it| upload.messages.bytes_of(it))));
            let mut expected = vec![0; file_bytes as usize];
            upload.messages.content.fill(block, 0, &mut expected);
            assert!(messages.concat() == expected);
        }
    }

    #[test]
    fn chunks_wait_for_acknowledgements_and_these_are_checked() {
        let workload = workload(25, 10, None);
        let mut upload = confirmed(&workload);
        let mut out = Outbox::default();
        assert!(upload.may_send());
        upload.send_message(&mut out);
        assert!(upload.may_send());
        upload.send_message(&mut out);
        assert!(!upload.may_send());
        assert_eq!(upload.on_bytes(&ack(10), &mut out), Ok(ack(10).len()));
        assert!(upload.may_send());
        upload.send_message(&mut out);
        upload.on_bytes(&ack(10), &mut out).unwrap();
        assert_eq!(upload.stage(), Stage::Ready);
        let early = unmasked(TEXT, br#"{"MsgType":"MsgAllDone","MsgData":{"Success":true}}"#);
        let mut hasty = confirmed(&workload);
        assert!(matches!(hasty.on_bytes(&early, &mut out), Err(Problem::Garbage(_))));
        assert!(matches!(upload.on_bytes(&ack(10), &mut out), Err(Problem::Garbage(_))), "5 left");
        upload.on_bytes(&ack(5), &mut out).unwrap();
        assert_eq!(upload.stage(), Stage::Whole);
        upload.on_bytes(&early, &mut out).unwrap();
        assert_eq!(upload.stage(), Stage::Done);
        assert!(matches!(upload.on_bytes(&ack(5), &mut out), Err(Problem::Garbage(_))));
    }

    #[test]
    fn what_the_server_announces_is_taken_if_wanted() {
        let given = confirmed(&workload(100_000, 10, None));
        assert_eq!((given.messages.bytes_of(0), given.send_ahead), (10, 2));
        let announced = Workload { announced: true, ..workload(100_000, 10, None) };
        let announced = confirmed(&announced);
        assert_eq!((announced.messages.bytes_of(0), announced.send_ahead), (3072, 5));
    }

    #[test]
    fn refusals_closes_and_nonsense_are_told_apart() {
        let workload = workload(25, 10, None);
        let mut out = Outbox::default();
        let mut hear = |bytes: &[u8]| confirmed(&workload).on_bytes(bytes, &mut out);
        let refusal = br#"{"MsgType":"MsgError","MsgData":{"ErrorCode":107,"Msg":"too large"}}"#;
        let refused = Problem::Refused { code: 107, message: "too large".into() };
        assert_eq!(hear(&unmasked(TEXT, refusal)), Err(refused));
        let closed = Problem::CloseFrame { code: Some(1013), reason: "no room".into() };
        assert_eq!(hear(&unmasked(CLOSE, b"\x03\xf5no room")), Err(closed));
        let closed = Problem::CloseFrame { code: None, reason: String::new() };
        assert_eq!(hear(&unmasked(CLOSE, b"")), Err(closed));
        let cancel = br#"{"MsgType":"MsgCancel","MsgData":{"Reason":"quota"}}"#;
        assert_eq!(
            hear(&unmasked(TEXT, cancel)),
            Err(Problem::Cancelled { reason: "quota".into() })
        );
        for garbage in [
            &b"HTTP/1.1 200 OK"[..],
            &[0x81, 0x80, 0, 0, 0, 0],
            &[0x81, 127],
            &[0x01, 0],
            &unmasked(TEXT, b"{}"),
            &unmasked(TEXT, b"\xff"),
            &unmasked(BINARY, b"x"),
            &ack(10),
        ] {
            assert!(matches!(hear(garbage), Err(Problem::Garbage(_))), "{garbage:?}");
        }
    }

    #[test]
    fn pings_are_answered_and_parts_of_frames_waited_for() {
        let block = Block::shared();
        let mut upload = confirmed(&workload(25, 10, None));
        let mut out = Outbox::default();
        let ping = unmasked(PING, b"are you there");
        for length in 0..ping.len() {
            assert_eq!(upload.on_bytes(&ping[..length], &mut out), Ok(0));
        }
        assert_eq!(upload.on_bytes(&ping, &mut out), Ok(ping.len()));
        assert_eq!(out.flat(block), frame::whole(PONG, b"are you there"));
    }
}
