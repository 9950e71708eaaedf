//! What the files say at start.

use std::collections::BTreeMap;

use super::format::{FileKey, FileName, HEADER_BYTES, Header, HeaderError, Side};
use super::{GENERATION_FIRST, WRITES_IN_FLIGHT_MAX};
use crate::limits::BLOCK_BYTES;
use crate::record::{Record, RecordState, TicketRecord};
use crate::ticket::TicketId;

/// A file as it was found, whole.
#[derive(Clone, Copy, Debug)]
pub struct JournalFile<'a> {
    pub name: FileName,
    pub bytes: &'a [u8],
}

/// All that the files say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Those that there were when the server ended, in the order of their ids.
    pub tickets: Vec<TicketRecord>,
    /// What a crash does not explain. Where the files are damaged, tickets may be missing or older
    /// than what was committed.
    pub damage: Vec<Damage>,
    /// The run acknowledged without syncs: after a power cut its offsets say more than is true.
    pub is_relaxed: bool,
    /// What `tickets` was read from: to be left alone until the new run's headers are durable.
    pub in_use: Vec<FileName>,
    /// The number of the new run: higher than any that the files know, also of one whose start was
    /// cut short before its first header.
    pub run_next: u64,
    /// Service time at the last commit of the run; see [`crate::service`].
    pub service_ms: u64,
}

/// A place in a file that is not as the server left it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    pub file: FileName,
    pub offset_bytes: u64,
    pub reason: DamageReason,
}

/// What is wrong there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DamageReason {
    /// The file's header is broken, so that nothing in the file can be read.
    Header,
    /// The file was written by a server with another format. To start would be to overwrite it.
    OtherVersion,
    /// No file of this core belongs to the run.
    Missing,
    /// A commit of the snapshot is broken. The tickets in it are missing unless they have changed
    /// since.
    Snapshot,
    /// A commit of the log is broken, and later ones are there. All from here on is missing.
    Log,
}

/// One file with a valid header.
#[derive(Debug)]
struct Found<'a> {
    file: JournalFile<'a>,
    header: Header,
}

/// Where reading has come.
#[derive(Debug)]
struct Reader<'a> {
    file: JournalFile<'a>,
    key: FileKey,
    /// At a block.
    at_bytes: u64,
    /// Of the next commit, if that is known.
    sequence: Option<u64>,
}

/// Reads the journals of all cores, whatever is in them. Of several runs, the one counts that was
/// the last to stand as a whole: a start that was cut short leaves the run before in place.
pub fn recover(files: &[JournalFile<'_>]) -> Recovery {
    let found: Vec<Found<'_>> = files.iter().filter_map(Found::new).collect();
    let run_max = found.iter().map(|it| it.header.key.run).max();
    let mut recovery =
        Recovery { run_next: unused_run(files, run_max.unwrap_or(0)), ..Recovery::default() };
    let mut active = BTreeMap::<(u64, u16), &Found<'_>>::new();
    for it in &found {
        let key = it.header.key;
        let best = active.entry((key.run, key.core)).or_insert(it);
        if key.generation > best.header.key.generation {
            *best = it;
        }
    }
    let mut runs: Vec<u64> = active.keys().map(|it| it.0).collect();
    runs.dedup();
    let of = |run: u64| active.range((run, 0)..=(run, u16::MAX)).map(|it| *it.1);
    let counts = |run: u64| {
        let core_count = of(run).map(|it| it.header.core_count).max().unwrap_or(0);
        of(run).count() == usize::from(core_count) || of(run).any(Found::has_been_used)
    };
    recovery.damage = files.iter().filter_map(JournalFile::header_damage).collect();
    let Some(run) = runs.into_iter().rev().find(|it| counts(*it)) else { return recovery };
    let mut tickets = BTreeMap::new();
    for it in of(run) {
        let service_ms = it.replay(&mut tickets, &mut recovery.damage);
        recovery.service_ms = recovery.service_ms.max(service_ms);
        recovery.in_use.push(it.file.name);
        recovery.is_relaxed |= it.header.is_relaxed;
    }
    let core_count = of(run).map(|it| it.header.core_count).max().unwrap_or(0);
    for core in (0..core_count).filter(|it| !active.contains_key(&(run, *it))) {
        let file = FileName { core, side: Side::A };
        let reason = DamageReason::Missing;
        recovery.damage.push(Damage { file, offset_bytes: 0, reason });
    }
    recovery.tickets = tickets.into_values().collect();
    recovery
}

/// A run of which there is no commit either: otherwise what a start that was cut short has left
/// further on in a file would go for a part of this run's log.
fn unused_run(files: &[JournalFile<'_>], run_max: u64) -> u64 {
    let is_used = |run: u64| {
        files.iter().any(|it| {
            let key = FileKey { run, core: it.name.core, generation: GENERATION_FIRST };
            Reader { file: *it, key, at_bytes: 0, sequence: None }.find(0).is_some()
        })
    };
    let mut runs = (1..=CUT_STARTS_MAX).map(|it| run_max.saturating_add(it));
    runs.find(|it| !is_used(*it)).unwrap_or(run_max.saturating_add(CUT_STARTS_MAX + 1))
}

impl JournalFile<'_> {
    fn header(&self) -> Result<Header, HeaderError> {
        let header = Header::decode(self.bytes)?;
        // A file under another core's name was put there by somebody else.
        if header.key.core == self.name.core { Ok(header) } else { Err(HeaderError::Broken) }
    }

    /// A header is there, or zeros are: the disk writes a sector as a whole.
    fn header_damage(&self) -> Option<Damage> {
        let is_blank = self.bytes.iter().take(HEADER_BYTES).all(|it| *it == 0);
        let reason = match self.header() {
            Err(HeaderError::Broken) if !is_blank => DamageReason::Header,
            Err(HeaderError::OtherVersion) => DamageReason::OtherVersion,
            _ => return None,
        };
        Some(Damage { file: self.name, offset_bytes: 0, reason })
    }
}

impl Recovery {
    /// Files that are still being received may have lost anything: they begin anew.
    pub fn distrust_offsets(&mut self) {
        let receiving = self.tickets.iter_mut().filter(|it| it.state == RecordState::Receiving);
        receiving.for_each(|it| it.committed_bytes = 0);
    }

    /// Which of a core's two files a new run begins with: one that is not in use.
    pub fn side_for(&self, core: u16) -> Side {
        let a = FileName { core, side: Side::A };
        if self.in_use.contains(&a) { Side::B } else { Side::A }
    }
}

impl<'a> Found<'a> {
    fn new(file: &JournalFile<'a>) -> Option<Self> {
        file.header().ok().map(|header| Self { file: *file, header })
    }

    /// Cores start when the headers of all of them are durable. So one that has gone on proves that
    /// its run once stood as a whole.
    fn has_been_used(&self) -> bool {
        self.header.key.generation > GENERATION_FIRST
            || self.reader(self.header.snapshot_end_bytes).next().is_some()
    }

    /// Returns the service time of the last commit.
    fn replay(
        &self,
        tickets: &mut BTreeMap<TicketId, TicketRecord>,
        damage: &mut Vec<Damage>,
    ) -> u64 {
        let mut complain = |offset_bytes: u64, reason: DamageReason| {
            damage.push(Damage { file: self.file.name, offset_bytes, reason });
        };
        let mut last_ms = self.header.service_ms;
        let mut apply = |(service_ms, records)| {
            last_ms = last_ms.max(service_ms);
            apply(records, service_ms, tickets);
        };
        let snapshot_end = self.header.snapshot_end_bytes;
        let mut reader = Reader { sequence: Some(0), ..self.reader(u64::from(BLOCK_BYTES)) };
        while reader.at_bytes < snapshot_end {
            if let Some(commit) = reader.next() {
                apply(commit);
                continue;
            }
            complain(reader.at_bytes, DamageReason::Snapshot);
            // Each ticket stands in a snapshot once: the others do not depend on what is lost.
            let next = reader.find(reader.sequence.unwrap_or(0)).filter(|it| *it < snapshot_end);
            reader = self.reader(next.unwrap_or(snapshot_end));
        }
        while let Some(commit) = reader.next() {
            apply(commit);
        }
        // What can be in flight when the power goes may be there in any order.
        let later = reader.sequence.map(|it| it.saturating_add(WRITES_IN_FLIGHT_MAX as u64));
        if let Some(later) = later.filter(|_| !self.header.is_relaxed)
            && reader.find(later).is_some()
        {
            complain(reader.at_bytes, DamageReason::Log);
        }
        last_ms
    }

    fn reader(&self, at_bytes: u64) -> Reader<'a> {
        Reader { file: self.file, key: self.header.key, at_bytes, sequence: None }
    }
}

impl<'a> Reader<'a> {
    /// Service time and records of the next commit, if it is whole.
    fn next(&mut self) -> Option<(u64, Vec<Record>)> {
        let sequences = self.sequence.map_or(0..=u64::MAX, |it| it..=it);
        let commit = self.key.commit(self.rest(self.at_bytes)?, &sequences)?;
        let records = commit.records()?;
        self.at_bytes += commit.blocks_bytes();
        self.sequence = commit.sequence.checked_add(1);
        Some((commit.service_ms, records))
    }

    /// Where a commit from `sequence` on stands, further on.
    fn find(&self, sequence: u64) -> Option<u64> {
        let block_bytes = u64::from(BLOCK_BYTES);
        let end_bytes = self.file.bytes.len() as u64;
        // Each commit has a block of its own, so no sequence is further away than blocks are left.
        let last = sequence.saturating_add(end_bytes / block_bytes);
        let blocks = self.at_bytes / block_bytes + 1..end_bytes.div_ceil(block_bytes);
        let mut places = blocks.map(|it| it * block_bytes);
        places.find(|at| {
            let bytes = self.rest(*at).unwrap_or_default();
            self.key.commit(bytes, &(sequence..=last)).is_some_and(|it| it.records().is_some())
        })
    }

    fn rest(&self, at_bytes: u64) -> Option<&'a [u8]> {
        self.file.bytes.get(usize::try_from(at_bytes).ok()?..)
    }
}

fn apply(records: Vec<Record>, service_ms: u64, tickets: &mut BTreeMap<TicketId, TicketRecord>) {
    for record in records {
        match record {
            Record::Ticket(ticket) => {
                tickets.insert(ticket.new.id, ticket);
            }
            Record::Offset { id, committed_bytes } => {
                if let Some(ticket) = tickets.get_mut(&id) {
                    ticket.committed_bytes = committed_bytes;
                    ticket.active_at_ms = ticket.active_at_ms.max(service_ms);
                }
            }
            Record::Removed { id } => {
                tickets.remove(&id);
            }
        }
    }
}

/// So many starts in a row may have been cut short before their first header: each overwrites what
/// the one before has left.
const CUT_STARTS_MAX: u64 = 64;

#[cfg(test)]
mod tests {
    use super::super::format::COMMIT_HEAD_BYTES;
    use super::super::tests::ticket;
    use super::super::{CommitSync, NewFile};
    use super::*;

    /// A core's file as a start writes it.
    fn file(core: u16, core_count: u16, run: u64, tickets: &[TicketRecord]) -> Vec<u8> {
        let new = NewFile::new(core, core_count, run, CommitSync::Dsync, 0, tickets);
        [new.header, new.commits].concat()
    }

    /// Adds a commit to the log.
    fn append(file: &mut Vec<u8>, run: u64, core: u16, sequence: u64, record: &Record) {
        let mut commit = vec![0; COMMIT_HEAD_BYTES];
        record.encode(&mut commit);
        FileKey { run, core, generation: GENERATION_FIRST }.seal(sequence, 0, &mut commit);
        file.extend_from_slice(&commit);
        file.resize(file.len().next_multiple_of(BLOCK_BYTES as usize), 0);
    }

    fn read(files: &[(&str, &Vec<u8>)]) -> Recovery {
        let files = files
            .iter()
            .map(|(name, bytes)| JournalFile { name: FileName::parse(name).unwrap(), bytes });
        recover(&files.collect::<Vec<_>>())
    }

    fn ids(recovery: &Recovery) -> Vec<u128> {
        recovery.tickets.iter().map(|it| it.new.id.0).collect()
    }

    fn reasons(recovery: &Recovery) -> Vec<(String, u64, DamageReason)> {
        let damage = recovery.damage.iter();
        damage.map(|it| (it.file.to_string(), it.offset_bytes, it.reason)).collect()
    }

    #[test]
    fn nothing_is_a_beginning() {
        for files in [&[][..], &[("0.a", &vec![]), ("0.b", &vec![0; 10_000])]] {
            let recovery = read(files);
            assert_eq!((recovery.run_next, recovery.side_for(0)), (1, Side::A));
            assert_eq!((recovery.tickets, recovery.damage), (vec![], vec![]));
        }
    }

    #[test]
    fn a_run_counts_when_all_its_cores_have_a_header() {
        let old = file(0, 1, 1, &[ticket(1, 0), ticket(2, 0)]);
        let (new_0, new_1) = (file(0, 2, 2, &[ticket(1, 0)]), file(1, 2, 2, &[ticket(2, 0)]));
        let recovery = read(&[("0.a", &old), ("0.b", &new_0), ("1.a", &vec![0; 9000])]);
        assert_eq!((ids(&recovery), recovery.run_next), (vec![1, 2], 3));
        assert_eq!(recovery.in_use, [FileName { core: 0, side: Side::A }]);
        assert_eq!((recovery.side_for(0), recovery.side_for(1)), (Side::B, Side::A));
        assert_eq!(recovery.damage, []);

        let recovery = read(&[("0.a", &old), ("0.b", &new_0), ("1.a", &new_1)]);
        assert_eq!(ids(&recovery), [1, 2]);
        assert_eq!((recovery.side_for(0), recovery.side_for(1)), (Side::A, Side::B));
    }

    #[test]
    fn a_run_that_was_used_counts_though_a_core_is_lost() {
        let old = file(0, 1, 1, &[ticket(1, 0)]);
        let mut new = file(0, 2, 2, &[ticket(1, 0)]);
        append(&mut new, 2, 0, 1, &Record::Ticket(ticket(3, 0)));
        let recovery = read(&[("0.a", &old), ("0.b", &new)]);
        assert_eq!(ids(&recovery), [1, 3]);
        assert_eq!(reasons(&recovery), [("1.a".to_owned(), 0, DamageReason::Missing)]);
    }

    /// What a start that was cut short has left must not become part of the next one's log.
    #[test]
    fn a_run_without_header_is_not_used_again() {
        let old = file(0, 1, 1, &[ticket(1, 0)]);
        let mut cut = file(0, 1, 2, &[1, 2, 3, 4].map(|it| ticket(it, 60_000)));
        cut[..2 * BLOCK_BYTES as usize].fill(0);
        let recovery = read(&[("0.a", &old), ("0.b", &cut)]);
        assert_eq!((ids(&recovery), recovery.run_next), (vec![1], 3));
        assert_eq!(recovery.damage, []);
    }

    #[test]
    fn later_records_replace_earlier_ones() {
        let mut log = file(0, 1, 1, &[ticket(1, 0), ticket(2, 0), ticket(3, 0)]);
        let offset = |committed_bytes| Record::Offset { id: TicketId(1), committed_bytes };
        append(&mut log, 1, 0, 1, &offset(7));
        append(&mut log, 1, 0, 2, &offset(5));
        append(&mut log, 1, 0, 3, &Record::Removed { id: TicketId(2) });
        append(&mut log, 1, 0, 4, &Record::Ticket(ticket(3, 50)));
        append(&mut log, 1, 0, 5, &Record::Offset { id: TicketId(2), committed_bytes: 9 });
        let recovery = read(&[("0.b", &log)]);
        let expected = [TicketRecord { committed_bytes: 5, ..ticket(1, 0) }, ticket(3, 50)];
        assert_eq!(recovery.tickets, expected);
        assert_eq!(recovery.damage, []);
    }

    #[test]
    fn time_goes_on_with_the_last_commit() {
        let new = NewFile::new(0, 1, 1, CommitSync::Dsync, 100, &[ticket(1, 0), ticket(2, 0)]);
        let mut log = [new.header, new.commits].concat();
        assert_eq!(read(&[("0.a", &log)]).service_ms, 100);
        let mut commit = vec![0; COMMIT_HEAD_BYTES];
        Record::Offset { id: TicketId(1), committed_bytes: 5 }.encode(&mut commit);
        FileKey { run: 1, core: 0, generation: GENERATION_FIRST }.seal(1, 250, &mut commit);
        log.extend_from_slice(&commit);
        let recovery = read(&[("0.a", &log)]);
        assert_eq!(recovery.service_ms, 250);
        let active: Vec<u64> = recovery.tickets.iter().map(|it| it.active_at_ms).collect();
        assert_eq!(active, [250, 0]);
    }

    #[test]
    fn a_broken_commit_of_a_snapshot_takes_only_its_own_tickets() {
        let mut log = file(0, 1, 1, &[1, 2, 3, 4].map(|it| ticket(it, 60_000)));
        append(&mut log, 1, 0, 2, &Record::Ticket(ticket(5, 0)));
        let whole = log.clone();
        let second = FileKey { run: 1, core: 0, generation: GENERATION_FIRST }
            .commit(&whole[BLOCK_BYTES as usize..], &(0..=0))
            .unwrap()
            .blocks_bytes()
            + u64::from(BLOCK_BYTES);
        for (at, left) in [(u64::from(BLOCK_BYTES), [3, 4, 5]), (second, [1, 2, 5])] {
            log.clone_from(&whole);
            log[at as usize + 20] ^= 1;
            let recovery = read(&[("0.a", &log)]);
            assert_eq!(ids(&recovery), left);
            assert_eq!(reasons(&recovery), [("0.a".to_owned(), at, DamageReason::Snapshot)]);
        }
    }

    #[test]
    fn what_may_be_in_flight_may_be_missing() {
        let mut log = file(0, 1, 1, &[]);
        for number in 0..4 {
            append(&mut log, 1, 0, number, &Record::Ticket(ticket(u128::from(number), 0)));
        }
        let block = BLOCK_BYTES as usize;
        for (lost, left, is_damaged) in [(4, 3, false), (3, 2, false), (2, 1, true)] {
            let mut log = log.clone();
            log[lost * block..][..block].fill(0);
            let recovery = read(&[("0.a", &log)]);
            assert_eq!(recovery.tickets.len(), left);
            let place = ("0.a".to_owned(), (lost * block) as u64, DamageReason::Log);
            assert_eq!(reasons(&recovery), if is_damaged { vec![place] } else { vec![] });
        }
    }

    #[test]
    fn headers_that_cannot_be_are_told() {
        let good = file(0, 1, 1, &[ticket(1, 0)]);
        let mut broken = file(0, 1, 2, &[ticket(1, 0)]);
        broken[20] ^= 1;
        let recovery = read(&[("0.a", &good), ("0.b", &broken)]);
        assert_eq!(ids(&recovery), [1]);
        assert_eq!(reasons(&recovery), [("0.b".to_owned(), 0, DamageReason::Header)]);
        // Somebody has renamed it.
        let recovery = read(&[("1.a", &good)]);
        assert_eq!(ids(&recovery), []);
        assert_eq!(reasons(&recovery), [("1.a".to_owned(), 0, DamageReason::Header)]);
        let mut later = good;
        later[12] = 1;
        let checksum = crc32c::crc32c(&later[12..HEADER_BYTES]);
        later[8..12].copy_from_slice(&checksum.to_le_bytes());
        let recovery = read(&[("0.a", &later)]);
        assert_eq!(reasons(&recovery), [("0.a".to_owned(), 0, DamageReason::OtherVersion)]);
    }
}
