//! A running server: one thread for each core, one for everything else, and how they end.

mod boot;
mod machine;
mod medium;
mod orphans;
mod places;
mod recovery;
pub mod storage;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use engine::driver::{self, Backend, Helper, Runtime, Sender, Setup};
use engine::journal::CommitSync;
use engine::op::{CoreId, Machine};
use engine::outbox::Patience;
use engine::service::ServiceClock;
use engine::ticket::TicketId;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::config::{Config, format_size};
use crate::control::admin::{AdminSocket, Desk, Operator};
use crate::control::cores::Cores;
use crate::control::{self, Control, ControlSender};
use crate::keys::{BackendKey, BackendKeys};
use crate::mail::Mail;
use crate::worker::{Worker, WorkerConfig};
use medium::Medium;
use orphans::Orphans;
use places::RootProblem;
use recovery::{CoreStart, Recovered};
use storage::{Storage, StorageError};

/// A server whose cores are working.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    cores: Vec<Sender<Mail>>,
    control: ControlSender,
    notices: mpsc::Receiver<Notice>,
    /// For whoever wants the server to stop.
    notifier: mpsc::Sender<Notice>,
    orphans: Orphans,
    _storage: Storage,
}

/// Asks a server to stop, from any thread.
#[derive(Clone, Debug)]
pub struct Stopper(mpsc::Sender<Notice>);

/// Why a server does not start, or does not go on. The text names key, value and remedy.
#[derive(Debug)]
pub enum ServerError {
    Storage {
        dir: std::path::PathBuf,
        error: StorageError,
    },
    /// Files cannot arrive in this directory.
    DestRoot {
        root: std::path::PathBuf,
        problem: RootProblem,
    },
    /// Files cannot be handed over to this group.
    HandoverGroup {
        name: String,
        error: io::Error,
    },
    Listen {
        address: SocketAddr,
        error: io::Error,
    },
    /// tokio-uring cannot work without io_uring.
    IoUringRefused {
        error: io::Error,
    },
    /// A thread, a mailbox or the signals.
    System {
        what: &'static str,
        error: io::Error,
    },
    Core {
        core: CoreId,
        error: io::Error,
    },
}

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
    CoreEnded {
        core: CoreId,
        result: io::Result<()>,
    },
    Stop,
}

impl Server {
    /// Starts all threads and returns when they accept connections.
    ///
    /// # Errors
    /// See [`ServerError`]. Nothing goes on running then but threads that end by themselves.
    pub fn start(config: &Config) -> Result<Self, ServerError> {
        Self::start_with(config, |it| Worker::new(Instant::now(), it))
    }

    fn start_with<M, F>(config: &Config, make: F) -> Result<Self, ServerError>
    where
        M: Machine<Mail = Mail>,
        F: Fn(WorkerConfig) -> io::Result<M> + Clone + Send + 'static,
    {
        let system = |what| move |error| ServerError::System { what, error };
        let cpus = machine::usable_cpus();
        let core_count = config.cores.unwrap_or(cpus.len().min(usize::from(u16::MAX)) as u16);
        let denied = |error| ServerError::Storage { dir: config.storage_dir.clone(), error };
        let storage = places::open(config)?;
        let backend = choose_backend(config.runtime)?;
        let medium = Medium::probe(&storage.dir, config.durability);
        warn_about(config, core_count);
        let listeners = machine::listen(config.listen, core_count)
            .map_err(|error| ServerError::Listen { address: config.listen, error })?;
        let address = listeners[0].local_addr().map_err(system("ask for the address"))?;
        let sync = CommitSync::new(medium.durability, medium.direct);
        let Recovered { cores: starts, mut orphans, service_ms } =
            recovery::recover(&storage.dir, core_count, sync, config.idle_timeout)
                .map_err(denied)?;
        orphans.collect(SystemTime::now());

        let mailboxes: io::Result<(Vec<_>, Vec<_>)> =
            (0..core_count).map(|_| driver::mailbox::<Mail>()).collect();
        let (cores, receivers) = mailboxes.map_err(system("make a mailbox"))?;
        let helper = Helper::start(backend, storage.dir.clone())
            .map_err(system("start the helper thread"))?;
        let posts = cores.clone();
        let post = move |core: CoreId, mail| posts[usize::from(core.0)].send(mail);
        let settings = control::Settings::new(config, core_count);
        let (control, control_sender) =
            Control::new(settings, post.clone()).map_err(system("start the control thread"))?;
        let operator = Operator::new(Arc::new(Cores::new(core_count, post)), storage.dir.clone());
        let desk = Desk { listen: vec![address], operator };
        let control = with_admin(control, &config.storage_dir, desk);
        spawn("control".to_owned(), move || control.run())
            .map_err(system("start the control thread"))?;

        let service = ServiceClock::new(service_ms, Instant::now());
        let (notifier, notices) = mpsc::channel();
        let shared = Shared::new(core_count, &config.backend_keys);
        let runtime = config.runtime;
        let starts = starts.into_iter().zip(listeners.into_iter().zip(receivers));
        for (start, (listener, mailbox)) in starts {
            let core = start.core;
            let cpu = cpus[usize::from(core.0) % cpus.len()];
            let setup = Setup {
                listener,
                mailbox,
                cores: cores.clone(),
                control: Box::new(control_mail(control_sender.clone(), notifier.clone())),
                helper: helper.clone(),
                backend,
            };
            let config = worker_config(config, start, medium, service, shared.clone());
            let (make, notifier) = (make.clone(), notifier.clone());
            let body = move || {
                if let Err(error) = machine::pin(cpu) {
                    tracing::warn!(core = core.0, cpu, %error, "cannot stay on one CPU");
                }
                // Made here, so that its memory is near this CPU.
                let result = make(config).and_then(|worker| {
                    let _ = notifier.send(Notice::CoreReady);
                    driver::run(runtime, worker, setup)
                });
                let _ = notifier.send(Notice::CoreEnded { core, result });
            };
            spawn(format!("core-{}", core.0), body).map_err(system("start a core's thread"))?;
        }
        let server = Self {
            address,
            cores,
            control: control_sender,
            notices,
            notifier,
            orphans,
            _storage: storage,
        };
        server.wait_until_ready()?;
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            listen = %address,
            storage_dir = %config.storage_dir.display(),
            runtime = %runtime,
            engine = match backend {
                Backend::IoUring => "io_uring",
                Backend::Epoll => "epoll",
            },
            direct = medium.direct,
            cores = core_count,
            memory_total = format_size(u64::from(config.memory_bytes) * u64::from(core_count)),
            "ready"
        );
        Ok(server)
    }

    /// Where it listens; never port 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn stopper(&self) -> Stopper {
        Stopper(self.notifier.clone())
    }

    /// Serves until [`Stopper::stop`], then lets the cores end what they can.
    ///
    /// # Errors
    /// A core could not go on.
    pub fn run(mut self) -> Result<(), ServerError> {
        let mut running = self.cores.len();
        let mut deadline: Option<Instant> = None;
        while running > 0 {
            let patience = match deadline {
                None => self.orphans.patience(SystemTime::now()),
                Some(it) => it.saturating_duration_since(Instant::now()),
            };
            match self.notices.recv_timeout(patience).ok() {
                Some(Notice::CoreEnded { result: Ok(()), .. }) => running -= 1,
                Some(Notice::CoreEnded { core, result: Err(error) }) => {
                    return Err(ServerError::Core { core, error });
                }
                Some(Notice::Stop) if deadline.is_none() => {
                    tracing::info!("stopping");
                    self.cores.iter().for_each(|it| it.send(Mail::Stop));
                    deadline = Some(Instant::now() + STOP_PATIENCE);
                }
                Some(Notice::Stop | Notice::CoreReady) => {}
                None if deadline.is_none() => self.orphans.collect(SystemTime::now()),
                None => {
                    // What was acknowledged is on the disk; what was not, clients send again.
                    tracing::warn!(cores = running, "some cores have not ended; stopping anyway");
                    break;
                }
            }
        }
        self.control.send(Mail::Stop);
        tracing::info!("stopped");
        Ok(())
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
        .map_err(system)
    }

    fn wait_until_ready(&self) -> Result<(), ServerError> {
        for _ in &self.cores {
            match self.notices.recv() {
                Ok(Notice::CoreEnded { core, result: Err(error) }) => {
                    return Err(ServerError::Core { core, error });
                }
                Ok(_) => {}
                Err(_) => unreachable!("the server holds a sender"),
            }
        }
        Ok(())
    }
}

impl Stopper {
    pub fn stop(&self) {
        // A server that is gone has stopped.
        let _ = self.0.send(Notice::Stop);
    }
}

/// Uploads do not need it: where the file system has no sockets, the server serves.
fn with_admin<P: Fn(CoreId, Mail)>(
    control: Control<P>,
    storage_dir: &Path,
    desk: Desk,
) -> Control<P> {
    match AdminSocket::bind(storage_dir) {
        Ok(socket) => control.with_admin(desk, socket),
        Err(error) => {
            tracing::warn!(%error, "there is no admin socket: commands cannot reach this server");
            control
        }
    }
}

/// What cores send to the control thread. That the server has to end is not its business.
fn control_mail(control: ControlSender, notifier: mpsc::Sender<Notice>) -> impl Fn(Mail) + Send {
    move |mail| match mail {
        Mail::JournalFailed { from, errno } => {
            let error = io::Error::from_raw_os_error(errno.0);
            let _ = notifier.send(Notice::CoreEnded { core: from, result: Err(error) });
        }
        mail => control.send(mail),
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

/// Starts a thread whose panic ends the process: it would leave others waiting for ever.
fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let body = move || {
        if catch_unwind(AssertUnwindSafe(body)).is_err() {
            let name = thread::current().name().unwrap_or_default().to_owned();
            tracing::error!(
                thread = name,
                "panicked; the process ends, acknowledged bytes are safe"
            );
            std::process::abort();
        }
    };
    thread::Builder::new().name(name).spawn(body).map(drop)
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Storage { dir, error } => write!(
                f,
                "storage_dir = \"{}\": {error}\n  remedy: {}",
                dir.display(),
                error.remedy()
            ),
            Self::DestRoot { root, problem } => {
                write!(f, "dest_roots = \"{}\": {problem}", root.display())
            }
            Self::HandoverGroup { name, error } => write!(
                f,
                "handover_group = \"{name}\": this process may not give files to the group: \
                 {error}\n  remedy: make its user a member (SupplementaryGroups= in the unit, usermod \
                 -aG), or name a group that it is in"
            ),
            Self::Listen { address, error } => write!(
                f,
                "listen = \"{address}\": cannot listen there: {error}\n  remedy: {}",
                match error.kind() {
                    io::ErrorKind::AddrInUse =>
                        "stop what uses the port (ss -ltnp shows it), or choose another one",
                    io::ErrorKind::AddrNotAvailable =>
                        "choose an address of this machine (ip addr shows them)",
                    io::ErrorKind::PermissionDenied =>
                        "choose a port from 1024 on, or give the process CAP_NET_BIND_SERVICE",
                    _ => "choose another address",
                }
            ),
            Self::IoUringRefused { error } => write!(
                f,
                "runtime = \"{}\": io_uring is refused: {error}\n  remedy: {}; or choose \
                 --runtime {}",
                Runtime::TokioUring,
                driver::io_uring_remedy(error),
                Runtime::Monoio
            ),
            Self::System { what, error } => write!(f, "cannot {what}: {error}"),
            Self::Core { core, error } => write!(f, "core {}: {error}", core.0),
        }
    }
}

impl std::error::Error for ServerError {}

/// Finished ones are remembered for a while, which is what most of them are.
const TICKETS_PER_CORE_MAX: u32 = 100_000;
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// As a shell reports a process that a signal has ended.
const EXIT_SIGNAL_BASE: i32 = 128;

#[cfg(test)]
mod tests;
