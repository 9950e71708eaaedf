//! Which bytes go where, and when they are durable.
//!
//! A store turns received bytes into writes, and completions into news for its owner. It gives out
//! the staging memory of a core: whoever holds a lease may receive, everybody else waits in line.
//!
//! Reading order: this file (what an owner can ask for), `staging` (the path of a byte: reserve,
//! append, flush, write), `sync` (when what is written is durable), `steps` (open, finish, remove,
//! fail), `part` (the state of one file).

mod part;
mod staging;
mod steps;
mod sync;

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

pub use part::Finish;
use part::{Goal, Part, Tail};

use crate::buffer::{Memory, Slice};
use crate::durability::Durability;
use crate::limits::{BLOCK_BYTES, LEASE_BYTES_MAX, LEASE_BYTES_MIN};
use crate::op::{Completion, Errno, FileId, FileOp, Op, Token};
use crate::pool::Pool;
use crate::record::NewTicket;
use crate::ticket::TicketId;
use crate::timer::Timers;
use crate::upload::Upload;

/// The files of one core's uploads. Inert: completions in, ops and events out.
#[derive(Debug)]
pub struct Store<M> {
    config: StoreConfig,
    memory: Memory,
    staging: Pool,
    /// For unfinished last blocks.
    blocks: Pool,
    slots: Vec<Slot>,
    free_slots: Vec<u32>,
    /// Who waits for a lease, first come, first served. Empty unless staging is exhausted.
    waiting: VecDeque<UploadKey>,
    /// Who holds a lease that is being filled.
    holders: BTreeSet<u32>,
    /// While somebody waits: when part-filled staging is written early.
    pressure_at: Option<Instant>,
    /// When to look at an upload again.
    timers: Timers<UploadKey>,
    /// Memory that the store does not use.
    journal_region: Slice,
    ops: VecDeque<(Token, Op<M>)>,
    /// Ops that were emitted and have not completed.
    in_flight_count: usize,
    /// See [`Store::unallocated_bytes`].
    unallocated_bytes: u64,
    events: VecDeque<StoreEvent>,
}

#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Files while they are received. Exists. Relative to the storage directory, as all paths are.
    pub parts_dir: PathBuf,
    /// Write without the page cache.
    pub direct: bool,
    /// Staging memory, in bytes: 1 MiB to 2 GiB.
    pub staging_bytes: u32,
    /// Memory beside it for the core's journal, in bytes: whole blocks.
    pub journal_bytes: u32,
    pub durability: Durability,
}

/// Names an upload of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UploadKey {
    slot: u32,
    generation: u32,
}

/// What a store tells its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreEvent {
    /// The upload goes on at `offset_bytes`: everything before is recorded, nothing else is.
    Attached { upload: UploadKey, offset_bytes: u64 },
    /// [`Store::reserve`] may be asked again.
    Room { upload: UploadKey },
    /// Everything below `offset_bytes` is as safe as configured. The owner has it recorded, then
    /// says [`Store::on_committed`].
    Durable { upload: UploadKey, offset_bytes: u64 },
    /// The finished file lies at `path`, durably. The path is the one of [`Finish`].
    Arrived { upload: UploadKey, path: PathBuf },
    /// Something could not be stored. What is durable remains; the file is closed, and
    /// [`Store::attach`] goes on from there.
    Failed { upload: UploadKey, errno: Errno },
    /// The file is gone, and so is the key.
    Removed { upload: UploadKey },
}

/// How much may be received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    Bytes(u32),
    /// Not now. [`StoreEvent::Room`] or [`StoreEvent::Attached`] will come.
    Waiting,
}

/// Where the file of an upload lies when a server starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilePlace {
    /// Nothing was sent, or the web app has taken it away.
    Nowhere,
    Parts,
    Arrived,
}

/// How far the uploads of a store are, while its memory is used.
#[derive(Clone, Copy, Debug)]
pub struct Offsets<'a>(&'a [Slot]);

impl Offsets<'_> {
    /// Everything below is as safe as configured.
    pub fn durable(&self, key: UploadKey) -> Option<u64> {
        let slot = &self.0[key.slot as usize];
        let part = slot.part.as_ref().filter(|_| slot.generation == key.generation)?;
        Some(part.upload.durable())
    }
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    part: Option<Part>,
}

impl<M> Store<M> {
    pub fn new(config: StoreConfig) -> io::Result<Self> {
        let staging_bytes = config.staging_bytes & !(LEASE_BYTES_MIN - 1);
        assert!(staging_bytes >= LEASE_BYTES_MIN);
        let blocks_bytes = (staging_bytes / BLOCKS_SHARE).max(BLOCKS_BYTES_MIN);
        let store_bytes = staging_bytes + blocks_bytes;
        let journal_region = Slice { start: store_bytes, length: config.journal_bytes };
        let memory = Memory::new(store_bytes as usize + config.journal_bytes as usize)?;
        let staging = Slice { start: 0, length: staging_bytes };
        let blocks = Slice { start: staging_bytes, length: blocks_bytes };
        Ok(Self {
            config,
            memory,
            staging: Pool::new(staging, LEASE_BYTES_MIN, LEASE_BYTES_MAX),
            blocks: Pool::new(blocks, BLOCK_BYTES, BLOCK_BYTES),
            slots: Vec::new(),
            free_slots: Vec::new(),
            waiting: VecDeque::new(),
            holders: BTreeSet::new(),
            pressure_at: None,
            timers: Timers::new(),
            journal_region,
            ops: VecDeque::new(),
            in_flight_count: 0,
            unallocated_bytes: 0,
            events: VecDeque::new(),
        })
    }

    /// A new upload. Nothing is opened yet.
    pub fn insert(&mut self, ticket: TicketId, length_bytes: u64) -> UploadKey {
        self.insert_part(Part::new(ticket, length_bytes))
    }

    /// An upload of an earlier run, with what its journal says. `path`: where it arrives.
    pub fn restore(
        &mut self,
        ticket: TicketId,
        length_bytes: u64,
        committed_bytes: u64,
        place: FilePlace,
        path: PathBuf,
    ) -> UploadKey {
        let mut part = Part::new(ticket, length_bytes);
        part.upload = Upload::restored(length_bytes, committed_bytes);
        part.is_created = committed_bytes > 0 || place != FilePlace::Nowhere;
        part.is_name_synced = committed_bytes > 0;
        part.allocated = committed_bytes & !u64::from(BLOCK_BYTES - 1);
        if self.config.direct && committed_bytes > part.allocated {
            part.tail = Tail::OnDisk;
        }
        part.is_unmeasured = part.is_created;
        if place == FilePlace::Arrived {
            part.arrived_path = Some(path);
        }
        self.insert_part(part)
    }

    /// A connection takes the upload over, or goes on with it. What came before is written first;
    /// [`StoreEvent::Attached`] then says where to go on. Not while it is finished: then this is
    /// ignored, and [`StoreEvent::Arrived`] or [`StoreEvent::Failed`] comes.
    pub fn attach(&mut self, now: Instant, upload: UploadKey) {
        self.set_goal(now, upload, Goal::Attach);
    }

    /// Nobody sends any more. What has come is written, the file is closed. What is being finished
    /// goes on: it needs nobody.
    pub fn detach(&mut self, now: Instant, upload: UploadKey) {
        self.set_goal(now, upload, Goal::Idle);
    }

    /// All bytes are there: makes them durable, cuts the file to its length and moves it away.
    /// [`StoreEvent::Arrived`] follows.
    pub fn finish(&mut self, now: Instant, upload: UploadKey, finish: Finish) {
        assert_eq!(self.part(upload.slot).upload.remaining(), 0, "finished when complete");
        self.set_goal(now, upload, Goal::Finish(finish));
    }

    /// Removes the upload and its file, wherever it is. [`StoreEvent::Removed`] follows.
    pub fn discard(&mut self, now: Instant, upload: UploadKey) {
        self.set_goal(now, upload, Goal::Discard);
    }

    /// Gives the upload up, and its file the name `<ticket>.failed`, which nobody touches any more.
    /// [`StoreEvent::Removed`] follows.
    pub fn set_aside(&mut self, now: Instant, upload: UploadKey) {
        self.set_goal(now, upload, Goal::SetAside);
    }

    /// Forgets an upload that has arrived; its file stays.
    pub fn forget(&mut self, upload: UploadKey) {
        let part = self.part(upload.slot);
        assert!(!part.is_open && part.is_quiet(), "its file is closed");
        self.drop_staging(upload.slot);
        self.free_slot(upload.slot);
    }

    /// The offsets of an upload, if it is still known.
    pub fn upload(&self, key: UploadKey) -> Option<&Upload> {
        self.get(key).map(|it| &it.upload)
    }

    /// The file has left the parts: nothing can be appended any more.
    pub fn has_left(&self, key: UploadKey) -> bool {
        self.get(key).is_some_and(|it| it.arrived_path.is_some())
    }

    /// Whose file it is.
    pub fn ticket(&self, key: UploadKey) -> Option<TicketId> {
        self.get(key).map(|it| it.ticket)
    }

    /// Another length, while nothing has been received.
    pub fn set_length(&mut self, key: UploadKey, length_bytes: u64) {
        self.part_mut(key.slot).upload.set_length(length_bytes);
        self.count_unallocated(key.slot);
    }

    /// What the uploads that have begun will still take from the file system, in bytes: what was
    /// declared without what is allocated or written.
    pub fn unallocated_bytes(&self) -> u64 {
        self.unallocated_bytes
    }

    /// The same of one upload.
    pub fn unallocated_bytes_of(&self, key: UploadKey) -> u64 {
        self.get(key).map_or(0, |it| it.unallocated_counted)
    }

    /// The journal's record that everything below `offset_bytes` is durable is durable itself.
    pub fn on_committed(&mut self, now: Instant, key: UploadKey, offset_bytes: u64) {
        if let Some(part) = self.get_mut(key) {
            part.upload.on_committed(offset_bytes);
            self.advance(now, key.slot);
        }
    }

    /// The client was told that everything below `offset_bytes` is safe.
    pub fn on_acked(&mut self, key: UploadKey, offset_bytes: u64) {
        if let Some(part) = self.get_mut(key) {
            part.upload.on_acked(offset_bytes);
        }
    }

    pub fn on_completion(&mut self, now: Instant, completion: Completion) {
        self.in_flight_count -= 1;
        let Token::File { slot, generation, what } = completion.token else {
            unreachable!("a store's ops carry a file's token");
        };
        assert_eq!(self.slots[slot as usize].generation, generation, "slots outlive their ops");
        match what {
            FileOp::Write { write } => self.on_write(now, slot, write, completion.result),
            FileOp::ReadBack => self.on_read_back(slot, completion.result),
            FileOp::Step => self.on_step(now, slot, completion.result),
            FileOp::Allocate => self.on_allocated(slot, completion.result),
            FileOp::Sync => self.on_synced(now, slot, completion.result),
        }
        self.advance(now, slot);
        self.flush_wanted(slot);
        self.sync_if_due(now, slot);
        self.serve_waiting(now);
        self.count_unallocated(slot);
    }

    pub fn poll_op(&mut self) -> Option<(Token, Op<M>)> {
        self.ops.pop_front()
    }

    pub fn poll_event(&mut self) -> Option<StoreEvent> {
        self.events.pop_front()
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.pressure_at.into_iter().chain(self.timers.next()).min()
    }

    pub fn on_timeout(&mut self, now: Instant) {
        while let Some(upload) = self.timers.pop_due(now) {
            if self.get(upload).is_some() {
                self.reopen_if_due(now, upload.slot);
                self.sync_if_due(now, upload.slot);
            }
        }
        self.relieve(now);
    }

    /// Where the core's journal may put what it writes.
    pub fn journal_region(&self) -> Slice {
        self.journal_region
    }

    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The journal's memory, and what it says of the uploads.
    pub fn memory_and_offsets(&mut self) -> (&mut Memory, Offsets<'_>) {
        (&mut self.memory, Offsets(&self.slots))
    }

    /// For a kernel that is simulated: it reads into the slices it was lent.
    pub fn memory_mut(&mut self) -> &mut Memory {
        &mut self.memory
    }

    /// No op is in flight or to be started.
    pub fn is_quiet(&self) -> bool {
        self.in_flight_count == 0 && self.ops.is_empty()
    }

    /// Uploads wait for what only time brings: memory that others are asked to give back, or a
    /// file that another process has.
    pub fn is_waiting(&self) -> bool {
        let mut parts = self.slots.iter().filter_map(|it| it.part.as_ref());
        !self.waiting.is_empty() || parts.any(|it| it.reopen_at.is_some())
    }

    /// Staging memory in use, in bytes.
    pub fn leased_bytes(&self) -> u32 {
        self.staging.leased_bytes()
    }

    /// Memory that holds unfinished last blocks between leases, in bytes.
    pub fn kept_bytes(&self) -> u32 {
        self.blocks.leased_bytes()
    }

    fn set_goal(&mut self, now: Instant, upload: UploadKey, goal: Goal) {
        assert!(self.get(upload).is_some(), "a known upload");
        let part = self.part_mut(upload.slot);
        let is_over = matches!(part.goal, Goal::Discard | Goal::SetAside);
        assert!(!is_over, "nothing follows removal");
        let is_finishing = matches!(part.goal, Goal::Finish(_));
        if is_finishing && matches!(goal, Goal::Attach | Goal::Idle) {
            return;
        }
        part.wants_room = false;
        part.is_reserved = false;
        part.wanted = 0;
        self.leave_line(upload.slot);
        let part = self.part_mut(upload.slot);
        part.goal = goal;
        if part.goal != Goal::Discard {
            self.flush_part(upload.slot);
        } else {
            self.drop_staging(upload.slot);
        }
        self.advance(now, upload.slot);
        self.serve_waiting(now);
        self.count_unallocated(upload.slot);
    }

    fn insert_part(&mut self, part: Part) -> UploadKey {
        let slot = self.free_slots.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, part: None });
            u32::try_from(self.slots.len() - 1).expect("uploads are bounded")
        });
        let it = &mut self.slots[slot as usize];
        it.generation = it.generation.wrapping_add(1);
        it.part = Some(part);
        let key = UploadKey { slot, generation: it.generation };
        self.count_unallocated(slot);
        key
    }

    /// Something has happened to the upload, if it is still there.
    fn count_unallocated(&mut self, slot: u32) {
        let Some(part) = self.slots[slot as usize].part.as_mut() else { return };
        let unallocated = part.unallocated_bytes();
        self.unallocated_bytes -= std::mem::replace(&mut part.unallocated_counted, unallocated);
        self.unallocated_bytes += unallocated;
    }

    /// The upload does not wait for a lease any more.
    fn leave_line(&mut self, slot: u32) {
        let upload = self.key(slot);
        if std::mem::take(&mut self.part_mut(slot).is_waiting) {
            self.waiting.retain(|it| *it != upload);
        }
    }

    fn emit(&mut self, slot: u32, what: FileOp, op: Op<M>) {
        let generation = self.slots[slot as usize].generation;
        self.in_flight_count += 1;
        self.ops.push_back((Token::File { slot, generation, what }, op));
    }

    fn free_slot(&mut self, slot: u32) {
        let part = self.slots[slot as usize].part.take();
        self.unallocated_bytes -= part.map_or(0, |it| it.unallocated_counted);
        self.free_slots.push(slot);
    }

    fn key(&self, slot: u32) -> UploadKey {
        UploadKey { slot, generation: self.slots[slot as usize].generation }
    }

    fn get(&self, key: UploadKey) -> Option<&Part> {
        let slot = &self.slots[key.slot as usize];
        slot.part.as_ref().filter(|_| slot.generation == key.generation)
    }

    fn get_mut(&mut self, key: UploadKey) -> Option<&mut Part> {
        let slot = &mut self.slots[key.slot as usize];
        slot.part.as_mut().filter(|_| slot.generation == key.generation)
    }

    fn part(&self, slot: u32) -> &Part {
        self.slots[slot as usize].part.as_ref().expect("an occupied slot")
    }

    fn part_mut(&mut self, slot: u32) -> &mut Part {
        self.slots[slot as usize].part.as_mut().expect("an occupied slot")
    }

    fn part_path(&self, slot: u32) -> PathBuf {
        self.config.parts_dir.join(self.part(slot).ticket.to_string())
    }
}

/// Where the finished file of a ticket lies: absolute, or within the storage directory.
pub fn arrival_path(new: &NewTicket) -> PathBuf {
    let directory = if new.dest_dir.is_empty() { ARRIVED_NAME } else { &new.dest_dir };
    arrived_path(directory.as_ref(), new.id)
}

/// Where a finished file lies in its directory.
pub fn arrived_path(arrived_dir: &Path, ticket: TicketId) -> PathBuf {
    arrived_dir.join(ticket.to_string())
}

/// Files while they are received lie in this directory of the storage directory.
pub const PARTS_NAME: &str = "parts";
/// Files that are handed over, or wait for it, in this one.
pub const ARRIVED_NAME: &str = "arrived";

/// The driver's slot of an upload's file. The first two belong to the journal.
fn file(slot: u32) -> FileId {
    FileId(slot + 2)
}

/// One part in so many of the staging memory is added for unfinished last blocks.
const BLOCKS_SHARE: u32 = 16;
const BLOCKS_BYTES_MIN: u32 = 64 * BLOCK_BYTES;
