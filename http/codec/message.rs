//! WebSocket messages (RFC 6455 sections 5.4 to 5.6): frames joined, limits kept, control frames
//! told apart.

use engine::mask::unmask_in_place;

use super::append_bounded;
use super::frame::{Decoder, FrameError, OpCode, Piece};
use super::text::{NotUtf8, Utf8Validator};

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

/// What fails the connection. [`MessageError::close_code`] says how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageError {
    Frame(FrameError),
    /// A continuation frame, but no message has begun.
    ContinuationUnexpected,
    /// A new message before the last one has ended.
    MessageInterrupted,
    BinaryTooLong,
    TextTooLong,
    FramesTooMany,
    TextNotUtf8,
    /// A close frame of one byte, which holds no code.
    CloseTooShort,
    /// A close code that must not be sent (section 7.4).
    CloseCodeInvalid,
    CloseReasonNotUtf8,
}

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

    /// Whether a data message has begun and not ended.
    pub fn is_within_message(&self) -> bool {
        self.message.is_some()
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
        self.frame_count += 1;
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

impl MessageError {
    /// What the close frame says (RFC 6455 section 7.4.1): 1002, 1007 or 1009.
    pub fn close_code(self) -> u16 {
        match self {
            Self::Frame(_)
            | Self::ContinuationUnexpected
            | Self::MessageInterrupted
            | Self::CloseTooShort
            | Self::CloseCodeInvalid => 1002,
            Self::TextNotUtf8 | Self::CloseReasonNotUtf8 => 1007,
            Self::BinaryTooLong | Self::TextTooLong | Self::FramesTooMany => 1009,
        }
    }

    /// For the close frame and the log.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Frame(error) => error.reason(),
            Self::ContinuationUnexpected => "continuation of no message",
            Self::MessageInterrupted => "new message within a fragmented message",
            Self::BinaryTooLong => "binary message is too long",
            Self::TextTooLong => "text message is too long",
            Self::FramesTooMany => "message has too many frames",
            Self::TextNotUtf8 => "text message is not UTF-8",
            Self::CloseTooShort => "close frame of one byte",
            Self::CloseCodeInvalid => "invalid close code",
            Self::CloseReasonNotUtf8 => "close reason is not UTF-8",
        }
    }
}

impl From<FrameError> for MessageError {
    fn from(error: FrameError) -> Self {
        Self::Frame(error)
    }
}

impl From<NotUtf8> for MessageError {
    fn from(NotUtf8: NotUtf8) -> Self {
        Self::TextNotUtf8
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
