//! What a client must not say in messages, and with which code the connection then fails.

use super::frame::FrameError;
use super::text::NotUtf8;

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
