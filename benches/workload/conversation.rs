//! What every client is for the crowd, whatever it speaks.

use crate::content::{Content, Piece, Shape};
use crate::error::Problem;
use crate::outbox::Outbox;

/// One client's side of a conversation. Inert: bytes in, bytes out.
pub(crate) trait Conversation {
    fn on_connected(&mut self, out: &mut Outbox);

    /// Takes the first thing that the server has said. How many bytes that was; 0: it is not
    /// whole yet.
    fn on_bytes(&mut self, bytes: &[u8], out: &mut Outbox) -> Result<usize, Problem>;

    fn stage(&self) -> Stage;

    fn messages(&self) -> &Messages;

    /// Whether the window is open. That nothing may be left to send is another matter.
    fn may_send(&self) -> bool;

    fn send_message(&mut self, out: &mut Outbox);

    /// For a confirmed upload that is not to go on.
    fn cancel(&mut self, out: &mut Outbox);

    /// By which the server knows the file.
    fn name(&self) -> &str;
}

/// How far a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    Preparing,
    /// It may send, as soon as all may.
    Ready,
    /// Everything is acknowledged.
    Whole,
    /// The server has said so.
    Done,
}

/// A file on its way, message by message, acknowledged in order.
#[derive(Clone, Debug)]
pub(crate) struct Messages {
    pub(crate) content: Content,
    message_bytes: u64,
    pub(crate) sent_count: u64,
    pub(crate) acked_count: u64,
}

impl Messages {
    /// Messages as they are part of the content.
    pub(crate) fn new(content: Content) -> Self {
        match content.shape {
            Shape::Messages(message_bytes) => Self::of(content, u64::from(message_bytes)),
            Shape::Plain => Self::of(content, content.length_bytes),
        }
    }

    pub(crate) fn of(content: Content, message_bytes: u64) -> Self {
        Self { content, message_bytes, sent_count: 0, acked_count: 0 }
    }

    pub(crate) fn offset_of(&self, number: u64) -> u64 {
        (number * self.message_bytes).min(self.content.length_bytes)
    }

    pub(crate) fn bytes_of(&self, number: u64) -> u64 {
        self.offset_of(number + 1) - self.offset_of(number)
    }

    pub(crate) fn acked_bytes(&self) -> u64 {
        self.offset_of(self.acked_count)
    }

    pub(crate) fn all_sent(&self) -> bool {
        self.offset_of(self.sent_count) == self.content.length_bytes
    }

    pub(crate) fn all_acked(&self) -> bool {
        self.acked_bytes() == self.content.length_bytes
    }

    pub(crate) fn under_way(&self) -> u64 {
        self.sent_count - self.acked_count
    }

    /// The next message, if it lies together in the block, as those with a key do.
    pub(crate) fn send(&mut self) -> Option<Piece> {
        let piece = self.content.piece_at(self.offset_of(self.sent_count))?;
        self.sent_count += 1;
        Some(piece)
    }

    /// The oldest message is acknowledged; `length_bytes`: as the server says.
    pub(crate) fn acked(&mut self, length_bytes: Option<u64>) -> Result<(), Problem> {
        if self.under_way() == 0 {
            return Err(Problem::Garbage("an acknowledgement of what was not sent"));
        }
        if length_bytes.is_some_and(|it| it != self.bytes_of(self.acked_count)) {
            return Err(Problem::Garbage("an acknowledgement of another length than was sent"));
        }
        self.acked_count += 1;
        Ok(())
    }
}
