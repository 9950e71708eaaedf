//! One upload's file and the memory on its way there.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Instant;

use crate::buffer::Slice;
use crate::limits::{BLOCK_BYTES, WRITES_IN_FLIGHT_MAX};
use crate::op::Errno;
use crate::ticket::TicketId;
use crate::upload::Upload;

/// What a [`super::Store`] knows of one upload.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) ticket: TicketId,
    pub(super) upload: Upload,
    pub(super) goal: Goal,
    /// The one rare op in flight, if any.
    pub(super) step: Option<Step>,
    pub(super) is_open: bool,
    /// The file was made: the next open must find it.
    pub(super) is_created: bool,
    /// No power cut takes its name away.
    pub(super) is_name_synced: bool,
    /// Set once the file lies there instead of among the parts.
    pub(super) arrived_path: Option<PathBuf>,
    /// Writes end below this offset. Space beyond it is not allocated yet.
    pub(super) allocated: u64,
    /// An allocation up to this offset is under way.
    pub(super) allocating: Option<u64>,
    /// It is of an earlier run: how much it was given then is not known before the kernel is asked
    /// for more. Most of it lies on the disk already.
    pub(super) is_unmeasured: bool,
    /// What the store's sum has of it.
    pub(super) unallocated_counted: u64,
    pub(super) tail: Tail,
    /// What is being filled.
    pub(super) current: Option<Staging>,
    /// Leased ahead, so that a receive never has to stop at the end of `current`.
    pub(super) next: Option<Slice>,
    /// Filled or flushed, waiting for its turn to be written. In the order of offsets.
    pub(super) full: VecDeque<Staging>,
    pub(super) in_flight: Vec<Writing>,
    /// The last block is being read back into `current`.
    pub(super) is_reading: bool,
    /// Room was given and what comes has not come yet: the leases stay.
    pub(super) is_reserved: bool,
    /// Acknowledgements wait for bytes below.
    pub(super) wanted: u64,
    /// A sync of everything below is in flight.
    pub(super) syncing: Option<u64>,
    /// When the first write ended that no sync covers yet.
    pub(super) unsynced_since: Option<Instant>,
    /// Another process has the file; then it is opened again.
    pub(super) reopen_at: Option<Instant>,
    /// How long that may go on.
    pub(super) reopen_until: Option<Instant>,
    /// In the line of those who wait for a lease.
    pub(super) is_waiting: bool,
    /// Nothing can be received before one of the own writes has ended; then say so.
    pub(super) wants_room: bool,
    /// A write, a sync or a step failed. Nothing is started until everything has ended.
    pub(super) broken: Option<Errno>,
    /// A sync failed, and nothing was synced before: what was acknowledged may be lost, and no later
    /// sync would say so.
    pub(super) is_doubtful: bool,
    /// Where a rename under way takes the file.
    pub(super) renaming_to: Option<PathBuf>,
}

/// What the upload's owner wants to be true next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// Everything received is durable, the file is closed.
    Idle,
    /// As `Idle`, but open and recorded; then the offset to go on from is announced.
    Attach,
    Receive,
    Finish(Finish),
    Discard,
    /// The file gets another name, for whoever wants to look into it.
    SetAside,
}

/// How a complete file leaves the parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finish {
    /// Where it goes, on the same file system. Nothing is replaced.
    pub path: PathBuf,
    pub mode: u32,
    pub group_gid: Option<u32>,
    pub owner_uid: Option<u32>,
}

/// Rare ops, one at a time, in the order in which a finished file passes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Open,
    SyncName,
    SyncData,
    Truncate,
    SyncLength,
    SetOwner,
    Rename,
    SyncArrived,
    SyncParts,
    Remove,
    SetAside,
}

/// The unfinished last block of a direct file, after what came before it was written. Between
/// leases it must be kept somewhere, because a direct write begins at the start of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tail {
    /// The upload goes on at the start of a block.
    None,
    /// A copy, in a lease of the block pool.
    Kept(Slice),
    /// It must be read back.
    OnDisk,
}

/// A lease that is filled with the file's bytes from `offset` on.
#[derive(Debug)]
pub(super) struct Staging {
    pub(super) lease: Slice,
    pub(super) offset: u64,
    pub(super) filled: u32,
    /// The first bytes of `filled` that are on the disk already.
    pub(super) clean: u32,
    /// When filling began.
    pub(super) since: Instant,
}

/// A write that the kernel has.
#[derive(Debug)]
pub(super) struct Writing {
    pub(super) write: u32,
    pub(super) lease: Slice,
    pub(super) offset: u64,
    /// Whole blocks for direct files.
    pub(super) length: u32,
    /// The kernel may write less than asked; the rest is asked for again.
    pub(super) done: u32,
}

impl Part {
    pub(super) fn new(ticket: TicketId, length_bytes: u64) -> Self {
        Self {
            ticket,
            upload: Upload::new(length_bytes),
            goal: Goal::Idle,
            step: None,
            is_open: false,
            is_created: false,
            is_name_synced: false,
            arrived_path: None,
            allocated: 0,
            allocating: None,
            is_unmeasured: false,
            unallocated_counted: 0,
            tail: Tail::None,
            current: None,
            next: None,
            full: VecDeque::new(),
            in_flight: Vec::with_capacity(WRITES_IN_FLIGHT_MAX),
            is_reading: false,
            is_reserved: false,
            wanted: 0,
            syncing: None,
            unsynced_since: None,
            reopen_at: None,
            reopen_until: None,
            is_waiting: false,
            wants_room: false,
            broken: None,
            is_doubtful: false,
            renaming_to: None,
        }
    }

    pub(super) fn can_receive(&self) -> bool {
        self.goal == Goal::Receive && self.broken.is_none()
    }

    /// What it will still take from the file system, in bytes.
    pub(super) fn unallocated_bytes(&self) -> u64 {
        let is_over = matches!(self.goal, Goal::Discard | Goal::SetAside);
        if is_over || self.is_unmeasured || self.arrived_path.is_some() {
            return 0;
        }
        // Where nothing can be allocated ahead, `allocated` says nothing.
        let allocated = if self.allocated == u64::MAX { 0 } else { self.allocated };
        self.upload.length().saturating_sub(allocated.max(self.upload.written()))
    }

    /// Staging leases that this upload holds.
    pub(super) fn lease_count(&self) -> usize {
        usize::from(self.current.is_some())
            + usize::from(self.next.is_some())
            + self.full.len()
            + self.in_flight.len()
    }

    /// No op is in flight.
    pub(super) fn is_quiet(&self) -> bool {
        self.in_flight.is_empty()
            && self.step.is_none()
            && self.allocating.is_none()
            && self.syncing.is_none()
            && !self.is_reading
    }

    /// Bytes of the client that no write has taken yet.
    pub(super) fn has_unwritten(&self) -> bool {
        let is_staged = self.current.as_ref().is_some_and(|it| it.filled > it.clean);
        is_staged || !self.full.is_empty() || !self.in_flight.is_empty()
    }

    /// A write that is in flight touches a block of `[offset, offset + length)`.
    pub(super) fn is_in_flight(&self, offset: u64, length: u32) -> bool {
        self.in_flight.iter().any(|it| {
            offset < it.offset + u64::from(it.length) && it.offset < offset + u64::from(length)
        })
    }

    /// How many bytes may be received now, staging permitting.
    pub(super) fn staged_space_bytes(&self) -> u32 {
        let current = self.current.as_ref().map_or(0, Staging::space_bytes);
        current + self.next.map_or(0, |it| it.length)
    }
}

impl Staging {
    pub(super) fn new(lease: Slice, offset: u64, filled: u32, now: Instant) -> Self {
        assert!(filled < lease.length);
        Self { lease, offset, filled, clean: filled, since: now }
    }

    pub(super) fn space_bytes(&self) -> u32 {
        self.lease.length - self.filled
    }

    /// The end of the file's bytes in it.
    pub(super) fn end(&self) -> u64 {
        self.offset + u64::from(self.filled)
    }

    /// The next `length` bytes to be filled.
    pub(super) fn free(&self, length: u32) -> Slice {
        assert!(length <= self.space_bytes());
        Slice { start: self.lease.start + self.filled, length }
    }

    /// The block that is filled in part, if the end is not the end of a block.
    pub(super) fn tail(&self) -> Option<Slice> {
        let tail_bytes = self.filled % BLOCK_BYTES;
        (tail_bytes > 0).then(|| Slice {
            start: self.lease.start + self.filled - tail_bytes,
            length: BLOCK_BYTES,
        })
    }
}

impl Writing {
    pub(super) fn rest(&self) -> (u64, Slice) {
        let slice = Slice { start: self.lease.start + self.done, length: self.length - self.done };
        (self.offset + u64::from(self.done), slice)
    }
}
