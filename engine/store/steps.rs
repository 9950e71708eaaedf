//! Opening, finishing, removing and failing: one rare op after the other.

use std::path::Path;
use std::time::{Duration, Instant};

use super::part::{Finish, Goal, Step, Tail};
use super::{Store, StoreEvent, file};
use crate::durability::{Durability, SyncMethod};
use crate::limits::BLOCK_BYTES;
use crate::op::{Errno, FileOp, Op, OpenHow, Output};

impl<M> Store<M> {
    /// Starts what the goal asks for next, once nothing is in flight any more.
    pub(super) fn advance(&mut self, now: Instant, slot: u32) {
        let Some(part) = self.slots[slot as usize].part.as_ref() else { return };
        if part.goal == Goal::Discard {
            self.drop_staging(slot);
        }
        if part_is_busy(self.part(slot)) {
            self.start_writes(slot);
            return;
        }
        if self.part(slot).broken.is_some() {
            return self.end_broken(slot);
        }
        let upload = &self.part(slot).upload;
        let is_synced = upload.durable() == upload.written();
        match self.part(slot).goal.clone() {
            Goal::Receive => {}
            Goal::Idle | Goal::Attach if !is_synced => self.start_sync(slot),
            Goal::Idle => self.close_file(slot),
            Goal::Attach => self.attach_step(now, slot),
            // Renamed already; what followed failed.
            Goal::Finish(_) if self.part(slot).arrived_path.is_some() => {
                self.start_step(slot, Step::SyncArrived);
            }
            Goal::Finish(_) if !self.part(slot).is_open => self.open_file(slot),
            Goal::Finish(_) => self.start_step(slot, Step::SyncData),
            Goal::Discard => {
                self.close_file(slot);
                self.remove_file(slot);
            }
            Goal::SetAside => {
                self.close_file(slot);
                let part = self.part(slot);
                if part.is_created && part.arrived_path.is_none() {
                    self.start_step(slot, Step::SetAside);
                } else {
                    self.end_removed(slot);
                }
            }
        }
    }

    pub(super) fn on_step(&mut self, now: Instant, slot: u32, result: Result<Output, Errno>) {
        let durability = self.config.durability;
        let part = self.part_mut(slot);
        let step = part.step.take().expect("a step was in flight");
        let renamed_to = part.renaming_to.take();
        match (step, result) {
            // An earlier try made it and then failed. It is ours: nobody else has this id.
            (Step::Open, Err(Errno::EEXIST)) if !part.is_created => part.is_created = true,
            (Step::Open, Err(Errno::EAGAIN)) => self.on_locked(now, slot),
            (Step::Open, Ok(_)) => {
                part.is_open = true;
                part.is_created = true;
                part.reopen_until = None;
            }
            (Step::SyncName, Ok(_)) => part.is_name_synced = true,
            // Who may not give files away leaves them with their owner, as documented.
            (Step::SetOwner, _) => self.start_step(slot, Step::Rename),
            // Gone is what it should be; anything else leaves the file for the operator.
            (Step::Remove | Step::SetAside, _) => self.end_removed(slot),
            (Step::SyncData | Step::SyncLength, Err(errno)) => {
                // What was synced before is safe; otherwise nothing is.
                part.is_doubtful = durability == Durability::Written;
                self.break_part(slot, errno);
            }
            (_, Err(errno)) => self.break_part(slot, errno),
            (Step::SyncData, Ok(_)) => self.start_step(slot, Step::Truncate),
            (Step::Truncate, Ok(_)) => self.start_step(slot, Step::SyncLength),
            (Step::SyncLength, Ok(_)) => self.start_step(slot, Step::SetOwner),
            (Step::Rename, Ok(_)) => {
                part.arrived_path = renamed_to;
                self.start_step(slot, Step::SyncArrived);
            }
            (Step::SyncArrived, Ok(_)) => self.start_step(slot, Step::SyncParts),
            (Step::SyncParts, Ok(_)) => self.end_finished(slot),
        }
    }

    /// Nothing of this upload is started any more until everything has ended. There is no second
    /// try: what a failed write or sync left behind is not known.
    pub(super) fn break_part(&mut self, slot: u32, errno: Errno) {
        self.drop_staging(slot);
        let part = self.part_mut(slot);
        part.broken.get_or_insert(errno);
        part.wants_room = false;
        self.leave_line(slot);
    }

    fn start_step(&mut self, slot: u32, step: Step) {
        // A removal asked for meanwhile comes first; `advance` starts it.
        if self.part(slot).goal == Goal::Discard && step != Step::Remove {
            return;
        }
        let path = self.part_path(slot);
        let part = self.part_mut(slot);
        part.step = Some(step);
        let length_bytes = part.upload.length();
        let file = file(slot);
        let op = match (step, &part.goal) {
            (Step::SyncData | Step::SyncLength, _) => Op::Sync { file },
            (Step::Truncate, _) => Op::Truncate { file, length_bytes },
            (Step::SetOwner, Goal::Finish(it)) => {
                let Finish { mode, group_gid, owner_uid, .. } = *it;
                Op::SetOwner { path, mode, group_gid, owner_uid }
            }
            (Step::Rename, Goal::Finish(it)) => {
                part.renaming_to = Some(it.path.clone());
                Op::Rename { from: path, to: it.path.clone() }
            }
            (Step::SyncArrived, _) => {
                let arrived = part.arrived_path.as_deref().and_then(Path::parent);
                Op::SyncDirectory { path: arrived.expect("renamed before").to_owned() }
            }
            (Step::SyncName | Step::SyncParts, _) => {
                Op::SyncDirectory { path: self.config.parts_dir.clone() }
            }
            (Step::SetAside, _) => {
                let to = path.with_extension(FAILED_EXTENSION);
                Op::Rename { from: path, to }
            }
            (Step::Remove, _) => Op::Remove { path: part.arrived_path.clone().unwrap_or(path) },
            (Step::Open | Step::SetOwner | Step::Rename, _) => {
                unreachable!("opened elsewhere, finished only on the way to an end")
            }
        };
        self.emit(slot, FileOp::Step, op);
    }

    fn attach_step(&mut self, now: Instant, slot: u32) {
        let part = self.part(slot);
        // A file that has arrived needs no more than to be finished.
        if !part.is_open && part.arrived_path.is_none() {
            return self.open_file(slot);
        }
        // Bytes in a file without a name are not safe.
        if !part.is_name_synced && part.arrived_path.is_none() {
            return self.start_step(slot, Step::SyncName);
        }
        let upload = self.key(slot);
        let part = self.part_mut(slot);
        // To say where to go on is to acknowledge what came before.
        if part.upload.committed() < part.upload.durable() {
            return;
        }
        part.goal = Goal::Receive;
        let offset_bytes = part.upload.committed();
        assert_eq!(part.upload.received(), offset_bytes);
        self.events.push_back(StoreEvent::Attached { upload, offset_bytes });
        self.serve_waiting(now);
    }

    fn open_file(&mut self, slot: u32) {
        if self.part(slot).reopen_at.is_some() {
            return;
        }
        let path = self.part_path(slot);
        let direct = self.config.direct;
        let dsync = self.config.durability == Durability::Synced(SyncMethod::Dsync);
        let part = self.part_mut(slot);
        part.step = Some(Step::Open);
        // The lock keeps out the last writes of an earlier process that was killed.
        let how = OpenHow { create: !part.is_created, direct, dsync, lock: true };
        self.emit(slot, FileOp::Step, Op::Open { file: file(slot), path, how });
    }

    /// Another process has the file: this one asks again soon, and not for ever.
    fn on_locked(&mut self, now: Instant, slot: u32) {
        let upload = self.key(slot);
        let part = self.part_mut(slot);
        if *part.reopen_until.get_or_insert(now + REOPEN_PATIENCE) <= now {
            part.reopen_until = None;
            return self.break_part(slot, Errno::EAGAIN);
        }
        let at = now + REOPEN_DELAY;
        part.reopen_at = Some(at);
        self.timers.insert(at, upload);
    }

    pub(super) fn reopen_if_due(&mut self, now: Instant, slot: u32) {
        if self.part(slot).reopen_at.is_some_and(|it| it <= now) {
            self.part_mut(slot).reopen_at = None;
            self.advance(now, slot);
        }
    }

    fn close_file(&mut self, slot: u32) {
        let part = self.part_mut(slot);
        if std::mem::take(&mut part.is_open) {
            self.ops.push_back((crate::op::Token::None, Op::CloseFile { file: file(slot) }));
        }
    }

    /// Removes the file, if there is one, and with it the part.
    fn remove_file(&mut self, slot: u32) {
        if self.part(slot).is_created {
            self.start_step(slot, Step::Remove);
        } else {
            self.end_removed(slot);
        }
    }

    fn end_finished(&mut self, slot: u32) {
        // A removal asked for meanwhile; `advance` starts it.
        if self.part(slot).goal == Goal::Discard {
            return;
        }
        self.close_file(slot);
        self.drop_staging(slot);
        let upload = self.key(slot);
        let part = self.part_mut(slot);
        part.goal = Goal::Idle;
        let path = part.arrived_path.clone().expect("renamed before");
        self.events.push_back(StoreEvent::Arrived { upload, path });
    }

    fn end_removed(&mut self, slot: u32) {
        let upload = self.key(slot);
        self.free_slot(slot);
        self.events.push_back(StoreEvent::Removed { upload });
    }

    /// Everything has ended: back to what is known to be durable.
    fn end_broken(&mut self, slot: u32) {
        self.drop_staging(slot);
        self.close_file(slot);
        let upload = self.key(slot);
        let direct = self.config.direct;
        let part = self.part_mut(slot);
        let errno = part.broken.take().expect("only a broken part ends here");
        if std::mem::take(&mut part.is_doubtful) {
            part.upload.start_over();
        } else {
            part.upload.roll_back();
        }
        (part.wanted, part.unsynced_since) = (0, None);
        // It may have been cut to its length.
        if matches!(part.goal, Goal::Finish(_)) && part.allocated != u64::MAX {
            part.allocated = 0;
        }
        if direct && !part.upload.received().is_multiple_of(u64::from(BLOCK_BYTES)) {
            part.tail = Tail::OnDisk;
        }
        if part.goal == Goal::Discard {
            return self.remove_file(slot);
        }
        part.goal = Goal::Idle;
        self.events.push_back(StoreEvent::Failed { upload, errno });
    }
}

/// Of a file that could not be stored.
const FAILED_EXTENSION: &str = "failed";

/// A killed process's last writes end within a second.
const REOPEN_DELAY: Duration = Duration::from_millis(50);
const REOPEN_PATIENCE: Duration = Duration::from_secs(10);

/// Ops are in flight, or bytes wait to be written.
fn part_is_busy(part: &super::part::Part) -> bool {
    !part.is_quiet() || (part.broken.is_none() && !part.full.is_empty())
}
