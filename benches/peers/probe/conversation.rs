//! One connection of a probe: bytes in, bytes out. The messages of the Incoming!! protocol, without
//! tickets and without a hand-over.

use std::io::Write;

use bytes::BytesMut;
use engine::limits::MESSAGE_BYTES_MAX;
use engine::mask::unmask_in_place;
use incoming::codec::close_code;
use incoming::codec::frame::encode_close;
use incoming::codec::handshake;
use incoming::codec::message::{MessageDecoder, MessageError, MessageEvent, MessageLimits};
use incoming::codec::request::{HeadLimits, RequestError, parse_head};
use incoming::dialect::message::{ClientMessage, ServerMessage};

/// From the upgrade to `MsgAllDone`.
#[derive(Debug)]
pub(super) struct Conversation {
    phase: Phase,
    /// A request head that is not whole yet.
    head: Vec<u8>,
    messages: MessageDecoder,
    out: BytesMut,
    id: String,
    length_bytes: u64,
    received_bytes: u64,
    /// CRC-32C of what was received, if anybody wants it.
    checksum: Option<u32>,
}

/// The client speaks something else; its connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    Request(RequestError),
    Handshake(handshake::HandshakeError),
    Message(MessageError),
    /// A message that does not belong where it came.
    Unexpected,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Upgrade,
    Request,
    Ack,
    Chunks,
    /// The upload is complete.
    Done,
    /// The close frame is the last thing that is said.
    Closed,
}

impl Conversation {
    pub(super) fn new(with_checksum: bool) -> Self {
        Self {
            phase: Phase::Upgrade,
            head: Vec::new(),
            messages: MessageDecoder::new(MESSAGE_LIMITS),
            out: BytesMut::new(),
            id: String::new(),
            length_bytes: 0,
            received_bytes: 0,
            checksum: with_checksum.then_some(0),
        }
    }

    /// What the client has sent; it is unmasked where it lies.
    pub(super) fn on_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Broken> {
        if self.phase != Phase::Upgrade {
            return self.on_frames(bytes);
        }
        self.head.extend_from_slice(bytes);
        let parsed = parse_head(&self.head, &HeadLimits::default()).map_err(Broken::Request)?;
        let Some((head, length)) = parsed else { return Ok(()) };
        self.out.extend_from_slice(&handshake::accept(&head).map_err(Broken::Handshake)?);
        self.phase = Phase::Request;
        let mut head = std::mem::take(&mut self.head);
        self.on_frames(&mut head[length..])
    }

    /// What is to be sent to the client.
    pub(super) fn out(&mut self) -> &mut BytesMut {
        &mut self.out
    }

    /// Once everything is sent, the connection is over.
    pub(super) fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    fn on_frames(&mut self, bytes: &mut [u8]) -> Result<(), Broken> {
        let mut at = 0;
        loop {
            let mut input = &bytes[at..];
            let event = self.messages.decode(&mut input).map_err(Broken::Message)?;
            at = bytes.len() - input.len();
            match event {
                None => return Ok(()),
                Some(MessageEvent::BinaryData { bytes: piece, mask }) => {
                    let start = at - piece.len();
                    unmask_in_place(&mut bytes[start..at], mask);
                    self.on_data(&bytes[start..at])?;
                }
                Some(MessageEvent::BinaryEnd { length_bytes }) => {
                    self.say(ServerMessage::ChunkAck { chunk_size_bytes: length_bytes });
                    self.finish_when_whole();
                }
                Some(MessageEvent::Text(text)) => self.on_text(&text)?,
                Some(MessageEvent::Ping(_) | MessageEvent::Pong) => {}
                Some(MessageEvent::Close { .. }) => {
                    encode_close(&mut self.out, close_code::NORMAL, "");
                    self.phase = Phase::Closed;
                }
            }
        }
    }

    fn on_data(&mut self, piece: &[u8]) -> Result<(), Broken> {
        self.received_bytes += piece.len() as u64;
        if self.phase != Phase::Chunks || self.received_bytes > self.length_bytes {
            return Err(Broken::Unexpected);
        }
        if let Some(checksum) = &mut self.checksum {
            *checksum = crc32c::crc32c_append(*checksum, piece);
        }
        Ok(())
    }

    fn on_text(&mut self, text: &str) -> Result<(), Broken> {
        let message = ClientMessage::parse(text.as_bytes()).ok_or(Broken::Unexpected)?;
        match (self.phase, message.kind()) {
            (Phase::Request, "MsgUploadReq") => {
                let request = message.upload_request().ok_or(Broken::Unexpected)?;
                (self.id, self.length_bytes) = (request.id, request.length_bytes);
                self.say(CONFIRMED);
                self.phase = Phase::Ack;
            }
            (Phase::Ack, "MsgAck") => {
                self.phase = Phase::Chunks;
                self.finish_when_whole();
            }
            _ => return Err(Broken::Unexpected),
        }
        Ok(())
    }

    fn finish_when_whole(&mut self) {
        if self.received_bytes < self.length_bytes {
            return;
        }
        self.say(ServerMessage::AllDone);
        self.phase = Phase::Done;
        if let Some(checksum) = self.checksum {
            // Who started the probe may have stopped to listen.
            let _ = writeln!(std::io::stdout(), "{} {checksum:08x}", self.id);
        }
    }

    fn say(&mut self, message: ServerMessage<'_>) {
        message.encode(&mut self.out);
    }
}

/// As the workload of the benchmark sends unless told otherwise.
const CONFIRMED: ServerMessage<'static> =
    ServerMessage::UploadConf { chunk_size_kb: 1024, file_pos: 0, send_ahead: 2 };

const MESSAGE_LIMITS: MessageLimits = MessageLimits {
    binary_bytes_max: MESSAGE_BYTES_MAX,
    text_bytes_max: 64 * 1024,
    frames_max: 1 << 20,
};
