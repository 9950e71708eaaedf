//! The browser: an upload client on tungstenite that checks every message it gets.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};
use socket2::SockRef;
use tungstenite::protocol::Role;
use tungstenite::protocol::frame::coding::{Data, OpCode};
use tungstenite::protocol::frame::{CloseFrame, Frame, FrameHeader};
use tungstenite::{Error, Message, WebSocket};

use crate::content::Content;
use crate::http::Connection;
use crate::server::{PATIENCE, Server};

/// What comes from the server. Pings are answered and not shown.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Message {
        kind: String,
        data: Value,
    },
    Pong(Vec<u8>),
    /// The close frame: its code, if it has one, and its reason.
    Close(Option<u16>, String),
    /// The end of the connection without a close frame.
    Lost,
}

/// One connection to `upload_ws`.
#[derive(Debug)]
pub struct Client {
    socket: WebSocket<TcpStream>,
    /// Where the next byte belongs in the file.
    pub position: u64,
    send_ahead: usize,
    /// The lengths of the messages that are not acknowledged yet.
    in_flight: VecDeque<u64>,
    acknowledged: u64,
}

impl Client {
    pub fn connect(server: &Server) -> Self {
        let stream = Connection::open(server.address).into_parts().0;
        let url = format!("ws://{}/incoming/0.1/frontend/upload_ws", server.address);
        let (socket, response) = tungstenite::client(url, stream).expect("the opening handshake");
        assert_eq!(response.status(), 101);
        Self::on(socket)
    }

    /// Connects with an opening handshake that is followed by these bytes in the same packet.
    pub fn connect_and_say(server: &Server, bytes: &[u8]) -> Self {
        let mut connection = Connection::open(server.address);
        let head = "GET /incoming/0.1/frontend/upload_ws HTTP/1.1\r\nHost: a\r\n\
            Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        connection.send([head.as_bytes(), bytes].concat());
        assert_eq!(connection.response_head().status, 101);
        let (stream, read) = connection.into_parts();
        Self::on(WebSocket::from_partially_read(stream, read, Role::Client, None))
    }

    fn on(socket: WebSocket<TcpStream>) -> Self {
        Self { socket, position: 0, send_ahead: 1, in_flight: VecDeque::new(), acknowledged: 0 }
    }

    /// Connects and goes through the upload handshake. `position` is then the server's FilePos.
    pub fn open(server: &Server, id: &str, length_bytes: u64) -> Self {
        let mut client = Self::connect(server);
        client.request(id, length_bytes, "it.bin");
        client.conf();
        client.ack();
        client
    }

    /// Uploads a whole file until the web app has taken it.
    pub fn upload(server: &Server, id: &str, content: Content, chunk_bytes: u64) {
        let mut client = Self::open(server, id, content.length_bytes);
        assert_eq!(client.position, 0);
        client.send_rest(content, || chunk_bytes);
        client.finish();
    }

    pub fn request(&mut self, id: &str, length_bytes: u64, name: &str) {
        let data = json!({ "Id": id, "LengthBytes": length_bytes, "Name": name });
        self.say("MsgUploadReq", data);
    }

    /// Reads MsgUploadConf and returns FilePos.
    pub fn conf(&mut self) -> u64 {
        let data = self.message("MsgUploadConf");
        let number = |name: &str| data[name].as_u64().unwrap_or_else(|| panic!("{name}: {data}"));
        assert!(number("ChunkSizeKB") > 0);
        self.send_ahead = number("SendAhead") as usize;
        assert!(self.send_ahead > 0);
        self.position = number("FilePos");
        self.acknowledged = self.position;
        self.position
    }

    pub fn ack(&mut self) {
        self.say("MsgAck", json!({ "Ack": true }));
    }

    pub fn cancel(&mut self, reason: &str) {
        self.say("MsgCancel", json!({ "Reason": reason }));
    }

    pub fn say(&mut self, kind: &str, data: Value) {
        self.send(Message::text(json!({ "MsgType": kind, "MsgData": data }).to_string()));
    }

    pub fn send(&mut self, message: Message) {
        self.socket.send(message).expect("send");
    }

    /// Sends a chunk as one frame.
    pub fn chunk(&mut self, bytes: Vec<u8>) {
        self.note_sent(bytes.len());
        self.send(Message::binary(bytes));
    }

    /// Sends a chunk as a fragmented message: what Chromium does above 131,000 bytes.
    pub fn chunk_in_frames(&mut self, bytes: &[u8], frame_bytes: usize) {
        self.note_sent(bytes.len());
        let mut rest = bytes;
        let mut data = Data::Binary;
        loop {
            let (piece, after) = rest.split_at(frame_bytes.min(rest.len()));
            rest = after;
            let frame = Frame::message(piece.to_vec(), OpCode::Data(data), rest.is_empty());
            self.socket.write(Message::Frame(frame)).expect("write");
            data = Data::Continue;
            if rest.is_empty() {
                break;
            }
        }
        self.socket.flush().expect("flush");
    }

    /// Notes a chunk that goes out through [`Self::raw`].
    pub fn note_sent(&mut self, length: usize) {
        self.in_flight.push_back(length as u64);
        self.position += length as u64;
    }

    /// Waits until the server has read everything so far.
    pub fn sync(&mut self) {
        self.send(Message::Ping(b"sync".to_vec().into()));
        assert_eq!(self.receive_after_acks(), Event::Pong(b"sync".to_vec()));
    }

    /// Bytes past tungstenite: broken frames, frames in pieces.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.socket.get_mut().write_all(bytes).expect("write");
    }

    pub fn stream(&self) -> &TcpStream {
        self.socket.get_ref()
    }

    /// Sends the file from `position` on, within the window, and reads all acknowledgements.
    pub fn send_rest(&mut self, content: Content, mut chunk_bytes: impl FnMut() -> u64) {
        while self.position < content.length_bytes {
            while self.in_flight.len() >= self.send_ahead {
                self.chunk_ack();
            }
            self.chunk(content.piece(self.position, chunk_bytes()));
        }
        self.all_acks();
    }

    /// Reads the acknowledgement of the oldest chunk in flight: exactly one for each, in order.
    pub fn chunk_ack(&mut self) {
        self.try_chunk_ack().unwrap_or_else(|other| panic!("{other:?} instead of MsgChunkAck"));
    }

    /// Like [`Self::chunk_ack`], for those who expect something else. Returns that.
    pub fn try_chunk_ack(&mut self) -> Result<(), Event> {
        match self.receive() {
            Event::Message { kind, data } if kind == "MsgChunkAck" => {
                self.on_chunk_ack(&data);
                Ok(())
            }
            other => Err(other),
        }
    }

    /// Chunks that are not acknowledged yet.
    pub fn in_flight_count(&self) -> usize {
        self.in_flight.len()
    }

    pub fn all_acks(&mut self) {
        while !self.in_flight.is_empty() {
            self.chunk_ack();
        }
    }

    /// How many bytes of the file are acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// The next event must be this message. Returns its MsgData.
    pub fn message(&mut self, expected: &str) -> Value {
        match self.receive() {
            Event::Message { kind, data } if kind == expected => data,
            other => panic!("{other:?} instead of {expected}"),
        }
    }

    /// Like [`Self::message`], but chunks in flight may still be acknowledged before it.
    pub fn message_after_acks(&mut self, expected: &str) -> Value {
        match self.receive_after_acks() {
            Event::Message { kind, data } if kind == expected => data,
            other => panic!("{other:?} instead of {expected}"),
        }
    }

    /// The next event that is not an acknowledgement of a chunk.
    pub fn receive_after_acks(&mut self) -> Event {
        loop {
            match self.receive() {
                Event::Message { kind, data } if kind == "MsgChunkAck" => self.on_chunk_ack(&data),
                other => return other,
            }
        }
    }

    pub fn receive(&mut self) -> Event {
        loop {
            return match self.socket.read() {
                Ok(Message::Text(text)) => {
                    let value: Value = serde_json::from_str(&text).expect("JSON");
                    let kind = value["MsgType"].as_str().expect("MsgType").to_owned();
                    Event::Message { kind, data: value["MsgData"].clone() }
                }
                Ok(Message::Ping(_)) => continue,
                Ok(Message::Pong(payload)) => Event::Pong(payload.to_vec()),
                Ok(Message::Close(frame)) => {
                    let code = frame.as_ref().map(|it| it.code.into());
                    Event::Close(code, frame.map(|it| it.reason.to_string()).unwrap_or_default())
                }
                Ok(other) => panic!("the server never sends {other:?}"),
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    panic!("nothing came for {PATIENCE:?}")
                }
                Err(Error::Io(_) | Error::Protocol(_) | Error::ConnectionClosed) => Event::Lost,
                Err(error) => panic!("{error}"),
            };
        }
    }

    /// MsgAllDone, then close 1000.
    pub fn finish(mut self) {
        assert_eq!(self.message("MsgAllDone"), json!({ "Success": true }));
        self.assert_closed(1000);
    }

    /// MsgCancelAck, then close 1000.
    pub fn finish_cancelled(mut self) {
        assert_eq!(self.message_after_acks("MsgCancelAck"), json!({ "Ack": true }));
        self.assert_closed(1000);
    }

    /// MsgError with this code and text, then close 1000.
    pub fn finish_with_error(mut self, code: u16, text: &str) {
        let data = self.message_after_acks("MsgError");
        assert_eq!(data, json!({ "ErrorCode": code, "Msg": text }));
        self.assert_closed(1000);
    }

    /// A close frame with this code, then the end of the connection. Returns its reason.
    pub fn assert_closed(&mut self, code: u16) -> String {
        let reason = match self.receive_after_acks() {
            Event::Close(Some(received), reason) if received == code => reason,
            other => panic!("{other:?} instead of close {code}"),
        };
        assert_eq!(self.receive(), Event::Lost, "after the close frame");
        reason
    }

    /// Closes as a browser does that gives no code, and waits for the server's answer.
    pub fn close(mut self, frame: Option<CloseFrame>) -> Option<u16> {
        self.socket.close(frame).expect("close");
        let code = match self.receive_after_acks() {
            Event::Close(code, _) => code,
            other => panic!("{other:?} instead of a close frame"),
        };
        assert_eq!(self.receive(), Event::Lost, "after the close frame");
        code
    }

    /// Ends the connection with RST, as a dying network does.
    pub fn reset(self) {
        SockRef::from(self.stream()).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
    }

    fn on_chunk_ack(&mut self, data: &Value) {
        let length = self.in_flight.pop_front().expect("a chunk in flight");
        assert_eq!(data, &json!({ "ChunkSize": length }));
        self.acknowledged += length;
    }
}

/// A masked frame as bytes.
pub fn frame(opcode: OpCode, is_final: bool, payload: &[u8]) -> Vec<u8> {
    let header = FrameHeader { is_final, opcode, mask: Some(MASK), ..FrameHeader::default() };
    let mut out = Vec::new();
    Frame::from_payload(header, payload.to_vec().into()).format(&mut out).expect("format");
    out
}

pub fn text_frame(text: &str) -> Vec<u8> {
    frame(OpCode::Data(Data::Text), true, text.as_bytes())
}

pub fn binary_frame(payload: &[u8]) -> Vec<u8> {
    frame(OpCode::Data(Data::Binary), true, payload)
}

const MASK: [u8; 4] = [0x5a, 0x00, 0xff, 0x37];
