use proptest::prelude::*;

use super::*;

fn stand() -> impl Strategy<Value = Stand> {
    let all = [Stand::Telling, Stand::Waiting, Stand::Failed, Stand::Told];
    prop::sample::select(all.to_vec())
}

fn state() -> impl Strategy<Value = RecordState> {
    prop_oneof![
        Just(RecordState::Issued),
        Just(RecordState::Receiving),
        stand().prop_map(|stand| RecordState::Arrived { stand }),
        (stand(), ".{0,9}").prop_map(|(stand, reason)| RecordState::Cancelled { stand, reason }),
    ]
}

fn new_ticket() -> impl Strategy<Value = NewTicket> {
    let texts = (".{0,20}", ".{0,20}", ".{0,20}", ".{0,20}", ".{0,20}", ".{0,20}");
    let options = any::<(Option<u32>, Option<u64>, Option<u64>)>();
    (any::<u128>(), texts, options, any::<(bool, bool)>()).prop_map(
        |(id, texts, options, flags)| NewTicket {
            id: TicketId(id),
            url: texts.0,
            secret: texts.1,
            finish_without_secret: flags.0,
            remove_when_finished: flags.1,
            owner_uid: options.0,
            max_size_bytes: options.1,
            expires_at_ms: options.2,
            metadata: texts.2,
            dest_dir: texts.3,
            signing_secret: texts.4,
            key: texts.5,
        },
    )
}

fn telling() -> impl Strategy<Value = TellingRecord> {
    (any::<(u64, u32, u32, bool)>(), ".{0,20}").prop_map(|(numbers, last_error)| {
        let (since_ms, attempt, refusal_count, has_waited) = numbers;
        TellingRecord { since_ms, attempt, refusal_count, has_waited, last_error }
    })
}

fn ticket() -> impl Strategy<Value = TicketRecord> {
    let numbers = any::<(u64, u64, u64)>();
    (new_ticket(), state(), ".{0,20}", numbers, telling()).prop_map(
        |(new, state, filename_from_browser, numbers, telling)| TicketRecord {
            new,
            state,
            filename_from_browser,
            length_bytes: numbers.0,
            committed_bytes: numbers.1,
            active_at_ms: numbers.2,
            telling,
        },
    )
}

fn record() -> impl Strategy<Value = Record> {
    prop_oneof![
        ticket().prop_map(Record::Ticket),
        any::<(u128, u64)>()
            .prop_map(|(id, committed_bytes)| Record::Offset { id: TicketId(id), committed_bytes }),
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
        new: NewTicket {
            id: TicketId(0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100),
            url: "u".into(),
            secret: "se".into(),
            finish_without_secret: true,
            remove_when_finished: false,
            owner_uid: Some(7),
            max_size_bytes: Some(0x0506),
            expires_at_ms: Some(0x0708),
            metadata: "m".into(),
            dest_dir: "d".into(),
            signing_secret: "si".into(),
            key: "k".into(),
        },
        state: RecordState::Cancelled { stand: Stand::Failed, reason: "r".into() },
        filename_from_browser: "é".into(),
        length_bytes: 0x0102,
        committed_bytes: 0x0304,
        active_at_ms: 0x090a,
        telling: TellingRecord {
            since_ms: 0x0b0c,
            attempt: 5,
            refusal_count: 6,
            has_waited: true,
            last_error: "e".into(),
        },
    }))
}

/// The bytes of the document: files of earlier servers stay readable.
#[test]
fn every_byte_has_its_place() {
    let mut expected = vec![1];
    expected.extend(0..16);
    for number in [0x0304_u64, 0x0102, 0x090a, 0x0b0c] {
        expected.extend(number.to_le_bytes());
    }
    expected.extend([5, 0, 0, 0, 6, 0, 0, 0, 3, 2, 61, 7, 0, 0, 0]);
    for number in [0x0506_u64, 0x0708] {
        expected.extend(number.to_le_bytes());
    }
    for text in ["u", "se", "m", "d", "si", "k", "é", "e", "r"] {
        expected.extend([text.len() as u8, 0, 0, 0]);
        expected.extend(text.as_bytes());
    }
    assert_eq!(example(), expected);
}

#[test]
fn refuses_what_it_does_not_know() {
    let table: [(usize, &[u8], RecordError); 8] = [
        (0, &[0], RecordError::UnknownKind),
        (0, &[4], RecordError::UnknownKind),
        (57, &[4], RecordError::UnknownState),
        // Nobody is told of what has only begun, and it has no reason to have ended.
        (57, &[1, 1], RecordError::UnknownState),
        (57, &[1, 0], RecordError::UnknownState),
        (59, &[64], RecordError::UnknownFlags),
        (80, &[1, 0, 1, 0], RecordError::StringTooLong),
        (84, &[0xff], RecordError::NotUtf8),
    ];
    for (at, patch, error) in table {
        let mut bytes = example();
        bytes[at..at + patch.len()].copy_from_slice(patch);
        assert_eq!(Record::decode(&mut bytes.as_slice()), Err(error), "at {at}");
    }
}

#[test]
fn texts_are_cut_between_characters() {
    for (before, after) in [(String::new(), 0), ("e".repeat(200), 200), ("é".repeat(101), 200)] {
        let mut text = before;
        shorten(&mut text);
        assert_eq!(text.len(), after);
    }
    let mut text = format!("e{}", "é".repeat(100));
    shorten(&mut text);
    assert_eq!(text.len(), 199);
}
