//! The path of a fact: wait, commit, write, sync, report.

use super::{
    COMMIT_BYTES_MAX, COMMIT_HEAD_BYTES, CommitSync, Journal, JournalEvent, Position, Side, Source,
    WRITES_IN_FLIGHT_MAX, What, blocks_bytes, file,
};
use crate::buffer::{Memory, Slice};
use crate::limits::BLOCK_BYTES;
use crate::op::{Errno, Op};
use crate::record::{OFFSET_RECORD_BYTES, Record, set_committed_bytes};
use crate::ticket::TicketId;

/// A state that is to be written.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) position: Position,
    /// If it is a ticket's record.
    pub(super) ticket: Option<TicketId>,
    pub(super) record: Vec<u8>,
}

/// A commit or a header on its way.
#[derive(Debug)]
pub(super) struct Write {
    sequence: u64,
    side: Side,
    buffer: usize,
    offset_bytes: u64,
    length_bytes: u32,
    /// The kernel may write less than asked; the rest is asked for again.
    done_bytes: u32,
    needs_sync: bool,
    is_synced: bool,
    facts: Facts,
}

/// What is reported when a commit is committed.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Of the last state in it.
    position: Option<Position>,
    pub(super) offsets: Vec<(TicketId, u64)>,
}

impl Write {
    fn is_written(&self) -> bool {
        self.done_bytes == self.length_bytes
    }

    fn is_over(&self) -> bool {
        self.is_written() && (self.is_synced || !self.needs_sync)
    }

    pub(super) fn into_offsets(self) -> Vec<(TicketId, u64)> {
        self.facts.offsets
    }
}

impl<M> Journal<M> {
    /// Commits everything that waits, as long as the kernel takes it.
    pub(super) fn append(&mut self, memory: &mut Memory, source: &impl Source) {
        self.grow_for_new_tickets();
        while self.writes.len() < WRITES_IN_FLIGHT_MAX && !self.has_nothing() {
            let offsets_bytes = self.offsets.len() * OFFSET_RECORD_BYTES;
            let bytes = COMMIT_HEAD_BYTES + self.waiting_bytes + offsets_bytes;
            let end = self.log.end_bytes + blocks_bytes(bytes.min(COMMIT_BYTES_MAX as usize));
            if end > self.capacity_bytes[self.log.side as usize] {
                if self.flights.is_empty() {
                    self.begin_moving();
                    self.go_on_moving(memory, source);
                }
                return;
            }
            let facts = self.build_commit(source);
            if self.scratch.len() == COMMIT_HEAD_BYTES {
                // The tickets whose offsets were noted are gone.
                return;
            }
            let needs_sync = match self.config.sync {
                CommitSync::Dsync => false,
                CommitSync::Fdatasync => true,
                CommitSync::StatesOnly => facts.position.is_some(),
            };
            let (sequence, service_ms) = (self.log.sequence, source.service_ms());
            self.key(self.log.generation).seal(sequence, service_ms, &mut self.scratch);
            let (side, offset_bytes) = (self.log.side, self.log.end_bytes);
            self.start_write(memory, side, offset_bytes, sequence, needs_sync, facts);
            self.log.sequence += 1;
            self.log.end_bytes += blocks_bytes(self.scratch.len());
        }
    }

    /// Fills `scratch`. States come first and in their order; offsets follow when no state waits
    /// any more, because a state says its ticket's offset, too, and must not say an earlier one
    /// after a later one was reported.
    fn build_commit(&mut self, source: &impl Source) -> Facts {
        let mut facts = Facts::default();
        self.scratch.clear();
        self.scratch.resize(COMMIT_HEAD_BYTES, 0);
        let space = COMMIT_BYTES_MAX as usize;
        while let Some(next) = self.waiting.front() {
            if self.scratch.len() + next.record.len() > space {
                return facts;
            }
            let Some(mut next) = self.waiting.pop_front() else { break };
            self.waiting_bytes -= next.record.len();
            if let Some(durable_bytes) = next.ticket.and_then(|it| source.durable_bytes(it)) {
                set_committed_bytes(&mut next.record, durable_bytes);
            }
            self.scratch.append(&mut next.record);
            facts.position = Some(next.position);
        }
        while self.scratch.len() + OFFSET_RECORD_BYTES <= space {
            let Some(id) = self.offsets.pop_front() else { break };
            self.offsets_set.remove(&id);
            if let Some(committed_bytes) = source.durable_bytes(id) {
                Record::Offset { id, committed_bytes }.encode(&mut self.scratch);
                facts.offsets.push((id, committed_bytes));
            }
        }
        facts
    }

    /// Copies `scratch` into a free buffer, filled up to whole blocks, and has it written.
    pub(super) fn start_write(
        &mut self,
        memory: &mut Memory,
        side: Side,
        offset_bytes: u64,
        sequence: u64,
        needs_sync: bool,
        facts: Facts,
    ) {
        assert!(self.writes.len() < WRITES_IN_FLIGHT_MAX);
        let buffer = self.writes.front().map_or(0, |it| 1 - it.buffer);
        let length_bytes = blocks_bytes(self.scratch.len()) as u32;
        let bytes = self.buffer(buffer, 0, length_bytes);
        let (filled, padding) = memory.bytes_mut(bytes).split_at_mut(self.scratch.len());
        filled.copy_from_slice(&self.scratch);
        padding.fill(0);
        self.writes.push_back(Write {
            sequence,
            side,
            buffer,
            offset_bytes,
            length_bytes,
            done_bytes: 0,
            needs_sync,
            is_synced: false,
            facts,
        });
        self.emit(What::Write { sequence }, Op::Write { file: file(side), offset_bytes, bytes });
    }

    pub(super) fn on_written(&mut self, sequence: u64, count: u32) {
        let write = self.writes.iter_mut().find(|it| it.sequence == sequence);
        let write = write.expect("a completion names a write in flight");
        assert!(count <= write.length_bytes - write.done_bytes);
        // What remains must begin at the start of a block again. If that is all of it, the next
        // try says why, or succeeds.
        write.done_bytes += count & !(BLOCK_BYTES - 1);
        if count == 0 {
            return self.fail(Errno::EIO);
        }
        if !write.is_written() {
            let (side, buffer, done_bytes) = (write.side, write.buffer, write.done_bytes);
            let offset_bytes = write.offset_bytes + u64::from(done_bytes);
            let length_bytes = write.length_bytes;
            if self.broken.is_none() {
                let bytes = self.buffer(buffer, done_bytes, length_bytes);
                let op = Op::Write { file: file(side), offset_bytes, bytes };
                self.emit(What::Write { sequence }, op);
            }
            return;
        }
        self.report();
        self.sync_written();
    }

    pub(super) fn on_synced(&mut self, sequence: u64) {
        for write in self.writes.iter_mut().filter(|it| it.sequence <= sequence) {
            write.is_synced = true;
        }
        self.report();
        self.sync_written();
    }

    /// Syncs what is written without a gap: a commit is worth nothing if an earlier one is lost.
    /// One sync at a time, so that the next one serves all that have come meanwhile.
    fn sync_written(&mut self) {
        let is_syncing = self.flights.iter().any(|it| matches!(it.what, What::Sync { .. }));
        if is_syncing || self.broken.is_some() {
            return;
        }
        let written = self.writes.iter().take_while(|it| it.is_written());
        let due = written.filter(|it| it.needs_sync && !it.is_synced).last();
        if let Some(&Write { sequence, side, .. }) = due {
            self.emit(What::Sync { sequence }, Op::Sync { file: file(side) });
        }
    }

    /// Reports what is committed, in the order of the log.
    fn report(&mut self) {
        while self.writes.front().is_some_and(Write::is_over) {
            let Some(Write { facts, .. }) = self.writes.pop_front() else { return };
            if let Some(position) = facts.position {
                self.report_committed(position);
            }
            let offsets = facts.offsets.into_iter();
            self.events.extend(
                offsets.map(|(id, committed_bytes)| JournalEvent::Offset { id, committed_bytes }),
            );
        }
    }

    pub(super) fn report_committed(&mut self, position: Position) {
        if position > self.committed {
            self.committed = position;
            self.events.push_back(JournalEvent::Committed { position });
        }
    }

    /// There is no second try: what a failed write or sync left behind is not known.
    pub(super) fn fail(&mut self, errno: Errno) {
        self.broken.get_or_insert(errno);
    }

    fn has_nothing(&self) -> bool {
        self.waiting.is_empty() && self.offsets.is_empty()
    }

    fn buffer(&self, buffer: usize, from: u32, to: u32) -> Slice {
        let start = self.config.region.start + buffer as u32 * COMMIT_BYTES_MAX;
        Slice { start: start + from, length: to - from }
    }
}
