//! What becomes of an op.

use engine::buffer::{Memory, Slice};
use engine::limits::BLOCK_BYTES;
use engine::op::{CoreId, Errno, FileId, OpenHow, Output, StorageHealth, StorageState};

use super::{Disk, Handle, Inode, Request};

impl Disk {
    /// `memory`: `None` if its owner is dead.
    pub(super) fn run(
        &mut self,
        core: CoreId,
        request: Request,
        begun_at: u64,
        memory: Option<&mut Memory>,
    ) -> Result<Output, Errno> {
        let now = self.clock;
        let fault = self.fault();
        match request {
            Request::Write { handle, offset, bytes, snapshot, .. } => {
                if let Some(memory) = memory {
                    assert!(memory.bytes(bytes) == snapshot, "bytes changed under a write");
                }
                return self.write(handle, offset as usize, &snapshot, fault).map(Output::Bytes);
            }
            Request::Read { handle, offset, bytes, snapshot, .. } => {
                let memory = memory.expect("the dead read nothing");
                assert!(memory.bytes(bytes) == snapshot, "bytes changed under a read");
                fault.map_or(Ok(()), Err)?;
                return Ok(Output::Bytes(self.read(handle, offset as usize, bytes, memory)));
            }
            Request::Sync { handle, dirty, .. } => {
                let inode = &mut self.inodes[handle.inode];
                let Some(errno) = fault else {
                    inode.clean(dirty);
                    return Ok(Output::Done);
                };
                inode.fail_sync(dirty, &mut self.rng);
                let path = self.names.path_of(handle.inode).and_then(|it| it.file_name());
                self.lost.extend(path.map(|it| it.to_str().expect("text").to_owned()));
                return Err(errno);
            }
            Request::Allocate { .. } if !self.weather.can_allocate => {
                return Err(Errno::EOPNOTSUPP);
            }
            // Who is not root cannot give a file away.
            Request::SetOwner { path } => {
                assert!(self.names.get(&path).is_some());
                return if self.rng.chance(30) { Err(EPERM) } else { Ok(Output::Done) };
            }
            Request::CheckStorage => {
                let free_bytes = if self.weather.is_full { 0 } else { FREE_BYTES };
                let health = self.weather.health;
                self.failed_count += u32::from(free_bytes == 0 || health != StorageHealth::Good);
                return Ok(Output::Storage(StorageState { free_bytes, health }));
            }
            Request::Remove { path } => {
                if let Err(errno) = fault.map_or_else(|| self.check_writable(), Err) {
                    self.failed_removal_count += 1;
                    return Err(errno);
                }
                if !self.names.remove(now, &path) {
                    return Err(Errno::ENOENT);
                }
            }
            _ if fault.is_some() => return Err(fault.unwrap()),
            Request::Open { file, path, how } => self.open(core, file, path, how)?,
            Request::Allocate { handle, offset, length, .. } => {
                let end = offset + length;
                if end > self.inodes[handle.inode].allocated {
                    self.check_space()?;
                }
                let inode = &mut self.inodes[handle.inode];
                inode.allocated = inode.allocated.max(end);
                inode.resize(now, inode.cached.len().max(end as usize));
            }
            Request::Truncate { handle, length, .. } => {
                self.check_writable()?;
                let inode = &mut self.inodes[handle.inode];
                inode.resize(now, length as usize);
                inode.allocated = inode.allocated.min(length);
            }
            Request::Rename { from, to } => {
                self.check_writable()?;
                if self.names.get(&from).is_none() {
                    return Err(Errno::ENOENT);
                }
                if self.names.get(&to).is_some() {
                    return Err(Errno::EEXIST);
                }
                self.names.rename(now, &from, to);
            }
            Request::SyncDirectory { path } => self.names.sync(&path, begun_at),
            // Every directory is there.
            Request::CheckDirectory => {}
        }
        Ok(Output::Done)
    }

    fn open(
        &mut self,
        core: CoreId,
        file: FileId,
        path: std::path::PathBuf,
        how: OpenHow,
    ) -> Result<(), Errno> {
        if self.weather.health == StorageHealth::Gone {
            self.failed_count += 1;
            return Err(Errno::ENOENT);
        }
        let inode = match (self.names.get(&path), how.create) {
            (Some(_), true) => return Err(Errno::EEXIST),
            (None, false) => return Err(Errno::ENOENT),
            (Some(inode), false) => inode,
            (None, true) => {
                self.check_space()?;
                self.inodes.push(Inode::default());
                self.names.create(self.clock, path)
            }
        };
        let is_locked = self.open.values().any(|it| it.inode == inode && it.lock)
            || self.orphans.iter().any(|it| it.inode == inode && it.is_locked);
        if how.lock && is_locked {
            return Err(Errno::EAGAIN);
        }
        let OpenHow { direct, dsync, lock, .. } = how;
        self.open.insert((core, file), Handle { inode, direct, dsync, lock });
        Ok(())
    }

    fn write(
        &mut self,
        handle: Handle,
        offset: usize,
        bytes: &[u8],
        fault: Option<Errno>,
    ) -> Result<u32, Errno> {
        let now = self.clock;
        if let Some(errno) = fault {
            // Any part of it may be there.
            self.inodes[handle.inode].put_torn(now, offset, bytes, &mut self.rng);
            return Err(errno);
        }
        self.check_writable()?;
        let inode = &self.inodes[handle.inode];
        if offset + bytes.len() > inode.cached.len().max(inode.allocated as usize) {
            self.check_space()?;
        }
        let is_short = self.rng.chance(self.weather.short_percent);
        let mut count = if is_short { self.rng.within(1..bytes.len() + 1) } else { bytes.len() };
        if !handle.direct {
            // The page cache takes a page or does not.
            let end = (offset + count).next_multiple_of(BLOCK_BYTES as usize);
            count = (end - offset).min(bytes.len());
        }
        let inode = &mut self.inodes[handle.inode];
        if handle.dsync {
            inode.put_through(now, offset, &bytes[..count]);
        } else {
            inode.put(now, offset, &bytes[..count]);
        }
        Ok(count as u32)
    }

    fn read(&mut self, handle: Handle, offset: usize, bytes: Slice, memory: &mut Memory) -> u32 {
        let data = &self.inodes[handle.inode].cached;
        let there = data.len().saturating_sub(offset);
        let mut count = there.min(bytes.length as usize);
        if count > 1 && self.weather.faults_left > 0 && self.rng.chance(5) {
            self.weather.faults_left -= 1;
            self.failed_count += 1;
            count = self.rng.within(1..count);
        }
        let target = Slice { start: bytes.start, length: count as u32 };
        memory.bytes_mut(target).copy_from_slice(&data[offset.min(data.len())..][..count]);
        count as u32
    }

    fn check_space(&mut self) -> Result<(), Errno> {
        self.check_writable()?;
        if self.weather.is_full {
            self.failed_count += 1;
            return Err(Errno::ENOSPC);
        }
        Ok(())
    }

    fn check_writable(&mut self) -> Result<(), Errno> {
        if self.weather.health == StorageHealth::ReadOnly {
            self.failed_count += 1;
            return Err(EROFS);
        }
        Ok(())
    }
}

const FREE_BYTES: u64 = 1 << 40;

const EPERM: Errno = Errno(1);
const EROFS: Errno = Errno(30);
