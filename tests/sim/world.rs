//! Two cores, the control thread, and everybody who talks to them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, UNIX_EPOCH};

use engine::durability::Durability;
use engine::op::{Address, CoreId, Machine};
use engine::ticket::TicketId;
use incoming::mail::Mail;
use incoming::worker::{Worker, WorkerConfig};

use crate::browser::Link;
use crate::core::{Core, Outbox, Sent, core_index};
use crate::disk::{Disk, Weather};
use crate::net::{Pipe, PipeId};
use crate::panic_count;
use crate::rng::Rng;
use crate::upload::{CORE_COUNT, End, Plan, STORAGE_DIR, Upload};
use crate::webapp::{Call, CallKind, Told, on_response};

pub(crate) struct World {
    rng: Rng,
    now: Instant,
    cores: Vec<Core>,
    pipes: Vec<Pipe>,
    uploads: Vec<Upload>,
    links: Vec<Link>,
    calls: Vec<Call>,
    told: Vec<Told>,
    /// Restlessness of the browsers, per mille and step.
    churn: usize,
    loads: Arc<[AtomicU32]>,
    /// The server is told to stop in the middle of everything.
    stops_at: Option<usize>,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let now = Instant::now();
        let loads: Arc<[AtomicU32]> = (0..CORE_COUNT).map(|_| AtomicU32::new(0)).collect();
        let is_fair = rng.chance(50);
        let (direct, staging_bytes) = (rng.chance(70), rng.pick(&[64, 128, 320, 1024]) << 10);
        let idle_timeout_s = if rng.chance(10) { 30 } else { 12 * 3600 };
        let connections_max = rng.pick(&[3, 100]);
        let cores = (0..CORE_COUNT).map(|core| {
            let mut ids = Rng::new(rng.next());
            let config = WorkerConfig {
                core: CoreId(core),
                core_count: CORE_COUNT,
                storage_dir: STORAGE_DIR.into(),
                direct,
                durability: Durability::Written,
                staging_bytes,
                connections_max,
                tickets_max: 1000,
                idle_timeout: Duration::from_secs(idle_timeout_s),
                finish_timeout: Duration::from_secs(600),
                backend_behind_proxy: false,
                library_modified: UNIX_EPOCH,
                loads: loads.clone(),
                draw_id: Box::new(move || {
                    TicketId(u128::from(ids.next()) << 64 | u128::from(ids.next()))
                }),
            };
            let weather = Weather {
                faults_left: if is_fair { 0 } else { rng.below(6) as u32 },
                fault_percent: rng.within(1..10),
                short_percent: rng.pick(&[0, 5, 40]),
                can_allocate: rng.chance(80),
            };
            let worker = Worker::new(now, config).unwrap();
            let mut it = Core::new(worker, Disk::new(rng.next(), weather), SENDERS);
            it.accept_faults_left = if is_fair { 0 } else { 3 };
            it
        });
        let cores: Vec<Core> = cores.collect();
        let churn = rng.pick(&[0, 1, 5, 20]);
        let count = rng.within(1..9);
        let length_max = rng.pick(&[1, 5_000, 70_000, 300_000, 2_000_000]).min(4_000_000 / count);
        let uploads = (0..count).map(|_| {
            let may_time_out = idle_timeout_s < 3600;
            Upload { may_time_out, may_pipeline: churn == 0, ..Upload::new(&mut rng, length_max) }
        });
        let uploads = uploads.collect();
        let stops_at = rng.chance(10).then(|| rng.below(5_000));
        let mut world = Self {
            rng,
            now,
            cores,
            pipes: Vec::new(),
            uploads,
            links: Vec::new(),
            calls: Vec::new(),
            told: Vec::new(),
            churn,
            loads,
            stops_at,
        };
        for upload in 0..count {
            world.call(CallKind::New, upload);
        }
        world
    }

    pub(crate) fn run(mut self) {
        for step in 0.. {
            self.step();
            if step == STEPS_MAX {
                self.panic_stuck();
            }
            if self.stops_at.is_some_and(|it| it <= step) {
                break;
            }
            if self.uploads.iter().all(|it| it.end.is_some()) && self.told.is_empty() {
                self.check_uploads();
                break;
            }
            self.keep_going();
        }
        self.stop();
    }

    fn step(&mut self) {
        self.now += Duration::from_micros(self.rng.below(100) as u64);
        match self.rng.below(100) {
            0..50 => self.core_step(),
            50..90 => self.link_step(),
            90..96 => self.call_step(),
            96..98 => self.answer_step(),
            _ => self.sleep(),
        }
        for index in 0..self.cores.len() {
            let sent = self.cores[index].tick(self.now, &mut self.pipes, &mut self.rng);
            self.deliver(index, sent);
        }
        assert_eq!(panic_count(), 0, "a panic was caught on the way");
    }

    fn core_step(&mut self) {
        let index = self.rng.below(self.cores.len());
        let sent = self.cores[index].step(self.now, &mut self.pipes, &mut self.rng);
        self.deliver(index, sent);
    }

    fn link_step(&mut self) {
        if self.links.is_empty() {
            return;
        }
        let index = self.rng.below(self.links.len());
        let link = &mut self.links[index];
        let (pipe, upload) = (&mut self.pipes[link.pipe], &mut self.uploads[link.upload]);
        link.step(&mut self.rng, self.now, pipe, upload, &self.cores, self.churn);
        if link.is_gone() {
            self.links.swap_remove(index);
        }
    }

    fn call_step(&mut self) {
        if !self.calls.is_empty() {
            let index = self.rng.below(self.calls.len());
            let call = &mut self.calls[index];
            let response = call.step(&mut self.rng, &mut self.pipes[call.pipe]);
            if let Some((status, body)) = response {
                let call = self.calls.swap_remove(index);
                let upload = &mut self.uploads[call.upload];
                on_response(&call, status, &body, upload, &mut self.cores);
            }
        }
    }

    fn answer_step(&mut self) {
        let due = self.told.iter().position(|it| it.at() <= self.now);
        let Some(index) = due else { return };
        let told = self.told.swap_remove(index);
        let upload = self.uploads.iter_mut().find(|it| it.ticket == Some(told.ticket()));
        let sent = told.answer(&mut self.rng, upload.expect("a known ticket"));
        self.deliver(CONTROL, sent);
    }

    /// Nothing happens for a while.
    fn sleep(&mut self) {
        let workers = self.cores.iter().filter_map(|it| it.worker.poll_timeout());
        let told = self.told.iter().map(Told::at);
        let links = self.links.iter().map(Link::wakes_at);
        let next = workers.chain(told).chain(links).filter(|it| *it > self.now).min();
        let Some(next) = next.filter(|it| *it - self.now < SLEEP_MAX) else { return };
        if next - self.now > Duration::from_secs(1) {
            self.check_debts();
        }
        let is_app_busy = self.calls.iter().any(|it| self.pipes[it.pipe].is_accepted);
        if next - self.now < Duration::from_secs(2) || !is_app_busy && self.rng.chance(10) {
            self.now = next;
        }
    }

    /// Only time will make something happen: then the server owes nobody an answer.
    fn check_debts(&self) {
        let is_busy = self.cores.iter().any(|it| it.is_busy(&self.pipes));
        if is_busy || !self.told.is_empty() {
            return;
        }
        for link in &self.links {
            let owed = link.is_owed(&self.pipes[link.pipe], &self.uploads[link.upload]);
            assert_eq!(owed, None, "{link:?}");
        }
    }

    fn deliver(&mut self, sender: usize, sent: Outbox) {
        for (to, sent) in sent {
            match (to, sent) {
                (Address::Core(core), sent) => self.cores[core_index(core)].deliver(sender, sent),
                (Address::Control, Sent::Mail(Mail::Callback { from, callback })) => {
                    let ticket = Some(callback.ticket);
                    let upload = self.uploads.iter_mut().find(|it| it.ticket == ticket);
                    let upload = upload.expect("a known ticket");
                    let core = &self.cores[core_index(from)];
                    let told = Told::new(&mut self.rng, self.now, from, callback, upload, core);
                    self.told.push(told);
                }
                (Address::Control, other) => panic!("not for the control thread: {other:?}"),
            }
        }
    }

    /// Who has to come, comes; some come twice.
    fn keep_going(&mut self) {
        let index = self.rng.below(self.uploads.len());
        let upload = &self.uploads[index];
        if upload.ticket.is_none() {
            return;
        }
        let link_count = self.links.iter().filter(|it| it.upload == index).count();
        let is_wanted = match link_count {
            0 => self.rng.chance(10),
            1 => self.rng.below(10_000) < self.churn,
            _ => false,
        };
        if upload.end.is_none() && is_wanted {
            let pipe = self.connect(upload.bytes.len());
            let upload = &mut self.uploads[index];
            let link = Link::new(&mut self.rng, self.now, index, upload, pipe);
            upload.may_pipeline = false;
            self.links.push(link);
            return;
        }
        if self.calls.iter().any(|it| it.upload == index) || !self.rng.chance(2) {
            return;
        }
        let is_cancel_due = matches!(upload.plan, Plan::CancelByApp(at) if upload.sent >= at);
        if upload.is_waiting && !upload.is_handed_over {
            self.call(CallKind::Finish, index);
        } else if is_cancel_due && !upload.was_cancelled_by_app && !upload.has_arrived {
            self.call(CallKind::Cancel, index);
        }
    }

    fn call(&mut self, kind: CallKind, upload: usize) {
        self.uploads[upload].was_cancel_asked |= kind == CallKind::Cancel;
        let pipe = self.connect(0);
        self.calls.push(Call::new(kind, upload, &self.uploads[upload], pipe));
    }

    fn connect(&mut self, length: usize) -> PipeId {
        let bytes_max = self.rng.pick(&[50, 1_000, 65_536, 1 << 20]).max(length / 500);
        self.pipes.push(Pipe::new(bytes_max));
        let core = self.rng.below(self.cores.len());
        self.cores[core].backlog.push_back(self.pipes.len() - 1);
        self.pipes.len() - 1
    }

    /// Every browser knows how it went; so does every web app, and so do the disks.
    fn check_uploads(&self) {
        for upload in &self.uploads {
            let core = &self.cores[core_index(upload.owner())];
            match upload.end.expect("over") {
                End::AllDone => assert!(upload.is_handed_over),
                End::Cancelled => assert!(!upload.is_handed_over),
                End::Refused(_) => assert!(!upload.is_handed_over || upload.may_time_out),
            }
            if upload.is_handed_over && !upload.is_removed_when_finished {
                let data = core.disk.data(&upload.arrived_path());
                assert!(data == Some(upload.bytes), "what was handed over is not touched");
            }
        }
        let load: u32 = self.loads.iter().map(|it| it.load(Ordering::Relaxed)).sum();
        let tickets: usize = self.cores.iter().map(|it| it.worker.ticket_count()).sum();
        assert_eq!(load as usize, tickets);
    }

    /// The server ends, and nothing is left of it but files.
    fn stop(mut self) {
        for index in 0..self.cores.len() {
            self.deliver(
                SERVER,
                vec![(Address::Core(CoreId(index as u16)), Sent::Mail(Mail::Stop))],
            );
        }
        self.calls.clear();
        for pipe in &mut self.pipes {
            // Some browsers stay to the end, some are gone.
            if self.rng.chance(50) {
                pipe.reset();
            }
        }
        for _ in 0..STEPS_MAX {
            let is_over = self.cores.iter().all(|it| it.worker.is_stopped() && !it.has_mail());
            if is_over {
                break;
            }
            match self.rng.below(10) {
                0..6 => self.core_step(),
                6..9 => self.link_step(),
                _ => {
                    self.sleep();
                    self.now += Duration::from_millis(100);
                }
            }
            for index in 0..self.cores.len() {
                let sent = self.cores[index].tick(self.now, &mut self.pipes, &mut self.rng);
                self.deliver(index, sent);
            }
        }
        for core in &self.cores {
            core.check_end();
        }
        for upload in self.uploads.iter().filter(|it| it.ticket.is_some()) {
            let core = &self.cores[core_index(upload.owner())];
            let is_there = upload.data(core).is_some();
            let is_gone = upload.is_handed_over && upload.is_removed_when_finished
                || upload.cancel_told.as_deref() == Some("no more")
                || upload.was_cancelled_by_app;
            assert!(!(is_there && is_gone) || core.disk.has_failed_removals(), "it was removed");
        }
    }

    fn panic_stuck(&self) -> ! {
        for upload in self.uploads.iter().filter(|it| it.end.is_none()) {
            let shown = Upload { bytes: &[], ..upload.clone() };
            eprintln!("stuck at {} of {}: {shown:?}", upload.acked, upload.bytes.len());
        }
        eprintln!("links: {:?}\ncalls: {:?}", self.links, self.calls);
        panic!("no progress in {STEPS_MAX} steps");
    }
}

/// Who sends to a core: the cores, the control thread, the server.
const CONTROL: usize = CORE_COUNT as usize;
const SERVER: usize = CONTROL + 1;
const SENDERS: usize = SERVER + 1;

/// Long enough for every retry, too short for tickets to run out.
const SLEEP_MAX: Duration = Duration::from_secs(700);

const STEPS_MAX: usize = 400_000;
