//! The end of a process, and the end of the power.

use super::{Disk, Inode, Request};

/// A write that the kernel has and whose process is dead.
#[derive(Debug)]
pub(super) struct Orphan {
    pub(super) inode: usize,
    offset: usize,
    bytes: Vec<u8>,
    dsync: bool,
    /// The file was locked, and is until the write has ended.
    pub(super) is_locked: bool,
}

impl Disk {
    /// The process is gone at once (`kill -9`); the kernel and its page cache are not. Writes in
    /// flight end later, perhaps while the next process is at work already.
    pub(crate) fn kill(&mut self) {
        for pending in std::mem::take(&mut self.pending) {
            match pending.request {
                Request::Write { handle, offset, snapshot, .. } => self.orphans.push(Orphan {
                    inode: handle.inode,
                    offset: offset as usize,
                    bytes: snapshot,
                    dsync: handle.dsync,
                    is_locked: handle.lock,
                }),
                Request::Read { .. } => {}
                // In the middle of a call: it comes to its end, or was not reached.
                request => {
                    if self.rng.chance(50) {
                        let _ = self.run(pending.core, request, pending.begun_at, None);
                    }
                }
            }
        }
        self.open.clear();
    }

    /// The machine stops, and starts again with what lies on its disk.
    pub(crate) fn power_cut(&mut self) {
        self.clock += 1;
        let now = self.clock;
        self.boot += 1;
        self.kill();
        for it in std::mem::take(&mut self.orphans) {
            self.inodes[it.inode].put_torn(now, it.offset, &it.bytes, &mut self.rng);
        }
        let is_ordered = self.weather.is_ordered;
        for inode in &mut self.inodes {
            inode.power_cut(is_ordered, &mut self.rng);
        }
        self.names.power_cut(now, is_ordered, &mut self.rng);
        self.clock += 1;
    }

    /// One of the writes of a killed process comes to its end. False: there are none.
    pub(crate) fn land_orphan(&mut self) -> bool {
        if self.orphans.is_empty() {
            return false;
        }
        let index = self.rng.below(self.orphans.len());
        let Orphan { inode, offset, bytes, dsync, .. } = self.orphans.swap_remove(index);
        let inode: &mut Inode = &mut self.inodes[inode];
        if dsync {
            inode.put_through(self.clock, offset, &bytes);
        } else {
            inode.put(self.clock, offset, &bytes);
        }
        true
    }
}
