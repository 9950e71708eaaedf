//! The move to the other file: when this one is full, or has failed.
//!
//! The other file's header is taken away first, so that at any moment one file counts and is whole.
//! Then a snapshot of all tickets is written there, each as it is when its turn comes, and synced;
//! the new header makes it the active file. Needs no new space, no rename, no directory.

use std::ops::Bound;
use std::time::{Duration, Instant};

use super::commit::Facts;
use super::{
    BLOCK_BYTES, COMMIT_BYTES_MAX, COMMIT_HEAD_BYTES, CommitSync, Header, Journal, JournalEvent,
    Log, Position, Side, Source, Stage, WRITES_IN_FLIGHT_MAX, What, blocks_bytes, file,
    file_bytes_needed, file_bytes_wanted,
};
use crate::buffer::Memory;
use crate::op::{Errno, Op, Output};
use crate::ticket::TicketId;

/// A move under way.
#[derive(Debug)]
pub(super) struct Move {
    to: Log,
    step: Step,
    /// States noted up to here are in the snapshot.
    covers: Position,
    /// The last ticket whose turn has come.
    cursor: Option<TicketId>,
    /// A record that did not fit into the commit before.
    carried: Vec<u8>,
}

/// What is done next, once nothing is in flight any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Clear,
    SyncCleared,
    Grow,
    Copy,
    SyncCopied,
    Announce,
    SyncAnnounced,
    Switch,
}

impl<M> Journal<M> {
    /// Nothing is in flight. What waits to be written need not be any more: the snapshot will say
    /// it. So a move that fails again and again does not gather records without end.
    pub(super) fn begin_moving(&mut self) {
        assert!(self.flights.is_empty() && self.writes.is_empty());
        self.waiting.clear();
        self.waiting_bytes = 0;
        self.generation_last += 1;
        self.stage = Stage::Moving(Move {
            to: Log {
                side: self.log.side.other(),
                generation: self.generation_last,
                sequence: 0,
                end_bytes: u64::from(BLOCK_BYTES),
            },
            step: Step::Clear,
            covers: self.noted,
            cursor: None,
            carried: Vec::new(),
        });
    }

    /// Does the next step, and the one after it where a step leaves nothing to wait for.
    pub(super) fn go_on_moving(&mut self, memory: &mut Memory, source: &impl Source) {
        while let Stage::Moving(it) = &mut self.stage {
            if it.step == Step::Copy {
                self.copy(memory, source);
            }
            if !self.flights.is_empty() {
                return;
            }
            let Stage::Moving(it) = &mut self.stage else { return };
            let step = it.step;
            it.step = step.next();
            match step {
                Step::Clear => self.write_first_block(memory, None),
                Step::Grow => self.grow_ahead(),
                Step::Copy => {}
                Step::SyncCopied => self.sync_moved(),
                Step::Announce => self.announce(memory, source.service_ms()),
                Step::SyncCleared | Step::SyncAnnounced => {
                    if self.config.sync != CommitSync::Dsync {
                        self.sync_moved();
                    }
                }
                Step::Switch => unreachable!("it was switched when the header was durable"),
            }
        }
    }

    /// Writes the next commits of the snapshot. Nothing is in flight any more when it is whole.
    fn copy(&mut self, memory: &mut Memory, source: &impl Source) {
        while self.writes.len() < WRITES_IN_FLIGHT_MAX {
            let Stage::Moving(it) = &mut self.stage else { return };
            let (to, capacity_bytes) = (it.to, self.capacity_bytes[it.to.side as usize]);
            // This commit and, later, at least one of the log.
            let end = to.end_bytes + 2 * u64::from(COMMIT_BYTES_MAX);
            if end > capacity_bytes {
                if self.flights.is_empty() && self.has_more_to_copy(source) {
                    self.grow(to.side, end, true);
                }
                return;
            }
            self.build_snapshot_commit(source);
            if self.scratch.len() == COMMIT_HEAD_BYTES {
                return;
            }
            let service_ms = source.service_ms();
            self.key(to.generation).seal(to.sequence, service_ms, &mut self.scratch);
            let facts = Facts::default();
            self.start_write(memory, to.side, to.end_bytes, to.sequence, false, facts);
            let Stage::Moving(it) = &mut self.stage else { return };
            it.to.sequence += 1;
            it.to.end_bytes += blocks_bytes(self.scratch.len());
        }
    }

    /// Fills `scratch` with as many tickets as fit.
    fn build_snapshot_commit(&mut self, source: &impl Source) {
        self.scratch.clear();
        self.scratch.resize(COMMIT_HEAD_BYTES, 0);
        while self.has_more_to_copy(source) {
            let Stage::Moving(it) = &mut self.stage else { return };
            if self.scratch.len() + it.carried.len() > COMMIT_BYTES_MAX as usize {
                return;
            }
            self.scratch.append(&mut it.carried);
        }
    }

    /// Encodes the next ticket, if none is encoded already. False: all have had their turn.
    fn has_more_to_copy(&mut self, source: &impl Source) -> bool {
        let Stage::Moving(it) = &mut self.stage else { return false };
        while it.carried.is_empty() {
            let after = it.cursor.map_or(Bound::Unbounded, Bound::Excluded);
            let Some((id, _)) = self.sizes.range((after, Bound::Unbounded)).next() else {
                return false;
            };
            it.cursor = Some(*id);
            if let Some(ticket) = source.ticket(*id) {
                ticket.encode(&mut it.carried);
            }
        }
        true
    }

    /// A snapshot that leaves little of its file makes the next move come soon.
    fn grow_ahead(&mut self) {
        let side = self.log.side.other();
        let wanted = file_bytes_wanted(self.live_bytes);
        if 2 * file_bytes_needed(self.live_bytes) > self.capacity_bytes[side as usize] {
            self.grow(side, wanted, false);
        }
    }

    /// Beside the commits, as it changes no byte of theirs.
    pub(super) fn grow_for_new_tickets(&mut self) {
        let Some(wanted_bytes) = self.grow_to_bytes.take() else { return };
        for side in [Side::A, Side::B] {
            if self.capacity_bytes[side as usize] < wanted_bytes {
                self.grow(side, wanted_bytes, false);
            }
        }
    }

    fn grow(&mut self, side: Side, wanted_bytes: u64, is_needed: bool) {
        let offset_bytes = self.capacity_bytes[side as usize];
        let mut capacity_bytes = offset_bytes;
        while capacity_bytes < wanted_bytes {
            capacity_bytes *= 2;
        }
        let length_bytes = capacity_bytes - offset_bytes;
        let op = Op::Allocate { file: file(side), offset_bytes, length_bytes };
        self.emit(What::Grow { side, capacity_bytes, is_needed }, op);
    }

    pub(super) fn on_grown(
        &mut self,
        side: Side,
        capacity_bytes: u64,
        is_needed: bool,
        result: Result<Output, Errno>,
    ) {
        match result {
            // Writes then extend the file: slower, and as right.
            Ok(_) | Err(Errno::EOPNOTSUPP) => {
                self.capacity_bytes[side as usize] = capacity_bytes;
                self.cannot_grow[side as usize] = false;
            }
            Err(errno) => {
                self.cannot_grow[side as usize] = true;
                if is_needed {
                    self.fail(errno);
                }
            }
        }
    }

    fn announce(&mut self, memory: &mut Memory, service_ms: u64) {
        let Stage::Moving(it) = &self.stage else { return };
        let header = Header {
            key: self.key(it.to.generation),
            core_count: self.config.core_count,
            is_relaxed: self.config.sync == CommitSync::StatesOnly,
            snapshot_end_bytes: it.to.end_bytes,
            service_ms,
        };
        self.write_first_block(memory, Some(header));
    }

    /// Its header, or none.
    fn write_first_block(&mut self, memory: &mut Memory, header: Option<Header>) {
        self.scratch.clear();
        self.scratch.resize(BLOCK_BYTES as usize, 0);
        if let Some(header) = header {
            header.encode(&mut self.scratch);
        }
        self.start_write(memory, self.log.side.other(), 0, 0, false, Facts::default());
    }

    fn sync_moved(&mut self) {
        let file = file(self.log.side.other());
        self.emit(What::Sync { sequence: u64::MAX }, Op::Sync { file });
    }

    /// Not only when the next op is asked for: nobody looks for events then.
    pub(super) fn switch_if_announced(&mut self) {
        let Stage::Moving(it) = &self.stage else { return };
        let is_announced = match it.step {
            Step::SyncAnnounced => self.config.sync == CommitSync::Dsync,
            step => step == Step::Switch,
        };
        if is_announced && self.flights.is_empty() {
            self.switch();
        }
    }

    fn switch(&mut self) {
        let Stage::Moving(it) = std::mem::replace(&mut self.stage, Stage::Appending) else {
            return;
        };
        self.log = it.to;
        self.failure_count = 0;
        self.report_committed(it.covers);
    }

    /// Everything has ended after a failure. All that is known is in memory, so that the other file
    /// can say it; this one is not tried again.
    pub(super) fn end_broken(&mut self, now: Instant, errno: Errno) {
        for write in std::mem::take(&mut self.writes) {
            for (id, _) in write.into_offsets() {
                self.note_offset(id);
            }
        }
        if !errno.is_shortage() {
            self.failure_count += 1;
        }
        match self.stage {
            Stage::Moving(_) if errno.is_shortage() => {
                self.stage = Stage::Pausing { until: now + PAUSE };
            }
            Stage::Appending | Stage::Moving(_) if self.failure_count < FAILURES_MAX => {
                self.begin_moving();
            }
            _ => {
                self.stage = Stage::Failed;
                self.events.push_back(JournalEvent::Failed { errno });
            }
        }
    }
}

impl Step {
    fn next(self) -> Self {
        match self {
            Self::Clear => Self::SyncCleared,
            Self::SyncCleared => Self::Grow,
            Self::Grow => Self::Copy,
            Self::Copy => Self::SyncCopied,
            Self::SyncCopied => Self::Announce,
            Self::Announce => Self::SyncAnnounced,
            Self::SyncAnnounced | Self::Switch => Self::Switch,
        }
    }
}

/// Before a move is tried again for which there was no space.
const PAUSE: Duration = Duration::from_secs(1);

/// So many failures without a move that succeeds are the end.
const FAILURES_MAX: u32 = 2;
