//! A running server: one thread for each core, one for everything else, and how they end.

mod boot;
mod error;
mod life;
mod listeners;
mod machine;
mod medium;
mod notify;
mod orphans;
mod places;
mod recovery;
pub mod storage;
mod succession;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime};

use engine::driver::{self, Backend, Runtime};
use engine::op::{CoreId, Machine};
use engine::outbox::Patience;
use engine::service::ServiceClock;
use engine::ticket::TicketId;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::config::{Config, format_size};
use crate::control::admin::Candidate;
use crate::keys::{BackendKey, BackendKeys};
use crate::mail::Mail;
use crate::worker::{Worker, WorkerConfig};
pub use error::ServerError;
use life::{Foundation, Life, spawn};
use medium::Medium;
use recovery::CoreStart;
use succession::{Legacy, Predecessor, Successor};

/// A server whose cores are working.
pub struct Server {
    life: Life,
    begin: Box<Begin>,
    notices: mpsc::Receiver<Notice>,
    foundation: Foundation,
}

type Begin = dyn Fn(&Foundation, &mpsc::Receiver<Notice>) -> Result<Life, ServerError> + Send;

/// Asks a server to stop, from any thread.
#[derive(Clone, Debug)]
pub struct Stopper(mpsc::Sender<Notice>);

/// What the cores tell each other without mail. Index: core.
#[derive(Clone, Debug)]
struct Shared {
    loads: Arc<[AtomicU32]>,
    unallocated: Arc<[AtomicU64]>,
    /// And for each key what all of them together count.
    keys: Arc<BackendKeys>,
}

impl Shared {
    fn new(core_count: u16, keys: &[BackendKey]) -> Self {
        Self {
            keys: Arc::new(BackendKeys::new(keys.iter().cloned())),
            loads: (0..core_count).map(|_| AtomicU32::new(0)).collect(),
            unallocated: (0..core_count).map(|_| AtomicU64::new(0)).collect(),
        }
    }
}

/// What the server's threads tell it.
#[derive(Debug)]
enum Notice {
    /// The core's worker is made.
    CoreReady,
    /// Nobody is left at this core.
    Drained,
    CoreEnded {
        core: CoreId,
        result: io::Result<()>,
    },
    Stop,
    /// A new process wants to be the server.
    Replace(Candidate),
    /// It is; or it is gone.
    Successor {
        is_ready: bool,
    },
}

/// What happens where another server has the storage directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Succession {
    /// The start waits a while, then it fails.
    Wait,
    /// The other one is asked to hand over; and so may this one be.
    TakeOver,
}

impl Server {
    /// Starts all threads and returns when they accept connections.
    ///
    /// # Errors
    /// See [`ServerError`]. Nothing goes on running then but threads that end by themselves.
    pub fn start(config: &Config) -> Result<Self, ServerError> {
        Self::start_with(config, Succession::Wait, |it| Worker::new(Instant::now(), it))
    }

    /// Starts like [`Server::start`]. Where a server that was started in this way has the storage
    /// directory and listens at the same address, it is asked to hand over: this one begins where
    /// that one ends, with the same listeners, and nobody is refused meanwhile.
    ///
    /// # Errors
    /// See [`ServerError`]. The process has to end then, so that the other server serves again.
    pub fn start_or_take_over(config: &Config) -> Result<Self, ServerError> {
        Self::start_with(config, Succession::TakeOver, |it| Worker::new(Instant::now(), it))
    }

    fn start_with<M, F>(
        config: &Config,
        succession: Succession,
        make: F,
    ) -> Result<Self, ServerError>
    where
        M: Machine<Mail = Mail> + 'static,
        F: Fn(WorkerConfig) -> io::Result<M> + Clone + Send + 'static,
    {
        let system = |what| move |error| ServerError::System { what, error };
        let cpu_count = machine::usable_cpus().len();
        let core_count = config.cores.unwrap_or(cpu_count.min(usize::from(u16::MAX)) as u16);
        // What cannot work is found out before a server that works is asked to end.
        let backend = choose_backend(config.runtime)?;
        let given = listeners::given(config)?;
        let addresses: io::Result<Vec<_>> = given.iter().map(|it| it.local_addr()).collect();
        let mut wanted = addresses.map_err(system("ask for the address"))?;
        if wanted.is_empty() {
            wanted.push(config.listen);
        }
        let mut predecessor = None;
        let mut inherited = Vec::new();
        let storage = places::open(config, || {
            if succession == Succession::Wait {
                return Ok(None);
            }
            let legacy = Predecessor::ask(config, &wanted)?;
            Ok(legacy.map(|Legacy { lock, listeners, predecessor: it }| {
                predecessor = Some(it);
                inherited = listeners;
                lock
            }))
        })?;
        let medium = Medium::probe(&storage.dir, config.durability);
        warn_about(config, core_count);
        let mut listeners = listeners::join(inherited, given).map_err(system("join listeners"))?;
        if listeners.is_empty() {
            listeners = listeners::listen(config.listen, core_count)
                .map_err(|error| ServerError::Listen { address: config.listen, error })?;
        }
        let address = listeners[0].local_addr().map_err(system("ask for the address"))?;
        let (notifier, notices) = mpsc::channel();
        let foundation = Foundation {
            config: config.clone(),
            core_count,
            backend,
            storage,
            medium,
            listeners,
            address,
            hands_over: succession == Succession::TakeOver,
            notifier,
        };
        let begin = move |foundation: &Foundation, notices: &mpsc::Receiver<Notice>| {
            Life::begin(foundation, notices, &make)
        };
        let life = match begin(&foundation, &notices) {
            Ok(life) => life,
            Err(error) => {
                if let Some(it) = predecessor {
                    it.give_up();
                }
                return Err(error);
            }
        };
        if let Some(it) = predecessor {
            it.release();
        }
        notify::ready();
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            listen = %address,
            storage_dir = %config.storage_dir.display(),
            runtime = %config.runtime,
            engine = match backend {
                Backend::IoUring => "io_uring",
                Backend::Epoll => "epoll",
            },
            direct = medium.direct,
            cores = core_count,
            memory_total = format_size(u64::from(config.memory_bytes) * u64::from(core_count)),
            "ready"
        );
        Ok(Self { life, begin: Box::new(begin), notices, foundation })
    }

    /// Where it listens; never port 0.
    pub fn address(&self) -> SocketAddr {
        self.foundation.address
    }

    pub fn stopper(&self) -> Stopper {
        Stopper(self.foundation.notifier.clone())
    }

    /// Serves until [`Stopper::stop`], or until another process has taken over. What can be ended is
    /// ended before.
    ///
    /// # Errors
    /// A core could not go on.
    pub fn run(mut self) -> Result<(), ServerError> {
        loop {
            match self.serve()? {
                None => return self.stop(),
                Some(candidate) => {
                    let Some(successor) = Successor::accept(candidate, &self.foundation) else {
                        continue;
                    };
                    if self.hand_over(successor)? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Until it is to stop, or somebody wants to take over.
    fn serve(&mut self) -> Result<Option<Candidate>, ServerError> {
        loop {
            let patience = self.life.orphans.patience(SystemTime::now());
            match self.notices.recv_timeout(patience) {
                Ok(Notice::Stop) => return Ok(None),
                Ok(Notice::Replace(candidate)) => return Ok(Some(candidate)),
                Ok(Notice::CoreEnded { core, result: Err(error) }) => {
                    return Err(ServerError::Core { core, error });
                }
                Ok(_) => {}
                Err(_) => self.life.orphans.collect(SystemTime::now()),
            }
        }
    }

    /// Ends in time. Who wants to take over meanwhile gets what it needs.
    fn stop(mut self) -> Result<(), ServerError> {
        tracing::info!("stopping");
        notify::stopping();
        let deadline = Instant::now() + STOP_PATIENCE;
        let mut successor = None;
        let foundation = &self.foundation;
        let has_ended = self.life.end(&self.notices, Some(deadline), |notice| {
            match notice {
                Notice::Replace(it) if successor.is_none() => {
                    successor = Successor::accept(it, foundation);
                }
                Notice::Replace(it) => Successor::refuse(it, ANOTHER_ONE),
                _ => {}
            }
            None
        })?;
        if let Some(mut it) = successor.filter(|_| has_ended)
            && let Err(error) = it.give(foundation)
        {
            tracing::warn!(pid = it.process_id, %error, "cannot hand over");
        }
        tracing::info!("stopped");
        Ok(())
    }

    /// True: the successor serves, or will. False: it is gone, and this one serves again.
    fn hand_over(&mut self, mut successor: Successor) -> Result<bool, ServerError> {
        let pid = successor.process_id;
        tracing::info!(pid, "handing over to another server");
        let foundation = &self.foundation;
        let mut is_stopped = false;
        let has_ended = self.life.end(&self.notices, None, |notice| match notice {
            Notice::Stop => {
                is_stopped = true;
                Some(Instant::now() + STOP_PATIENCE)
            }
            Notice::Replace(it) => {
                Successor::refuse(it, ANOTHER_ONE);
                None
            }
            _ => None,
        })?;
        let given = if has_ended { successor.give(foundation) } else { Ok(()) };
        if is_stopped {
            tracing::info!("stopped");
            return Ok(true);
        }
        let is_ready = match given.and_then(|()| successor.watch(foundation.notifier.clone())) {
            Ok(()) => self.wait_for_successor(pid),
            Err(error) => {
                tracing::warn!(pid, %error, "cannot hand over");
                false
            }
        };
        if is_ready {
            tracing::info!(pid, "another server has taken over");
        } else {
            tracing::warn!(pid, "it did not come up");
            self.foundation.storage.take_back();
            self.life = (self.begin)(&self.foundation, &self.notices)?;
            tracing::info!("serving again");
        }
        Ok(is_ready)
    }

    /// For as long as it lives. Who is told to stop meanwhile leaves everything to it.
    fn wait_for_successor(&self, pid: u64) -> bool {
        loop {
            match self.notices.recv_timeout(SUCCESSOR_REMINDER) {
                Ok(Notice::Successor { is_ready }) => return is_ready,
                Ok(Notice::Stop) => return true,
                Ok(Notice::Replace(it)) => Successor::refuse(it, ANOTHER_ONE),
                Ok(_) => {}
                Err(_) => tracing::warn!(
                    pid,
                    "nobody serves: still waiting for the process that takes over; if it hangs, \
                     kill it"
                ),
            }
        }
    }

    /// SIGTERM and SIGINT stop the server; a second one ends the process at once.
    ///
    /// # Errors
    /// The signals cannot be caught.
    pub fn stop_on_signals(&self) -> Result<(), ServerError> {
        let system = |error| ServerError::System { what: "catch signals", error };
        let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(system)?;
        let stopper = self.stopper();
        spawn("signals".to_owned(), move || {
            let mut first = true;
            for signal in signals.forever() {
                if !first {
                    std::process::exit(EXIT_SIGNAL_BASE + signal);
                }
                first = false;
                stopper.stop();
            }
        })
        .map(drop)
        .map_err(system)
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("address", &self.foundation.address).finish_non_exhaustive()
    }
}

impl Stopper {
    pub fn stop(&self) {
        // A server that is gone has stopped.
        let _ = self.0.send(Notice::Stop);
    }
}

fn worker_config(
    config: &Config,
    start: CoreStart,
    medium: Medium,
    service: ServiceClock,
    shared: Shared,
) -> WorkerConfig {
    WorkerConfig {
        core: start.core,
        core_count: shared.loads.len() as u16,
        storage_dir: config.storage_dir.clone(),
        direct: medium.direct,
        durability: medium.durability,
        staging_bytes: config.memory_bytes,
        connections_max: config.connections_max,
        tickets_max: TICKETS_PER_CORE_MAX,
        idle_timeout: config.idle_timeout,
        lifetime: config.lifetime,
        finish_timeout: config.finish_timeout,
        patience: Patience { timeout: config.handover_timeout, refusals_max: config.refusals_max },
        service,
        backend_behind_proxy: config.backend_behind_proxy,
        keys: shared.keys,
        library_modified: library_modified(),
        unallocated: shared.unallocated,
        reserve_bytes: config.reserve_bytes,
        max_size_bytes: config.max_size_bytes,
        dest_roots: config.dest_roots.clone(),
        handover_mode: config.handover_mode,
        handover_gid: config.handover_group.as_ref().map(|it| it.gid),
        run: start.run,
        log_start: start.log_start,
        recovered: start.tickets,
        loads: shared.loads,
        draw_id: Box::new(|| TicketId(uuid::Uuid::new_v4().as_u128())),
    }
}

/// The hosted library is part of the executable.
fn library_modified() -> SystemTime {
    let executable = std::env::current_exe().and_then(std::fs::metadata);
    executable.and_then(|it| it.modified()).unwrap_or_else(|_| SystemTime::now())
}

fn choose_backend(runtime: Runtime) -> Result<Backend, ServerError> {
    let Err(error) = driver::probe_io_uring() else { return Ok(Backend::IoUring) };
    if runtime == Runtime::TokioUring {
        return Err(ServerError::IoUringRefused { error });
    }
    tracing::warn!(
        reason = %error,
        remedy = driver::io_uring_remedy(&error),
        "io_uring is refused; working with epoll, which is slower"
    );
    Ok(Backend::Epoll)
}

fn warn_about(config: &Config, core_count: u16) {
    if rustix::process::geteuid().is_root() {
        tracing::warn!("running as root; a user of its own is enough for this server");
    }
    if !config.listen.ip().is_loopback() {
        tracing::warn!(
            listen = %config.listen,
            "the network reaches the backend routes; let the proxy in front deny \
             /incoming/0.1/backend/ and /incoming/backend/"
        );
    }
    let files_max = machine::raise_file_limit();
    // Each connection may write a file.
    let files_wanted = 2 * u64::from(core_count) * u64::from(config.connections_max);
    if files_max < files_wanted {
        tracing::warn!(
            files_max,
            files_wanted,
            "the limit of open files is below what connections_max may need; raise it \
             (LimitNOFILE=, ulimit -n)"
        );
    }
}

/// Finished ones are remembered for a while, which is what most of them are.
const TICKETS_PER_CORE_MAX: u32 = 100_000;
const STOP_PATIENCE: Duration = Duration::from_secs(5);
const SUCCESSOR_REMINDER: Duration = Duration::from_secs(10);
const ANOTHER_ONE: &str = "another process is taking over already";
/// As a shell reports a process that a signal has ended.
const EXIT_SIGNAL_BASE: i32 = 128;

#[cfg(test)]
mod tests;
