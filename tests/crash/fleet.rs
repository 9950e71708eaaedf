//! Several uploads at the same time, each living by its seed: sending, taken over, broken off,
//! cancelled, finished and replaced by the next, over any number of crashes.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::browser::End;
use crate::content::{Content, Random};
use crate::server::{PATIENCE, Server, Setup};
use crate::upload::{Session, Upload};
use crate::world::{Answers, World};

pub struct Fleet {
    pub world: Arc<World>,
    slots: Vec<Slot>,
    foreign: Vec<(PathBuf, Vec<u8>)>,
    keeps_all: bool,
}

impl Fleet {
    pub fn new(world: Arc<World>, count: u64, seed: u64) -> Self {
        let slots = (0..count).map(|it| Slot::new(seed, it)).collect();
        Self { world, slots, foreign: Vec::new(), keeps_all: false }
    }

    /// Puts files into the storage directory that are none of the server's business.
    pub fn plant_foreign_files(&mut self) {
        let names = ["notes.txt", "parts/notes.txt", "parts/x.part", "arrived/report.pdf"];
        for (index, name) in names.iter().enumerate() {
            let path = self.world.storage_dir.join(name);
            let bytes = Content::new(index as u64, 1000 * index as u64).piece(0, u64::MAX);
            let made = fs::create_dir_all(path.parent().expect("a directory"))
                .and_then(|()| fs::write(&path, &bytes))
                .and_then(|()| fs::File::open(&path)?.sync_all())
                .and_then(|()| fs::File::open(path.parent().expect("a directory"))?.sync_all());
            made.expect("plant a foreign file");
            self.foreign.push((path, bytes));
        }
    }

    /// Starts a server, lets every upload check what it finds, lets them go on for a while, and
    /// has the server crash.
    pub fn run(&mut self, setup: &Setup, time: Duration, crash: impl FnOnce(&mut Server)) {
        let world = Arc::clone(&self.world);
        let Some(mut server) = self.start(setup) else { return };
        let moment = Moment {
            world: &world,
            address: server.address,
            checked: AtomicUsize::new(0),
            crashed: AtomicBool::new(false),
        };
        let count = self.slots.len();
        thread::scope(|scope| {
            for slot in &mut self.slots {
                scope.spawn(|| slot.live(&moment));
            }
            let deadline = Instant::now() + PATIENCE;
            while moment.checked.load(Ordering::Relaxed) < count {
                if Instant::now() > deadline {
                    world.find(|it| it.stuck.push("no answer after the start".to_owned()));
                    break;
                }
                thread::sleep(Duration::from_millis(1));
            }
            thread::sleep(time);
            crash(&mut server);
            moment.crashed.store(true, Ordering::Relaxed);
            server.kill();
        });
        self.look_at_log(&server);
    }

    /// Starts a server and brings every upload to its end.
    pub fn finish(&mut self, setup: &Setup) {
        let world = Arc::clone(&self.world);
        let Some(server) = self.start(setup) else { return };
        thread::scope(|scope| {
            for slot in &mut self.slots {
                scope.spawn(|| slot.finish(&world, server.address));
            }
        });
        world.take_files();
        self.look_at_log(&server);
    }

    /// Remembers every upload, also those that are over for long, and leaves files where they are.
    pub fn keep_all(&mut self) {
        self.keeps_all = true;
        for slot in &mut self.slots {
            slot.all_over = Some(Vec::new());
        }
    }

    /// All uploads, if they were kept.
    pub fn uploads(self) -> BTreeMap<String, Upload> {
        let slots = self.slots.into_iter();
        let all = slots.flat_map(|it| it.all_over.into_iter().flatten().chain(it.upload));
        all.map(|it| (it.id.clone(), it)).collect()
    }

    fn start(&self, setup: &Setup) -> Option<Server> {
        self.check_foreign_files();
        if !self.keeps_all {
            self.world.take_files();
        }
        let started = Server::start(setup, &self.world.storage_dir, &self.world.log_path());
        match started {
            Ok(server) => Some(server),
            Err(error) => {
                self.world.find(|it| it.stuck.push(error));
                None
            }
        }
    }

    fn check_foreign_files(&self) {
        for (path, bytes) in &self.foreign {
            if fs::read(path).ok().as_ref() != Some(bytes) {
                let what = format!("a foreign file: {}", path.display());
                self.world.find(|it| it.lost.push(what));
            }
        }
    }

    fn look_at_log(&self, server: &Server) {
        let log = server.log();
        if log.contains("panicked") {
            self.world.find(|it| it.stuck.push(log));
        }
    }
}

/// One run of the server, from its start to its crash.
struct Moment<'w> {
    world: &'w World,
    address: SocketAddr,
    /// How many uploads have been checked since the start.
    checked: AtomicUsize,
    crashed: AtomicBool,
}

/// One upload after the other.
struct Slot {
    random: Random,
    index: u64,
    upload: Option<Upload>,
    /// The last one that is over: it must stay so.
    over: Option<Upload>,
    /// All of them, for those who want to know.
    all_over: Option<Vec<Upload>>,
}

impl Slot {
    fn new(seed: u64, index: u64) -> Self {
        let random = Random(seed.wrapping_mul(31).wrapping_add(index));
        Self { random, index, upload: None, over: None, all_over: None }
    }

    fn live(&mut self, moment: &Moment<'_>) {
        let mut ends = self.check(moment.world, moment.address).err();
        moment.checked.fetch_add(1, Ordering::Relaxed);
        while !moment.crashed.load(Ordering::Relaxed) {
            if let Some(end) = ends.take() {
                self.judge(end, moment);
                // The crash is a moment ahead, or the server wants to be left alone for a while.
                thread::sleep(Duration::from_millis(2));
            }
            ends = self.session(moment.world, moment.address, false).err();
        }
    }

    fn finish(&mut self, world: &World, address: SocketAddr) {
        let _ = self.check(world, address);
        let deadline = Instant::now() + PATIENCE;
        while self.upload.is_some() {
            let end = self.session(world, address, true);
            if Instant::now() > deadline {
                let id = self.upload.as_ref().map(|it| it.id.clone());
                world.find(|it| it.stuck.push(format!("{id:?} does not end: {end:?}")));
                return;
            }
        }
        let _ = self.check(world, address);
    }

    /// What was promised before the start holds.
    fn check(&mut self, world: &World, address: SocketAddr) -> Result<(), End> {
        if let Some(over) = &self.over {
            over.check_over(world, address)?;
        }
        if let Some(upload) = &mut self.upload {
            let opened = Session::open(world, address, upload).map(drop);
            self.put_aside(&opened);
            return opened;
        }
        Ok(())
    }

    /// A part of an upload's life, or all of the rest.
    fn session(&mut self, world: &World, address: SocketAddr, to_the_end: bool) -> Result<(), End> {
        if self.upload.is_none() {
            self.upload = Some(self.issue(world, address).ok_or(End::Lost)?);
        }
        let done = self.session_of_upload(world, address, to_the_end);
        self.put_aside(&done);
        done
    }

    fn session_of_upload(
        &mut self,
        world: &World,
        address: SocketAddr,
        to_the_end: bool,
    ) -> Result<(), End> {
        let upload = self.upload.as_mut().expect("an upload");
        let mut session = Session::open(world, address, upload)?;
        if to_the_end {
            return session.finish(world, address, upload);
        }
        while !session.is_all_sent(upload) {
            session.step(world, upload)?;
            match self.random.below(240) {
                0..4 => session.all_acknowledgements(world, upload)?,
                4..7 => {
                    // The older connection still has chunks in flight.
                    let newer = Session::open(world, address, upload)?;
                    world.find(|it| it.taken_over += 1);
                    session = newer;
                }
                7 | 8 => {
                    session.reset();
                    return Ok(());
                }
                9 => return Ok(()),
                10 if self.index.is_multiple_of(2) => {
                    return session.cancel(world, address, upload);
                }
                11 if self.index.is_multiple_of(2) => return upload.cancel_by_app(world, address),
                _ => {}
            }
        }
        session.all_acknowledgements(world, upload)?;
        session.all_done(world, address, upload)
    }

    /// An upload that is over makes room for the next.
    fn put_aside(&mut self, done: &Result<(), End>) {
        let gone = matches!(done, Err(End::Refused(300..=302, _)));
        if gone || self.upload.as_ref().is_some_and(Upload::is_over) {
            let over = self.upload.take().filter(Upload::is_over);
            if let Some(all) = &mut self.all_over {
                all.extend(over.clone());
            }
            self.over = over;
        }
    }

    fn issue(&mut self, world: &World, address: SocketAddr) -> Option<Upload> {
        let random = &mut self.random;
        // Small chunks make small files, so that all kinds are under way at the same time.
        let (chunk_bytes, length_max) = match (self.index + random.below(2)) % 6 {
            0 => (1_021, 150_000),
            1 => (4_096, 400_000),
            2 => (37_777, 1_500_000),
            3 => (250_000, 4_000_000),
            4 => (512 * 1024, 6_000_000),
            _ => (1024 * 1024, 10_000_000),
        };
        let length = match random.below(16) {
            0 => random.below(3),
            _ => 1 + random.below(length_max),
        };
        let content = Content::new(random.below(u64::MAX), length);
        let answers = match random.below(8) {
            0 => Answers::Wait,
            1 => Answers::FailFirst,
            _ => Answers::Done,
        };
        let removed = random.below(2) == 0;
        Upload::issue(world, address, content, chunk_bytes, removed, answers)
    }

    /// What may happen before a crash, and what may not.
    fn judge(&mut self, end: End, moment: &Moment<'_>) {
        let expected = match &end {
            End::Lost => true,
            // Too many take-overs, or taken over.
            End::Closed(code) => matches!(code, Some(1013 | 4001)),
            End::Refused(code, _) => matches!(code, 300..=302),
            End::Silent | End::Unexpected(_) => false,
        };
        if !expected && !moment.crashed.load(Ordering::Relaxed) {
            let id = self.upload.as_ref().map(|it| it.id.clone());
            moment.world.find(|it| it.stuck.push(format!("{id:?}: {end:?}")));
        }
    }
}
