//! The Incoming!! 0.1 dialect: one browser's conversation about one upload.
//!
//! ```text
//! Requesting ─ MsgUploadReq ─► Claiming ─ on_attached ─► Confirming ─ MsgAck ─► Receiving
//!                                                                                   │
//!      Over ◄─ on_finished ─ Waiting ◄─ on_stored (everything acknowledged) ────────┘
//! ```
//!
//! Anything may also end in an error, a cancellation or a take-over, which are `Over` as well.

use std::collections::VecDeque;

use bytes::BytesMut;
use engine::error::PeerError;

use super::message::{ClientMessage, ServerMessage, UploadRequest};
use crate::codec::close_code;
use crate::codec::frame::encode_close;

/// Pure: messages in, commands and messages out.
#[derive(Debug)]
pub struct Session {
    state: State,
    /// Where the next byte of the file goes.
    received: u64,
    length: u64,
    /// Bytes of the binary message that has begun.
    message_bytes: u64,
    is_in_message: bool,
    /// Messages that are here and not yet acknowledged, oldest first.
    unacked: VecDeque<Unacked>,
    /// A binary message where a text was expected: JSON in it is understood as well.
    gathered: Vec<u8>,
}

/// What a session wants its owner to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Find the upload, and answer with `on_attached` or `on_refused`.
    Claim(UploadRequest),
    /// The handshake is over: bytes may come.
    Start,
    /// The browser pauses. It closes the connection itself.
    Pause,
    Cancel {
        reason: String,
    },
    /// The browser has given up.
    Abandon {
        reason: String,
    },
    /// The message is against the protocol; the session is over.
    Refuse(PeerError),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Requesting,
    Claiming,
    Confirming,
    Receiving,
    /// The web app cancelled; the browser was asked to agree.
    Revoked,
    /// The browser cancelled; the web app is being told.
    Cancelling,
    /// Everything is here. The web app is being told. Whatever the browser says is ignored.
    Waiting,
    Over,
}

#[derive(Clone, Copy, Debug)]
struct Unacked {
    end: u64,
    length_bytes: u64,
}

impl Session {
    pub fn new() -> Self {
        Self {
            state: State::Requesting,
            received: 0,
            length: 0,
            message_bytes: 0,
            is_in_message: false,
            unacked: VecDeque::new(),
            gathered: Vec::new(),
        }
    }

    pub fn on_text(&mut self, text: &str) -> Option<Command> {
        self.on_message(text.as_bytes())
    }

    /// A part of a binary message where none belongs to the file: `bytes` is unmasked. `None` while
    /// nothing is to be done.
    pub fn on_stray_binary(&mut self, bytes: &[u8]) -> Option<Command> {
        match self.state {
            State::Requesting | State::Confirming => {
                if self.gathered.len() + bytes.len() > GATHERED_BYTES_MAX {
                    self.gathered = Vec::new();
                    return Some(self.refuse_unreadable());
                }
                self.gathered.extend_from_slice(bytes);
                None
            }
            _ => None,
        }
    }

    /// `length_bytes` of a binary message were appended to the file.
    pub fn on_appended(&mut self, length_bytes: u64) {
        self.received += length_bytes;
        self.message_bytes += length_bytes;
        self.is_in_message = true;
    }

    /// A binary message of this length has ended.
    pub fn on_binary_end(&mut self, length_bytes: u64) -> Option<Command> {
        match self.state {
            State::Requesting | State::Confirming => {
                let gathered = std::mem::take(&mut self.gathered);
                self.on_message(&gathered)
            }
            State::Receiving => {
                let length_bytes = std::mem::take(&mut self.message_bytes);
                self.is_in_message = false;
                self.unacked.push_back(Unacked { end: self.received, length_bytes });
                None
            }
            State::Revoked => {
                // The first part of it may have come before the web app cancelled.
                self.received += length_bytes - std::mem::take(&mut self.message_bytes);
                // A library that had sent everything before it was asked does not answer.
                let is_deaf = self.received >= self.length;
                is_deaf.then_some(Command::Refuse(PeerError::CancelledByBackend))
            }
            _ => None,
        }
    }

    /// The upload is this connection's. It goes on at `offset_bytes`.
    pub fn on_attached(&mut self, out: &mut BytesMut, offset_bytes: u64, length_bytes: u64) {
        assert_eq!(self.state, State::Claiming);
        self.received = offset_bytes;
        self.length = length_bytes;
        self.state = State::Confirming;
        let conf = ServerMessage::UploadConf {
            chunk_size_kb: CHUNK_SIZE_KB,
            file_pos: offset_bytes,
            send_ahead: SEND_AHEAD,
        };
        conf.encode(out);
    }

    /// Everything below `offset_bytes` is safe: acknowledges the messages it covers, each one, in
    /// order. Returns how far the acknowledgements reach, if there are any.
    pub fn on_committed(&mut self, out: &mut BytesMut, offset_bytes: u64) -> Option<u64> {
        let mut acked = None;
        while let Some(front) = self.unacked.front().filter(|it| it.end <= offset_bytes) {
            let chunk_size_bytes = front.length_bytes;
            acked = Some(front.end);
            ServerMessage::ChunkAck { chunk_size_bytes }.encode(out);
            self.unacked.pop_front();
        }
        acked
    }

    /// Everything is stored and acknowledged: only the outcome is to come.
    pub fn on_stored(&mut self) {
        assert!(self.is_settled());
        self.state = State::Waiting;
    }

    /// The web app has the file.
    pub fn on_finished(&mut self, out: &mut BytesMut) {
        self.state = State::Over;
        ServerMessage::AllDone.encode(out);
        encode_close(out, close_code::NORMAL, "");
    }

    /// The web app knows of the browser's cancellation.
    pub fn on_cancelled(&mut self, out: &mut BytesMut) {
        self.state = State::Over;
        ServerMessage::CancelAck.encode(out);
        encode_close(out, close_code::NORMAL, "");
    }

    /// The web app cancels. While chunks are sent the browser is asked to agree (and its library
    /// then tells the page so); at other times it understands only an error. True: its answer is
    /// to come.
    pub fn on_revoked(&mut self, out: &mut BytesMut, reason: &str) -> bool {
        self.unacked.clear();
        if self.state == State::Receiving && self.received < self.length {
            self.state = State::Revoked;
            ServerMessage::Cancel { reason }.encode(out);
            true
        } else {
            self.on_refused(out, PeerError::CancelledByBackend);
            false
        }
    }

    /// Ends the conversation for good: the browser will not come back.
    pub fn on_refused(&mut self, out: &mut BytesMut, error: PeerError) {
        self.state = State::Over;
        ServerMessage::Error(error).encode(out);
        let reason = if error == PeerError::Nacked { error.message() } else { "" };
        encode_close(out, close_code::NORMAL, reason);
    }

    /// Ends the connection; the browser is expected back, or knows why.
    pub fn on_closed(&mut self, out: &mut BytesMut, code: u16, reason: &str) {
        self.state = State::Over;
        encode_close(out, code, reason);
    }

    pub fn is_receiving(&self) -> bool {
        self.state == State::Receiving
    }

    /// An answer of the server is due before anything else is read.
    pub fn is_claiming(&self) -> bool {
        self.state == State::Claiming
    }

    /// Before the upload is confirmed: the browser has to say something soon.
    pub fn is_in_handshake(&self) -> bool {
        matches!(self.state, State::Requesting | State::Confirming)
    }

    /// No message is open or waits for its acknowledgement.
    pub fn is_settled(&self) -> bool {
        !self.is_in_message && self.unacked.is_empty()
    }

    /// The browser was asked to agree to a cancellation.
    pub fn is_revoked(&self) -> bool {
        self.state == State::Revoked
    }

    /// Only the outcome is to come.
    pub fn is_waiting(&self) -> bool {
        self.state == State::Waiting
    }

    /// The end of the last message that waits for its acknowledgement.
    pub fn ack_due_bytes(&self) -> Option<u64> {
        self.unacked.back().map(|it| it.end)
    }

    /// Messages that are here and not acknowledged.
    pub fn unacked_count(&self) -> usize {
        self.unacked.len()
    }

    fn on_message(&mut self, text: &[u8]) -> Option<Command> {
        match self.state {
            State::Requesting => {
                match ClientMessage::parse(text).and_then(|it| it.upload_request()) {
                    Some(request) => {
                        self.state = State::Claiming;
                        Some(Command::Claim(request))
                    }
                    None => Some(self.refuse_unreadable()),
                }
            }
            State::Confirming => self.on_ack(text),
            State::Receiving => Some(self.on_text_among_chunks(text)),
            State::Revoked => {
                // It agrees, or it fails in its own way. Both end here.
                let message = ClientMessage::parse(text)?;
                (message.kind() == "MsgCancel")
                    .then(|| Command::Cancel { reason: message.reason() })
            }
            State::Claiming | State::Cancelling | State::Waiting | State::Over => None,
        }
    }

    fn on_ack(&mut self, text: &[u8]) -> Option<Command> {
        let Some(message) = ClientMessage::parse(text) else {
            return Some(self.refuse_unreadable());
        };
        if message.kind() == "MsgCancel" {
            return Some(self.cancel(&message));
        }
        match message.ack() {
            Some(true) => {
                self.state = State::Receiving;
                Some(Command::Start)
            }
            Some(false) => Some(Command::Refuse(PeerError::Nacked)),
            None => Some(self.refuse_unreadable()),
        }
    }

    fn on_text_among_chunks(&mut self, text: &[u8]) -> Command {
        let Some(message) = ClientMessage::parse(text) else {
            return Command::Refuse(PeerError::TextNotUnderstood);
        };
        match message.kind() {
            "MsgPause" => Command::Pause,
            "MsgCancel" => self.cancel(&message),
            "MsgError" => Command::Abandon {
                reason: format!("error from frontend: {}", message.error_text()),
            },
            _ => Command::Refuse(PeerError::MessageUnexpected),
        }
    }

    fn cancel(&mut self, message: &ClientMessage) -> Command {
        self.state = State::Cancelling;
        Command::Cancel { reason: message.reason() }
    }

    fn refuse_unreadable(&self) -> Command {
        Command::Refuse(match self.state {
            State::Confirming => PeerError::AckMissing,
            _ => PeerError::UploadRequestUnreadable,
        })
    }
}

impl Default for Session {
    fn default() -> Self {
        Self::new()
    }
}

/// What the original announces: four messages of 512 KiB may be under way.
const CHUNK_SIZE_KB: u32 = 512;
const SEND_AHEAD: u32 = 4;

/// A text message in a binary one may be this long.
const GATHERED_BYTES_MAX: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: &str =
        r#"{"MsgType":"MsgUploadReq","MsgData":{"Id":"i","LengthBytes":100,"Name":"n"}}"#;
    const ACK: &str = r#"{"MsgType":"MsgAck","MsgData":{"Ack":true}}"#;
    const CANCEL: &str = r#"{"MsgType":"MsgCancel","MsgData":{"Reason":"r"}}"#;

    fn receiving() -> (Session, BytesMut) {
        let mut session = Session::new();
        let mut out = BytesMut::new();
        assert!(matches!(session.on_text(REQUEST), Some(Command::Claim(_))));
        session.on_attached(&mut out, 0, 100);
        assert_eq!(session.on_text(ACK), Some(Command::Start));
        out.clear();
        (session, out)
    }

    fn count(out: &BytesMut, text: &str) -> usize {
        String::from_utf8_lossy(out).matches(text).count()
    }

    #[test]
    fn each_message_is_acknowledged_once_and_in_order() {
        let (mut session, mut out) = receiving();
        for length in [10, 0, 30] {
            session.on_appended(length);
            assert_eq!(session.on_binary_end(length), None);
        }
        assert_eq!(session.on_committed(&mut out, 9), None);
        assert_eq!(session.on_committed(&mut out, 10), Some(10));
        assert_eq!(count(&out, "MsgChunkAck"), 2);
        assert_eq!(session.on_committed(&mut out, 40), Some(40));
        assert_eq!(session.on_committed(&mut out, 40), None);
        assert_eq!(count(&out, "MsgChunkAck"), 3);
        assert_eq!(count(&out, r#""ChunkSize":0"#), 1);
        assert!(session.is_settled());
    }

    #[test]
    fn handshake_messages_may_be_binary() {
        let mut session = Session::new();
        assert_eq!(session.on_stray_binary(&REQUEST.as_bytes()[..20]), None);
        assert_eq!(session.on_stray_binary(&REQUEST.as_bytes()[20..]), None);
        let length = REQUEST.len() as u64;
        assert!(matches!(session.on_binary_end(length), Some(Command::Claim(_))));
    }

    #[test]
    fn what_is_refused_how() {
        use PeerError::{
            AckMissing, MessageUnexpected, Nacked, TextNotUnderstood, UploadRequestUnreadable,
        };
        let refused = |session: &mut Session, text: &str, error| {
            assert_eq!(session.on_text(text), Some(Command::Refuse(error)), "{text}");
        };
        refused(&mut Session::new(), "x", UploadRequestUnreadable);
        refused(&mut Session::new(), r#"{"MsgType":"MsgUploadReq"}"#, UploadRequestUnreadable);
        let confirming = || {
            let mut session = Session::new();
            session.on_text(REQUEST);
            session.on_attached(&mut BytesMut::new(), 0, 100);
            session
        };
        refused(&mut confirming(), "x", AckMissing);
        refused(&mut confirming(), r#"{"MsgType":"MsgAck","MsgData":{"Ack":false}}"#, Nacked);
        refused(&mut receiving().0, "x", TextNotUnderstood);
        refused(&mut receiving().0, ACK, MessageUnexpected);
        refused(&mut receiving().0, REQUEST, MessageUnexpected);
        let mut session = confirming();
        let cancel = Some(Command::Cancel { reason: "r".into() });
        assert_eq!(session.on_text(CANCEL), cancel, "in place of the ack");
        assert_eq!(confirming().on_stray_binary(&[0; 20_000]), Some(Command::Refuse(AckMissing)));
    }

    #[test]
    fn the_web_app_cancels() {
        let (mut session, mut out) = receiving();
        session.on_appended(10);
        session.on_binary_end(10);
        assert!(session.on_revoked(&mut out, "enough"));
        assert_eq!(count(&out, "MsgCancel"), 1);
        assert_eq!(session.on_text(CANCEL), Some(Command::Cancel { reason: "r".into() }));
        session.on_cancelled(&mut out);
        assert_eq!(count(&out, "MsgCancelAck"), 1);

        // The original library is deaf to it once it has sent everything.
        let (mut session, mut out) = receiving();
        session.on_appended(100);
        assert!(!session.on_revoked(&mut out, "enough"));
        assert_eq!(count(&out, r#""ErrorCode":302"#), 1);
    }

    #[test]
    fn the_web_app_cancels_while_the_last_bytes_are_under_way() {
        let (mut session, mut out) = receiving();
        session.on_appended(10);
        assert!(session.on_revoked(&mut out, "enough"));
        session.on_stray_binary(&[0; 20]);
        assert_eq!(session.on_binary_end(30), None);
        let refused = Some(Command::Refuse(PeerError::CancelledByBackend));
        assert_eq!(session.on_binary_end(70), refused);
    }

    #[test]
    fn deaf_while_waiting() {
        let (mut session, mut out) = receiving();
        session.on_appended(100);
        session.on_binary_end(100);
        session.on_committed(&mut out, 100);
        session.on_stored();
        assert_eq!(session.on_text(CANCEL), None);
        assert_eq!(session.on_stray_binary(b"x"), None);
        assert_eq!(session.on_binary_end(1), None);
        session.on_finished(&mut out);
        assert_eq!(count(&out, "MsgAllDone"), 1);
        assert_eq!(session.state, State::Over);
    }
}
