//! The journal of a core: what its tickets are, so that a restart knows.
//!
//! Facts are noted, gathered, and written as one commit a turn for all uploads; a commit is there
//! as a whole or not at all. When the file is full, the journal moves to its other file, beginning
//! with a snapshot. Nothing noted is safe before its event says so.
//!
//! Reading order: this file (what an owner can ask for), `commit` (the path of a fact), `moving`
//! (snapshot, other file, failures), `format` (bytes), `recovery` and `new_file` (a start).

mod commit;
mod config;
mod format;
mod moving;
mod new_file;
mod recovery;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use commit::{Waiting, Write};
pub use config::{CommitSync, JournalConfig, LogStart};
pub use format::{COMMIT_BYTES_MAX, FileKey, FileName, Header, JOURNAL_NAME, Side};
use format::{COMMIT_HEAD_BYTES, blocks_bytes};
use moving::Move;
pub use new_file::NewFile;
pub use recovery::{Damage, DamageReason, JournalFile, Recovery, recover};

use crate::buffer::Memory;
use crate::limits::BLOCK_BYTES;
use crate::op::{Completion, Errno, FileId, Op, OpenHow, Output, Token};
use crate::record::{Record, TicketRecord};
use crate::ticket::TicketId;

/// The journal of one core. Inert: notes and completions in, ops and events out.
///
/// Invariant: what was reported committed is in the active file, or was when it was reported and
/// is in every snapshot since.
#[derive(Debug)]
pub struct Journal<M> {
    config: JournalConfig,
    stage: Stage,
    /// First [`Side::A`]'s file.
    is_open: [bool; 2],
    log: Log,
    /// How large each side's file is. Nothing is written beyond.
    capacity_bytes: [u64; 2],
    /// Of the last move that was tried: no two of them share checksums.
    generation_last: u64,
    /// The last try to make the side's file larger has failed.
    cannot_grow: [bool; 2],
    /// When files may be made larger again for the sake of new tickets.
    grow_at: Option<Instant>,
    /// To so many bytes, soon.
    grow_to_bytes: Option<u64>,
    /// Live tickets, by the size of their records.
    sizes: BTreeMap<TicketId, u32>,
    live_bytes: u64,
    noted: Position,
    committed: Position,
    /// Records that are to be written, in the order in which they were noted.
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    /// Whose offset is to be written, each once.
    offsets: VecDeque<TicketId>,
    offsets_set: HashSet<TicketId>,
    /// What was given to the kernel and is not committed, in the order of the log.
    writes: VecDeque<Write>,
    /// Where commits are built.
    scratch: Vec<u8>,
    /// An op failed. Nothing is started until everything has ended.
    broken: Option<Errno>,
    /// Failures, shortages aside, since the journal last reached a file of its own.
    failure_count: u32,
    flights: Vec<Flight>,
    flight_next: u64,
    ops: VecDeque<(Token, Op<M>)>,
    events: VecDeque<JournalEvent>,
}

/// What the tickets are now. From [`Journal::note_ticket`] on, it says the state that was noted, or
/// a later one: a snapshot relies on it.
pub trait Source {
    /// The ticket's whole state. Its `committed_bytes` is what [`Source::durable_bytes`] says.
    /// `None`: there is none any more.
    fn ticket(&self, id: TicketId) -> Option<TicketRecord>;

    /// Everything of the ticket's file below is as safe as configured, so that the journal may say
    /// so. It is more than what the journal has reported, or as much, unless storage failed.
    fn durable_bytes(&self, id: TicketId) -> Option<u64> {
        self.ticket(id).map(|it| it.committed_bytes)
    }

    /// The time that every commit carries; see [`crate::service`].
    fn service_ms(&self) -> u64;
}

/// Numbers the states that were noted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u64);

/// What a journal tells its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JournalEvent {
    /// Every state noted up to and including `position` is committed.
    Committed { position: Position },
    /// The offset is committed.
    Offset { id: TicketId, committed_bytes: u64 },
    /// Neither file could be written. Nothing more will be committed.
    Failed { errno: Errno },
}

#[derive(Debug)]
enum Stage {
    /// Nothing was asked of the kernel yet.
    Closed,
    Opening,
    Appending,
    /// To the other file.
    Moving(Move),
    /// Another process still has a file; it is opened again then.
    Locked {
        until: Instant,
    },
    /// There was no space for a move; it is tried again then.
    Pausing {
        until: Instant,
    },
    Failed,
}

/// The active file, and where it goes on.
#[derive(Clone, Copy, Debug)]
struct Log {
    side: Side,
    generation: u64,
    sequence: u64,
    end_bytes: u64,
}

/// An op that has not completed.
#[derive(Debug)]
struct Flight {
    number: u64,
    what: What,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Open {
        side: Side,
    },
    /// Of the write with this sequence.
    Write {
        sequence: u64,
    },
    /// Covers writes up to this sequence.
    Sync {
        sequence: u64,
    },
    Grow {
        side: Side,
        capacity_bytes: u64,
        /// The move cannot go on without it.
        is_needed: bool,
    },
}

impl<M> Journal<M> {
    /// The journal of a new run, after the server has written its beginning. `tickets` are those
    /// that were written.
    pub fn new<'a>(
        config: JournalConfig,
        tickets: impl IntoIterator<Item = &'a TicketRecord>,
    ) -> Self {
        assert_eq!(config.region.length, REGION_BYTES);
        assert!(config.region.start.is_multiple_of(BLOCK_BYTES));
        let LogStart { side, sequence, end_bytes, capacity_bytes } = config.start;
        assert!(capacity_bytes.iter().all(|it| *it >= FILE_BYTES_MIN));
        let sizes: BTreeMap<_, _> =
            tickets.into_iter().map(|it| (it.new.id, it.encoded_bytes())).collect();
        Self {
            stage: Stage::Closed,
            is_open: [false; 2],
            log: Log { side, generation: GENERATION_FIRST, sequence, end_bytes },
            capacity_bytes,
            generation_last: GENERATION_FIRST,
            cannot_grow: [false; 2],
            grow_at: None,
            grow_to_bytes: None,
            live_bytes: sizes.values().copied().map(u64::from).sum(),
            sizes,
            noted: Position(0),
            committed: Position(0),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            offsets: VecDeque::new(),
            offsets_set: HashSet::new(),
            writes: VecDeque::new(),
            scratch: Vec::with_capacity(COMMIT_BYTES_MAX as usize),
            broken: None,
            failure_count: 0,
            flights: Vec::new(),
            flight_next: 0,
            ops: VecDeque::new(),
            events: VecDeque::new(),
            config,
        }
    }

    /// The ticket is new, or its state has changed. Its offset is asked from the [`Source`] when
    /// the record is written, as the offset may have moved on by then.
    pub fn note_ticket(&mut self, ticket: &TicketRecord) -> Position {
        let mut record = Vec::with_capacity(ticket.encoded_bytes() as usize);
        ticket.encode(&mut record);
        let size = u32::try_from(record.len()).expect("strings are bounded");
        assert!(size <= RECORD_BYTES_MAX, "limits on what makes a ticket keep its record small");
        self.live_bytes += u64::from(size);
        self.live_bytes -= u64::from(self.sizes.insert(ticket.new.id, size).unwrap_or(0));
        self.wait(Some(ticket.new.id), record)
    }

    /// The ticket is gone. From now on it is in no snapshot, whatever the [`Source`] says.
    pub fn note_removed(&mut self, id: TicketId) -> Position {
        self.live_bytes -= u64::from(self.sizes.remove(&id).unwrap_or(0));
        let mut record = Vec::new();
        Record::Removed { id }.encode(&mut record);
        self.wait(None, record)
    }

    /// The ticket's offset has changed. [`JournalEvent::Offset`] follows with what the [`Source`]
    /// says when the commit is built: noting it often costs nothing.
    pub fn note_offset(&mut self, id: TicketId) {
        if self.offsets_set.insert(id) {
            self.offsets.push_back(id);
        }
    }

    /// Whether one more ticket, of so many bytes, can be kept. When not, refuse it: what is there
    /// already must remain writable. Where files could not grow, the question makes them try again,
    /// at most once a second.
    pub fn has_room_for(&mut self, now: Instant, record_bytes: u32) -> bool {
        let live_bytes = self.live_bytes + u64::from(record_bytes);
        if record_bytes > RECORD_BYTES_MAX || live_bytes > JOURNAL_LIVE_BYTES_MAX {
            return false;
        }
        let needed_bytes = file_bytes_needed(live_bytes);
        let mut sides = self.cannot_grow.iter().zip(&self.capacity_bytes);
        let has_room = sides.all(|it| !it.0 || *it.1 >= needed_bytes);
        if !has_room && self.grow_at.is_none_or(|it| it <= now) {
            self.grow_at = Some(now + GROW_PAUSE);
            self.grow_to_bytes = Some(file_bytes_wanted(live_bytes));
        }
        has_room
    }

    /// The size of all live tickets' records.
    pub fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// The next op to start. Called last in a turn, when everything is noted.
    pub fn poll_op(&mut self, memory: &mut Memory, source: &impl Source) -> Option<(Token, Op<M>)> {
        if self.ops.is_empty() && self.broken.is_none() {
            match self.stage {
                Stage::Closed => self.open(),
                Stage::Appending => self.append(memory, source),
                Stage::Moving(_) => self.go_on_moving(memory, source),
                Stage::Opening | Stage::Locked { .. } | Stage::Pausing { .. } | Stage::Failed => {}
            }
        }
        self.ops.pop_front()
    }

    pub fn on_completion(&mut self, now: Instant, completion: Completion) {
        let Token::Journal(number) = completion.token else {
            unreachable!("a journal's ops carry its tokens");
        };
        let index = self.flights.iter().position(|it| it.number == number);
        let flight = self.flights.swap_remove(index.expect("each op completes once"));
        match (flight.what, completion.result) {
            (What::Grow { side, capacity_bytes, is_needed }, result) => {
                self.on_grown(side, capacity_bytes, is_needed, result);
            }
            (What::Open { side }, result) => self.on_opened(now, side, result),
            (_, Err(errno)) => self.fail(errno),
            (What::Write { sequence }, Ok(output)) => self.on_written(sequence, output.bytes()),
            (What::Sync { sequence }, Ok(_)) => self.on_synced(sequence),
        }
        if self.flights.is_empty()
            && let Some(errno) = self.broken.take()
        {
            self.end_broken(now, errno);
        }
        self.switch_if_announced();
    }

    pub fn on_timeout(&mut self, now: Instant) {
        match self.stage {
            Stage::Pausing { until } if until <= now => self.begin_moving(),
            Stage::Locked { until } if until <= now => self.stage = Stage::Closed,
            _ => {}
        }
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.stage {
            Stage::Pausing { until } | Stage::Locked { until } => Some(until),
            _ => None,
        }
    }

    pub fn poll_event(&mut self) -> Option<JournalEvent> {
        self.events.pop_front()
    }

    /// Everything noted is committed, or nothing can be any more, and no op is in flight or to be
    /// started.
    pub fn is_quiet(&self) -> bool {
        let is_done = match self.stage {
            Stage::Failed => true,
            Stage::Closed | Stage::Appending => {
                self.noted == self.committed && self.offsets.is_empty() && self.writes.is_empty()
            }
            _ => false,
        };
        is_done && self.flights.is_empty()
    }

    fn wait(&mut self, ticket: Option<TicketId>, record: Vec<u8>) -> Position {
        self.noted.0 += 1;
        self.waiting_bytes += record.len();
        self.waiting.push_back(Waiting { position: self.noted, ticket, record });
        self.noted
    }

    fn open(&mut self) {
        self.stage = Stage::Opening;
        // Elsewhere the page cache is quicker, and its kernel keeps what a commit promises there, or
        // is asked to sync it.
        let is_dsync = self.config.sync == CommitSync::Dsync;
        let how = OpenHow {
            direct: is_dsync,
            dsync: is_dsync,
            // If this process is killed, the next one waits until its last writes have ended.
            lock: true,
            ..OpenHow::default()
        };
        for side in [Side::A, Side::B] {
            if self.is_open[side as usize] {
                continue;
            }
            let name = FileName { core: self.config.core, side };
            let path = PathBuf::from(JOURNAL_NAME).join(name.to_string());
            self.emit(What::Open { side }, Op::Open { file: file(side), path, how });
        }
    }

    fn on_opened(&mut self, now: Instant, side: Side, result: Result<Output, Errno>) {
        match result {
            Ok(_) => self.is_open[side as usize] = true,
            Err(Errno::EAGAIN) => {}
            Err(errno) => self.fail(errno),
        }
        if self.flights.is_empty() && self.broken.is_none() {
            let is_open = self.is_open == [true; 2];
            self.stage =
                if is_open { Stage::Appending } else { Stage::Locked { until: now + LOCK_PAUSE } };
        }
    }

    fn emit(&mut self, what: What, op: Op<M>) {
        let number = self.flight_next;
        self.flight_next += 1;
        self.flights.push(Flight { number, what });
        self.ops.push_back((Token::Journal(number), op));
    }

    fn key(&self, generation: u64) -> FileKey {
        FileKey { run: self.config.run, core: self.config.core, generation }
    }
}

/// How large a file for so many bytes of tickets is made, if there is space.
pub fn file_bytes_wanted(live_bytes: u64) -> u64 {
    let wanted = 4 * file_bytes_needed(live_bytes);
    wanted.max(FILE_BYTES_MIN).next_multiple_of(FILE_BYTES_MIN)
}

/// How large a file for so many bytes of tickets has to be: a header, the snapshot with what its
/// commits waste, and two commits.
pub fn file_bytes_needed(live_bytes: u64) -> u64 {
    u64::from(BLOCK_BYTES) + live_bytes + live_bytes / 8 + 2 * u64::from(COMMIT_BYTES_MAX)
}

/// The driver's slots of the journal's files; the store uses those from 2 on.
fn file(side: Side) -> FileId {
    FileId(side as u32)
}

/// What a journal needs of a core's memory: a buffer for each commit in flight.
pub const REGION_BYTES: u32 = WRITES_IN_FLIGHT_MAX as u32 * COMMIT_BYTES_MAX;

/// The smallest file.
pub const FILE_BYTES_MIN: u64 = 1024 * 1024;

/// Tickets of one core, as records: 100,000 of 2.6 KiB. It bounds the files, and the time of a
/// start.
pub const JOURNAL_LIVE_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// A record that fits into a commit.
pub const RECORD_BYTES_MAX: u32 = COMMIT_BYTES_MAX - COMMIT_HEAD_BYTES as u32;

/// Commits that the kernel may have, or that wait for their sync. Recovery counts on it.
const WRITES_IN_FLIGHT_MAX: usize = 2;

/// Before a locked file is opened again.
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Between tries to make files larger for the sake of new tickets.
const GROW_PAUSE: Duration = Duration::from_secs(1);

/// Of the file that a run begins with.
const GENERATION_FIRST: u64 = 0;

#[cfg(test)]
mod tests;
