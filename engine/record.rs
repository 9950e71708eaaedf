//! What the journal says of a ticket. The format stands in `doc/storage.md`.

mod bytes;

pub use bytes::{OFFSET_RECORD_BYTES, RecordError, STRING_BYTES_MAX, set_committed_bytes};

use crate::ticket::TicketId;

/// One fact. Later facts replace earlier ones, so that reading a journal twice changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "a start holds those of one commit at a time")]
pub enum Record {
    /// The ticket is there and is like this, whatever was said before.
    Ticket(TicketRecord),
    /// Everything below `committed_bytes` is safe. After a storage failure it may be less than
    /// before.
    Offset { id: TicketId, committed_bytes: u64 },
    /// The ticket is gone.
    Removed { id: TicketId },
}

/// All that a ticket needs to go on after a restart. Times are service time, in milliseconds; see
/// [`crate::service`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TicketRecord {
    pub new: NewTicket,
    pub state: RecordState,
    /// The file's name as the first browser gave it. Only data: it may hold anything.
    pub filename_from_browser: String,
    /// Of the whole file, as the browser declared it.
    pub length_bytes: u64,
    /// Everything below is safe.
    pub committed_bytes: u64,
    /// When something last happened to it.
    pub active_at_ms: u64,
    pub telling: TellingRecord,
}

/// What a web app asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTicket {
    pub id: TicketId,
    /// Where the outcome is told.
    pub url: String,
    pub secret: String,
    /// The secret came under its oldest name, `signalFinishSecret`. Apps of that age do not repeat
    /// it when they finish an upload.
    pub finish_without_secret: bool,
    pub remove_when_finished: bool,
    pub owner_uid: Option<u32>,
    /// Longer files are refused.
    pub max_size_bytes: Option<u64>,
    /// What is not whole by then is cancelled. Service time, in milliseconds.
    pub expires_at_ms: Option<u64>,
    /// Given back in the callback.
    pub metadata: String,
    /// Where the file arrives; empty: where all do.
    pub dest_dir: String,
    /// Callbacks are signed with it; empty: with the server's, if it has one.
    pub signing_secret: String,
    /// Name of the backend key that asked; empty: none.
    pub key: String,
}

/// How far the ticket is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordState {
    /// No browser has come yet.
    Issued,
    /// A browser has come.
    Receiving,
    /// Everything is here.
    Arrived { stand: Stand },
    /// It will never be whole.
    Cancelled { stand: Stand, reason: String },
}

/// How far it is told to the web app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stand {
    /// Not yet: it is being tried.
    Telling,
    /// It knows, and will call `finish_upload`.
    Waiting,
    /// Given up, until somebody asks for another try.
    Failed,
    /// It knows. The ticket is remembered for those who come late.
    Told,
}

/// The tries to tell the web app.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TellingRecord {
    /// Since when it is tried. Service time, in milliseconds.
    pub since_ms: u64,
    /// Tries, the one under way included.
    pub attempt: u32,
    /// How many of them the web app refused.
    pub refusal_count: u32,
    /// The web app once answered `wait`.
    pub has_waited: bool,
    /// Why the last one failed; at most [`LAST_ERROR_BYTES_MAX`].
    pub last_error: String,
}

impl NewTicket {
    /// One that asks for nothing special: its file is removed when the web app has it.
    pub fn new(id: TicketId, url: impl Into<String>) -> Self {
        Self {
            id,
            url: url.into(),
            secret: String::new(),
            finish_without_secret: false,
            remove_when_finished: true,
            owner_uid: None,
            max_size_bytes: None,
            expires_at_ms: None,
            metadata: String::new(),
            dest_dir: String::new(),
            signing_secret: String::new(),
            key: String::new(),
        }
    }
}

impl TicketRecord {
    /// One that no browser has come for.
    pub fn new(new: NewTicket) -> Self {
        Self {
            new,
            state: RecordState::Issued,
            filename_from_browser: String::new(),
            length_bytes: 0,
            committed_bytes: 0,
            active_at_ms: 0,
            telling: TellingRecord::default(),
        }
    }
}

/// Cuts a text that others chose to the length of an error text, between two characters.
pub fn shorten(text: &mut String) {
    let ends = (0..=LAST_ERROR_BYTES_MAX.min(text.len())).rev();
    let end = ends.into_iter().find(|it| text.is_char_boundary(*it));
    text.truncate(end.unwrap_or(0));
}

/// Of the text that says why a try has failed.
pub const LAST_ERROR_BYTES_MAX: usize = 200;

#[cfg(test)]
mod tests;
