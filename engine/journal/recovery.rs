//! What the files say at start, and the files of a new run.

use std::collections::BTreeMap;

use super::format::{
    COMMIT_HEAD_BYTES, FileKey, FileName, HEADER_BYTES, Header, HeaderError, Side, blocks_bytes,
};
use super::{
    COMMIT_BYTES_MAX, CommitSync, FILE_BYTES_MIN, GENERATION_FIRST, LogStart, WRITES_IN_FLIGHT_MAX,
};
use crate::limits::BLOCK_BYTES;
use crate::record::{Record, TicketRecord};
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
    /// What `tickets` was read from: to be left alone until the new run's headers are durable.
    pub in_use: Vec<FileName>,
    /// The number of the new run: higher than any that the files know, also of one whose start was
    /// cut short before its first header.
    pub run_next: u64,
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

/// The bytes of a file that a new run begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewFile {
    /// For the first block. To be written and synced when the commits of all cores are.
    pub header: Vec<u8>,
    /// For what follows it. To be written and synced first.
    pub commits: Vec<u8>,
    sequence: u64,
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
        it.replay(&mut tickets, &mut recovery.damage);
        recovery.in_use.push(it.file.name);
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

    fn replay(&self, tickets: &mut BTreeMap<TicketId, TicketRecord>, damage: &mut Vec<Damage>) {
        let mut complain = |offset_bytes: u64, reason: DamageReason| {
            damage.push(Damage { file: self.file.name, offset_bytes, reason });
        };
        let snapshot_end = self.header.snapshot_end_bytes;
        let mut reader = Reader { sequence: Some(0), ..self.reader(u64::from(BLOCK_BYTES)) };
        while reader.at_bytes < snapshot_end {
            if let Some(records) = reader.next() {
                apply(records, tickets);
                continue;
            }
            complain(reader.at_bytes, DamageReason::Snapshot);
            // Each ticket stands in a snapshot once: the others do not depend on what is lost.
            let next = reader.find(reader.sequence.unwrap_or(0)).filter(|it| *it < snapshot_end);
            reader = self.reader(next.unwrap_or(snapshot_end));
        }
        while let Some(records) = reader.next() {
            apply(records, tickets);
        }
        // What can be in flight when the power goes may be there in any order.
        let later = reader.sequence.map(|it| it.saturating_add(WRITES_IN_FLIGHT_MAX as u64));
        if let Some(later) = later.filter(|_| !self.header.is_relaxed)
            && reader.find(later).is_some()
        {
            complain(reader.at_bytes, DamageReason::Log);
        }
    }

    fn reader(&self, at_bytes: u64) -> Reader<'a> {
        Reader { file: self.file, key: self.header.key, at_bytes, sequence: None }
    }
}

impl<'a> Reader<'a> {
    /// The records of the next commit, if it is whole.
    fn next(&mut self) -> Option<Vec<Record>> {
        let sequences = self.sequence.map_or(0..=u64::MAX, |it| it..=it);
        let commit = self.key.commit(self.rest(self.at_bytes)?, &sequences)?;
        let records = commit.records()?;
        self.at_bytes += commit.blocks_bytes();
        self.sequence = commit.sequence.checked_add(1);
        Some(records)
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

impl NewFile {
    /// The beginning of a core's journal.
    pub fn new<'a>(
        core: u16,
        core_count: u16,
        run: u64,
        sync: CommitSync,
        tickets: impl IntoIterator<Item = &'a TicketRecord>,
    ) -> Self {
        let key = FileKey { run, core, generation: GENERATION_FIRST };
        let mut file =
            Self { header: vec![0; BLOCK_BYTES as usize], commits: Vec::new(), sequence: 0 };
        let mut commit = vec![0; COMMIT_HEAD_BYTES];
        for ticket in tickets {
            if commit.len() + ticket.encoded_bytes() as usize > COMMIT_BYTES_MAX as usize {
                file.push(key, &mut commit);
            }
            ticket.encode(&mut commit);
        }
        if commit.len() > COMMIT_HEAD_BYTES {
            file.push(key, &mut commit);
        }
        let header = Header {
            key,
            core_count,
            is_relaxed: sync == CommitSync::StatesOnly,
            snapshot_end_bytes: file.end_bytes(),
        };
        header.encode(&mut file.header);
        file
    }

    /// How large the file has to be, at least.
    pub fn file_bytes_min(&self) -> u64 {
        FILE_BYTES_MIN.max(self.end_bytes() + u64::from(COMMIT_BYTES_MAX))
    }

    /// Where the log goes on, in a file on this side.
    pub fn start(&self, side: Side, capacity_bytes: [u64; 2]) -> LogStart {
        LogStart { side, sequence: self.sequence, end_bytes: self.end_bytes(), capacity_bytes }
    }

    fn end_bytes(&self) -> u64 {
        u64::from(BLOCK_BYTES) + self.commits.len() as u64
    }

    fn push(&mut self, key: FileKey, commit: &mut Vec<u8>) {
        key.seal(self.sequence, commit);
        self.sequence += 1;
        self.commits.extend_from_slice(commit);
        self.commits.resize(blocks_bytes(self.commits.len()) as usize, 0);
        commit.truncate(COMMIT_HEAD_BYTES);
    }
}

fn apply(records: Vec<Record>, tickets: &mut BTreeMap<TicketId, TicketRecord>) {
    for record in records {
        match record {
            Record::Ticket(ticket) => {
                tickets.insert(ticket.id, ticket);
            }
            Record::Offset { id, committed_bytes } => {
                if let Some(ticket) = tickets.get_mut(&id) {
                    ticket.committed_bytes = committed_bytes;
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
