//! The simulated disk itself: what it keeps, what it may lose, and when it says no.

use std::collections::BTreeSet;
use std::path::Path;

use engine::buffer::{Memory, Slice};
use engine::op::{CoreId, Errno, FileId, FileOp, Op, OpenHow, Output, StorageHealth, Token};

use crate::disk::{Disk, Weather};
use crate::rng::Rng;

struct Machine {
    disk: Disk,
    memory: Memory,
}

impl Machine {
    fn new(seed: u64, is_ordered: bool) -> Self {
        let weather = Weather {
            faults_left: 0,
            fault_percent: 100,
            short_percent: 0,
            slow_percent: 0,
            can_allocate: true,
            is_ordered,
            is_full: false,
            health: StorageHealth::Good,
        };
        let mut disk = Disk::new(seed, weather);
        disk.expect("name".into(), OLD);
        Self { disk, memory: Memory::new(1 << 20).unwrap() }
    }

    fn start(&mut self, op: Op<()>) {
        self.disk.start(CORE, TOKEN, op, &self.memory);
    }

    fn end(&mut self) -> Result<Output, Errno> {
        loop {
            if let Some(completion) = self.disk.complete(CORE, &mut self.memory) {
                return completion.result;
            }
        }
    }

    fn run(&mut self, op: Op<()>) -> Result<Output, Errno> {
        self.start(op);
        self.end()
    }

    fn open(&mut self, how: OpenHow) -> Result<Output, Errno> {
        self.run(Op::Open { file: FILE, path: PATH.into(), how })
    }

    fn write(&mut self, bytes: &[u8]) -> Op<()> {
        let slice = Slice { start: 0, length: bytes.len() as u32 };
        self.memory.bytes_mut(slice).copy_from_slice(bytes);
        Op::Write { file: FILE, offset_bytes: 0, bytes: slice }
    }

    /// The file with the old bytes is as safe as can be.
    fn with_old(seed: u64, is_ordered: bool) -> Self {
        let mut it = Self::new(seed, is_ordered);
        it.open(CREATE).unwrap();
        let write = it.write(OLD);
        it.run(write).unwrap();
        it.run(Op::Sync { file: FILE }).unwrap();
        it.run(Op::SyncDirectory { path: "parts".into() }).unwrap();
        assert!(it.disk.is_durable(PATH.as_ref()));
        it
    }

    fn data(&self) -> Option<&[u8]> {
        self.disk.data(PATH.as_ref())
    }
}

#[test]
fn a_power_cut_takes_what_was_not_synced() {
    for is_ordered in [false, true] {
        let mut seen = BTreeSet::new();
        for seed in 0..300 {
            let mut it = Machine::with_old(seed, is_ordered);
            it.disk.expect("name".into(), NEW);
            let write = it.write(NEW);
            it.run(write).unwrap();
            assert_eq!(it.data(), Some(NEW));
            assert_eq!(it.disk.names("parts".as_ref()).collect::<Vec<_>>(), [Path::new(PATH)]);
            assert!(!it.disk.promises(PATH.as_ref(), 0, NEW));
            assert_eq!(it.disk.boot(), 0);
            it.disk.power_cut();
            assert_eq!(it.disk.boot(), 1);
            let left = it.data().unwrap();
            assert!(left.iter().all(|it| *it == 1 || *it == 2));
            seen.insert((left[0], left[600], left[4095]));
        }
        assert!(seen.len() > 4, "old, new, and torn between sectors: {seen:?}");
    }
}

#[test]
fn a_power_cut_leaves_what_was_synced() {
    for seed in 0..100 {
        let mut it = Machine::with_old(seed, seed % 2 == 0);
        assert!(it.disk.promises(PATH.as_ref(), 0, OLD));
        it.disk.power_cut();
        assert_eq!(it.data(), Some(OLD));

        it.disk.expect("name".into(), NEW);
        it.open(OpenHow { dsync: true, ..OpenHow::default() }).unwrap();
        let write = it.write(NEW);
        it.run(write).unwrap();
        it.disk.power_cut();
        assert_eq!(it.data(), Some(NEW), "it went through the cache");
        assert_eq!(it.disk.durable(PATH.as_ref()), Some(NEW));
    }
}

#[test]
fn a_name_is_as_safe_as_its_directory() {
    for is_ordered in [false, true] {
        let mut seen = BTreeSet::new();
        for seed in 0..100 {
            let mut it = Machine::with_old(seed, is_ordered);
            it.run(Op::Rename { from: PATH.into(), to: "arrived/name".into() }).unwrap();
            it.run(Op::SyncDirectory { path: "parts".into() }).unwrap();
            let arrived: &Path = "arrived/name".as_ref();
            assert!(!it.disk.is_durable(arrived), "its new directory was not synced");
            assert!(it.disk.promises(arrived, 0, OLD), "it is there, under whatever name");
            it.disk.power_cut();
            assert!(it.data().is_some() != it.disk.data(arrived).is_some());
            seen.insert(it.data().is_some());
        }
        // A file system with a journal commits both halves with either directory.
        assert_eq!(seen.len(), if is_ordered { 1 } else { 2 });
    }
}

#[test]
fn a_failed_sync_loses_bytes_and_the_next_one_says_nothing() {
    let mut lost_count = 0;
    for seed in 0..100 {
        let mut it = Machine::with_old(seed, false);
        it.disk.expect("name".into(), NEW);
        let write = it.write(NEW);
        it.run(write).unwrap();
        it.disk.weather.faults_left = 1;
        assert!(it.run(Op::Sync { file: FILE }).is_err());
        assert_eq!(it.run(Op::Sync { file: FILE }), Ok(Output::Done));
        it.disk.power_cut();
        lost_count += usize::from(it.data() != Some(NEW));
    }
    assert!((20..95).contains(&lost_count), "{lost_count} of 100");
}

#[test]
fn a_killed_processs_write_lands_later_unless_the_lock_is_waited_for() {
    let mut it = Machine::with_old(1, false);
    it.disk.kill();
    assert_eq!(it.data(), Some(OLD), "the page cache survives");

    let lock = OpenHow { lock: true, ..OpenHow::default() };
    it.open(lock).unwrap();
    it.disk.expect("name".into(), NEW);
    let write = it.write(NEW);
    it.start(write);
    it.disk.kill();
    assert_eq!(it.open(lock), Err(Errno::EAGAIN));
    assert!(it.disk.land_orphan());
    assert!(!it.disk.land_orphan());
    assert_eq!(it.data(), Some(NEW));
    it.open(lock).unwrap();
}

#[test]
#[should_panic = "a killed process's write may land on this one"]
fn nobody_writes_before_the_dead_are_done() {
    let mut it = Machine::with_old(1, false);
    let write = it.write(OLD);
    it.start(write);
    it.disk.kill();
    it.open(OpenHow::default()).unwrap();
    let write = it.write(OLD);
    it.start(write);
}

#[test]
fn a_full_disk_takes_no_new_bytes() {
    let mut it = Machine::with_old(1, false);
    it.disk.weather.is_full = true;
    let write = it.write(OLD);
    assert_eq!(it.run(write), Ok(Output::Bytes(4096)), "where bytes were there is room");
    let allocate = Op::Allocate { file: FILE, offset_bytes: 0, length_bytes: 8192 };
    assert_eq!(it.run(allocate), Err(Errno::ENOSPC));
    it.disk.weather.is_full = false;
    it.disk.weather.health = StorageHealth::ReadOnly;
    let write = it.write(OLD);
    assert!(it.run(write).is_err() && it.disk.has_failed());
    it.run(Op::Remove { path: PATH.into() }).unwrap_err();
    it.disk.take_away(PATH.as_ref());
    assert_eq!(it.data(), None, "others need not ask");
    assert_eq!(it.disk.take_removals(), [Path::new(PATH)]);
}

#[test]
fn the_same_seed_gives_the_same_disk() {
    let left = |seed| {
        let mut it = Machine::with_old(seed, false);
        it.disk.expect("name".into(), NEW);
        let write = it.write(NEW);
        it.run(write).unwrap();
        it.disk.power_cut();
        it.data().unwrap().to_vec()
    };
    let seed = Rng::new(7).next();
    assert_eq!(left(seed), left(seed));
}

const CREATE: OpenHow = OpenHow { create: true, direct: false, dsync: false, lock: false };
const CORE: CoreId = CoreId(0);
const FILE: FileId = FileId(3);
const TOKEN: Token = Token::File { slot: 0, generation: 0, what: FileOp::Step };
const PATH: &str = "parts/name";
const OLD: &[u8] = &[1; 4096];
const NEW: &[u8] = &[2; 4096];
