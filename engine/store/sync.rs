//! When what is written is durable.
//!
//! Where every write is durable when it ends there is nothing to do. Otherwise one sync covers many
//! writes: it costs a disk much the same whatever it covers.

use std::time::{Duration, Instant};

use super::{Store, StoreEvent, file};
use crate::durability::{Durability, SyncMethod};
use crate::op::{Errno, FileOp, Op, Output};

impl<M> Store<M> {
    /// More of the file is written.
    pub(super) fn on_written(&mut self, now: Instant, slot: u32) {
        match self.config.durability {
            Durability::Written | Durability::Synced(SyncMethod::Dsync) => {
                let offset_bytes = self.part(slot).upload.written();
                self.on_durable(slot, offset_bytes);
            }
            Durability::Synced(SyncMethod::Fdatasync) => self.note_unsynced(now, slot),
        }
    }

    /// Starts a sync when acknowledgements wait for it and it is worth it: much is written, some
    /// of it long ago, or nothing more is on its way, because the client waits.
    pub(super) fn sync_if_due(&mut self, now: Instant, slot: u32) {
        let Some(part) = self.slots[slot as usize].part.as_ref() else { return };
        let can_sync = part.can_receive() && part.is_open && part.syncing.is_none();
        let Some(since) = part.unsynced_since.filter(|_| can_sync) else { return };
        let unsynced_bytes = part.upload.written() - part.upload.durable();
        let is_worth_it = !part.has_unwritten()
            || unsynced_bytes >= SYNC_BYTES_MAX
            || since + SYNC_DELAY_MAX <= now;
        if part.upload.durable() < part.wanted && is_worth_it {
            self.start_sync(slot);
        }
    }

    /// Makes everything durable that is written now.
    pub(super) fn start_sync(&mut self, slot: u32) {
        let part = self.part_mut(slot);
        part.syncing = Some(part.upload.written());
        part.unsynced_since = None;
        self.emit(slot, FileOp::Sync, Op::Sync { file: file(slot) });
    }

    pub(super) fn on_synced(&mut self, now: Instant, slot: u32, result: Result<Output, Errno>) {
        let part = self.part_mut(slot);
        let offset_bytes = part.syncing.take().expect("a sync was in flight");
        if let Err(errno) = result {
            return self.break_part(slot, errno);
        }
        if part.broken.is_some() {
            return;
        }
        self.on_durable(slot, offset_bytes);
        let upload = &self.part(slot).upload;
        if upload.written() > upload.durable() {
            self.note_unsynced(now, slot);
        }
    }

    fn on_durable(&mut self, slot: u32, offset_bytes: u64) {
        let upload = self.key(slot);
        if self.part_mut(slot).upload.on_durable(offset_bytes) {
            self.events.push_back(StoreEvent::Durable { upload, offset_bytes });
        }
    }

    fn note_unsynced(&mut self, now: Instant, slot: u32) {
        let upload = self.key(slot);
        let part = self.part_mut(slot);
        if part.syncing.is_none() && part.unsynced_since.is_none() {
            part.unsynced_since = Some(now);
            self.timers.insert(now + SYNC_DELAY_MAX, upload);
        }
    }
}

/// One sync covers at most so much, unless the disk is slower than the client.
const SYNC_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// An acknowledgement waits at most so long for a sync to become worth it.
const SYNC_DELAY_MAX: Duration = Duration::from_millis(10);
