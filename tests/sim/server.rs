//! A server: what its operator set, its cores, its starts and its ends.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant, UNIX_EPOCH};

use engine::durability::{Durability, SyncMethod};
use engine::journal::{CommitSync, Recovery};
use engine::op::{Address, CoreId, Machine};
use engine::outbox::Patience;
use engine::record::TicketRecord;
use engine::service::ServiceClock;
use engine::store::{FilePlace, PARTS_NAME, arrival_path};
use engine::ticket::TicketId;
use incoming::keys::{BackendKey, BackendKeys};
use incoming::mail::Mail;
use incoming::worker::{RecoveredTicket, Worker, WorkerConfig};

use crate::core::{Core, Kernel, Outbox, Sent, core_index};
use crate::disk::Disk;
use crate::net::PipeId;
use crate::rng::Rng;
use crate::start::{Cut, Start, Starter};
use crate::upload::{DEST_ROOT, STORAGE_DIR};

pub(crate) struct Server {
    settings: Settings,
    /// Those of its web apps, and what its cores count for each.
    keys: Arc<BackendKeys>,
    /// Empty while it is down.
    pub(crate) cores: Vec<Core>,
    loads: Arc<[AtomicU32]>,
    /// What each core says its uploads will still take.
    unallocated: Arc<[AtomicU64]>,
    /// Counts the starts.
    pub(crate) run: u32,
    /// That of the last complete start.
    boot: u32,
    /// Cores that somebody is left at, while it is told to stop.
    draining_count: usize,
}

/// What is the same in all its runs.
struct Settings {
    direct: bool,
    durability: Durability,
    staging_bytes: u32,
    connections_max: u32,
    idle_timeout: Duration,
    patience: Patience,
    /// Accepts that may fail in each run of a core.
    accept_faults_max: u32,
}

impl Server {
    pub(crate) fn new(rng: &mut Rng, is_fair: bool) -> Self {
        let direct = rng.chance(70);
        let fdatasync = Durability::Synced(SyncMethod::Fdatasync);
        let durability = match rng.below(5) {
            0 => Durability::Written,
            1 | 2 if direct => Durability::Synced(SyncMethod::Dsync),
            _ => fdatasync,
        };
        let settings = Settings {
            direct,
            durability,
            staging_bytes: rng.pick(&[64, 128, 320, 1024]) << 10,
            connections_max: rng.pick(&[3, 100]),
            idle_timeout: Duration::from_secs(if rng.chance(10) { 30 } else { 12 * 3600 }),
            patience: if rng.chance(15) { LITTLE_PATIENCE } else { PATIENCE },
            accept_faults_max: if is_fair { 0 } else { 3 },
        };
        let (keys, loads, unallocated) = (Arc::default(), Arc::new([]), Arc::new([]));
        let (run, boot, draining_count) = (0, 0, 0);
        let cores = Vec::new();
        Self { settings, keys, cores, loads, unallocated, run, boot, draining_count }
    }

    /// Tickets are short-lived in this world.
    pub(crate) fn has_short_tickets(&self) -> bool {
        self.settings.idle_timeout < Duration::from_secs(3600)
    }

    /// Hand-overs are given up soon.
    pub(crate) fn is_impatient(&self) -> bool {
        self.settings.patience == LITTLE_PATIENCE
    }

    pub(crate) fn is_up(&self) -> bool {
        !self.cores.is_empty()
    }

    /// Acknowledged bytes survive a power cut.
    pub(crate) fn is_synced(&self) -> bool {
        self.settings.durability != Durability::Written
    }

    /// Goes on where the run before was, with another number of cores. `calls_left`: until it is
    /// cut short.
    pub(crate) fn start(
        &mut self,
        now: Instant,
        kernel: &mut Kernel,
        calls_left: Option<usize>,
        rng: &mut Rng,
    ) -> Result<Recovery, Cut> {
        assert!(!self.is_up());
        self.run += 1;
        let core_count = rng.within(2..5) as u16;
        let sync = self.settings.commit_sync();
        let boot = kernel.disk.boot();
        let has_rebooted = boot != self.boot;
        let start =
            Starter::new(&mut kernel.disk, calls_left).run(core_count, sync, has_rebooted)?;
        self.boot = boot;
        self.keys = Arc::new(BackendKeys::new(KEYS.map(|(name, key)| BackendKey {
            name: name.to_owned(),
            key: key.to_owned(),
            quota_bytes: None,
            tickets_max: None,
        })));
        self.loads = (0..core_count).map(|_| AtomicU32::new(0)).collect();
        self.unallocated = (0..core_count).map(|_| AtomicU64::new(0)).collect();
        for core in 0..core_count {
            let config = self.config(now, CoreId(core), &start, &kernel.disk, rng);
            let worker = Worker::new(now, config).unwrap();
            let mut core = Core::new(worker, CoreId(core), usize::from(core_count) + OUTSIDE_COUNT);
            core.accept_faults_left = self.settings.accept_faults_max;
            self.cores.push(core);
        }
        Ok(start.recovery)
    }

    fn config(
        &self,
        now: Instant,
        core: CoreId,
        start: &Start,
        disk: &Disk,
        rng: &mut Rng,
    ) -> WorkerConfig {
        let mut ids = Rng::new(rng.next());
        let settings = &self.settings;
        let core_count = start.logs.len() as u16;
        let records = start.tickets[core_index(core)].iter();
        WorkerConfig {
            core,
            core_count,
            storage_dir: STORAGE_DIR.into(),
            direct: settings.direct,
            durability: settings.durability,
            staging_bytes: settings.staging_bytes,
            connections_max: settings.connections_max,
            tickets_max: 1000,
            idle_timeout: settings.idle_timeout,
            lifetime: Duration::from_secs(30 * 86_400),
            finish_timeout: Duration::from_secs(600),
            patience: settings.patience,
            service: ServiceClock::new(start.recovery.service_ms, now),
            backend_behind_proxy: false,
            keys: self.keys.clone(),
            library_modified: UNIX_EPOCH,
            loads: self.loads.clone(),
            unallocated: self.unallocated.clone(),
            reserve_bytes: 64 << 20,
            max_size_bytes: None,
            dest_roots: vec![DEST_ROOT.into()],
            handover_mode: None,
            handover_gid: None,
            run: start.run,
            log_start: start.logs[core_index(core)],
            recovered: records.map(|it| recovered_ticket(it, disk)).collect(),
            draw_id: Box::new(move || {
                TicketId(u128::from(ids.next()) << 64 | u128::from(ids.next()))
            }),
        }
    }

    /// Who owns a ticket in this run.
    pub(crate) fn owner(&self, id: TicketId) -> CoreId {
        id.owner(self.cores.len() as u16)
    }

    pub(crate) fn is_waiting_for_storage(&self) -> bool {
        self.cores.iter().any(|it| it.worker.is_waiting_for_storage())
    }

    pub(crate) fn is_busy(&self, kernel: &Kernel) -> bool {
        self.cores.iter().any(|it| it.is_busy(kernel))
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.cores.iter().filter_map(|it| it.worker.poll_timeout()).min()
    }

    /// Some core does something.
    pub(crate) fn step(&mut self, now: Instant, kernel: &mut Kernel, rng: &mut Rng) -> Vec<Mail> {
        let index = rng.below(self.cores.len());
        let sent = self.cores[index].step(now, kernel, rng);
        self.route(index, sent)
    }

    /// Every core does what a driver does before it sleeps.
    pub(crate) fn tick(&mut self, now: Instant, kernel: &mut Kernel, rng: &mut Rng) -> Vec<Mail> {
        let mut outside = Vec::new();
        for index in 0..self.cores.len() {
            let sent = self.cores[index].tick(now, kernel, rng);
            outside.extend(self.route(index, sent));
        }
        if self.is_up() {
            self.check_usage();
        }
        outside
    }

    /// A browser or a web app connects to whatever core.
    pub(crate) fn connect(&mut self, pipe: PipeId, rng: &mut Rng) {
        let core = rng.below(self.cores.len());
        self.cores[core].backlog.push_back(pipe);
    }

    pub(crate) fn mail_from_control(&mut self, to: CoreId, mail: Mail) {
        let control = self.cores.len();
        self.cores[core_index(to)].deliver(control, Sent::Mail(mail));
    }

    /// The control thread has reached a host again that it could not reach.
    pub(crate) fn host_back(&mut self, host: &str) {
        for core in 0..self.cores.len() {
            self.mail_from_control(CoreId(core as u16), Mail::HostBack { host: host.to_owned() });
        }
    }

    /// As the server does it: first nobody is left anywhere, then the cores end.
    pub(crate) fn ask_to_stop(&mut self) {
        self.draining_count = self.cores.len();
        self.mail_all(|| Mail::Drain);
    }

    pub(crate) fn on_drained(&mut self) {
        self.draining_count -= 1;
        if self.draining_count == 0 {
            self.mail_all(|| Mail::Stop);
        }
    }

    fn mail_all(&mut self, mail: impl Fn() -> Mail) {
        let server = self.cores.len() + 1;
        for core in &mut self.cores {
            core.deliver(server, Sent::Mail(mail()));
        }
    }

    pub(crate) fn has_stopped(&self) -> bool {
        self.cores.iter().all(|it| it.worker.is_stopped() && !it.has_mail())
    }

    /// The process has ended well: nothing is left of it but files.
    pub(crate) fn check_end(&self, kernel: &Kernel) {
        for core in &self.cores {
            core.check_end(&kernel.disk);
        }
    }

    pub(crate) fn check_loads(&self) {
        let load: u32 = self.loads.iter().map(|it| it.load(Ordering::Relaxed)).sum();
        let tickets: usize = self.cores.iter().map(|it| it.worker.ticket_count()).sum();
        assert_eq!(load as usize, tickets);
    }

    /// What the cores count together for each key is what they have.
    fn check_usage(&self) {
        for key in self.keys.ids() {
            let parts = self.cores.iter().map(|it| it.worker.open_tickets_of(key));
            let sum = parts.fold((0, 0), |sum, it| (sum.0 + it.0, sum.1 + it.1));
            assert_eq!(self.keys.usage(key), sum, "of {}", self.keys.name(key));
        }
    }

    /// Nobody has anything under way.
    pub(crate) fn check_usage_is_over(&self) {
        let usage: Vec<_> = self.keys.ids().map(|it| self.keys.usage(it)).collect();
        assert!(usage.iter().all(|it| *it == (0, 0)), "{usage:?}");
    }

    /// Nothing that was begun goes on.
    pub(crate) fn check_unallocated(&self) {
        let unallocated = self.unallocated.iter().map(|it| it.load(Ordering::Relaxed));
        assert_eq!(unallocated.collect::<Vec<_>>(), vec![0; self.unallocated.len()]);
    }

    /// Gives every core what is for it, and the rest back.
    fn route(&mut self, sender: usize, sent: Outbox) -> Vec<Mail> {
        let mut outside = Vec::new();
        for (to, sent) in sent {
            match (to, sent) {
                (Address::Core(core), sent) => self.cores[core_index(core)].deliver(sender, sent),
                (Address::Control, Sent::Mail(mail)) => outside.push(mail),
                (Address::Control, other) => panic!("not for the control thread: {other:?}"),
            }
        }
        outside
    }
}

impl Settings {
    fn commit_sync(&self) -> CommitSync {
        CommitSync::new(self.durability, self.direct)
    }
}

/// A ticket of the run before, and where its file lies now.
fn recovered_ticket(record: &TicketRecord, disk: &Disk) -> RecoveredTicket {
    let is_there = |it: &Path| disk.data(it).is_some();
    let part = Path::new(PARTS_NAME).join(record.new.id.to_string());
    let place = match (is_there(&arrival_path(&record.new)), is_there(&part)) {
        (true, _) => FilePlace::Arrived,
        (false, true) => FilePlace::Parts,
        (false, false) => FilePlace::Nowhere,
    };
    RecoveredTicket { record: record.clone(), place }
}

/// The keys of web apps.
pub(crate) const KEYS: [(&str, &str); 2] =
    [("shop", "key-of-the-shop--"), ("press", "key-of-the-press-")];

/// Who sends to a core besides cores: the control thread and the server.
const OUTSIDE_COUNT: usize = 2;

pub(crate) const PATIENCE: Patience =
    Patience { timeout: Duration::from_secs(72 * 3600), refusals_max: 10 };
const LITTLE_PATIENCE: Patience = Patience { timeout: Duration::from_secs(3), refusals_max: 2 };
