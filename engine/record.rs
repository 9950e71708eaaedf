//! What the journal says of a ticket, as bytes. The format stands in `doc/storage.md`.

use std::fmt;

use crate::ticket::TicketId;

/// One fact. Later facts replace earlier ones, so that reading a journal twice changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// The ticket is there and is like this, whatever was said before.
    Ticket(TicketRecord),
    /// Everything below `committed_bytes` is safe. After a storage failure it may be less than
    /// before.
    Offset { id: TicketId, committed_bytes: u64 },
    /// The ticket is gone.
    Removed { id: TicketId },
}

/// All that a ticket needs to go on after a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TicketRecord {
    pub id: TicketId,
    pub state: RecordState,
    /// Where the outcome is told.
    pub url: String,
    pub secret: String,
    pub finish_without_secret: bool,
    pub remove_when_finished: bool,
    pub owner_uid: Option<u32>,
    /// Only data: it may hold anything.
    pub filename_from_browser: String,
    /// Of the whole file, as the browser declared it.
    pub length_bytes: u64,
    /// Everything below is safe.
    pub committed_bytes: u64,
    /// Attempts to tell the web app.
    pub attempt: u32,
    /// The web app once answered `wait`.
    pub has_waited: bool,
}

/// How far the ticket is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordState {
    /// No browser has come yet.
    Issued,
    /// A browser has come.
    Receiving,
    /// Everything is here and is being handed over.
    Arrived,
    /// The web app is being told so.
    Cancelled { reason: String },
    /// The web app has the file.
    Finished,
}

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
            KIND_OFFSET => {
                Ok(Self::Offset { id, committed_bytes: u64::from_le_bytes(take(input)?) })
            }
            KIND_REMOVED => Ok(Self::Removed { id }),
            _ => Err(RecordError::UnknownKind),
        }
    }
}

impl TicketRecord {
    /// How many bytes [`TicketRecord::encode`] appends.
    pub fn encoded_bytes(&self) -> u32 {
        let reason_bytes = match &self.state {
            RecordState::Cancelled { reason } => 4 + reason.len(),
            _ => 0,
        };
        let owner_bytes = if self.owner_uid.is_some() { 4 } else { 0 };
        let strings = [&self.url, &self.secret, &self.filename_from_browser];
        let strings_bytes: usize = strings.iter().map(|it| 4 + it.len()).sum();
        u32::try_from(TICKET_FIXED_BYTES + owner_bytes + strings_bytes + reason_bytes)
            .expect("strings are bounded")
    }

    /// Appends the bytes of [`Record::Ticket`].
    ///
    /// # Panics
    /// If a string is longer than [`STRING_BYTES_MAX`]: whoever takes it from a peer has a lower
    /// limit.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let state = match self.state {
            RecordState::Issued => STATE_ISSUED,
            RecordState::Receiving => STATE_RECEIVING,
            RecordState::Arrived => STATE_ARRIVED,
            RecordState::Cancelled { .. } => STATE_CANCELLED,
            RecordState::Finished => STATE_FINISHED,
        };
        let flags = [
            (self.finish_without_secret, FLAG_FINISH_WITHOUT_SECRET),
            (self.remove_when_finished, FLAG_REMOVE_WHEN_FINISHED),
            (self.has_waited, FLAG_HAS_WAITED),
            (self.owner_uid.is_some(), FLAG_OWNER),
        ];
        let flags = flags.iter().filter(|it| it.0).fold(0, |sum, it| sum | it.1);
        out.push(KIND_TICKET);
        out.extend_from_slice(&self.id.0.to_le_bytes());
        out.extend_from_slice(&self.committed_bytes.to_le_bytes());
        out.extend_from_slice(&self.length_bytes.to_le_bytes());
        out.extend_from_slice(&self.attempt.to_le_bytes());
        out.extend_from_slice(&[state, flags]);
        if let Some(uid) = self.owner_uid {
            out.extend_from_slice(&uid.to_le_bytes());
        }
        put_text(out, &self.url);
        put_text(out, &self.secret);
        put_text(out, &self.filename_from_browser);
        if let RecordState::Cancelled { reason } = &self.state {
            put_text(out, reason);
        }
    }

    fn decode_body(id: TicketId, input: &mut &[u8]) -> Result<Self, RecordError> {
        let committed_bytes = u64::from_le_bytes(take(input)?);
        let length_bytes = u64::from_le_bytes(take(input)?);
        let attempt = u32::from_le_bytes(take(input)?);
        let [state, flags] = take(input)?;
        if flags & !FLAGS_ALL != 0 {
            return Err(RecordError::UnknownFlags);
        }
        let has_owner = flags & FLAG_OWNER != 0;
        let owner_uid = if has_owner { Some(u32::from_le_bytes(take(input)?)) } else { None };
        let url = take_text(input)?;
        let secret = take_text(input)?;
        let filename_from_browser = take_text(input)?;
        let state = match state {
            STATE_ISSUED => RecordState::Issued,
            STATE_RECEIVING => RecordState::Receiving,
            STATE_ARRIVED => RecordState::Arrived,
            STATE_CANCELLED => RecordState::Cancelled { reason: take_text(input)? },
            STATE_FINISHED => RecordState::Finished,
            _ => return Err(RecordError::UnknownState),
        };
        Ok(Self {
            id,
            state,
            url,
            secret,
            finish_without_secret: flags & FLAG_FINISH_WITHOUT_SECRET != 0,
            remove_when_finished: flags & FLAG_REMOVE_WHEN_FINISHED != 0,
            owner_uid,
            filename_from_browser,
            length_bytes,
            committed_bytes,
            attempt,
            has_waited: flags & FLAG_HAS_WAITED != 0,
        })
    }
}

/// Says another offset in an encoded ticket record.
pub fn set_committed_bytes(encoded_ticket: &mut [u8], committed_bytes: u64) {
    assert_eq!(encoded_ticket.first(), Some(&KIND_TICKET));
    encoded_ticket[COMMITTED_AT..COMMITTED_AT + 8].copy_from_slice(&committed_bytes.to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    assert!(text.len() <= STRING_BYTES_MAX);
    out.extend_from_slice(&(text.len() as u32).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
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
const STATE_FINISHED: u8 = 4;

const FLAG_FINISH_WITHOUT_SECRET: u8 = 1;
const FLAG_REMOVE_WHEN_FINISHED: u8 = 2;
const FLAG_HAS_WAITED: u8 = 4;
const FLAG_OWNER: u8 = 8;
const FLAGS_ALL: u8 = 15;

/// A ticket record without its strings and its owner.
const TICKET_FIXED_BYTES: usize = 1 + 16 + 8 + 8 + 4 + 1 + 1;
/// Where a ticket record says its offset.
const COMMITTED_AT: usize = 1 + 16;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn state() -> impl Strategy<Value = RecordState> {
        prop_oneof![
            Just(RecordState::Issued),
            Just(RecordState::Receiving),
            Just(RecordState::Arrived),
            ".{0,9}".prop_map(|reason| RecordState::Cancelled { reason }),
            Just(RecordState::Finished),
        ]
    }

    fn ticket() -> impl Strategy<Value = TicketRecord> {
        let texts = (".{0,20}", ".{0,20}", ".{0,20}");
        let numbers = any::<(u128, u64, u64, u32)>();
        let flags = any::<(bool, bool, bool, Option<u32>)>();
        (state(), texts, numbers, flags).prop_map(|(state, texts, numbers, flags)| TicketRecord {
            id: TicketId(numbers.0),
            state,
            url: texts.0,
            secret: texts.1,
            finish_without_secret: flags.0,
            remove_when_finished: flags.1,
            owner_uid: flags.3,
            filename_from_browser: texts.2,
            length_bytes: numbers.1,
            committed_bytes: numbers.2,
            attempt: numbers.3,
            has_waited: flags.2,
        })
    }

    fn record() -> impl Strategy<Value = Record> {
        prop_oneof![
            ticket().prop_map(Record::Ticket),
            any::<(u128, u64)>().prop_map(|(id, committed_bytes)| Record::Offset {
                id: TicketId(id),
                committed_bytes
            }),
            any::<u128>().prop_map(|id| Record::Removed { id: TicketId(id) }),
        ]
    }

    fn encoded(record: &Record) -> Vec<u8> {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        bytes
    }

    proptest! {
        #[test]
        fn round_trip(first in record(), second in record()) {
            let mut bytes = encoded(&first);
            match &first {
                Record::Ticket(it) => prop_assert_eq!(it.encoded_bytes() as usize, bytes.len()),
                Record::Offset { .. } => prop_assert_eq!(OFFSET_RECORD_BYTES, bytes.len()),
                Record::Removed { .. } => {}
            }
            second.encode(&mut bytes);
            let mut input = bytes.as_slice();
            prop_assert_eq!(Record::decode(&mut input), Ok(first));
            prop_assert_eq!(Record::decode(&mut input), Ok(second));
            prop_assert!(input.is_empty());
        }

        #[test]
        fn what_is_cut_off_is_incomplete(record in record(), at in any::<prop::sample::Index>()) {
            let bytes = encoded(&record);
            let cut = &bytes[..at.index(bytes.len())];
            prop_assert_eq!(Record::decode(&mut &*cut), Err(RecordError::Incomplete));
        }

        /// What is read back is what was said: no two byte strings are the same record.
        #[test]
        fn decodes_nothing_else(bytes in prop::collection::vec(any::<u8>(), 0..100), kind in 0u8..5) {
            let mut bytes = bytes;
            bytes.insert(0, kind);
            let mut rest = bytes.as_slice();
            if let Ok(record) = Record::decode(&mut rest) {
                prop_assert_eq!(encoded(&record), &bytes[..bytes.len() - rest.len()]);
            }
        }

        #[test]
        fn another_offset_changes_nothing_else(ticket in ticket(), committed_bytes: u64) {
            let mut bytes = encoded(&Record::Ticket(ticket.clone()));
            set_committed_bytes(&mut bytes, committed_bytes);
            let expected = Record::Ticket(TicketRecord { committed_bytes, ..ticket });
            prop_assert_eq!(Record::decode(&mut bytes.as_slice()), Ok(expected));
        }
    }

    fn example() -> Vec<u8> {
        encoded(&Record::Ticket(TicketRecord {
            id: TicketId(0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100),
            state: RecordState::Cancelled { reason: "r".into() },
            url: "u".into(),
            secret: "se".into(),
            finish_without_secret: true,
            remove_when_finished: false,
            owner_uid: Some(7),
            filename_from_browser: "é".into(),
            length_bytes: 0x0102,
            committed_bytes: 0x0304,
            attempt: 5,
            has_waited: true,
        }))
    }

    /// The bytes of the document: files of earlier servers stay readable.
    #[test]
    fn every_byte_has_its_place() {
        let mut expected = vec![1];
        expected.extend(0..16);
        expected.extend([4, 3, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 3, 13]);
        expected.extend([7, 0, 0, 0, 1, 0, 0, 0, b'u', 2, 0, 0, 0, b's', b'e']);
        expected.extend([2, 0, 0, 0, 0xc3, 0xa9, 1, 0, 0, 0, b'r']);
        assert_eq!(example(), expected);
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        let table: [(usize, &[u8], RecordError); 6] = [
            (0, &[0], RecordError::UnknownKind),
            (0, &[4], RecordError::UnknownKind),
            (37, &[5], RecordError::UnknownState),
            (38, &[16], RecordError::UnknownFlags),
            (43, &[1, 0, 1, 0], RecordError::StringTooLong),
            (58, &[0xff], RecordError::NotUtf8),
        ];
        for (at, patch, error) in table {
            let mut bytes = example();
            bytes[at..at + patch.len()].copy_from_slice(patch);
            assert_eq!(Record::decode(&mut bytes.as_slice()), Err(error), "at {at}");
        }
    }
}
