//! The path of a byte: reserve, append, flush, write.

use std::time::{Duration, Instant};

use super::part::{Staging, Tail, Writing};
use super::{Room, Store, StoreEvent, UploadKey, file};
use crate::buffer::Slice;
use crate::limits::{
    ALLOCATE_STEP_BYTES, BLOCK_BYTES, LEASE_BYTES_MAX, LEASE_BYTES_MIN, RECEIVE_BUFFER_BYTES,
    WRITES_IN_FLIGHT_MAX,
};
use crate::mask::{rotate, unmask_into};
use crate::op::{Errno, FileOp, Op, Output};
use crate::upload::AppendError;

impl<M> Store<M> {
    /// How many bytes may be received for the upload now. Asked after its socket became readable,
    /// never before: who waits for bytes holds no memory. The room is kept until
    /// [`Store::on_received`].
    pub fn reserve(&mut self, now: Instant, upload: UploadKey) -> Room {
        let slot = upload.slot;
        let part = self.part_mut(slot);
        if !part.can_receive() || part.is_reading {
            return Room::Waiting;
        }
        let remaining = part.upload.remaining();
        if remaining == 0 {
            return Room::Bytes(RECEIVE_BUFFER_BYTES);
        }
        assert!(!part.is_reserved, "room is given once, then used");
        if part.current.is_none() {
            let must_end_first = part.lease_count() >= LEASES_MAX
                || (part.tail == Tail::OnDisk && part.lease_count() > 0);
            if must_end_first {
                part.wants_room = true;
                return Room::Waiting;
            }
            if !self.waiting.is_empty() || !self.begin_staging(now, slot) {
                // An event from before a take-over may make its owner ask twice.
                if !std::mem::replace(&mut self.part_mut(slot).is_waiting, true) {
                    self.waiting.push_back(upload);
                }
                self.pressure_at.get_or_insert(now + PRESSURE_DELAY);
                return Room::Waiting;
            }
            if self.part(slot).is_reading {
                return Room::Waiting;
            }
        }
        self.lease_ahead(slot);
        let space = self.part(slot).staged_space_bytes();
        // Bytes past the declared length are refused, not stored: they need no room.
        let is_enough = u64::from(space) >= remaining;
        self.part_mut(slot).is_reserved = true;
        Room::Bytes(if is_enough { RECEIVE_BUFFER_BYTES } else { space.min(RECEIVE_BUFFER_BYTES) })
    }

    /// Places payload at the end of what has been received: the one touch. `mask` begins with the
    /// byte that belongs to `bytes[0]`. At most as much as [`Store::reserve`] gave.
    pub fn append(
        &mut self,
        now: Instant,
        upload: UploadKey,
        bytes: &[u8],
        mask: [u8; 4],
    ) -> Result<(), AppendError> {
        let slot = upload.slot;
        let part = self.slots[slot as usize].part.as_mut().expect("an occupied slot");
        if !part.can_receive() {
            // The upload broke, or was taken over, in this very turn. Its client sends it again.
            return Ok(());
        }
        part.upload.on_received(bytes.len() as u64)?;
        let mut rest = bytes;
        let mut mask = mask;
        while !rest.is_empty() {
            let staging = part.current.as_mut().expect("reserved before received");
            let take = rest.len().min(staging.space_bytes() as usize);
            let place = staging.free(take as u32);
            unmask_into(self.memory.bytes_mut(place), &rest[..take], mask);
            staging.filled += take as u32;
            mask = rotate(mask, take);
            rest = &rest[take..];
            if staging.space_bytes() == 0 {
                let end = staging.end();
                part.full.extend(part.current.take());
                part.current = part.next.take().map(|it| Staging::new(it, end, 0, now));
            }
        }
        if part.upload.remaining() == 0 {
            self.flush_part(slot);
        }
        self.start_writes(slot);
        self.note_holder(slot);
        Ok(())
    }

    /// What there was room for has come, all of it or less.
    pub fn on_received(&mut self, upload: UploadKey) {
        if let Some(part) = self.get_mut(upload) {
            part.is_reserved = false;
        }
    }

    /// Acknowledgements wait for bytes below `up_to_bytes`: if they are still staged, they are
    /// written now, also where a block is not full. While writes are in flight nothing is done:
    /// their end brings the next look. So a busy disk gets large writes and an idle one prompt
    /// ones, without a timer.
    pub fn flush(&mut self, now: Instant, upload: UploadKey, up_to_bytes: u64) {
        let Some(part) = self.get_mut(upload) else { return };
        part.wanted = part.wanted.max(up_to_bytes);
        self.flush_wanted(upload.slot);
        self.sync_if_due(now, upload.slot);
        self.serve_waiting(now);
    }

    /// Writes what acknowledgements wait for, unless the disk is at work for this upload already.
    pub(super) fn flush_wanted(&mut self, slot: u32) {
        let Some(part) = self.slots[slot as usize].part.as_ref() else { return };
        let is_idle = part.in_flight.is_empty() && part.full.is_empty() && !part.is_reserved;
        let staged = part.current.as_ref();
        let is_due = staged.is_some_and(|it| it.offset + u64::from(it.clean) < part.wanted);
        if is_idle && is_due && part.can_receive() {
            self.flush_part(slot);
            self.start_writes(slot);
        }
    }

    /// While somebody waits for memory, nobody keeps a part-filled lease for long.
    pub(super) fn relieve(&mut self, now: Instant) {
        if self.pressure_at.is_none_or(|it| it > now) {
            return;
        }
        self.pressure_at = None;
        let holders: Vec<u32> = self.holders.iter().copied().collect();
        for slot in holders {
            let part = self.part(slot);
            let is_old = part.current.as_ref().is_none_or(|it| it.since + PRESSURE_DELAY <= now);
            if is_old && !part.is_reserved {
                self.flush_part(slot);
                self.start_writes(slot);
            }
        }
        self.serve_waiting(now);
        if !self.waiting.is_empty() {
            self.pressure_at = Some(now + PRESSURE_DELAY);
        }
    }

    /// Gives leases to those who wait, as long as there are any.
    pub(super) fn serve_waiting(&mut self, now: Instant) {
        while let Some(upload) = self.waiting.front().copied() {
            if !self.begin_staging(now, upload.slot) {
                return;
            }
            self.waiting.pop_front();
            self.part_mut(upload.slot).is_waiting = false;
            if !self.part(upload.slot).is_reading {
                self.events.push_back(StoreEvent::Room { upload });
            }
        }
        self.pressure_at = None;
    }

    /// Ends the current lease: what is new in it will be written.
    pub(super) fn flush_part(&mut self, slot: u32) {
        let direct = self.config.direct;
        let part = self.slots[slot as usize].part.as_mut().expect("an occupied slot");
        if part.is_reading {
            return;
        }
        if let Some(next) = part.next.take() {
            self.staging.release(next);
        }
        self.holders.remove(&slot);
        let Some(staging) = part.current.take() else { return };
        assert_eq!(staging.end(), part.upload.received());
        if let (true, Some(tail)) = (direct, staging.tail()) {
            let used = staging.filled % BLOCK_BYTES;
            let padding = Slice { start: tail.start + used, length: BLOCK_BYTES - used };
            self.memory.bytes_mut(padding).fill(0);
            part.tail = match self.blocks.lease(BLOCK_BYTES) {
                Some(kept) => {
                    self.memory.copy(tail, kept);
                    Tail::Kept(kept)
                }
                None => Tail::OnDisk,
            };
        }
        if staging.filled > staging.clean {
            part.full.push_back(staging);
        } else {
            self.staging.release(staging.lease);
        }
    }

    /// Gives the kernel what is ready: in order, two at a time, never two on one block, never
    /// beyond what is allocated.
    pub(super) fn start_writes(&mut self, slot: u32) {
        let direct = self.config.direct;
        loop {
            let part = self.slots[slot as usize].part.as_mut().expect("an occupied slot");
            if part.broken.is_some() || part.in_flight.len() == WRITES_IN_FLIGHT_MAX {
                return;
            }
            let Some(front) = part.full.front() else { return };
            let length =
                if direct { front.filled.next_multiple_of(BLOCK_BYTES) } else { front.filled };
            let end = front.offset + u64::from(length);
            let wants_space = direct
                && part.allocating.is_none()
                && part.allocated < part.upload.length()
                && part.allocated < end + ALLOCATE_STEP_BYTES / 4;
            if wants_space {
                self.allocate(slot);
                continue;
            }
            let is_blocked =
                direct && end > part.allocated || part.is_in_flight(front.offset, length);
            if is_blocked {
                return;
            }
            let staging = part.full.pop_front().expect("there is a front");
            let write = part.upload.on_write_started(staging.end());
            let Staging { lease, offset, .. } = staging;
            part.in_flight.push(Writing { write, lease, offset, length, done: 0 });
            let bytes = Slice { start: lease.start, length };
            let op = Op::Write { file: file(slot), offset_bytes: offset, bytes };
            self.emit(slot, FileOp::Write { write }, op);
        }
    }

    pub(super) fn on_write(
        &mut self,
        now: Instant,
        slot: u32,
        write: u32,
        result: Result<Output, Errno>,
    ) {
        let direct = self.config.direct;
        let upload = self.key(slot);
        let part = self.slots[slot as usize].part.as_mut().expect("an occupied slot");
        let index = part.in_flight.iter().position(|it| it.write == write);
        let index = index.expect("a completion names a write in flight");
        let writing = &mut part.in_flight[index];
        let written = match result {
            Ok(Output::Bytes(count)) => Ok(count),
            Ok(_) => Ok(0),
            Err(errno) => Err(errno),
        };
        let error = match written {
            Ok(count) => {
                assert!(count <= writing.length - writing.done);
                // What remains of a direct write must begin at the start of a block again. If that
                // is all of it, the next try says why, or succeeds.
                writing.done += if direct { count & !(BLOCK_BYTES - 1) } else { count };
                (count == 0).then_some(Errno::EIO)
            }
            Err(errno) => Some(errno),
        };
        if error.is_none() && writing.done < writing.length && part.broken.is_none() {
            let (offset_bytes, bytes) = writing.rest();
            let op = Op::Write { file: file(slot), offset_bytes, bytes };
            self.emit(slot, FileOp::Write { write }, op);
            return;
        }
        let writing = part.in_flight.swap_remove(index);
        self.staging.release(writing.lease);
        if let Some(errno) = error {
            self.break_part(slot, errno);
            return;
        }
        if part.broken.is_some() {
            return;
        }
        if std::mem::take(&mut part.wants_room) {
            self.events.push_back(StoreEvent::Room { upload });
        }
        if part.upload.on_written(write) {
            self.on_written(now, slot);
        }
        self.start_writes(slot);
    }

    pub(super) fn on_read_back(&mut self, slot: u32, result: Result<Output, Errno>) {
        let upload = self.key(slot);
        let part = self.part_mut(slot);
        part.is_reading = false;
        let wanted = part.current.as_ref().map_or(0, |it| it.filled);
        let error = match result {
            Ok(Output::Bytes(count)) if count >= wanted => None,
            // Less than was written before: somebody else changed the file.
            Ok(_) => Some(Errno::EIO),
            Err(errno) => Some(errno),
        };
        match error {
            Some(errno) => self.break_part(slot, errno),
            None if part.can_receive() => self.events.push_back(StoreEvent::Room { upload }),
            None => self.flush_part(slot),
        }
    }

    pub(super) fn on_allocated(&mut self, slot: u32, result: Result<Output, Errno>) {
        let part = self.part_mut(slot);
        let end = part.allocating.take().expect("an allocation was in flight");
        part.is_unmeasured = false;
        match result {
            Ok(_) => part.allocated = end,
            // Writes then extend the file: slower, and as right.
            Err(Errno::EOPNOTSUPP) => part.allocated = u64::MAX,
            Err(errno) => return self.break_part(slot, errno),
        }
        self.start_writes(slot);
    }

    /// Gives all staging memory back. Writes in flight keep theirs until they end.
    pub(super) fn drop_staging(&mut self, slot: u32) {
        let part = self.slots[slot as usize].part.as_mut().expect("an occupied slot");
        if part.is_reading {
            return;
        }
        let current = part.current.take().map(|it| it.lease);
        let full = std::mem::take(&mut part.full).into_iter().map(|it| it.lease);
        for lease in current.into_iter().chain(part.next.take()).chain(full) {
            self.staging.release(lease);
        }
        if let Tail::Kept(kept) = std::mem::replace(&mut part.tail, Tail::None) {
            self.blocks.release(kept);
        }
        self.holders.remove(&slot);
    }

    fn allocate(&mut self, slot: u32) {
        let part = self.part_mut(slot);
        let offset_bytes = part.allocated;
        let whole = part.upload.length().next_multiple_of(u64::from(BLOCK_BYTES));
        let end = whole.min(offset_bytes + ALLOCATE_STEP_BYTES);
        part.allocating = Some(end);
        let length_bytes = end - offset_bytes;
        let op = Op::Allocate { file: file(slot), offset_bytes, length_bytes };
        self.emit(slot, FileOp::Allocate, op);
    }

    /// Leases staging for where the upload goes on. False: there is none.
    fn begin_staging(&mut self, now: Instant, slot: u32) -> bool {
        let wanted_bytes = self.lease_bytes_wanted(slot);
        let Some(lease) = self.lease(wanted_bytes) else { return false };
        let part = self.slots[slot as usize].part.as_mut().expect("an occupied slot");
        assert!(part.current.is_none());
        let received = part.upload.received();
        let tail_bytes =
            if self.config.direct { (received % u64::from(BLOCK_BYTES)) as u32 } else { 0 };
        let offset = received - u64::from(tail_bytes);
        part.current = Some(Staging::new(lease, offset, tail_bytes, now));
        let block = Slice { start: lease.start, length: BLOCK_BYTES };
        match std::mem::replace(&mut part.tail, Tail::None) {
            Tail::None => assert_eq!(tail_bytes, 0),
            Tail::Kept(kept) => {
                self.memory.copy(kept, block);
                self.blocks.release(kept);
            }
            Tail::OnDisk => {
                part.is_reading = true;
                let op = Op::Read { file: file(slot), offset_bytes: offset, bytes: block };
                self.emit(slot, FileOp::ReadBack, op);
            }
        }
        self.note_holder(slot);
        true
    }

    /// A quarter of `wanted_bytes` at least: who takes the crumbs of an exhausted pool makes small
    /// writes of them, and crumbs again. Whoever waits gets what the next writes give back.
    fn lease(&mut self, wanted_bytes: u32) -> Option<Slice> {
        let lease = self.staging.lease(wanted_bytes)?;
        if lease.length < wanted_bytes / 4 {
            self.staging.release(lease);
            return None;
        }
        Some(lease)
    }

    /// A second lease, if there are plenty, so that a receive is not cut short.
    fn lease_ahead(&mut self, slot: u32) {
        let wanted_bytes = self.lease_bytes_wanted(slot);
        let part = self.part(slot);
        let space = part.staged_space_bytes();
        let is_wanted = part.next.is_none()
            && space < RECEIVE_BUFFER_BYTES
            && u64::from(space) < part.upload.remaining()
            && part.lease_count() < LEASES_MAX
            && self.waiting.is_empty();
        if is_wanted {
            let next = self.lease(wanted_bytes);
            self.part_mut(slot).next = next;
        }
    }

    /// Large leases while few uploads are active, small ones when many are: half of an even share.
    /// An upload may hold four leases, but most have one with the disk and one that is being filled.
    /// Never much more than the file needs.
    fn lease_bytes_wanted(&self, slot: u32) -> u32 {
        let active = (self.holders.len() + self.waiting.len()).max(1) as u32;
        let share = self.staging.capacity_bytes() / active / LEASES_USUAL;
        let remaining = self.part(slot).upload.remaining() + u64::from(BLOCK_BYTES);
        let needed = u32::try_from(remaining).unwrap_or(u32::MAX).min(LEASE_BYTES_MAX);
        let share = share.clamp(LEASE_BYTES_MIN, LEASE_BYTES_MAX);
        // The largest power of two within the share.
        (1 << share.ilog2()).min(needed.next_power_of_two())
    }

    fn note_holder(&mut self, slot: u32) {
        let part = self.part(slot);
        if part.current.is_some() || part.next.is_some() {
            self.holders.insert(slot);
        } else {
            self.holders.remove(&slot);
        }
    }
}

/// Staging leases of one upload: two in the kernel's hands, one waiting, one being filled.
const LEASES_MAX: usize = WRITES_IN_FLIGHT_MAX + 2;
const LEASES_USUAL: u32 = 2;

/// How long part-filled staging is kept while somebody waits for memory.
const PRESSURE_DELAY: Duration = Duration::from_millis(10);
