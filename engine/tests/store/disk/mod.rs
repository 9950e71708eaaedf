//! A simulated disk: it keeps what was written in a page cache and on a medium, completes ops in
//! any order, writes and reads less than asked, fails, fills up, loses its power, and holds the
//! machines to the contract of their ops.
//!
//! Reading order: this file (what a machine asks for), `run` (what becomes of it), `inode` and
//! `names` (what there is, and what of it is safe), `crash` (kill and power cut), `contract` (what
//! a machine may not do).

mod contract;
mod crash;
mod inode;
mod names;
mod run;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use engine::buffer::{Memory, Slice};
use engine::op::{Completion, CoreId, Errno, FileId, Op, OpenHow, StorageHealth, Token};

use crate::rng::Rng;
use crash::Orphan;
use inode::{Dirty, Inode};
use names::Names;

/// The files of one server, whose cores share it.
#[derive(Debug)]
pub(crate) struct Disk {
    rng: Rng,
    pub(crate) weather: Weather,
    names: Names,
    inodes: Vec<Inode>,
    open: BTreeMap<(CoreId, FileId), Handle>,
    pending: Vec<Pending>,
    /// Writes of a killed process that the kernel still has.
    orphans: Vec<Orphan>,
    /// What the files of these names are meant to hold.
    expected: BTreeMap<String, &'static [u8]>,
    /// Files of which a failed sync, or a power cut, may have taken bytes that were written.
    lost: BTreeSet<String>,
    /// Files whose removal was asked for.
    removals: Vec<PathBuf>,
    /// Counts the starts of the machine.
    boot: u32,
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
    /// Ops that take so long that many others overtake them.
    pub(crate) slow_percent: usize,
    pub(crate) can_allocate: bool,
    /// After a power cut the names and lengths of one moment are there, as on a file system with a
    /// journal; otherwise whatever POSIX allows.
    pub(crate) is_ordered: bool,
    /// No space is left, for now.
    pub(crate) is_full: bool,
    pub(crate) health: StorageHealth,
}

impl Weather {
    /// As `rng` has it; without faults where it is fair.
    pub(crate) fn drawn(
        rng: &mut Rng,
        is_fair: bool,
        faults: Range<usize>,
        fault_percent: Range<usize>,
    ) -> Self {
        Self {
            faults_left: if is_fair { 0 } else { rng.within(faults) as u32 },
            fault_percent: rng.within(fault_percent),
            short_percent: rng.pick(&[0, 5, 40]),
            slow_percent: rng.pick(&[0, 0, 10]),
            can_allocate: rng.chance(80),
            is_ordered: rng.chance(50),
            is_full: false,
            health: StorageHealth::Good,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Handle {
    inode: usize,
    direct: bool,
    dsync: bool,
    lock: bool,
}

#[derive(Debug)]
struct Pending {
    core: CoreId,
    token: Token,
    request: Request,
    begun_at: u64,
    is_slow: bool,
}

#[derive(Debug)]
enum Request {
    Open { file: FileId, path: PathBuf, how: OpenHow },
    Write { handle: Handle, file: FileId, offset: u64, bytes: Slice, snapshot: Vec<u8> },
    Read { handle: Handle, file: FileId, offset: u64, bytes: Slice, snapshot: Vec<u8> },
    Sync { handle: Handle, file: FileId, dirty: Dirty },
    Allocate { handle: Handle, file: FileId, offset: u64, length: u64 },
    Truncate { handle: Handle, file: FileId, length: u64 },
    SetOwner { path: PathBuf },
    Rename { from: PathBuf, to: PathBuf },
    Remove { path: PathBuf },
    SyncDirectory { path: PathBuf },
    CheckDirectory,
    CheckStorage,
}

impl Disk {
    pub(crate) fn new(seed: u64, weather: Weather) -> Self {
        Self {
            rng: Rng::new(seed),
            weather,
            names: Names::default(),
            inodes: Vec::new(),
            open: BTreeMap::new(),
            pending: Vec::new(),
            orphans: Vec::new(),
            expected: BTreeMap::new(),
            lost: BTreeSet::new(),
            removals: Vec::new(),
            boot: 0,
            clock: 0,
            failed_count: 0,
            failed_removal_count: 0,
        }
    }

    /// Every write to the file of this name is compared with `bytes`.
    pub(crate) fn expect(&mut self, name: String, bytes: &'static [u8]) {
        self.expected.insert(name, bytes);
    }

    pub(crate) fn is_idle(&self, core: CoreId) -> bool {
        self.pending.iter().all(|it| it.core != core)
    }

    pub(crate) fn open_files(&self, core: CoreId) -> impl Iterator<Item = FileId> {
        self.open.keys().filter(move |it| it.0 == core).map(|it| it.1)
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed_count > 0
    }

    pub(crate) fn has_failed_removals(&self) -> bool {
        self.failed_removal_count > 0
    }

    /// What a read gives.
    pub(crate) fn data(&self, path: &Path) -> Option<&[u8]> {
        self.names.get(path).map(|it| self.inodes[it].cached.as_slice())
    }

    /// What a power cut leaves of it at the least, if it leaves its name.
    pub(crate) fn durable(&self, path: &Path) -> Option<&[u8]> {
        let inode = self.names.get(path).filter(|it| self.names.survives(*it));
        inode.map(|it| self.inodes[it].durable.as_slice())
    }

    /// The files of a directory.
    pub(crate) fn names(&self, directory: &Path) -> impl Iterator<Item = &Path> {
        self.names.list(directory)
    }

    /// Written bytes of the file of this name may be gone: a sync of it has failed at some time.
    pub(crate) fn has_lost(&self, name: &str) -> bool {
        self.lost.contains(name)
    }

    /// Whatever a power cut leaves, the file is there and has `bytes` at `offset`.
    pub(crate) fn promises(&self, path: &Path, offset: usize, bytes: &[u8]) -> bool {
        let inode = self.names.get(path);
        inode.is_some_and(|it| self.names.survives(it) && self.inodes[it].promises(offset, bytes))
    }

    /// The file's bytes, its length and its name are as safe as the disk.
    pub(crate) fn is_durable(&self, path: &Path) -> bool {
        let inode = self.names.get(path);
        inode.is_some_and(|it| self.names.is_durable(it) && self.inodes[it].is_durable())
    }

    /// Which start of the machine this is.
    pub(crate) fn boot(&self) -> u32 {
        self.boot
    }

    /// Begins an op on a file.
    pub(crate) fn start<M: std::fmt::Debug>(
        &mut self,
        core: CoreId,
        token: Token,
        op: Op<M>,
        memory: &Memory,
    ) {
        self.clock += 1;
        let handle = |file| {
            *self.open.get(&(core, file)).unwrap_or_else(|| panic!("{file:?} is open: {token:?}"))
        };
        let request = match op {
            Op::Open { file, path, how } => {
                assert!(!self.open.contains_key(&(core, file)), "{file:?} is open already");
                Request::Open { file, path, how }
            }
            Op::Write { file, offset_bytes: offset, bytes } => {
                let handle = handle(file);
                self.check_transfer(core, handle, offset, bytes);
                self.check_write(handle, offset, memory.bytes(bytes));
                let snapshot = memory.bytes(bytes).to_vec();
                Request::Write { handle, file, offset, bytes, snapshot }
            }
            Op::Read { file, offset_bytes: offset, bytes } => {
                let handle = handle(file);
                self.check_transfer(core, handle, offset, bytes);
                let snapshot = memory.bytes(bytes).to_vec();
                Request::Read { handle, file, offset, bytes, snapshot }
            }
            Op::Sync { file } => {
                let handle = handle(file);
                Request::Sync { handle, file, dirty: self.inodes[handle.inode].dirty() }
            }
            Op::Allocate { file, offset_bytes: offset, length_bytes: length } => {
                assert!(length > 0);
                Request::Allocate { handle: handle(file), file, offset, length }
            }
            Op::Truncate { file, length_bytes: length } => {
                Request::Truncate { handle: handle(file), file, length }
            }
            Op::SetOwner { path, .. } => Request::SetOwner { path },
            Op::Rename { from, to } => {
                self.check_rename(&from, &to);
                Request::Rename { from, to }
            }
            Op::Remove { path } => {
                self.removals.push(path.clone());
                Request::Remove { path }
            }
            Op::SyncDirectory { path } => Request::SyncDirectory { path },
            Op::CheckDirectory { .. } => Request::CheckDirectory,
            Op::CheckStorage => Request::CheckStorage,
            Op::CloseFile { file } => {
                assert_eq!(token, Token::None);
                let is_used = |it: &Pending| it.core == core && it.file() == Some(file);
                assert!(!self.pending.iter().any(is_used), "op in flight");
                self.open.remove(&(core, file)).expect("closed once");
                return;
            }
            _ => panic!("not an op on a file: {op:?}"),
        };
        assert_ne!(token, Token::None);
        let is_same = |it: &Pending| it.core == core && it.token == token;
        assert!(!self.pending.iter().any(is_same), "a token names one op");
        let is_slow = self.rng.chance(self.weather.slow_percent);
        self.pending.push(Pending { core, token, request, begun_at: self.clock, is_slow });
    }

    /// Ends one op of those a core has in flight, whichever; or none, if all of them are slow.
    pub(crate) fn complete(&mut self, core: CoreId, memory: &mut Memory) -> Option<Completion> {
        self.clock += 1;
        self.stir();
        let mine = self.pending.iter().enumerate().filter(|it| it.1.core == core);
        let mine: Vec<usize> = mine.map(|it| it.0).collect();
        if mine.is_empty() {
            return None;
        }
        let index = self.rng.pick(&mine);
        if self.pending[index].is_slow && !self.rng.chance(SLOW_ENDS_PERCENT) {
            return None;
        }
        let Pending { token, request, begun_at, .. } = self.pending.swap_remove(index);
        let result = self.run(core, request, begun_at, Some(memory));
        Some(Completion { token, result })
    }

    /// Somebody else takes a file away.
    pub(crate) fn take_away(&mut self, path: &Path) {
        self.clock += 1;
        self.names.remove(self.clock, path);
    }

    /// The files whose removal was asked for since the last call.
    pub(crate) fn take_removals(&mut self) -> Vec<PathBuf> {
        std::mem::take(&mut self.removals)
    }

    /// What the kernel does on its own account.
    fn stir(&mut self) {
        if !self.orphans.is_empty() && self.rng.below(ORPHAN_ENDS_EVERY) == 0 {
            self.land_orphan();
        }
        if !self.inodes.is_empty() && self.rng.chance(WRITE_BACK_PERCENT) {
            let inode = self.rng.below(self.inodes.len());
            self.inodes[inode].write_back_some(self.weather.is_ordered, &mut self.rng);
        }
    }

    /// Whether an op fails now, and how.
    fn fault(&mut self) -> Option<Errno> {
        let has = self.weather.faults_left > 0 && self.rng.chance(self.weather.fault_percent);
        has.then(|| {
            self.weather.faults_left -= 1;
            self.failed_count += 1;
            self.rng.pick(&[Errno::EIO, Errno::ENOSPC])
        })
    }
}

impl Pending {
    fn file(&self) -> Option<FileId> {
        match &self.request {
            Request::Open { file, .. }
            | Request::Write { file, .. }
            | Request::Read { file, .. }
            | Request::Sync { file, .. }
            | Request::Allocate { file, .. }
            | Request::Truncate { file, .. } => Some(*file),
            _ => None,
        }
    }
}

const SLOW_ENDS_PERCENT: usize = 3;
/// A disk that is slow when a process dies is slow for a while.
const ORPHAN_ENDS_EVERY: usize = 500;
const WRITE_BACK_PERCENT: usize = 3;
