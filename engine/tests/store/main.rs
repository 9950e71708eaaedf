//! A store against a simulated disk, by seed: uploads that share too little memory, clients that
//! come and go, and a disk that reorders, falls short and fails.
//!
//! `SEEDS=17 cargo test -p incoming-engine --test store` runs one seed, `SEEDS=0..100000` many.

extern crate incoming_engine as engine;

mod disk;
mod media;
mod rng;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use disk::{Disk, Weather};
use engine::durability::{Durability, SyncMethod};
use engine::mask::rotate;
use engine::op::CoreId;
use engine::store::{Finish, Room, Store, StoreConfig, StoreEvent, UploadKey, arrived_path};
use engine::ticket::TicketId;
use engine::upload::AppendError;
use rng::{Rng, for_each_seed};

#[test]
fn every_byte_arrives_whatever_happens() {
    for_each_seed(2_500, |seed| Sim::new(seed).run());
}

struct Sim {
    rng: Rng,
    now: Instant,
    store: Store<()>,
    disk: Disk,
    clients: Vec<Client>,
    /// How restless the clients are, in percent.
    churn: usize,
    /// Events are delivered late by chance, as in a busy turn.
    lateness: usize,
    durability: Durability,
    /// What a journal would be writing.
    commits: VecDeque<(UploadKey, u64)>,
}

/// What a worker knows of one upload.
struct Client {
    ticket: TicketId,
    key: UploadKey,
    bytes: &'static [u8],
    state: State,
    /// The next byte to send.
    position: usize,
    /// It was told to wait for room.
    waits: bool,
    acked: u64,
    /// Below, the disk has been compared.
    verified: usize,
    piece_bytes_max: usize,
    /// It sends no more while so much of what it sent is not recorded.
    window_bytes: usize,
    recorded: usize,
    events: VecDeque<StoreEvent>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Away,
    Attaching,
    Attached,
    Finishing,
    Discarding,
    Arrived,
    Gone,
}

impl Sim {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        // Many: more than the pool of last blocks has room for.
        let is_crowded = rng.chance(4);
        let config = StoreConfig {
            parts_dir: PARTS_DIR.into(),
            direct: rng.chance(70),
            staging_bytes: if is_crowded { 1024 } else { rng.pick(&[64, 128, 192, 320, 1024]) }
                << 10,
            journal_bytes: 0,
            durability: rng.pick(&[
                Durability::Written,
                Durability::Synced(SyncMethod::Dsync),
                Durability::Synced(SyncMethod::Fdatasync),
            ]),
        };
        let durability = config.durability;
        let is_fair = rng.chance(40);
        let weather = Weather::drawn(&mut rng, is_fair, 0..12, 1..15);
        let mut store = Store::new(config).unwrap();
        let mut disk = Disk::new(rng.next(), weather);
        let count = if is_crowded { rng.within(70..100) } else { rng.within(1..9) };
        let length_max = rng.pick(&[1, 5_000, 70_000, 300_000, 3_000_000]).min(5_000_000 / count);
        let length_max = if is_crowded { 9_000 } else { length_max };
        let clients = (0..count).map(|index| {
            let length = rng.below(length_max + 1);
            let start = rng.below(FILES.len() - length);
            let bytes = &FILES[start..start + length];
            let ticket = TicketId(u128::from(rng.next()) << 64 | index as u128);
            disk.expect(ticket.to_string(), bytes);
            Client {
                ticket,
                key: store.insert(ticket, length as u64),
                bytes,
                state: State::Away,
                position: 0,
                waits: false,
                acked: 0,
                verified: 0,
                window_bytes: rng.pick(&[1, 5_000, 100_000, usize::MAX]),
                recorded: 0,
                piece_bytes_max: (length / rng.within(1..40)).max(500),
                events: VecDeque::new(),
            }
        });
        let clients = clients.collect();
        let (churn, lateness) = (rng.pick(&[0, 2, 10]), rng.pick(&[0, 30, 80]));
        let now = Instant::now();
        let commits = VecDeque::new();
        Self { rng, now, store, disk, clients, churn, lateness, durability, commits }
    }

    fn run(mut self) {
        for _ in 0..STEPS_MAX * self.clients.len() {
            self.step();
            if self.is_over() {
                return self.check_end();
            }
        }
        let left = self.clients.iter().filter(|it| !it.state.is_end());
        let left: Vec<_> = left.map(|it| (it.state, it.position, it.bytes.len())).collect();
        panic!("no progress: {left:?}\n{:?}", self.store);
    }

    fn step(&mut self) {
        match self.rng.below(100) {
            0..45 => {
                if let Some(completion) = self.disk.complete(CORE, self.store.memory_mut()) {
                    self.store.on_completion(self.now, completion);
                }
            }
            45..90 => {
                let client = self.rng.below(self.clients.len());
                self.client_step(client);
            }
            90..94 => self.commit(),
            94..97 => self.now += Duration::from_micros(self.rng.below(3_000) as u64),
            _ => {
                if let Some(at) = self.store.poll_timeout() {
                    self.now = self.now.max(at);
                }
            }
        }
        if self.store.poll_timeout().is_some_and(|it| it <= self.now) {
            self.store.on_timeout(self.now);
        }
        while let Some((token, op)) = self.store.poll_op() {
            self.disk.start(CORE, token, op, self.store.memory());
        }
        while let Some(event) = self.store.poll_event() {
            self.check_event(event);
        }
        for client in 0..self.clients.len() {
            while !self.clients[client].events.is_empty() && !self.rng.chance(self.lateness) {
                let event = self.clients[client].events.pop_front().unwrap();
                self.clients[client].on_event(event);
            }
        }
    }

    /// What must be true at the moment of an event. Then it goes to its client.
    fn check_event(&mut self, event: StoreEvent) {
        let (StoreEvent::Attached { upload, .. }
        | StoreEvent::Room { upload }
        | StoreEvent::Durable { upload, .. }
        | StoreEvent::Arrived { upload, .. }
        | StoreEvent::Failed { upload, .. }
        | StoreEvent::Removed { upload }) = event;
        let client = self.clients.iter_mut().find(|it| it.key == upload).expect("a known key");
        let part = PathBuf::from(PARTS_DIR).join(client.ticket.to_string());
        let arrived = client.arrived_path();
        let path = if self.disk.data(&arrived).is_some() { &arrived } else { &part };
        match &event {
            StoreEvent::Attached { offset_bytes, .. } => {
                let upload = self.store.upload(upload).expect("attached");
                assert_eq!(*offset_bytes, upload.committed());
                assert_eq!(*offset_bytes, upload.received());
                if self.disk.has_lost(&client.ticket.to_string()) {
                    client.acked = client.acked.min(*offset_bytes);
                }
                assert!(client.acked <= *offset_bytes, "acked bytes are not asked for again");
                client.verified = *offset_bytes as usize;
                let data = self.disk.data(path).unwrap();
                assert!(data[..client.verified] == client.bytes[..client.verified]);
            }
            StoreEvent::Durable { offset_bytes, .. } => {
                let (from, to) = (client.verified.min(*offset_bytes as usize), *offset_bytes);
                // The block that was written again as well.
                let from = from & !0xfff;
                let data = self.disk.data(path).unwrap();
                assert!(data[from..to as usize] == client.bytes[from..to as usize]);
                if self.durability != Durability::Written {
                    let bytes = &client.bytes[from..to as usize];
                    assert!(self.disk.promises(path, from, bytes), "as safe as configured");
                }
                client.verified = to as usize;
                self.commits.push_back((upload, to));
            }
            StoreEvent::Arrived { path: at, .. } => {
                assert_eq!(*at, arrived);
                assert!(self.disk.data(at).unwrap() == client.bytes, "the file is the file");
                assert!(self.disk.data(&part).is_none());
                assert!(self.disk.is_durable(at), "its bytes, its length and its name are safe");
            }
            StoreEvent::Removed { .. } => {
                assert!(self.store.upload(upload).is_none());
                let is_gone = self.disk.data(&arrived).is_none() && self.disk.data(&part).is_none();
                assert!(is_gone || self.disk.has_failed_removals(), "the file is gone");
            }
            StoreEvent::Failed { errno, .. } => {
                assert!(self.disk.has_failed(), "nothing has failed but {errno}");
            }
            StoreEvent::Room { .. } => {}
        }
        client.events.push_back(event);
    }

    /// The journal's record of an offset is durable.
    fn commit(&mut self) {
        let Some((key, offset)) = self.commits.pop_front() else { return };
        self.store.on_committed(self.now, key, offset);
        let client = self.clients.iter_mut().find(|it| it.key == key).expect("a known key");
        let Some(upload) = self.store.upload(key) else { return };
        assert!(upload.committed() >= offset);
        client.recorded = client.recorded.max(offset as usize);
        if self.rng.chance(70) {
            client.acked = self.rng.within(client.acked as usize..offset as usize + 1) as u64;
            self.store.on_acked(key, client.acked);
        }
    }

    fn client_step(&mut self, index: usize) {
        let now = self.now;
        let is_restless = self.rng.chance(self.churn);
        let client = &mut self.clients[index];
        let key = client.key;
        if is_restless && self.rng.chance(10) && client.state != State::Discarding {
            // Also when it has arrived.
            if client.state != State::Gone {
                client.state = State::Discarding;
                self.store.discard(now, key);
            }
            return;
        }
        match client.state {
            State::Away => {
                client.state = State::Attaching;
                client.waits = false;
                self.store.attach(now, key);
            }
            State::Attaching | State::Attached | State::Finishing if is_restless => {
                if self.rng.chance(50) {
                    self.store.attach(now, key);
                } else {
                    self.store.detach(now, key);
                    if client.state != State::Finishing {
                        client.state = State::Away;
                    }
                }
                client.waits = false;
                if client.state == State::Attached {
                    client.state = State::Attaching;
                }
            }
            State::Attached => {
                let upload = self.store.upload(key).expect("attached");
                if upload.is_complete() && self.rng.chance(80) {
                    client.state = State::Finishing;
                    let path = client.arrived_path();
                    self.store.finish(
                        now,
                        key,
                        Finish { path, mode: 0o644, group_gid: None, owner_uid: None },
                    );
                } else if client.may_receive() {
                    self.receive(index);
                }
            }
            State::Arrived if self.rng.chance(20) => {
                client.state = State::Gone;
                self.store.forget(key);
                assert!(self.store.upload(key).is_none());
            }
            _ => {}
        }
    }

    /// The socket is readable: what a worker does then.
    fn receive(&mut self, index: usize) {
        let client = &mut self.clients[index];
        let room = match self.store.reserve(self.now, client.key) {
            Room::Bytes(room) => room as usize,
            Room::Waiting => {
                client.waits = true;
                return;
            }
        };
        assert!(room > 0);
        self.store.on_received(client.key);
        let rest = client.bytes.len() - client.position;
        // By chance nothing at all, as after an early wake-up.
        let most = room.min(rest).min(client.piece_bytes_max);
        let mut count = if self.rng.chance(20) { most } else { self.rng.below(most + 1) };
        while count > 0 {
            let take = self.rng.within(1..count + 1);
            let piece = &client.bytes[client.position..client.position + take];
            let mask = (self.rng.next() as u32).to_le_bytes();
            let masked: Vec<u8> =
                piece.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
            // In two parts, as when a frame goes on in the next receive.
            let cut = self.rng.below(take + 1);
            let parts = [(&masked[..cut], mask), (&masked[cut..], rotate(mask, cut))];
            for (part, mask) in parts {
                self.store.append(self.now, client.key, part, mask).expect("within the length");
            }
            client.position += take;
            count -= take;
        }
        if client.window_bytes < usize::MAX || self.rng.chance(30) {
            self.store.flush(self.now, client.key, client.position as u64);
        }
        if client.position == client.bytes.len() && self.rng.chance(20) {
            let is_live = self.store.upload(client.key).is_some_and(|it| it.remaining() == 0);
            let more = self.store.append(self.now, client.key, b"!", [0; 4]);
            // A broken upload drops what comes.
            assert!(!is_live || more == Err(AppendError::PastLength) || self.disk.has_failed());
        }
    }

    fn is_over(&self) -> bool {
        let is_over = |it: &Client| it.state.is_end() && it.events.is_empty();
        self.clients.iter().all(is_over) && self.disk.is_idle(CORE)
    }

    fn check_end(mut self) {
        assert!(self.store.poll_op().is_none());
        assert!(self.store.is_quiet());
        assert_eq!(self.store.leased_bytes(), 0, "all leases are given back");
        assert_eq!(self.store.kept_bytes(), 0, "all last blocks are given back");
        assert!(self.disk.open_files(CORE).next().is_none());
        for client in self.clients.iter().filter(|it| it.state == State::Arrived) {
            let path = client.arrived_path();
            assert!(self.disk.data(&path).unwrap() == client.bytes);
        }
    }
}

impl Client {
    fn arrived_path(&self) -> PathBuf {
        let directory = ARRIVED_DIRS[self.ticket.0 as usize % ARRIVED_DIRS.len()];
        arrived_path(directory.as_ref(), self.ticket)
    }

    fn may_receive(&self) -> bool {
        // What is to be sent next is in an event that was not looked at: no worker receives now.
        let is_attached_anew =
            self.events.iter().any(|it| matches!(it, StoreEvent::Attached { .. }));
        let is_window_open = self.position < self.recorded.saturating_add(self.window_bytes);
        !self.waits && !is_attached_anew && is_window_open
    }

    fn on_event(&mut self, event: StoreEvent) {
        match event {
            StoreEvent::Attached { offset_bytes, .. } => {
                if matches!(self.state, State::Attaching | State::Attached) {
                    self.state = State::Attached;
                    self.position = offset_bytes as usize;
                    self.recorded = self.position;
                    self.waits = false;
                }
            }
            StoreEvent::Room { .. } => self.waits = false,
            StoreEvent::Durable { .. } => {}
            StoreEvent::Failed { .. } if self.state == State::Discarding => {}
            StoreEvent::Failed { .. } => self.state = State::Away,
            StoreEvent::Arrived { .. } if self.state == State::Discarding => {}
            StoreEvent::Arrived { .. } => self.state = State::Arrived,
            StoreEvent::Removed { .. } => {
                assert_eq!(self.state, State::Discarding);
                self.state = State::Gone;
            }
        }
    }
}

impl State {
    fn is_end(self) -> bool {
        matches!(self, Self::Arrived | Self::Gone)
    }
}

/// Every file is a piece of this.
static FILES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut rng = Rng::new(1);
    (0..1 << 19).flat_map(|_| rng.next().to_le_bytes()).collect()
});

const CORE: CoreId = CoreId(0);
const PARTS_DIR: &str = "/storage/parts";
const ARRIVED_DIRS: [&str; 2] = ["/storage/arrived", "/elsewhere/of the app"];
/// For each client.
const STEPS_MAX: usize = 20_000;
