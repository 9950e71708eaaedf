//! What a machine may not do.

use std::path::Path;

use engine::buffer::Slice;
use engine::limits::BLOCK_BYTES;
use engine::op::CoreId;

use super::{Disk, Handle, Pending, Request};

impl Disk {
    /// No slice is lent twice, and a direct transfer is aligned.
    pub(super) fn check_transfer(&self, core: CoreId, handle: Handle, offset: u64, bytes: Slice) {
        assert!(bytes.length > 0, "a transfer of nothing");
        let mine = self.pending.iter().filter(|it| it.core == core);
        for slice in mine.filter_map(Pending::slice) {
            let apart = slice.start + slice.length <= bytes.start
                || bytes.start + bytes.length <= slice.start;
            assert!(apart, "{bytes:?} overlaps {slice:?}, which is in flight");
        }
        if handle.direct {
            let block = u64::from(BLOCK_BYTES);
            let numbers = [offset, u64::from(bytes.start), u64::from(bytes.length)];
            assert!(numbers.iter().all(|it| it % block == 0), "unaligned: {offset} {bytes:?}");
        }
    }

    pub(super) fn check_write(&self, handle: Handle, offset: u64, given: &[u8]) {
        let end = offset + given.len() as u64;
        // Through the page cache, writes side by side in one block are the kernel's business.
        let unit = if handle.direct { u64::from(BLOCK_BYTES) } else { 1 };
        let touched = offset / unit..end.div_ceil(unit);
        for (offset, length) in self.pending.iter().filter_map(|it| it.transfer(handle.inode)) {
            let apart =
                (offset + length).div_ceil(unit) <= touched.start || touched.end <= offset / unit;
            assert!(apart, "two ops in flight touch one block, at {offset}");
        }
        let late = self.orphans.iter().find(|it| it.inode == handle.inode);
        assert!(late.is_none(), "a killed process's write may land on this one: {late:?}");
        let inode = &self.inodes[handle.inode];
        if handle.direct && self.weather.can_allocate {
            assert!(end <= inode.allocated, "a direct write beyond what is allocated");
        }
        let path = self.names.path_of(handle.inode).expect("a name");
        let name = path.file_name().expect("a name").to_str().expect("text");
        if path.parent().is_some_and(|it| it.ends_with("journal")) {
            return;
        }
        let whole = self.expected[name];
        let expected = &whole[whole.len().min(offset as usize)..whole.len().min(end as usize)];
        if !given.starts_with(expected) {
            let right = given.iter().zip(expected).take_while(|(a, b)| a == b).count();
            let is_padded = handle.direct && given.len() - right < BLOCK_BYTES as usize;
            assert!(
                is_padded && given[right..].iter().all(|it| *it == 0),
                "wrong bytes at {} of {name}",
                offset + right as u64
            );
        }
    }

    /// What is to be handed over is safe before it moves; what failed is set aside as it is.
    pub(super) fn check_rename(&self, from: &Path, to: &Path) {
        if from.parent() != to.parent() {
            let inode = &self.inodes[self.names.get(from).expect("renamed once")];
            assert!(inode.is_durable(), "renamed with bytes or a length that are not synced");
        }
    }
}

impl Pending {
    fn slice(&self) -> Option<Slice> {
        match &self.request {
            Request::Write { bytes, .. } | Request::Read { bytes, .. } => Some(*bytes),
            _ => None,
        }
    }

    /// Where it reads or writes in this file.
    fn transfer(&self, inode: usize) -> Option<(u64, u64)> {
        match &self.request {
            Request::Write { handle, offset, bytes, .. }
            | Request::Read { handle, offset, bytes, .. }
                if handle.inode == inode =>
            {
                Some((*offset, u64::from(bytes.length)))
            }
            _ => None,
        }
    }
}
