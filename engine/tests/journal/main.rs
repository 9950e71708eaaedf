//! A journal against simulated files, by seed: kills and power cuts at any step, short and failing
//! writes, shortage of space, moves and growth, runs with another number of cores.
//!
//! `SEEDS=17 cargo test -p incoming-engine --test journal` runs one seed, `SEEDS=0..100000` many.

extern crate incoming_engine as engine;

mod damage;
mod disk;
#[path = "../store/rng.rs"]
mod rng;
mod world;

use std::cell::RefCell;
use std::time::{Duration, Instant};

use disk::{Disk, Image, Weather};
use engine::buffer::{Memory, Slice};
use engine::journal::{
    CommitSync, FILE_BYTES_MIN, FileName, Journal, JournalConfig, NewFile, REGION_BYTES, Recovery,
    Side, recover,
};
use engine::op::Errno;
use engine::record::TicketRecord;
use rng::{Rng, for_each_seed};
use world::{Promise, World};

#[test]
fn what_was_committed_is_there_whatever_happens() {
    let total = RefCell::new(Seen::default());
    for_each_seed(SEED_COUNT, |seed| {
        let seen = Sim::new(seed).run();
        total.borrow_mut().add(&seen);
    });
    let seen = total.into_inner();
    println!("{seen:?}");
    if std::env::var_os("SEEDS").is_none() {
        let counts = [seen.moves, seen.growths, seen.pauses, seen.failures, seen.cut_starts];
        assert!(counts.iter().all(|it| *it > 0), "each was meant to happen: {seen:?}");
    }
}

/// What the simulation has met: a promise is tested only where it is.
#[derive(Debug, Default)]
struct Seen {
    moves: u32,
    growths: u32,
    pauses: u32,
    failures: u32,
    cut_starts: u32,
    crashes: u32,
}

impl Seen {
    fn add(&mut self, other: &Self) {
        self.moves += other.moves;
        self.growths += other.growths;
        self.pauses += other.pauses;
        self.failures += other.failures;
        self.cut_starts += other.cut_starts;
        self.crashes += other.crashes;
    }
}

/// A server's storage, from one run to the next.
struct Sim {
    rng: Rng,
    now: Instant,
    sync: CommitSync,
    /// Strings of a ticket are shorter.
    text_bytes: usize,
    disk: Disk,
    world: World,
    core_count_max: usize,
    cores: Vec<Core>,
    seen: Seen,
}

struct Core {
    journal: Journal<()>,
    memory: Memory,
}

impl Sim {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let weather = Weather {
            faults_left: rng.pick(&[0, 0, 1, 2, 4]),
            fault_percent: rng.within(1..20),
            errnos: rng.pick::<&[Errno]>(&[
                &[Errno::EIO],
                &[Errno::ENOSPC],
                &[Errno::EIO, Errno::ENOSPC],
            ]),
            short_percent: rng.pick(&[0, 5, 40]),
            is_full: rng.chance(20),
        };
        Self {
            now: Instant::now(),
            sync: rng.pick(&[CommitSync::Dsync, CommitSync::Fdatasync, CommitSync::StatesOnly]),
            text_bytes: rng.pick(&[10, 2_000, 60_000]),
            disk: Disk::new(rng.next(), weather, Image::default()),
            world: World::default(),
            core_count_max: 3,
            cores: Vec::new(),
            seen: Seen::default(),
            rng,
        }
    }

    fn run(mut self) -> Seen {
        let mut image = Image::default();
        for _ in 0..self.rng.within(1..5) {
            self.start(&image);
            for _ in 0..self.rng.below(400) {
                self.step();
                if self.rng.chance(4) {
                    self.crash();
                }
            }
            if self.rng.chance(50) {
                self.stop();
            }
            image = self.crash();
            self.seen.growths += self.disk.growth_count;
            self.seen.moves += self.disk.move_count;
        }
        self.seen
    }

    /// What a run on one core leaves behind after so many steps in fair weather.
    fn calm(seed: u64, text_bytes: usize, steps: usize) -> (Image, World) {
        let mut sim = Self::new(seed);
        sim.disk.clear_up();
        sim.text_bytes = text_bytes;
        sim.core_count_max = 1;
        sim.sync = CommitSync::Dsync;
        sim.start(&Image::default());
        for _ in 0..steps {
            sim.step();
        }
        sim.stop();
        (sim.disk.killed(), sim.world)
    }

    /// What a server does before its cores run. It may be cut short, again and again.
    fn start(&mut self, image: &Image) {
        let before = recover(&image.files());
        let mut image = image.clone();
        loop {
            let recovery = recover(&image.files());
            assert_eq!(recovery.tickets, before.tickets, "a start changes nothing");
            assert_eq!(recovery.damage, []);
            let core_count = self.rng.within(1..self.core_count_max + 1) as u16;
            let weather = self.disk.weather();
            self.disk = Disk::new(self.rng.next(), weather, image);
            let steps_max = if self.rng.chance(50) { self.rng.below(20) } else { usize::MAX };
            if self.begin_run(&recovery, core_count, steps_max) {
                return;
            }
            self.seen.cut_starts += 1;
            image = if self.rng.chance(50) { self.disk.killed() } else { self.disk.cut() };
        }
    }

    /// False: it was cut short after so many steps.
    fn begin_run(&mut self, recovery: &Recovery, core_count: u16, steps_max: usize) -> bool {
        let mut steps_left = steps_max;
        let mut step = || {
            let is_left = steps_left > 0;
            steps_left = steps_left.saturating_sub(1);
            is_left
        };
        let mut files = Vec::new();
        for core in 0..core_count {
            let own = |it: &&TicketRecord| it.new.id.owner(core_count).0 == core;
            let tickets: Vec<_> = recovery.tickets.iter().filter(own).cloned().collect();
            let file = NewFile::new(
                core,
                core_count,
                recovery.run_next,
                self.sync,
                recovery.service_ms,
                &tickets,
            );
            let name = FileName { core, side: recovery.side_for(core) };
            let other = FileName { core, side: name.side.other() };
            let length = file.file_bytes_min() as usize;
            let own_bytes = self.disk.make_at_least(name, length);
            let other_bytes = self.disk.make_at_least(other, FILE_BYTES_MIN as usize);
            let capacity_bytes = match name.side {
                Side::A => [own_bytes, other_bytes],
                Side::B => [other_bytes, own_bytes],
            };
            for (index, block) in file.commits.chunks(100_000).enumerate() {
                if !step() {
                    return false;
                }
                self.disk.write(name, 4096 + index * 100_000, block);
            }
            if !step() {
                return false;
            }
            self.disk.sync(name);
            self.disk.sync(other);
            files.push((name, file, capacity_bytes, tickets));
        }
        for (name, file, ..) in &files {
            if !step() {
                return false;
            }
            self.disk.write(*name, 0, &file.header);
        }
        for (name, ..) in &files {
            if !step() {
                return false;
            }
            self.disk.sync(*name);
        }
        self.world = World::new(core_count, &recovery.tickets);
        self.cores.clear();
        for (name, file, capacity_bytes, tickets) in files {
            let config = JournalConfig {
                core: name.core,
                core_count,
                run: recovery.run_next,
                sync: self.sync,
                region: Slice { start: 8192, length: REGION_BYTES },
                start: file.start(name.side, capacity_bytes),
            };
            let memory = Memory::new(8192 + REGION_BYTES as usize).unwrap();
            self.cores.push(Core { journal: Journal::new(config, &tickets), memory });
        }
        true
    }

    fn step(&mut self) {
        match self.rng.below(100) {
            0..40 => self.complete(),
            40..65 => self.turn(),
            65..70 if self.world.tickets.len() < 40 => {
                let ticket = self.world.new_ticket(&mut self.rng, self.text_bytes);
                let core = &mut self.cores[usize::from(self.world.core_of(ticket.new.id))];
                if core.journal.has_room_for(self.now, ticket.encoded_bytes()) {
                    let position = core.journal.note_ticket(&ticket);
                    self.world.on_noted(ticket.new.id, position);
                } else {
                    self.world.tickets.remove(&ticket.new.id);
                }
            }
            70..80 => {
                let Some(id) = self.world.pick(&mut self.rng) else { return };
                let ticket = self.world.change(&mut self.rng, id);
                let core = usize::from(self.world.core_of(id));
                let position = self.cores[core].journal.note_ticket(&ticket);
                self.world.on_noted(id, position);
            }
            80..98 => {
                for _ in 0..self.rng.within(1..30) {
                    let Some(id) = self.world.pick(&mut self.rng) else { return };
                    self.world.advance(&mut self.rng, id);
                    if self.rng.chance(90) {
                        let core = usize::from(self.world.core_of(id));
                        self.cores[core].journal.note_offset(id);
                        self.world.on_offset_noted(id);
                    }
                }
            }
            _ => {
                let Some(id) = self.world.pick(&mut self.rng) else { return };
                let core = usize::from(self.world.core_of(id));
                let position = self.cores[core].journal.note_removed(id);
                self.world.remove(&mut self.rng, id);
                self.world.on_noted(id, position);
            }
        }
    }

    fn turn(&mut self) {
        for (number, core) in self.cores.iter_mut().enumerate() {
            if self.rng.chance(30) {
                continue;
            }
            while let Some((token, op)) = core.journal.poll_op(&mut core.memory, &self.world) {
                self.disk.start(number as u16, token, op, &core.memory);
            }
        }
        self.poll_events();
    }

    fn complete(&mut self) {
        if self.disk.is_idle() {
            for core in &mut self.cores {
                if let Some(at) = core.journal.poll_timeout() {
                    let is_shortage = at > self.now + Duration::from_millis(500);
                    self.seen.pauses += u32::from(is_shortage);
                    self.now = self.now.max(at);
                    core.journal.on_timeout(self.now);
                }
            }
            return;
        }
        let memory = |core: u16, slice| self.cores[usize::from(core)].memory.bytes(slice).to_vec();
        let (core, completion) = self.disk.complete(memory);
        self.cores[usize::from(core)].journal.on_completion(self.now, completion);
        self.poll_events();
    }

    fn poll_events(&mut self) {
        for (number, core) in self.cores.iter_mut().enumerate() {
            while let Some(event) = core.journal.poll_event() {
                let had_failed = self.world.has_failed();
                self.world.on_event(number as u16, event);
                if self.world.has_failed() && !had_failed {
                    assert!(self.disk.failure_count >= 2, "it gave up early");
                    self.seen.failures += 1;
                }
            }
        }
    }

    /// Looks at what would be left now.
    fn crash(&mut self) -> Image {
        self.seen.crashes += 1;
        let is_power_cut = self.rng.chance(60);
        let image = if is_power_cut { self.disk.cut() } else { self.disk.killed() };
        let is_weak = self.sync == CommitSync::StatesOnly && (is_power_cut || self.disk.has_lost);
        let promise = if is_weak { Promise::States } else { Promise::Everything };
        let recovery = recover(&image.files());
        self.world.check(&recovery, promise);
        image
    }

    /// Nothing new comes; everything noted is committed in the end.
    fn stop(&mut self) {
        self.disk.clear_up();
        for _ in 0..10_000 {
            self.turn();
            if self.cores.iter().all(|it| it.journal.is_quiet()) {
                if !self.world.has_failed() {
                    self.world.assert_all_reported();
                }
                return;
            }
            self.complete();
        }
        panic!("never quiet: {:?}", self.world.committed);
    }
}

const SEED_COUNT: u64 = 400;
