//! One client's conversation: HTTP/1.1 requests, perhaps an upgrade, then an upload's messages.
//!
//! Bytes in, events out, answers in, bytes out; no socket and no clock. Reading and writing are
//! separate: [`Connection::poll_event`] reads, everything else writes to the output. What it waits for
//! stands in `state`.

mod state;

use bytes::BytesMut;
use engine::error::PeerError;

use crate::codec::body::BodyDecoder;
use crate::codec::close_code;
use crate::codec::frame::{OpCode, encode};
use crate::codec::handshake;
use crate::codec::message::{MessageDecoder, MessageEvent, MessageLimits};
use crate::codec::request::{Framing, Head, HeadLimits, Method, RequestError, parse_head};
use crate::codec::response::{CONTINUE, EncodeOptions, Response};
use crate::dialect::incoming::{Command, Session};
use crate::routes::{BackendCall, Route, Router};
pub use state::{Pace, Wants};

/// See the module.
#[derive(Debug)]
pub struct Connection {
    phase: Phase,
    out: BytesMut,
    /// The last byte has been written: when it is sent, the connection ends.
    is_ending: bool,
    /// The next answer is the last one.
    is_draining: bool,
}

/// What the client wants, in order.
#[derive(Debug)]
pub enum Event<'a> {
    /// Answer with [`Connection::on_response`].
    Backend(BackendCall),
    /// Bytes of the file, still masked; `mask[0]` belongs to `bytes[0]`.
    Append {
        bytes: &'a [u8],
        mask: [u8; 4],
    },
    /// A message with bytes of the file has ended: an acknowledgement is due.
    MessageEnd,
    Command(Command),
    /// A frame or message came that is no news; the client is alive.
    Alive,
}

#[derive(Debug)]
enum Phase {
    Head,
    Body(Box<Request>),
    /// The worker's answer is due.
    Answering(Asked),
    Upload(Box<Upload>),
}

#[derive(Debug)]
struct Request {
    head: Head,
    decoder: BodyDecoder,
    body: Vec<u8>,
}

/// What the answer to a request depends on.
#[derive(Clone, Copy, Debug)]
struct Asked {
    head_only: bool,
    minor_version: u8,
    keep_alive: bool,
}

#[derive(Debug)]
struct Upload {
    messages: MessageDecoder,
    session: Session,
    /// The client's close frame is still to come.
    awaits_close: bool,
}

impl Connection {
    pub fn new() -> Self {
        Self { phase: Phase::Head, out: BytesMut::new(), is_ending: false, is_draining: false }
    }

    /// Pulls the next event off the front of `input`. `None`: everything that can be read has been;
    /// what is left of `input` is handed in again, in front of what comes next.
    pub fn poll_event<'a>(
        &mut self,
        router: &Router,
        date: &str,
        input: &mut &'a [u8],
    ) -> Option<Event<'a>> {
        loop {
            if self.is_ending {
                if let Phase::Upload(upload) = &mut self.phase {
                    upload.look_for_close(input);
                }
                *input = &[];
                return None;
            }
            if self.out.len() > OUT_BYTES_MAX {
                return None;
            }
            match &mut self.phase {
                Phase::Head => match parse_head(input, &HeadLimits::default()) {
                    Ok(None) => return None,
                    Ok(Some((head, length))) => {
                        *input = &input[length..];
                        self.on_head(date, head);
                    }
                    Err(error) => self.refuse_request(date, error),
                },
                Phase::Body(request) => match request.decoder.decode(input, &mut request.body) {
                    Ok(false) => return None,
                    Ok(true) => {
                        if let Some(event) = self.on_request(router, date) {
                            return Some(event);
                        }
                    }
                    Err(error) => self.refuse_request(date, error),
                },
                Phase::Answering(_) => return None,
                Phase::Upload(_) => return self.poll_message(input),
            }
        }
    }

    /// The answer to [`Event::Backend`].
    pub fn on_response(&mut self, date: &str, response: &Response) {
        let Phase::Answering(asked) = self.phase else {
            unreachable!("an answer follows a request");
        };
        self.phase = Phase::Head;
        self.respond(date, response, asked);
    }

    /// The upload that was claimed goes on at `offset_bytes`.
    pub fn on_attached(&mut self, offset_bytes: u64, length_bytes: u64) {
        if let Some((session, out)) = self.session() {
            session.on_attached(out, offset_bytes, length_bytes);
        }
    }

    /// Everything below `offset_bytes` is safe. Returns how far acknowledgements now reach.
    pub fn on_committed(&mut self, offset_bytes: u64) -> Option<u64> {
        let (session, out) = self.session()?;
        session.on_committed(out, offset_bytes)
    }

    /// `length_bytes` of [`Event::Append`] were stored.
    pub fn on_appended(&mut self, length_bytes: u64) {
        if let Some((session, _)) = self.session() {
            session.on_appended(length_bytes);
        }
    }

    /// Everything is stored and acknowledged.
    pub fn on_stored(&mut self) {
        if let Some((session, _)) = self.session() {
            session.on_stored();
        }
    }

    pub fn on_finished(&mut self) {
        if let Some((session, out)) = self.session() {
            session.on_finished(out);
            self.is_ending = true;
        }
    }

    pub fn on_cancelled(&mut self) {
        if let Some((session, out)) = self.session() {
            session.on_cancelled(out);
            self.is_ending = true;
        }
    }

    /// The web app cancelled. The client may still have a word.
    pub fn on_revoked(&mut self, reason: &str) {
        if let Some((session, out)) = self.session() {
            let is_answer_due = session.on_revoked(out, reason);
            self.is_ending = !is_answer_due;
        }
    }

    /// Tells the client that this upload is over for it.
    pub fn on_refused(&mut self, error: PeerError) {
        if let Some((session, out)) = self.session() {
            session.on_refused(out, error);
            self.is_ending = true;
        }
    }

    /// Ends the connection, with a close code if it is a WebSocket (RFC 6455 section 7.4).
    pub fn close(&mut self, code: u16, reason: &str) {
        if let (Phase::Upload(upload), false) = (&mut self.phase, self.is_ending) {
            upload.session.on_closed(&mut self.out, code, reason);
        }
        self.is_ending = true;
    }

    /// The server stops: the next answer is the last one.
    pub fn drain(&mut self) {
        self.is_draining = true;
    }

    /// Asks the client for a sign of life, unless the last byte has been written.
    pub fn ping(&mut self) {
        if let Some((_, out)) = self.session() {
            encode(out, OpCode::Ping, b"");
        }
    }

    /// What is to be sent.
    pub fn out(&mut self) -> &mut BytesMut {
        &mut self.out
    }

    /// Says no more, and waits for nothing: the client is gone.
    pub fn end(&mut self) {
        self.is_ending = true;
    }

    fn on_head(&mut self, date: &str, head: Head) {
        match BodyDecoder::new(&head, BODY_BYTES_MAX) {
            Ok(decoder) => {
                if head.expects_continue() && head.framing != Framing::None {
                    self.out.extend_from_slice(CONTINUE);
                }
                let request = Request { head, decoder, body: Vec::new() };
                self.phase = Phase::Body(Box::new(request));
            }
            Err(error) => self.refuse_request(date, error),
        }
    }

    fn on_request(&mut self, router: &Router, date: &str) -> Option<Event<'static>> {
        let Phase::Body(request) = std::mem::replace(&mut self.phase, Phase::Head) else {
            unreachable!("a request has just been read");
        };
        let head = &request.head;
        let asked = Asked {
            head_only: head.method == Method::Head,
            minor_version: head.minor_version,
            keep_alive: head.keep_alive(),
        };
        match router.route(head, &request.body) {
            Route::Answer(response) => self.respond(date, &response, asked),
            Route::Backend(call) => {
                self.phase = Phase::Answering(asked);
                return Some(Event::Backend(call));
            }
            Route::Upload => match handshake::accept(head) {
                Ok(response) => {
                    self.out.extend_from_slice(&response);
                    let messages = MessageDecoder::new(MESSAGE_LIMITS);
                    let session = Session::new();
                    self.phase =
                        Phase::Upload(Box::new(Upload { messages, session, awaits_close: true }));
                    return Some(Event::Alive);
                }
                Err(error) => self.respond(date, &error.response(), asked),
            },
        }
        None
    }

    fn poll_message<'a>(&mut self, input: &mut &'a [u8]) -> Option<Event<'a>> {
        let Phase::Upload(upload) = &mut self.phase else {
            unreachable!("called in this phase");
        };
        let Upload { messages, session, awaits_close } = &mut **upload;
        if session.is_claiming() || session.unacked_count() >= UNACKED_COUNT_MAX {
            return None;
        }
        let event = match messages.decode(input) {
            Ok(event) => event?,
            Err(error) => {
                // What follows cannot be understood: no close frame would be found in it.
                *awaits_close = false;
                self.close(error.close_code(), error.reason());
                return None;
            }
        };
        let command = match event {
            MessageEvent::BinaryData { bytes, mask } if session.is_receiving() => {
                return Some(Event::Append { bytes, mask });
            }
            MessageEvent::BinaryData { bytes, mask } => {
                let mut unmasked = bytes[..bytes.len().min(STRAY_BYTES_MAX)].to_vec();
                engine::mask::unmask_in_place(&mut unmasked, mask);
                session.on_stray_binary(&unmasked)
            }
            MessageEvent::BinaryEnd { length_bytes } => {
                let is_chunk = session.is_receiving();
                let command = session.on_binary_end(length_bytes);
                if is_chunk {
                    return Some(Event::MessageEnd);
                }
                command
            }
            MessageEvent::Text(text) => session.on_text(&text),
            MessageEvent::Ping(payload) => {
                encode(&mut self.out, OpCode::Pong, &payload);
                None
            }
            MessageEvent::Pong => None,
            MessageEvent::Close { code, .. } => {
                *awaits_close = false;
                session.on_closed(&mut self.out, code.unwrap_or(close_code::NORMAL), "");
                self.is_ending = true;
                return None;
            }
        };
        Some(command.map_or(Event::Alive, Event::Command))
    }

    fn respond(&mut self, date: &str, response: &Response, asked: Asked) {
        let Asked { head_only, minor_version, keep_alive } = asked;
        let keep_alive = keep_alive && !self.is_draining;
        let options = EncodeOptions { head_only, close: !keep_alive, minor_version, date };
        response.encode(&mut self.out, options);
        self.is_ending |= !keep_alive;
    }

    /// After an error nobody knows where the next request begins: the connection ends.
    fn refuse_request(&mut self, date: &str, error: RequestError) {
        let response = Response::text(error.status(), error.message());
        let asked = Asked { head_only: false, minor_version: 1, keep_alive: false };
        self.respond(date, &response, asked);
    }

    /// An upload's session, as long as anything may be said in it.
    fn session(&mut self) -> Option<(&mut Session, &mut BytesMut)> {
        match &mut self.phase {
            Phase::Upload(upload) if !self.is_ending => Some((&mut upload.session, &mut self.out)),
            _ => None,
        }
    }
}

impl Upload {
    /// After our close frame: whatever comes before the client's is no news.
    fn look_for_close(&mut self, input: &mut &[u8]) {
        while self.awaits_close {
            match self.messages.decode(input) {
                Ok(None) => return,
                Ok(Some(MessageEvent::Close { .. })) | Err(_) => self.awaits_close = false,
                Ok(Some(_)) => {}
            }
        }
    }
}

impl Default for Connection {
    fn default() -> Self {
        Self::new()
    }
}

const MESSAGE_LIMITS: MessageLimits = MessageLimits {
    binary_bytes_max: engine::limits::MESSAGE_BYTES_MAX,
    text_bytes_max: 16 * 1024,
    // Chromium makes 65 of 8 MiB. Nobody needs more than this.
    frames_max: 65_536,
};

/// Requests are small: parameters of a form.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// Received and not yet understood: a request head at most.
const INPUT_BYTES_MAX: u32 = 16 * 1024;

/// Who does not take its answers gets no further ones.
const OUT_BYTES_MAX: usize = 64 * 1024;

/// Messages that may wait for their acknowledgement before the next is read.
const UNACKED_COUNT_MAX: usize = 1024;

/// Of a binary message where none belongs: more than any text in it needs.
const STRAY_BYTES_MAX: usize = 32 * 1024;

#[cfg(test)]
mod tests;
