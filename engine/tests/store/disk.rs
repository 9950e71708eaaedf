//! A simulated disk: it keeps what was written, completes ops in any order, writes and reads less
//! than asked, fails, and holds the machine to the contract of its ops.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use engine::buffer::{Memory, Slice};
use engine::limits::BLOCK_BYTES;
use engine::op::{Completion, Errno, FileId, Op, OpenHow, Output, Token};

use crate::rng::Rng;

/// The files of one machine.
#[derive(Debug)]
pub(crate) struct Disk {
    rng: Rng,
    weather: Weather,
    names: HashMap<PathBuf, usize>,
    inodes: Vec<Inode>,
    open: HashMap<FileId, Handle>,
    pending: Vec<Pending>,
    /// What the files of these names are meant to hold.
    expected: HashMap<String, &'static [u8]>,
    /// When the last sync of a directory was begun that has succeeded.
    directories: HashMap<PathBuf, u64>,
    /// Files that a failed sync has taken bytes from: nothing is promised any more.
    lost: BTreeSet<String>,
    /// Counts what happens.
    clock: u64,
    failed_count: u32,
    failed_removal_count: u32,
}

/// How well things go.
#[derive(Clone, Debug)]
pub(crate) struct Weather {
    /// Ops that may still fail.
    pub(crate) faults_left: u32,
    pub(crate) fault_percent: usize,
    pub(crate) short_percent: usize,
    pub(crate) can_allocate: bool,
}

#[derive(Debug, Default)]
struct Inode {
    data: Vec<u8>,
    /// What a lost block falls back to.
    stable: Vec<u8>,
    /// Writes below do not extend the file.
    allocated: u64,
    /// Blocks written since the last sync.
    dirty: BTreeSet<u64>,
    length_synced: Option<u64>,
    renamed_at: u64,
}

#[derive(Clone, Copy, Debug)]
struct Handle {
    inode: usize,
    direct: bool,
    dsync: bool,
}

#[derive(Debug)]
struct Pending {
    token: Token,
    request: Request,
    begun_at: u64,
}

#[derive(Debug)]
enum Request {
    Open { file: FileId, path: PathBuf, create: bool, handle: Handle },
    Write { file: FileId, offset: u64, bytes: Slice, snapshot: Vec<u8> },
    Read { file: FileId, offset: u64, bytes: Slice, snapshot: Vec<u8> },
    Sync { file: FileId },
    Allocate { file: FileId, offset: u64, length: u64 },
    Truncate { file: FileId, length: u64 },
    SetOwner { path: PathBuf },
    Rename { from: PathBuf, to: PathBuf },
    Remove { path: PathBuf },
    SyncDirectory { path: PathBuf },
}

impl Disk {
    pub(crate) fn new(seed: u64, weather: Weather) -> Self {
        Self {
            rng: Rng::new(seed),
            weather,
            names: HashMap::new(),
            inodes: Vec::new(),
            open: HashMap::new(),
            pending: Vec::new(),
            expected: HashMap::new(),
            directories: HashMap::new(),
            lost: BTreeSet::new(),
            clock: 0,
            failed_count: 0,
            failed_removal_count: 0,
        }
    }

    /// Every write to the file of this name is compared with `bytes`.
    pub(crate) fn expect(&mut self, name: String, bytes: &'static [u8]) {
        self.expected.insert(name, bytes);
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }

    pub(crate) fn has_open_files(&self) -> bool {
        !self.open.is_empty()
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed_count > 0
    }

    pub(crate) fn has_failed_removals(&self) -> bool {
        self.failed_removal_count > 0
    }

    pub(crate) fn data(&self, path: &Path) -> Option<&[u8]> {
        self.names.get(path).map(|it| self.inodes[*it].data.as_slice())
    }

    /// A sync of the file of this name has failed at some time.
    pub(crate) fn has_lost(&self, name: &str) -> bool {
        self.lost.contains(name)
    }

    /// All whole blocks below `offset` survive a power cut. The last one may just be written again.
    pub(crate) fn assert_synced(&self, path: &Path, offset: u64) {
        let inode = &self.inodes[self.names[path]];
        let dirty = inode.dirty.range(..offset / u64::from(BLOCK_BYTES)).next();
        assert_eq!(dirty, None, "called durable before it was");
    }

    /// The file's bytes, its length and both of its names are as safe as the disk.
    pub(crate) fn assert_durable(&self, path: &Path, parts_dir: &Path) {
        let inode = &self.inodes[self.names[path]];
        assert!(inode.dirty.is_empty(), "handed over with unsynced bytes");
        assert_eq!(inode.length_synced, Some(inode.data.len() as u64), "its length is synced");
        for directory in [path.parent().unwrap(), parts_dir] {
            let synced_at = self.directories.get(directory).copied().unwrap_or(0);
            assert!(synced_at > inode.renamed_at, "{directory:?} was synced after the rename");
        }
    }

    /// Begins an op on a file.
    pub(crate) fn start<M: std::fmt::Debug>(&mut self, token: Token, op: Op<M>, memory: &Memory) {
        self.clock += 1;
        let request = match op {
            Op::Open { file, path, how: OpenHow { create, direct, dsync, lock } } => {
                assert!(!self.open.contains_key(&file), "{file:?} is open already");
                assert!(lock, "late writes of an earlier process are kept out");
                Request::Open { file, path, create, handle: Handle { inode: 0, direct, dsync } }
            }
            Op::Write { file, offset_bytes: offset, bytes } => {
                self.check_transfer(file, offset, bytes);
                self.check_write(file, offset, bytes, memory);
                let snapshot = memory.bytes(bytes).to_vec();
                Request::Write { file, offset, bytes, snapshot }
            }
            Op::Read { file, offset_bytes: offset, bytes } => {
                self.check_transfer(file, offset, bytes);
                let snapshot = memory.bytes(bytes).to_vec();
                Request::Read { file, offset, bytes, snapshot }
            }
            Op::Sync { file } => Request::Sync { file },
            Op::Allocate { file, offset_bytes: offset, length_bytes: length } => {
                assert!(length > 0);
                Request::Allocate { file, offset, length }
            }
            Op::Truncate { file, length_bytes: length } => Request::Truncate { file, length },
            Op::SetOwner { path, .. } => Request::SetOwner { path },
            Op::Rename { from, to } => {
                let inode = &self.inodes[self.names[&from]];
                assert!(inode.dirty.is_empty(), "renamed with unsynced bytes");
                assert_eq!(inode.length_synced, Some(inode.data.len() as u64));
                Request::Rename { from, to }
            }
            Op::Remove { path } => Request::Remove { path },
            Op::SyncDirectory { path } => Request::SyncDirectory { path },
            Op::CloseFile { file } => {
                assert_eq!(token, Token::None);
                assert!(!self.pending.iter().any(|it| it.file() == Some(file)), "op in flight");
                self.open.remove(&file).expect("closed once");
                return;
            }
            _ => panic!("not an op on a file: {op:?}"),
        };
        assert_ne!(token, Token::None);
        assert!(self.pending.iter().all(|it| it.token != token), "a token names one op");
        self.pending.push(Pending { token, request, begun_at: self.clock });
    }

    /// Ends one op of those in flight, whichever.
    pub(crate) fn complete(&mut self, memory: &mut Memory) -> Option<Completion> {
        if self.pending.is_empty() {
            return None;
        }
        self.clock += 1;
        let index = self.rng.below(self.pending.len());
        let pending = self.pending.swap_remove(index);
        let result = self.run(pending.request, pending.begun_at, memory);
        Some(Completion { token: pending.token, result })
    }

    fn run(
        &mut self,
        request: Request,
        begun_at: u64,
        memory: &mut Memory,
    ) -> Result<Output, Errno> {
        let fault = self.fault();
        match request {
            Request::Write { file, offset, bytes, snapshot } => {
                assert!(memory.bytes(bytes) == snapshot, "bytes changed under a write");
                return self.write(file, offset, &snapshot, fault).map(Output::Bytes);
            }
            Request::Read { file, offset, bytes, snapshot } => {
                assert!(memory.bytes(bytes) == snapshot, "bytes changed under a read");
                fault.map_or(Ok(()), Err)?;
                let data = &self.inodes[self.open[&file].inode].data;
                let there = (data.len() as u64).saturating_sub(offset) as usize;
                let mut count = there.min(bytes.length as usize);
                if count > 1 && self.weather.faults_left > 0 && self.rng.chance(5) {
                    self.weather.faults_left -= 1;
                    self.failed_count += 1;
                    count = self.rng.within(1..count);
                }
                let from = offset as usize;
                let target = Slice { start: bytes.start, length: count as u32 };
                memory.bytes_mut(target).copy_from_slice(&data[from..from + count]);
                return Ok(Output::Bytes(count as u32));
            }
            Request::Sync { file } => {
                let number = self.open[&file].inode;
                let inode = &mut self.inodes[number];
                let dirty = std::mem::take(&mut inode.dirty);
                if let Some(errno) = fault {
                    // The kernel has dropped what it could not write.
                    for block in dirty {
                        if self.rng.chance(50) {
                            inode.lose(block);
                        }
                    }
                    let name = self.name_of(number).to_owned();
                    self.lost.insert(name);
                    return Err(errno);
                }
                inode.length_synced = Some(inode.data.len() as u64);
                inode.stable.clone_from(&inode.data);
            }
            Request::Allocate { .. } if !self.weather.can_allocate => {
                return Err(Errno::EOPNOTSUPP);
            }
            // Who is not root cannot give a file away.
            Request::SetOwner { path } => {
                assert!(self.names.contains_key(&path));
                return if self.rng.chance(30) { Err(Errno(1)) } else { Ok(Output::Done) };
            }
            Request::Remove { .. } if fault.is_some() => {
                self.failed_removal_count += 1;
                return Err(fault.unwrap());
            }
            _ if fault.is_some() => return Err(fault.unwrap()),
            Request::Open { file, path, create, handle } => {
                let inode = match (self.names.get(&path), create) {
                    (Some(_), true) => return Err(Errno::EEXIST),
                    (None, false) => return Err(Errno::ENOENT),
                    (Some(inode), false) => *inode,
                    (None, true) => {
                        self.inodes.push(Inode::default());
                        self.names.insert(path, self.inodes.len() - 1);
                        self.inodes.len() - 1
                    }
                };
                self.open.insert(file, Handle { inode, ..handle });
            }
            Request::Allocate { file, offset, length } => {
                let inode = &mut self.inodes[self.open[&file].inode];
                inode.allocated = inode.allocated.max(offset + length);
                inode.data.resize(inode.data.len().max((offset + length) as usize), 0);
            }
            Request::Truncate { file, length } => {
                let inode = &mut self.inodes[self.open[&file].inode];
                inode.data.resize(length as usize, 0);
                inode.allocated = inode.allocated.min(length);
                inode.length_synced = None;
            }
            Request::Rename { from, to } => {
                if self.names.contains_key(&to) {
                    return Err(Errno::EEXIST);
                }
                let inode = self.names.remove(&from).expect("renamed once");
                self.inodes[inode].renamed_at = self.clock;
                self.names.insert(to, inode);
            }
            Request::Remove { path } => {
                self.names.remove(&path).ok_or(Errno::ENOENT)?;
            }
            Request::SyncDirectory { path } => {
                let synced_at = self.directories.entry(path).or_insert(0);
                *synced_at = begun_at.max(*synced_at);
            }
        }
        Ok(Output::Done)
    }

    fn write(
        &mut self,
        file: FileId,
        offset: u64,
        bytes: &[u8],
        fault: Option<Errno>,
    ) -> Result<u32, Errno> {
        let Handle { inode, dsync, .. } = self.open[&file];
        let inode = &mut self.inodes[inode];
        if let Some(errno) = fault {
            // Any part of it may be there.
            for (index, chunk) in bytes.chunks(BLOCK_BYTES as usize).enumerate() {
                if self.rng.chance(50) {
                    inode.put(offset + index as u64 * u64::from(BLOCK_BYTES), chunk, false);
                }
            }
            return Err(errno);
        }
        let is_short = self.rng.chance(self.weather.short_percent);
        let count = if is_short { self.rng.within(1..bytes.len() + 1) } else { bytes.len() };
        inode.put(offset, &bytes[..count], dsync);
        Ok(count as u32)
    }

    fn fault(&mut self) -> Option<Errno> {
        let has = self.weather.faults_left > 0 && self.rng.chance(self.weather.fault_percent);
        has.then(|| {
            self.weather.faults_left -= 1;
            self.failed_count += 1;
            self.rng.pick(&[Errno::EIO, Errno::ENOSPC])
        })
    }

    /// No slice is lent twice, and a direct transfer is aligned.
    fn check_transfer(&self, file: FileId, offset: u64, bytes: Slice) {
        assert!(bytes.length > 0, "a transfer of nothing");
        for slice in self.pending.iter().filter_map(Pending::slice) {
            let apart = slice.start + slice.length <= bytes.start
                || bytes.start + bytes.length <= slice.start;
            assert!(apart, "{bytes:?} overlaps {slice:?}, which is in flight");
        }
        if self.open[&file].direct {
            let block = u64::from(BLOCK_BYTES);
            let numbers = [offset, u64::from(bytes.start), u64::from(bytes.length)];
            assert!(numbers.iter().all(|it| it % block == 0), "unaligned: {offset} {bytes:?}");
        }
    }

    fn check_write(&self, file: FileId, offset: u64, bytes: Slice, memory: &Memory) {
        let handle = self.open[&file];
        let end = offset + u64::from(bytes.length);
        // Through the page cache, writes side by side in one block are the kernel's business.
        let unit = if handle.direct { u64::from(BLOCK_BYTES) } else { 1 };
        let touched = offset / unit..end.div_ceil(unit);
        for it in self.pending.iter().filter(|it| it.file() == Some(file)) {
            if let Request::Write { offset, bytes, .. } | Request::Read { offset, bytes, .. } =
                &it.request
            {
                let other_end = offset + u64::from(bytes.length);
                let apart =
                    other_end.div_ceil(unit) <= touched.start || touched.end <= offset / unit;
                assert!(apart, "two ops in flight touch one block, at {offset}");
            }
        }
        let inode = &self.inodes[handle.inode];
        if handle.direct && self.weather.can_allocate {
            assert!(end <= inode.allocated, "a direct write beyond what is allocated");
        }
        let name = self.name_of(handle.inode);
        let whole = self.expected[name];
        let expected = &whole[whole.len().min(offset as usize)..whole.len().min(end as usize)];
        let given = memory.bytes(bytes);
        if !given.starts_with(expected) {
            let right = given.iter().zip(expected).take_while(|(a, b)| a == b).count();
            let is_padded = handle.direct && bytes.length as usize - right < BLOCK_BYTES as usize;
            assert!(
                is_padded && given[right..].iter().all(|it| *it == 0),
                "wrong bytes at {} of {name}",
                offset + right as u64
            );
        }
    }
}

impl Disk {
    fn name_of(&self, inode: usize) -> &str {
        let path = self.names.iter().find(|it| *it.1 == inode).expect("a name").0;
        path.file_name().unwrap().to_str().unwrap()
    }
}

impl Inode {
    fn put(&mut self, offset: u64, bytes: &[u8], is_durable: bool) {
        let end = offset as usize + bytes.len();
        self.data.resize(self.data.len().max(end), 0);
        self.data[offset as usize..end].copy_from_slice(bytes);
        let block = u64::from(BLOCK_BYTES);
        if is_durable {
            self.stable.resize(self.stable.len().max(end), 0);
            self.stable[offset as usize..end].copy_from_slice(bytes);
        }
        for number in offset / block..(end as u64).div_ceil(block) {
            if is_durable {
                self.dirty.remove(&number);
            } else {
                self.dirty.insert(number);
            }
        }
    }

    fn lose(&mut self, block: u64) {
        let start = (block * u64::from(BLOCK_BYTES)) as usize;
        let end = self.data.len().min(start + BLOCK_BYTES as usize);
        self.stable.resize(self.stable.len().max(end), 0xee);
        if start < end {
            self.data[start..end].copy_from_slice(&self.stable[start..end]);
        }
    }
}

impl Pending {
    fn file(&self) -> Option<FileId> {
        match &self.request {
            Request::Open { file, .. }
            | Request::Write { file, .. }
            | Request::Read { file, .. }
            | Request::Sync { file }
            | Request::Allocate { file, .. }
            | Request::Truncate { file, .. } => Some(*file),
            _ => None,
        }
    }

    fn slice(&self) -> Option<Slice> {
        match &self.request {
            Request::Write { bytes, .. } | Request::Read { bytes, .. } => Some(*bytes),
            _ => None,
        }
    }
}
