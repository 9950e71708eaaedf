//! WebSocket messages (RFC 6455 sections 5.4 to 5.6): frames joined, limits kept, control frames
//! told apart.

use engine::mask::unmask_in_place;

use super::append_bounded;
use super::frame::{Decoder, OpCode, Piece};
pub use super::message_error::MessageError;
use super::text::Utf8Validator;

/// Decodes a client's messages. The payload of binary messages streams through; texts and control
/// frames are gathered, within their limits, and their memory is given away with them.
#[derive(Debug)]
pub struct MessageDecoder {
    limits: MessageLimits,
    frames: Decoder,
    /// The frame whose payload is being read.
    opcode: OpCode,
    fin: bool,
    phase: Phase,
    /// The message that has begun and not ended.
    message: Option<Message>,
    /// Of `message`, according to the frame heads seen so far.
    length_bytes: u64,
    frame_count: u32,
    text: Vec<u8>,
    utf8: Utf8Validator,
    control: Vec<u8>,
}

/// What a client may send in one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageLimits {
    pub binary_bytes_max: u64,
    pub text_bytes_max: usize,
    /// Frames of one message, not counting control frames between them.
    pub frames_max: u32,
}

/// What [`MessageDecoder::decode`] pulls off its input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MessageEvent<'a> {
    /// A part of a binary message, never empty, still masked: `mask[0]` belongs to `bytes[0]`.
    BinaryData {
        bytes: &'a [u8],
        mask: [u8; 4],
    },
    /// A binary message of this length is complete. An empty one is this alone.
    BinaryEnd {
        length_bytes: u64,
    },
    /// A whole text message.
    Text(String),
    /// To be answered with a pong of the same payload.
    Ping(ControlPayload),
    Pong,
    /// The client says no more; whatever follows is ignored.
    Close {
        /// `None`: an empty close frame.
        code: Option<u16>,
        /// At most 123 bytes.
        reason: String,
    },
}

/// The payload of a control frame, unmasked: at most 125 bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ControlPayload(Vec<u8>);

impl MessageDecoder {
    pub fn new(limits: MessageLimits) -> Self {
        Self {
            limits,
            frames: Decoder::default(),
            opcode: OpCode::Continuation,
            fin: false,
            phase: Phase::Reading,
            message: None,
            length_bytes: 0,
            frame_count: 0,
            text: Vec::new(),
            utf8: Utf8Validator::default(),
            control: Vec::new(),
        }
    }

    /// Pulls one event off the front of `input`. `None`: feed me more; all of `input` is used up.
    ///
    /// A message beyond its limit is refused at the head of the frame that exceeds it, before that
    /// frame's payload. After an error or a close, input is consumed and ignored.
    pub fn decode<'a>(
        &mut self,
        input: &mut &'a [u8],
    ) -> Result<Option<MessageEvent<'a>>, MessageError> {
        let outcome = match self.phase {
            Phase::Over => {
                *input = &[];
                return Ok(None);
            }
            Phase::EndOwed => {
                self.phase = Phase::Reading;
                return Ok(Some(self.end_binary()));
            }
            Phase::Reading => self.read(input),
        };
        if matches!(outcome, Err(_) | Ok(Some(MessageEvent::Close { .. }))) {
            self.phase = Phase::Over;
            self.text = Vec::new();
        }
        outcome
    }

    /// What is still to come of the frame that has begun, before anything else can.
    pub fn expected_bytes(&self) -> u64 {
        self.frames.remaining_bytes()
    }

    fn read<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<MessageEvent<'a>>, MessageError> {
        while let Some(piece) = self.frames.decode(input)? {
            let event = match piece {
                Piece::Head { fin, opcode, length_bytes } => {
                    self.on_head(fin, opcode, length_bytes)?;
                    None
                }
                Piece::Payload { bytes, mask, last } if self.opcode.is_control() => {
                    self.on_control(bytes, mask, last)?
                }
                Piece::Payload { bytes, mask, last } => self.on_data(bytes, mask, last)?,
            };
            if event.is_some() {
                return Ok(event);
            }
        }
        Ok(None)
    }

    fn on_head(
        &mut self,
        fin: bool,
        opcode: OpCode,
        length_bytes: u64,
    ) -> Result<(), MessageError> {
        self.opcode = opcode;
        self.fin = fin;
        let message = match (opcode, self.message) {
            (OpCode::Close | OpCode::Ping | OpCode::Pong, _) => return Ok(()),
            (OpCode::Continuation, None) => return Err(MessageError::ContinuationUnexpected),
            (OpCode::Continuation, Some(message)) => message,
            (OpCode::Text | OpCode::Binary, Some(_)) => {
                return Err(MessageError::MessageInterrupted);
            }
            (OpCode::Text, None) => Message::Text,
            (OpCode::Binary, None) => Message::Binary,
        };
        if self.message.is_none() {
            self.message = Some(message);
            self.length_bytes = 0;
            self.frame_count = 0;
        }
        self.length_bytes = self.length_bytes.saturating_add(length_bytes);
        self.frame_count = self.frame_count.saturating_add(1);
        let (length_max, error) = match message {
            Message::Binary => (self.limits.binary_bytes_max, MessageError::BinaryTooLong),
            Message::Text => (self.limits.text_bytes_max as u64, MessageError::TextTooLong),
        };
        if self.length_bytes > length_max {
            return Err(error);
        }
        if self.frame_count > self.limits.frames_max {
            return Err(MessageError::FramesTooMany);
        }
        Ok(())
    }

    fn on_data<'a>(
        &mut self,
        bytes: &'a [u8],
        mask: [u8; 4],
        last: bool,
    ) -> Result<Option<MessageEvent<'a>>, MessageError> {
        let ends = last && self.fin;
        if self.message == Some(Message::Text) {
            let before = self.text.len();
            append_bounded(&mut self.text, bytes, self.limits.text_bytes_max);
            unmask_in_place(&mut self.text[before..], mask);
            self.utf8.push(&self.text[before..])?;
            return if ends { self.end_text().map(Some) } else { Ok(None) };
        }
        if bytes.is_empty() {
            return Ok(ends.then(|| self.end_binary()));
        }
        if ends {
            self.phase = Phase::EndOwed;
        }
        Ok(Some(MessageEvent::BinaryData { bytes, mask }))
    }

    fn end_binary(&mut self) -> MessageEvent<'static> {
        self.message = None;
        MessageEvent::BinaryEnd { length_bytes: self.length_bytes }
    }

    fn end_text(&mut self) -> Result<MessageEvent<'static>, MessageError> {
        std::mem::take(&mut self.utf8).finish()?;
        self.message = None;
        let text = String::from_utf8(std::mem::take(&mut self.text));
        text.map(MessageEvent::Text).map_err(|_| MessageError::TextNotUtf8)
    }

    fn on_control(
        &mut self,
        bytes: &[u8],
        mask: [u8; 4],
        last: bool,
    ) -> Result<Option<MessageEvent<'static>>, MessageError> {
        if self.opcode != OpCode::Pong {
            let before = self.control.len();
            self.control.extend_from_slice(bytes);
            unmask_in_place(&mut self.control[before..], mask);
        }
        if !last {
            return Ok(None);
        }
        let payload = std::mem::take(&mut self.control);
        match self.opcode {
            OpCode::Ping => Ok(Some(MessageEvent::Ping(ControlPayload(payload)))),
            OpCode::Pong => Ok(Some(MessageEvent::Pong)),
            _ => close_event(&payload).map(Some),
        }
    }
}

impl std::ops::Deref for ControlPayload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Reading,
    /// The last data of a binary message was handed out, its end not yet.
    EndOwed,
    /// After an error or a close.
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    Binary,
    Text,
}

/// RFC 6455 section 5.5.1.
fn close_event(payload: &[u8]) -> Result<MessageEvent<'static>, MessageError> {
    let (code, reason) = match payload {
        [] => (None, [].as_slice()),
        [_] => return Err(MessageError::CloseTooShort),
        [high, low, reason @ ..] => (Some(u16::from_be_bytes([*high, *low])), reason),
    };
    if !code.is_none_or(may_be_sent) {
        return Err(MessageError::CloseCodeInvalid);
    }
    let reason = std::str::from_utf8(reason).map_err(|_| MessageError::CloseReasonNotUtf8)?;
    Ok(MessageEvent::Close { code, reason: reason.to_owned() })
}

/// The codes of RFC 6455 section 7.4.1 and of IANA's registry that may stand in a frame, and those
/// that are for libraries and applications. 1004 to 1006 and 1015 must not.
fn may_be_sent(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

#[cfg(test)]
mod tests {
    use super::super::frame::FrameError;
    use super::super::frame::tests::client_frame;
    use super::*;

    const LIMITS: MessageLimits =
        MessageLimits { binary_bytes_max: 1000, text_bytes_max: 200, frames_max: 5 };

    /// First byte and payload of each.
    type Frames<'a> = &'a [(u8, &'a [u8])];

    /// Everything decoded, binary data unmasked and joined, and how it ended.
    type Outcome = (Vec<String>, Option<MessageError>);

    fn decode(wire: &[u8], step: usize) -> Outcome {
        let mut decoder = MessageDecoder::new(LIMITS);
        let mut events = Vec::new();
        let mut data = Vec::new();
        for mut input in wire.chunks(step) {
            loop {
                match decoder.decode(&mut input) {
                    Ok(Some(MessageEvent::BinaryData { bytes, mask })) => {
                        assert!(!bytes.is_empty());
                        data.extend(
                            bytes.iter().zip(mask.iter().cycle()).map(|(it, key)| it ^ key),
                        );
                    }
                    Ok(Some(MessageEvent::BinaryEnd { length_bytes })) => {
                        assert_eq!(data.len() as u64, length_bytes);
                        let text = String::from_utf8(std::mem::take(&mut data)).expect("ASCII");
                        events.push(format!("binary {text}"));
                    }
                    Ok(Some(MessageEvent::Text(text))) => {
                        assert!(text.capacity() <= LIMITS.text_bytes_max);
                        events.push(format!("text {text}"));
                    }
                    Ok(Some(MessageEvent::Ping(payload))) => {
                        events.push(format!("ping {}", String::from_utf8_lossy(&payload)));
                    }
                    Ok(Some(MessageEvent::Pong)) => events.push("pong".into()),
                    Ok(Some(MessageEvent::Close { code, reason })) => {
                        events.push(format!("close {code:?} {reason}"));
                    }
                    Ok(None) => break,
                    Err(error) => {
                        assert_eq!(decoder.decode(&mut input), Ok(None));
                        assert!(input.is_empty());
                        return (events, Some(error));
                    }
                }
            }
            assert!(input.is_empty());
        }
        (events, None)
    }

    fn wire(frames: Frames<'_>) -> Vec<u8> {
        frames.iter().flat_map(|(first, payload)| client_frame(*first, payload)).collect()
    }

    #[test]
    fn conversations() {
        let long = "x".repeat(126);
        let rows: [(&str, Frames<'_>, &[&str]); 12] = [
            ("one binary", &[(0x82, b"abc")], &["binary abc"]),
            ("empty binary", &[(0x82, b"")], &["binary "]),
            ("one text", &[(0x81, b"{}")], &["text {}"]),
            ("empty text", &[(0x81, b"")], &["text "]),
            ("fragments", &[(0x02, b"ab"), (0x00, b"cd"), (0x80, b"ef")], &["binary abcdef"]),
            ("empty fragments", &[(0x02, b""), (0x00, b"ab"), (0x80, b"")], &["binary ab"]),
            (
                "a character across fragments",
                &[(0x01, b"\xf0\x9f"), (0x00, b"\x98"), (0x80, b"\x80!")],
                &["text \u{1f600}!"],
            ),
            (
                "control frames within messages",
                &[
                    (0x02, b"ab"),
                    (0x89, b"now"),
                    (0x80, b"cd"),
                    (0x01, b"e"),
                    (0x8a, b"?"),
                    (0x80, b"f"),
                ],
                &["ping now", "binary abcd", "pong", "text ef"],
            ),
            (
                "longer",
                &[(0x82, long.as_bytes()), (0x89, b"")],
                &[&format!("binary {long}"), "ping "],
            ),
            ("empty close", &[(0x88, b""), (0x82, b"ignored")], &["close None "]),
            ("close", &[(0x88, b"\x03\xe8bye"), (0xff, b"")], &["close Some(1000) bye"]),
            ("private code", &[(0x02, b"a"), (0x88, b"\x0f\xa1")], &["close Some(4001) "]),
        ];
        for (name, frames, expected) in rows {
            let wire = wire(frames);
            for step in [wire.len(), 1, 2, 3, 7] {
                let (events, error) = decode(&wire, step);
                assert_eq!(events, expected, "{name} by {step}");
                assert_eq!(error, None, "{name} by {step}");
            }
        }
    }

    #[test]
    fn violations() {
        use MessageError::*;
        let max = [b'x'; 201];
        let rows: [(&str, Frames<'_>, MessageError); 15] = [
            ("continuation of nothing", &[(0x80, b"a")], ContinuationUnexpected),
            ("continuation after the end", &[(0x82, b"a"), (0x80, b"")], ContinuationUnexpected),
            ("text within binary", &[(0x02, b"a"), (0x81, b"b")], MessageInterrupted),
            ("binary within binary", &[(0x02, b"a"), (0x82, b"b")], MessageInterrupted),
            ("frame error", &[(0x83, b"")], Frame(FrameError::OpCodeUnknown)),
            ("long text", &[(0x81, &max)], TextTooLong),
            ("long text in fragments", &[(0x01, &max[..150]), (0x80, &max[..51])], TextTooLong),
            (
                "too many frames",
                &[(0x02, b""), (0x00, b""), (0x00, b""), (0x00, b""), (0x00, b""), (0x80, b"")],
                FramesTooMany,
            ),
            ("not UTF-8", &[(0x81, b"a\xff")], TextNotUtf8),
            ("not UTF-8, and not ended", &[(0x01, b"\xed"), (0x00, b"\xa0")], TextNotUtf8),
            ("character not ended", &[(0x01, b"a\xe2"), (0x80, b"\x82")], TextNotUtf8),
            ("close of one byte", &[(0x88, b"\x03")], CloseTooShort),
            ("close with 1005", &[(0x88, b"\x03\xed")], CloseCodeInvalid),
            ("close with 5000", &[(0x88, b"\x13\x88")], CloseCodeInvalid),
            ("close reason", &[(0x88, b"\x03\xe8\xff")], CloseReasonNotUtf8),
        ];
        for (name, frames, expected) in rows {
            let wire = wire(frames);
            for step in [wire.len(), 1, 5] {
                assert_eq!(decode(&wire, step).1, Some(expected), "{name} by {step}");
            }
        }
    }

    #[test]
    fn a_long_message_is_refused_at_the_head() {
        let heads: [&[u8]; 3] = [
            &[0x82, 0xfe, 0x03, 0xe9],
            &[0x02, 0xff, 0x7f, 255, 255, 255, 255, 255, 255, 255],
            &[0x02, 0x80, 1, 2, 3, 4, 0x80, 0xfe, 0x03, 0xe9],
        ];
        for head in heads {
            let mut wire = head.to_vec();
            assert_eq!(decode(&wire, 1).1, None);
            wire.extend([9, 9, 9, 9]);
            assert_eq!(decode(&wire, 1).1, Some(MessageError::BinaryTooLong));
        }
        assert_eq!(decode(&wire(&[(0x82, &[b'x'; 1000])]), 64).1, None);
    }

    #[test]
    fn close_codes_that_may_be_sent() {
        let allowed: Vec<u16> = (0..=u16::MAX).filter(|it| may_be_sent(*it)).collect();
        let expected: Vec<u16> = (1000..=1003).chain(1007..=1014).chain(3000..=4999).collect();
        assert_eq!(allowed, expected);
    }

    #[test]
    fn an_idle_decoder_is_small_and_owns_nothing() {
        assert!(size_of::<MessageDecoder>() <= 144, "{}", size_of::<MessageDecoder>());
        let mut decoder = MessageDecoder::new(LIMITS);
        let wire = wire(&[(0x81, b"some text"), (0x89, b"ping"), (0x82, b"data")]);
        let mut input = wire.as_slice();
        while decoder.decode(&mut input).expect("valid").is_some() {}
        assert_eq!((decoder.text.capacity(), decoder.control.capacity()), (0, 0));
        assert_eq!(decoder.message, None);
    }
}
