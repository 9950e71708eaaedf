//! Records as bytes.

use std::fmt;

use super::{NewTicket, Record, RecordState, Stand, TellingRecord, TicketRecord};
use crate::ticket::TicketId;

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordError {
    /// They end within it.
    Incomplete,
    UnknownKind,
    UnknownState,
    UnknownFlags,
    StringTooLong,
    NotUtf8,
}

impl Record {
    /// Appends the record's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Ticket(ticket) => ticket.encode(out),
            Self::Offset { id, committed_bytes } => {
                out.push(KIND_OFFSET);
                out.extend_from_slice(&id.0.to_le_bytes());
                out.extend_from_slice(&committed_bytes.to_le_bytes());
            }
            Self::Removed { id } => {
                out.push(KIND_REMOVED);
                out.extend_from_slice(&id.0.to_le_bytes());
            }
        }
    }

    /// Takes one record from the beginning of `input`.
    ///
    /// # Errors
    /// If `input` does not begin with a whole record; it is then left anywhere within it.
    pub fn decode(input: &mut &[u8]) -> Result<Self, RecordError> {
        let kind = u8::from_le_bytes(take(input)?);
        let id = TicketId(u128::from_le_bytes(take(input)?));
        match kind {
            KIND_TICKET => TicketRecord::decode_body(id, input).map(Self::Ticket),
            KIND_OFFSET => Ok(Self::Offset { id, committed_bytes: take_u64(input)? }),
            KIND_REMOVED => Ok(Self::Removed { id }),
            _ => Err(RecordError::UnknownKind),
        }
    }
}

impl TicketRecord {
    /// How many bytes [`TicketRecord::encode`] appends.
    pub fn encoded_bytes(&self) -> u32 {
        let new = &self.new;
        let options = [
            new.owner_uid.map_or(0, |_| 4),
            new.max_size_bytes.map_or(0, |_| 8),
            new.expires_at_ms.map_or(0, |_| 8),
        ];
        let texts: usize = self.texts().iter().map(|it| 4 + it.len()).sum();
        let bytes = TICKET_FIXED_BYTES + options.iter().sum::<usize>() + texts;
        u32::try_from(bytes).expect("strings are bounded")
    }

    /// Appends the bytes of [`Record::Ticket`].
    ///
    /// # Panics
    /// If a string is longer than [`STRING_BYTES_MAX`]: whoever takes it from a peer has a lower
    /// limit.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let (new, telling) = (&self.new, &self.telling);
        let [state, stand] = match self.state {
            RecordState::Issued => [STATE_ISSUED, 0],
            RecordState::Receiving => [STATE_RECEIVING, 0],
            RecordState::Arrived { stand } => [STATE_ARRIVED, stand.byte()],
            RecordState::Cancelled { stand, .. } => [STATE_CANCELLED, stand.byte()],
        };
        let flags = [
            (new.finish_without_secret, FLAG_FINISH_WITHOUT_SECRET),
            (new.remove_when_finished, FLAG_REMOVE_WHEN_FINISHED),
            (telling.has_waited, FLAG_HAS_WAITED),
            (new.owner_uid.is_some(), FLAG_OWNER),
            (new.max_size_bytes.is_some(), FLAG_MAX_SIZE),
            (new.expires_at_ms.is_some(), FLAG_EXPIRES),
        ];
        let flags = flags.iter().filter(|it| it.0).fold(0, |sum, it| sum | it.1);
        out.push(KIND_TICKET);
        out.extend_from_slice(&new.id.0.to_le_bytes());
        out.extend_from_slice(&self.committed_bytes.to_le_bytes());
        out.extend_from_slice(&self.length_bytes.to_le_bytes());
        out.extend_from_slice(&self.active_at_ms.to_le_bytes());
        out.extend_from_slice(&telling.since_ms.to_le_bytes());
        out.extend_from_slice(&telling.attempt.to_le_bytes());
        out.extend_from_slice(&telling.refusal_count.to_le_bytes());
        out.extend_from_slice(&[state, stand, flags]);
        if let Some(uid) = new.owner_uid {
            out.extend_from_slice(&uid.to_le_bytes());
        }
        for number in [new.max_size_bytes, new.expires_at_ms].into_iter().flatten() {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for text in self.texts() {
            assert!(text.len() <= STRING_BYTES_MAX);
            out.extend_from_slice(&(text.len() as u32).to_le_bytes());
            out.extend_from_slice(text.as_bytes());
        }
    }

    /// Every string, in its place.
    fn texts(&self) -> [&str; TEXT_COUNT] {
        let new = &self.new;
        let reason = match &self.state {
            RecordState::Cancelled { reason, .. } => reason,
            _ => "",
        };
        [
            &new.url,
            &new.secret,
            &new.metadata,
            &new.dest_dir,
            &new.signing_secret,
            &new.key,
            &self.filename_from_browser,
            &self.telling.last_error,
            reason,
        ]
    }

    fn decode_body(id: TicketId, input: &mut &[u8]) -> Result<Self, RecordError> {
        let committed_bytes = take_u64(input)?;
        let length_bytes = take_u64(input)?;
        let active_at_ms = take_u64(input)?;
        let since_ms = take_u64(input)?;
        let attempt = u32::from_le_bytes(take(input)?);
        let refusal_count = u32::from_le_bytes(take(input)?);
        let [state, stand, flags] = take(input)?;
        if flags & !FLAGS_ALL != 0 {
            return Err(RecordError::UnknownFlags);
        }
        let is_set = |flag| flags & flag != 0;
        let owner_uid =
            if is_set(FLAG_OWNER) { Some(u32::from_le_bytes(take(input)?)) } else { None };
        let max_size_bytes = if is_set(FLAG_MAX_SIZE) { Some(take_u64(input)?) } else { None };
        let expires_at_ms = if is_set(FLAG_EXPIRES) { Some(take_u64(input)?) } else { None };
        let mut text = || take_text(input);
        let (url, secret, metadata, dest_dir) = (text()?, text()?, text()?, text()?);
        let (signing_secret, key) = (text()?, text()?);
        let (filename_from_browser, last_error, reason) = (text()?, text()?, text()?);
        let state = match (state, Stand::from_byte(stand)) {
            (STATE_ISSUED, Some(Stand::Telling)) => RecordState::Issued,
            (STATE_RECEIVING, Some(Stand::Telling)) => RecordState::Receiving,
            (STATE_ARRIVED, Some(stand)) => RecordState::Arrived { stand },
            (STATE_CANCELLED, Some(stand)) => {
                RecordState::Cancelled { stand, reason: reason.clone() }
            }
            _ => return Err(RecordError::UnknownState),
        };
        if !matches!(state, RecordState::Cancelled { .. }) && !reason.is_empty() {
            return Err(RecordError::UnknownState);
        }
        let finish_without_secret = is_set(FLAG_FINISH_WITHOUT_SECRET);
        let remove_when_finished = is_set(FLAG_REMOVE_WHEN_FINISHED);
        let has_waited = is_set(FLAG_HAS_WAITED);
        Ok(Self {
            new: NewTicket {
                id,
                url,
                secret,
                finish_without_secret,
                remove_when_finished,
                owner_uid,
                max_size_bytes,
                expires_at_ms,
                metadata,
                dest_dir,
                signing_secret,
                key,
            },
            state,
            filename_from_browser,
            length_bytes,
            committed_bytes,
            active_at_ms,
            telling: TellingRecord { since_ms, attempt, refusal_count, has_waited, last_error },
        })
    }
}

impl Stand {
    fn byte(self) -> u8 {
        match self {
            Self::Telling => 0,
            Self::Waiting => 1,
            Self::Failed => 2,
            Self::Told => 3,
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Telling, Self::Waiting, Self::Failed, Self::Told]
            .into_iter()
            .find(|it| it.byte() == byte)
    }
}

/// Says another offset in an encoded ticket record.
pub fn set_committed_bytes(encoded_ticket: &mut [u8], committed_bytes: u64) {
    assert_eq!(encoded_ticket.first(), Some(&KIND_TICKET));
    encoded_ticket[COMMITTED_AT..COMMITTED_AT + 8].copy_from_slice(&committed_bytes.to_le_bytes());
}

fn take_text(input: &mut &[u8]) -> Result<String, RecordError> {
    let length = u32::from_le_bytes(take(input)?) as usize;
    if length > STRING_BYTES_MAX {
        return Err(RecordError::StringTooLong);
    }
    let (text, rest) = input.split_at_checked(length).ok_or(RecordError::Incomplete)?;
    *input = rest;
    std::str::from_utf8(text).map(str::to_owned).map_err(|_| RecordError::NotUtf8)
}

fn take_u64(input: &mut &[u8]) -> Result<u64, RecordError> {
    take(input).map(u64::from_le_bytes)
}

fn take<const N: usize>(input: &mut &[u8]) -> Result<[u8; N], RecordError> {
    let (taken, rest) = input.split_first_chunk().ok_or(RecordError::Incomplete)?;
    *input = rest;
    Ok(*taken)
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Incomplete => "the record is cut off",
            Self::UnknownKind => "the record's kind is unknown",
            Self::UnknownState => "the ticket's state is unknown",
            Self::UnknownFlags => "the ticket has unknown flags",
            Self::StringTooLong => "a string is too long",
            Self::NotUtf8 => "a string is not UTF-8",
        })
    }
}

impl std::error::Error for RecordError {}

/// Of each string of a ticket.
pub const STRING_BYTES_MAX: usize = 64 * 1024;

/// Of every [`Record::Offset`].
pub const OFFSET_RECORD_BYTES: usize = 1 + 16 + 8;

const KIND_TICKET: u8 = 1;
const KIND_OFFSET: u8 = 2;
const KIND_REMOVED: u8 = 3;

const STATE_ISSUED: u8 = 0;
const STATE_RECEIVING: u8 = 1;
const STATE_ARRIVED: u8 = 2;
const STATE_CANCELLED: u8 = 3;

const FLAG_FINISH_WITHOUT_SECRET: u8 = 1;
const FLAG_REMOVE_WHEN_FINISHED: u8 = 2;
const FLAG_HAS_WAITED: u8 = 4;
const FLAG_OWNER: u8 = 8;
const FLAG_MAX_SIZE: u8 = 16;
const FLAG_EXPIRES: u8 = 32;
const FLAGS_ALL: u8 = 63;

const TEXT_COUNT: usize = 9;

/// A ticket record without its strings and without what may be missing.
const TICKET_FIXED_BYTES: usize = 1 + 16 + 4 * 8 + 2 * 4 + 3;
/// Where a ticket record says its offset.
const COMMITTED_AT: usize = 1 + 16;
