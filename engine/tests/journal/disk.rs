//! Simulated journal files: what was written, what of it is durable, and what is left when the
//! process is killed or the power goes.

use std::collections::{BTreeMap, BTreeSet};

use engine::buffer::{Memory, Slice};
use engine::journal::{FileName, JOURNAL_NAME, JournalFile};
use engine::limits::BLOCK_BYTES;
use engine::op::{Completion, Errno, FileId, Op, Output, Token};

use crate::rng::Rng;

/// The journal files of all cores.
#[derive(Debug)]
pub(crate) struct Disk {
    rng: Rng,
    weather: Weather,
    files: BTreeMap<FileName, File>,
    open: BTreeMap<(u16, FileId), Handle>,
    pending: Vec<Pending>,
    pub(crate) failure_count: u32,
    pub(crate) growth_count: u32,
    /// Headers that a journal wrote.
    pub(crate) move_count: u32,
    /// A failed sync has taken bytes that were written.
    pub(crate) has_lost: bool,
}

/// How well things go.
#[derive(Clone, Debug)]
pub(crate) struct Weather {
    /// Ops that may still fail.
    pub(crate) faults_left: u32,
    pub(crate) fault_percent: usize,
    pub(crate) errnos: &'static [Errno],
    pub(crate) short_percent: usize,
    /// No file can be made larger.
    pub(crate) is_full: bool,
}

/// What is left of the files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Image(pub(crate) BTreeMap<FileName, Vec<u8>>);

#[derive(Debug, Default)]
struct File {
    /// As the process sees it.
    cache: Vec<u8>,
    /// As the disk has it.
    durable: Vec<u8>,
    /// Blocks that differ.
    dirty: BTreeSet<usize>,
}

#[derive(Clone, Copy, Debug)]
struct Handle {
    name: FileName,
    dsync: bool,
}

#[derive(Debug)]
struct Pending {
    core: u16,
    token: Token,
    request: Request,
}

#[derive(Debug)]
enum Request {
    Open {
        file: FileId,
        handle: Handle,
    },
    Write {
        handle: Handle,
        at: usize,
        slice: Slice,
        bytes: Vec<u8>,
    },
    /// With the blocks that were dirty when it began.
    Sync {
        name: FileName,
        dirty: Vec<(usize, Vec<u8>)>,
        length: usize,
    },
    Allocate {
        name: FileName,
        length: usize,
    },
}

impl Disk {
    pub(crate) fn new(seed: u64, weather: Weather, image: Image) -> Self {
        let file =
            |bytes: Vec<u8>| File { cache: bytes.clone(), durable: bytes, dirty: BTreeSet::new() };
        Self {
            rng: Rng::new(seed),
            weather,
            files: image.0.into_iter().map(|it| (it.0, file(it.1))).collect(),
            open: BTreeMap::new(),
            pending: Vec::new(),
            failure_count: 0,
            growth_count: 0,
            move_count: 0,
            has_lost: false,
        }
    }

    pub(crate) fn weather(&self) -> Weather {
        self.weather.clone()
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }

    /// Space is there again, and nothing fails any more.
    pub(crate) fn clear_up(&mut self) {
        self.weather.faults_left = 0;
        self.weather.is_full = false;
    }

    /// As the server does at start: written, not synced.
    pub(crate) fn write(&mut self, name: FileName, at: usize, bytes: &[u8]) {
        self.files.entry(name).or_default().put(at, bytes, false);
    }

    pub(crate) fn make_at_least(&mut self, name: FileName, length: usize) -> u64 {
        let file = self.files.entry(name).or_default();
        file.cache.resize(file.cache.len().max(length), 0);
        file.cache.len() as u64
    }

    pub(crate) fn sync(&mut self, name: FileName) {
        let file = self.files.entry(name).or_default();
        file.durable.clone_from(&file.cache);
        file.dirty.clear();
    }

    pub(crate) fn start(&mut self, core: u16, token: Token, op: Op<()>, memory: &Memory) {
        let request = match op {
            Op::Open { file, path, how } => {
                assert!(!how.create && how.lock, "the server made the files");
                let name = path.strip_prefix(JOURNAL_NAME).unwrap().to_str().unwrap();
                let handle = Handle { name: FileName::parse(name).unwrap(), dsync: how.dsync };
                assert_eq!(handle.name.core, core, "a core keeps to its files");
                Request::Open { file, handle }
            }
            Op::Write { file, offset_bytes, bytes: slice } => {
                let handle = self.open[&(core, file)];
                self.check_write(core, handle, offset_bytes, slice);
                let bytes = memory.bytes(slice).to_vec();
                Request::Write { handle, at: offset_bytes as usize, slice, bytes }
            }
            Op::Sync { file } => {
                let name = self.open[&(core, file)].name;
                let it = &self.files[&name];
                let dirty = it.dirty.iter().map(|block| (*block, it.block(*block))).collect();
                Request::Sync { name, dirty, length: it.cache.len() }
            }
            Op::Allocate { file, offset_bytes, length_bytes } => {
                let name = self.open[&(core, file)].name;
                assert_eq!(offset_bytes as usize, self.files[&name].cache.len());
                Request::Allocate { name, length: (offset_bytes + length_bytes) as usize }
            }
            _ => panic!("not an op of a journal: {op:?}"),
        };
        let is_new = self.pending.iter().all(|it| (it.core, it.token) != (core, token));
        assert!(is_new, "a token names one op");
        self.pending.push(Pending { core, token, request });
    }

    /// Ends one op of those in flight, whichever.
    pub(crate) fn complete(&mut self, memory: impl Fn(u16, Slice) -> Vec<u8>) -> (u16, Completion) {
        let index = self.rng.below(self.pending.len());
        let Pending { core, token, request } = self.pending.swap_remove(index);
        if let Request::Write { slice, bytes, .. } = &request {
            assert!(memory(core, *slice) == *bytes, "bytes changed under a write");
        }
        (core, Completion { token, result: self.run(core, request) })
    }

    fn run(&mut self, core: u16, request: Request) -> Result<Output, Errno> {
        let is_open = matches!(request, Request::Open { .. });
        let fault = if is_open { None } else { self.fault() };
        match request {
            // The last writes of a killed process still run.
            Request::Open { .. } if self.rng.chance(20) => return Err(Errno::EAGAIN),
            Request::Open { file, handle } => {
                assert!(self.files.contains_key(&handle.name));
                self.open.insert((core, file), handle);
            }
            Request::Write { handle, at, bytes, .. } => {
                let file = self.files.get_mut(&handle.name).unwrap();
                if let Some(errno) = fault {
                    for (index, block) in bytes.chunks(BLOCK).enumerate() {
                        if self.rng.chance(50) {
                            file.put(at + index * BLOCK, block, false);
                        }
                    }
                    return Err(errno);
                }
                self.move_count += u32::from(at == 0 && bytes.starts_with(b"INCOMJNL"));
                let is_short = self.rng.chance(self.weather.short_percent);
                let count =
                    if is_short { self.rng.within(1..bytes.len() + 1) } else { bytes.len() };
                // What a part of a block was written for is written again.
                file.put(at, &bytes[..count & !(BLOCK - 1)], handle.dsync);
                return Ok(Output::Bytes(count as u32));
            }
            Request::Sync { name, dirty, length } => {
                let file = self.files.get_mut(&name).unwrap();
                file.durable.resize(file.durable.len().max(length), 0);
                for (block, content) in dirty {
                    let at = block * BLOCK;
                    let is_lost = fault.is_some() && self.rng.chance(50);
                    if !is_lost {
                        file.durable[at..at + BLOCK].copy_from_slice(&content);
                    }
                    if file.block(block) == content {
                        // The kernel has dropped what it could not write.
                        file.dirty.remove(&block);
                        let durable = file.durable[at..at + BLOCK].to_vec();
                        self.has_lost |= is_lost;
                        file.cache[at..at + BLOCK].copy_from_slice(&durable);
                    }
                }
                fault.map_or(Ok(()), Err)?;
            }
            Request::Allocate { .. } if self.weather.is_full => return Err(Errno::ENOSPC),
            Request::Allocate { name, length } => {
                fault.map_or(Ok(()), Err)?;
                self.growth_count += 1;
                self.files.get_mut(&name).unwrap().cache.resize(length, 0);
            }
        }
        Ok(Output::Done)
    }

    fn fault(&mut self) -> Option<Errno> {
        let has = self.weather.faults_left > 0 && self.rng.chance(self.weather.fault_percent);
        has.then(|| {
            self.weather.faults_left -= 1;
            let errno = self.rng.pick(self.weather.errnos);
            self.failure_count += u32::from(!errno.is_shortage());
            errno
        })
    }

    /// The process dies: what was written is there, and any part of what was in flight.
    pub(crate) fn killed(&mut self) -> Image {
        let percent = self.rng.pick(&[0, 50, 100]);
        let images = self.files.iter().map(|it| (*it.0, it.1.cache.clone()));
        let mut image = Image(images.collect());
        self.add_in_flight(&mut image, percent);
        image
    }

    /// The power goes: what is durable is there, and any other block or none of it.
    pub(crate) fn cut(&mut self) -> Image {
        let percent = self.rng.pick(&[0, 20, 50, 80, 100]);
        let mut image = Image::default();
        for (name, file) in &self.files {
            let mut bytes = file.durable.clone();
            if self.rng.chance(50) {
                bytes.resize(file.cache.len(), 0);
            }
            for block in &file.dirty {
                if self.rng.chance(percent) && (block + 1) * BLOCK <= bytes.len() {
                    bytes[block * BLOCK..][..BLOCK].copy_from_slice(&file.block(*block));
                }
            }
            image.0.insert(*name, bytes);
        }
        self.add_in_flight(&mut image, percent);
        image
    }

    fn add_in_flight(&mut self, image: &mut Image, percent: usize) {
        for it in &self.pending {
            let Request::Write { handle, at, bytes, .. } = &it.request else { continue };
            let file = image.0.get_mut(&handle.name).unwrap();
            for (index, block) in bytes.chunks(BLOCK).enumerate() {
                let at = at + index * BLOCK;
                if self.rng.chance(percent) && at + BLOCK <= file.len() {
                    file[at..at + BLOCK].copy_from_slice(block);
                }
            }
        }
    }

    /// Whole blocks, within the file, two at a time, never two on one place.
    fn check_write(&self, core: u16, handle: Handle, offset_bytes: u64, slice: Slice) {
        let numbers = [offset_bytes, u64::from(slice.start), u64::from(slice.length)];
        assert!(numbers.iter().all(|it| it % u64::from(BLOCK_BYTES) == 0));
        assert!(slice.length > 0);
        let at = offset_bytes as usize;
        let end = at + slice.length as usize;
        assert!(end <= self.files[&handle.name].cache.len(), "a write beyond the file");
        let mut count = 1;
        for it in self.pending.iter().filter(|it| it.core == core) {
            let Request::Write { handle: other, at: from, slice: other_slice, bytes } = &it.request
            else {
                continue;
            };
            count += 1;
            let is_apart = *from >= end || from + bytes.len() <= at;
            assert!(other.name != handle.name || is_apart, "two writes on one block");
            let (a, b) = (slice, other_slice);
            let is_apart = a.start + a.length <= b.start || b.start + b.length <= a.start;
            assert!(is_apart, "{a:?} overlaps {b:?}, which is in flight");
        }
        assert!(count <= 2, "two commits at a time");
    }
}

impl File {
    fn put(&mut self, at: usize, bytes: &[u8], is_durable: bool) {
        let end = at + bytes.len();
        self.cache.resize(self.cache.len().max(end), 0);
        self.cache[at..end].copy_from_slice(bytes);
        let blocks = at / BLOCK..end.div_ceil(BLOCK);
        if is_durable {
            self.durable.resize(self.durable.len().max(end), 0);
            self.durable[at..end].copy_from_slice(bytes);
            self.dirty.retain(|it| !blocks.contains(it));
        } else {
            self.dirty.extend(blocks);
        }
    }

    fn block(&self, block: usize) -> Vec<u8> {
        self.cache[block * BLOCK..][..BLOCK].to_vec()
    }
}

impl Image {
    pub(crate) fn files(&self) -> Vec<JournalFile<'_>> {
        self.0.iter().map(|it| JournalFile { name: *it.0, bytes: it.1 }).collect()
    }
}

const BLOCK: usize = BLOCK_BYTES as usize;
