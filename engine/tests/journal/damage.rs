//! Files that were cut or changed by something else than a crash.

use engine::journal::{FileName, JournalFile, Recovery, recover};
use engine::limits::BLOCK_BYTES;
use proptest::prelude::*;

use crate::Sim;
use crate::disk::Image;

/// Every cut and every changed byte of a small journal: it is read without a panic, gives nothing
/// that never was, and what is missing beyond the end of the log is reported.
#[test]
fn no_byte_breaks_the_start() {
    let (mut image, world) = Sim::calm(7, 30, 300);
    let name = *image.0.iter().max_by_key(|it| used_bytes(it.1)).unwrap().0;
    let used = used_bytes(&image.0[&name]);
    assert!((10..60).contains(&(used / BLOCK)), "small, but not empty: {used}");
    // One free block, in which a later commit could stand.
    let mut bytes = image.0.remove(&name).unwrap();
    bytes.truncate(used + BLOCK);
    let read = |bytes: &[u8]| recover(&[JournalFile { name, bytes }]);
    let whole = read(&bytes);
    assert!(whole.tickets.len() > 3);
    assert_eq!(whole.damage, []);
    let tail = tail_start(&bytes, read);
    for at in 0..bytes.len() {
        let bit = 1 << (at % 8);
        bytes[at] ^= bit;
        let recovery = read(&bytes);
        bytes[at] ^= bit;
        world.check_possible(&recovery);
        let is_reported = recovery.tickets == whole.tickets || !recovery.damage.is_empty();
        assert!(is_reported || at >= tail, "lost in silence: byte {at}, tail {tail}");
        world.check_possible(&read(&bytes[..at]));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// The same for larger pairs, with moves and several changes.
    #[test]
    fn no_damage_breaks_the_start(
        seed in 0u64..20,
        changes in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>(), 1u8..), 1..5),
        cut in prop::option::of((any::<bool>(), any::<prop::sample::Index>())),
    ) {
        let (mut image, world) = Sim::calm(seed, 60_000, 200);
        let whole = recover(&image.files());
        prop_assert_eq!(&whole.damage, &[]);
        let names: Vec<FileName> = image.0.keys().copied().collect();
        for (side, at, mask) in changes {
            let file = image.0.get_mut(&names[usize::from(side)]).unwrap();
            let used = used_bytes(file).max(1);
            file[at.index(used)] ^= mask;
        }
        if let Some((side, at)) = cut {
            let file = image.0.get_mut(&names[usize::from(side)]).unwrap();
            file.truncate(at.index(used_bytes(file) + 1));
        }
        world.check_possible(&recover(&image.files()));
    }

    #[test]
    fn noise_is_no_journal(
        noise in prop::collection::vec(any::<u8>(), 0..20_000),
        with_magic: bool,
    ) {
        let mut bytes = noise;
        if with_magic {
            bytes.splice(0..bytes.len().min(8), *b"INCOMJNL");
        }
        let name = FileName::parse("0.a").unwrap();
        let recovery = recover(&Image([(name, bytes)].into()).files());
        prop_assert_eq!(recovery.tickets, []);
        prop_assert_eq!(recovery.run_next, 1);
    }
}

/// Where the last two commits of the log begin: what is lost from there on looks like a crash.
fn tail_start(bytes: &[u8], read: impl Fn(&[u8]) -> Recovery) -> usize {
    let mut ends = Vec::new();
    let mut last = None;
    for end in (0..=bytes.len()).step_by(BLOCK) {
        let tickets = read(&bytes[..end]).tickets;
        if last.as_ref() != Some(&tickets) {
            ends.push(end);
            last = Some(tickets);
        }
    }
    ends[ends.len() - 3]
}

fn used_bytes(file: &[u8]) -> usize {
    let used = file.iter().rposition(|it| *it != 0).map_or(0, |it| it + 1);
    used.next_multiple_of(BLOCK)
}

const BLOCK: usize = BLOCK_BYTES as usize;
