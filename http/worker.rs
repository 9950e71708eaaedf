//! One core: its clients, its tickets, its files, and the loop that joins them.
//!
//! Inert: events in, ops out, time is an argument. Reading order: this file (what wakes a core),
//! `clients` (who is connected), `sockets` (accept, send, end), `input` (receive and read),
//! `uploads` (from a claim to a stored file), `room` (which files may be begun), `destinations` (where
//! they may arrive), `backend` (what web apps ask), `telling` (what they are told, until they know),
//! `lifecycle` (what time does to tickets), `journal` (what waits until it is recorded), `restore`
//! (what an earlier run left), `watch` (whether the storage is still there),
//! `query` (what is asked about all of that), `usage` (what each backend key has under way), `drain` (the end).

mod backend;
mod clients;
mod destinations;
mod drain;
mod input;
mod journal;
mod lifecycle;
mod query;
mod rate;
mod restore;
mod room;
mod sockets;
mod telling;
mod uploads;
mod usage;
mod watch;

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::{Duration, Instant, SystemTime};

use engine::buffer::Memory;
use engine::durability::Durability;
use engine::journal::{CommitSync, Journal, JournalConfig, LogStart, Position, REGION_BYTES};
use engine::limits::RECEIVE_BUFFER_BYTES;
use engine::op::{Completion, CoreId, Event, Machine, Op, Output, SocketOp, Token};
use engine::outbox::{Outbox, Patience};
use engine::service::ServiceClock;
use engine::store::{PARTS_NAME, Store, StoreConfig};
use engine::ticket::TicketId;
use engine::tickets::Tickets;

use backend::HeldFinish;
use clients::Clients;
use destinations::Destinations;
use drain::Drain;
use journal::Then;
use query::Asked;
pub use restore::RecoveredTicket;
use watch::Watch;

use crate::assets::Library;
use crate::codec::response::http_date;
use crate::keys::BackendKeys;
use crate::mail::Mail;
use crate::query::Asker;
use crate::routes::Router;

/// See the module.
#[derive(Debug)]
pub struct Worker {
    config: WorkerConfig,
    router: Router,
    store: Store<Mail>,
    tickets: Tickets,
    /// Tickets that are over, oldest first: only so many are remembered.
    over: VecDeque<TicketId>,
    /// Who waits for another try.
    outbox: Outbox,
    clients: Clients,
    /// Requests to finish an upload whose web app has not answered the callback yet.
    held: Vec<HeldFinish>,
    /// What web apps have asked all cores.
    asked: Vec<Asked>,
    journal: Journal<Mail>,
    /// What follows when a record is durable, in the order of the records.
    awaiting: VecDeque<(Position, Then)>,
    watch: Watch,
    /// Requests for tickets whose files are to arrive in directories that are being looked at.
    destinations: Destinations,
    ops: VecDeque<(Token, Op<Mail>)>,
    /// The core's hot buffer.
    receive_buffer: Vec<u8>,
    /// For responses, and the time it belongs to.
    date: (Instant, String),
    /// Service time in this turn.
    service_ms: u64,
    /// When a commit is made for the time that it carries.
    clock_at: Option<Instant>,
    drain: Option<Drain>,
    is_stopping: bool,
    /// Callbacks whose answer is to come.
    calls_in_flight: u32,
}

/// What a worker is told at start. Nothing in it changes afterwards.
pub struct WorkerConfig {
    pub core: CoreId,
    pub core_count: u16,
    /// Absolute. Holds `parts/` and `arrived/`, which exist.
    pub storage_dir: PathBuf,
    /// Whether files there are written without the page cache.
    pub direct: bool,
    /// What acknowledgements promise.
    pub durability: Durability,
    /// Staging memory of this core, in bytes.
    pub staging_bytes: u32,
    /// Connections that this core holds at a time; further ones wait in the listener's queue.
    pub connections_max: u32,
    /// Tickets of this core that are not finished; `new_upload` answers 503 beyond.
    pub tickets_max: u32,
    /// A ticket that nothing happens to for so long is cancelled ("upload timed out").
    pub idle_timeout: Duration,
    /// An upload that is not whole after so long is cancelled, whatever happens to it.
    pub lifetime: Duration,
    /// How long after `wait` the web app may take to call `finish_upload` before it is asked again.
    pub finish_timeout: Duration,
    /// For how long a web app is told that cannot be, or does not want to be.
    pub patience: Patience,
    /// The time that counts for all of them.
    pub service: ServiceClock,
    /// Answer backend routes also to requests that come through a proxy or from a browser.
    pub backend_behind_proxy: bool,
    /// Who may ask for tickets, and what all cores count for each.
    pub keys: Arc<BackendKeys>,
    /// When the hosted library last changed, for caches.
    pub library_modified: SystemTime,
    /// Tickets per core, for placing new ones. Index: core.
    pub loads: Arc<[AtomicU32]>,
    /// Bytes that the begun uploads of each core will still take from the file system. Index: core.
    pub unallocated: Arc<[AtomicU64]>,
    /// Below this much free space there are no new tickets, and no file is begun that would not
    /// leave it free, in bytes.
    pub reserve_bytes: u64,
    /// Absolute. Files may arrive in them and below.
    pub dest_roots: Vec<PathBuf>,
    /// What handed-over files may be used for, and by which group. `None`: as the original has it.
    pub handover_mode: Option<u32>,
    pub handover_gid: Option<u32>,
    /// Longer files are refused.
    pub max_size_bytes: Option<u64>,
    /// Which start of a server on this storage directory this is.
    pub run: u64,
    /// Where the journal goes on, whose files the server has made ready.
    pub log_start: LogStart,
    /// Tickets of earlier runs that this core owns now.
    pub recovered: Vec<RecoveredTicket>,
    /// Draws a random ticket id.
    pub draw_id: Box<dyn FnMut() -> TicketId + Send>,
}

impl Worker {
    /// Takes its memory. Fails where the kernel has none.
    pub fn new(now: Instant, mut config: WorkerConfig) -> io::Result<Self> {
        assert_eq!(config.loads.len(), usize::from(config.core_count));
        assert_eq!(config.unallocated.len(), usize::from(config.core_count));
        assert!(config.core.0 < config.core_count);
        let store = Store::new(StoreConfig {
            parts_dir: PARTS_NAME.into(),
            direct: config.direct,
            staging_bytes: config.staging_bytes,
            journal_bytes: REGION_BYTES,
            durability: config.durability,
        })?;
        let router = Router {
            library: Library::new(config.library_modified),
            backend_behind_proxy: config.backend_behind_proxy,
            is_draining: false,
            dest_roots: config.dest_roots.clone(),
            keys: config.keys.clone(),
        };
        let recovered = std::mem::take(&mut config.recovered);
        let journal = JournalConfig {
            core: config.core.0,
            core_count: config.core_count,
            run: config.run,
            sync: CommitSync::new(config.durability, config.direct),
            region: store.journal_region(),
            start: config.log_start,
        };
        let mut worker = Self {
            journal: Journal::new(journal, recovered.iter().map(|it| &it.record)),
            awaiting: VecDeque::new(),
            watch: Watch::new(),
            destinations: Destinations::default(),
            router,
            store,
            tickets: Tickets::default(),
            over: VecDeque::new(),
            outbox: Outbox::default(),
            clients: Clients::new(config.connections_max),
            held: Vec::new(),
            asked: Vec::new(),
            ops: VecDeque::new(),
            receive_buffer: vec![0; RECEIVE_BUFFER_BYTES as usize],
            date: (now, http_date(SystemTime::now())),
            service_ms: config.service.ms(now),
            clock_at: None,
            drain: None,
            is_stopping: false,
            calls_in_flight: 0,
            config,
        };
        worker.restore(now, recovered);
        worker.publish_unallocated();
        worker.accept();
        Ok(worker)
    }

    /// Staging memory in use, in bytes.
    pub fn leased_bytes(&self) -> u32 {
        self.store.leased_bytes()
    }

    /// For a kernel that is simulated: it reads into the slices it was lent.
    pub fn memory_mut(&mut self) -> &mut Memory {
        self.store.memory_mut()
    }

    /// Connections that are open or being closed.
    pub fn client_count(&self) -> usize {
        self.clients.len()
    }

    /// Tickets that are known, finished ones included.
    pub fn ticket_count(&self) -> usize {
        self.tickets.len()
    }

    /// No two connections own one upload.
    pub fn is_each_upload_bound_once(&self) -> bool {
        self.clients.slots().all(|slot| {
            let key = self.clients.key(slot);
            let ticket = self.ticket_of(key).and_then(|it| self.tickets.get(it));
            ticket.is_none_or(|it| it.client == Some(key))
        })
    }

    /// Only time helps: the journal has no space, another process has a file, or memory is short.
    pub fn is_waiting_for_storage(&self) -> bool {
        self.journal.poll_timeout().is_some() || self.store.is_waiting()
    }

    fn on_completion(&mut self, now: Instant, completion: Completion) {
        match completion.token {
            Token::File { .. } => {
                self.store.on_completion(now, completion);
                self.on_store_events(now);
            }
            Token::Accept => self.on_accepted(now, completion.result),
            Token::Socket { slot, generation, what } => {
                assert!(self.clients.is_current(slot, generation), "slots outlive their ops");
                match what {
                    SocketOp::Readable => self.on_readable(now, slot, completion.result.is_ok()),
                    SocketOp::Recv => {
                        self.on_received(now, slot, completion.result);
                    }
                    SocketOp::Send => {
                        let count = completion.result.map(Output::bytes);
                        self.on_sent(now, slot, count);
                    }
                }
            }
            Token::Journal(_) => self.journal.on_completion(now, completion),
            Token::Storage => self.on_storage_checked(now, completion.result),
            Token::Directory(number) => {
                self.on_destination_checked(now, number, completion.result);
            }
            Token::None => unreachable!("such ops have no completion"),
        }
    }

    fn on_mail(&mut self, now: Instant, mail: Mail) {
        match mail {
            Mail::CallbackAnswer { ticket, attempt, answer } => {
                self.calls_in_flight -= 1;
                self.on_callback_answer(now, ticket, attempt, answer);
            }
            Mail::Backend { reply_to, request } => self.on_backend(now, reply_to, request),
            Mail::BackendAnswer { client, response } => self.on_answer(now, client, &response),
            Mail::Query { asker, query } => self.on_query(now, asker, &query),
            Mail::QueryAnswer { asker: Asker::Client(it), page } => {
                self.on_page(now, it.client, page);
            }
            Mail::Retry { number, retry } => self.on_retry(now, number, retry),
            Mail::HostBack { host } => self.bring_forward(&host),
            Mail::Drain => self.start_drain(now),
            Mail::Stop => self.stop(now),
            Mail::Callback { .. }
            | Mail::Drained { .. }
            | Mail::QueryAnswer { asker: Asker::Control(_), .. }
            | Mail::RetryAnswer { .. }
            | Mail::JournalFailed { .. }
            | Mail::Client(_) => {
                unreachable!("addressed to the control thread, or sent with a socket")
            }
        }
    }

    /// For responses: the wall clock, looked at once a second. It may jump; nothing depends on it.
    fn date(&mut self, now: Instant) -> &str {
        if now.duration_since(self.date.0) >= Duration::from_secs(1) {
            self.date = (now, http_date(SystemTime::now()));
        }
        &self.date.1
    }

    fn stop(&mut self, now: Instant) {
        if !std::mem::replace(&mut self.is_stopping, true) {
            self.start_drain(now);
            self.note_clock();
        }
    }

    /// Nothing is to be written, asked or started.
    fn is_quiet(&self) -> bool {
        let is_quiet = self.store.is_quiet() && self.journal.is_quiet() && self.watch.is_quiet();
        is_quiet && self.destinations.is_quiet() && self.ops.is_empty()
    }
}

impl Machine for Worker {
    type Mail = Mail;

    fn on_event(&mut self, now: Instant, event: Event<Mail>) {
        self.service_ms = self.config.service.ms(now);
        match event {
            Event::Completion(completion) => self.on_completion(now, completion),
            Event::Mail(mail) => self.on_mail(now, mail),
            Event::Arrived { socket, mail: Mail::Client(moved) } => {
                self.on_moved(now, socket, *moved);
            }
            Event::Arrived { .. } => unreachable!("a socket travels with its connection"),
        }
        self.on_journal_events(now);
        self.pump_due(now);
        self.publish_unallocated();
    }

    fn on_timeout(&mut self, now: Instant) {
        self.service_ms = self.config.service.ms(now);
        self.store.on_timeout(now);
        self.on_store_events(now);
        self.on_client_timeouts(now);
        self.on_ticket_timeouts(now);
        self.on_held_timeouts(now);
        self.on_watch_timeout(now);
        self.on_drain_timeout(now);
        self.on_clock_timeout(now);
        self.journal.on_timeout(now);
        self.on_journal_events(now);
        self.pump_due(now);
        self.publish_unallocated();
    }

    fn poll_op(&mut self) -> Option<(Token, Op<Mail>)> {
        let op = self.store.poll_op().or_else(|| self.ops.pop_front());
        // Only then what is to be sent: the acknowledgements of a whole turn go out together. Last
        // the journal, which writes the records of a whole turn at once.
        let op = op.or_else(|| self.poll_send()).or_else(|| self.poll_journal());
        op.or_else(|| self.poll_drained())
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let held = self.held.iter().map(|it| it.until).min();
        let timeouts = [
            self.store.poll_timeout(),
            self.clients.poll_timeout(),
            self.tickets.poll_timeout(),
            self.journal.poll_timeout(),
            self.watch.check_at,
            self.clock_at,
            held,
            self.drain.as_ref().map(|it| it.check_at),
        ];
        timeouts.into_iter().flatten().min()
    }

    fn receive_buffer(&mut self) -> &mut [u8] {
        &mut self.receive_buffer
    }

    fn memory(&self) -> &Memory {
        self.store.memory()
    }

    /// A connection that may still be accepted does not count.
    fn is_stopped(&self) -> bool {
        self.is_stopping && self.clients.is_empty() && self.is_quiet()
    }
}

impl std::fmt::Debug for WorkerConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerConfig").field("core", &self.core).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
