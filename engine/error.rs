//! Errors by blame, and the stable numbers that clients see (`ErrorCode` of `MsgError`).

/// What the peer did wrong, or what it has to know. Terminal for the browser: whatever it should
/// simply try again is a bare close instead, never one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerError {
    UploadRequestUnreadable,
    AckMissing,
    Nacked,
    TextNotUnderstood,
    MessageUnexpected,
    FileLongerThanDeclared,
    FileSizeChanged,
    FileTooLarge,
    StorageFailed,
    NoRoom,
    TicketUnknown,
    UploadOver,
    CancelledByBackend,
    QuotaExceeded,
    HandoverFailed,
}

impl PeerError {
    /// The `ErrorCode` on the wire. Never renumbered. 1xx: the conversation; 2xx: storage; 3xx: the
    /// ticket; 4xx: the hand-over. 5xx belongs to the browser's library.
    pub fn code(self) -> u16 {
        match self {
            Self::UploadRequestUnreadable => 100,
            Self::AckMissing => 101,
            Self::Nacked => 102,
            Self::TextNotUnderstood => 103,
            Self::MessageUnexpected => 104,
            Self::FileLongerThanDeclared => 105,
            Self::FileSizeChanged => 106,
            Self::FileTooLarge => 107,
            Self::StorageFailed => 200,
            Self::NoRoom => 201,
            Self::TicketUnknown => 300,
            Self::UploadOver => 301,
            Self::CancelledByBackend => 302,
            Self::QuotaExceeded => 303,
            Self::HandoverFailed => 400,
        }
    }

    /// The `Msg` on the wire: the original's words, without markup, because pages put it into HTML.
    pub fn message(self) -> &'static str {
        match self {
            Self::UploadRequestUnreadable => "Couldn't read upload request",
            Self::AckMissing => "Didn't receive ack",
            Self::Nacked => "you nack-ed",
            Self::TextNotUnderstood => "Did not understand text message",
            Self::MessageUnexpected => "Expected file chunk or text but got sth else",
            Self::FileLongerThanDeclared => {
                "Error while consuming file chunk: File would get larger than declared"
            }
            Self::FileSizeChanged => "File size has changed",
            Self::FileTooLarge => "File is larger than this upload may be",
            Self::NoRoom => "Not enough room on the server for this file now",
            Self::StorageFailed => "Error while consuming file chunk: storage error",
            Self::TicketUnknown => "Unknown upload id - maybe upload timed out?",
            Self::UploadOver => "upload already finished or cancelled",
            Self::CancelledByBackend => {
                "Error while consuming file chunk: upload is in no state for this. \
                 might be cancelled."
            }
            Self::QuotaExceeded => "Too much is being uploaded for this web app now",
            Self::HandoverFailed => "File was received, but the web app could not take it yet",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::PeerError::*;

    #[test]
    fn codes_are_unique_and_messages_plain() {
        let all = [
            UploadRequestUnreadable,
            AckMissing,
            Nacked,
            TextNotUnderstood,
            MessageUnexpected,
            FileLongerThanDeclared,
            FileSizeChanged,
            FileTooLarge,
            StorageFailed,
            NoRoom,
            TicketUnknown,
            UploadOver,
            CancelledByBackend,
            QuotaExceeded,
            HandoverFailed,
        ];
        for (index, it) in all.iter().enumerate() {
            assert!(all[..index].iter().all(|other| other.code() != it.code()));
            assert!(!it.message().contains(['<', '>', '&']));
        }
    }
}
