//! Which files may be begun: how long they may be, and whether there is room for them.
//!
//! Space is reserved by counting. Every core publishes what its begun uploads will still take; a
//! new one begins if it fits into what is free beside that.

use std::sync::atomic::Ordering;

use engine::record::NewTicket;
use engine::store::UploadKey;
use engine::ticket::TicketId;

use super::{Worker, WorkerConfig};
use crate::dialect::message::UploadRequest;

/// What a browser says first: which upload it comes for, and with which file.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) id: TicketId,
    pub(super) request: UploadRequest,
}

/// Whether the storage was looked at for a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    IsToCome,
    IsDone,
}

impl WorkerConfig {
    /// Longer than the operator or the web app allows.
    pub(super) fn is_too_large(&self, new: &NewTicket, length_bytes: u64) -> bool {
        let limits = [self.max_size_bytes, new.max_size_bytes];
        limits.into_iter().flatten().any(|it| length_bytes > it)
    }

    /// What all cores together will still take.
    pub(super) fn unallocated_total(&self) -> u64 {
        self.unallocated.iter().fold(0, |sum, it| sum.saturating_add(it.load(Ordering::SeqCst)))
    }

    fn set_unallocated(&self, bytes: u64) {
        let mine = &self.unallocated[usize::from(self.core.0)];
        // Others read it, so it is written only when it changes.
        if mine.load(Ordering::Relaxed) != bytes {
            mine.store(bytes, Ordering::SeqCst);
        }
    }
}

impl Worker {
    /// Whether a file of this length fits, by the numbers. If it does, it is counted already, so
    /// that of two cores that ask at a time one sees the other's. `upload`: what the ticket has
    /// begun before, which it replaces.
    pub(super) fn has_room_for(&self, upload: Option<UploadKey>, length_bytes: u64) -> bool {
        let replaced = upload.map_or(0, |it| self.store.unallocated_bytes_of(it));
        let mine = self.store.unallocated_bytes() - replaced;
        self.config.set_unallocated(mine.saturating_add(length_bytes));
        let others = self.config.unallocated_total().saturating_sub(length_bytes);
        // What is allocated while the kernel is asked is in neither of its numbers, or in both.
        let before = self.watch.unallocated_before.saturating_sub(replaced);
        let taken = self.config.reserve_bytes.saturating_add(others.max(before));
        let has_room = length_bytes <= self.watch.free_bytes().saturating_sub(taken);
        if !has_room {
            self.publish_unallocated();
        }
        has_room
    }

    /// After everything that may have changed it.
    pub(super) fn publish_unallocated(&self) {
        self.config.set_unallocated(self.store.unallocated_bytes());
    }
}
