//! One life of the server: its cores, the control thread and the helper threads, from the recovery
//! of the journal to the end of the last of them. A process usually has one. It begins another one
//! when it has handed over to a successor that does not come up.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use engine::driver::{self, Backend, Helper, Sender, Setup};
use engine::journal::CommitSync;
use engine::op::{CoreId, Machine};
use engine::service::ServiceClock;

use super::medium::Medium;
use super::orphans::Orphans;
use super::recovery::{self, Recovered};
use super::storage::Storage;
use super::{Notice, ServerError, Shared, listeners, machine, worker_config};
use crate::config::Config;
use crate::control::admin::{AdminSocket, Desk, Operator};
use crate::control::cores::Cores;
use crate::control::{self, Control, ControlSender};
use crate::mail::Mail;
use crate::worker::WorkerConfig;

/// What all lives of a process have in common, and what a successor gets.
#[derive(Debug)]
pub(super) struct Foundation {
    pub(super) config: Config,
    pub(super) core_count: u16,
    pub(super) backend: Backend,
    pub(super) storage: Storage,
    pub(super) medium: Medium,
    pub(super) listeners: Vec<TcpListener>,
    pub(super) address: SocketAddr,
    /// Whether it hands over when a successor asks.
    pub(super) hands_over: bool,
    pub(super) notifier: mpsc::Sender<Notice>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Life {
    cores: Vec<Sender<Mail>>,
    control: ControlSender,
    threads: Vec<JoinHandle<()>>,
    pub(super) orphans: Orphans,
}

impl Life {
    /// Recovers the journal, starts all threads, and returns when the cores accept.
    pub(super) fn begin<M, F>(
        foundation: &Foundation,
        notices: &mpsc::Receiver<Notice>,
        make: &F,
    ) -> Result<Self, ServerError>
    where
        M: Machine<Mail = Mail> + 'static,
        F: Fn(WorkerConfig) -> io::Result<M> + Clone + Send + 'static,
    {
        let system = |what| move |error| ServerError::System { what, error };
        let Foundation { config, core_count, backend, storage, medium, notifier, .. } = foundation;
        let denied = |error| ServerError::Storage { dir: config.storage_dir.clone(), error };
        let sync = CommitSync::new(medium.durability, medium.direct);
        let Recovered { cores: starts, mut orphans, service_ms } =
            recovery::recover(&storage.dir, *core_count, sync, config.idle_timeout)
                .map_err(denied)?;
        orphans.collect(SystemTime::now());

        let mailboxes: io::Result<(Vec<_>, Vec<_>)> =
            (0..*core_count).map(|_| driver::mailbox::<Mail>()).collect();
        let (cores, receivers) = mailboxes.map_err(system("make a mailbox"))?;
        let shares = listeners::share(&foundation.listeners, *core_count)
            .map_err(system("share the listeners"))?;
        let helper = Helper::start(*backend, storage.dir.clone())
            .map_err(system("start the helper thread"))?;
        let posts = cores.clone();
        let post = move |core: CoreId, mail| posts[usize::from(core.0)].send(mail);
        let settings = control::Settings::new(config, *core_count);
        let (control, control_sender) =
            Control::new(settings, post.clone()).map_err(system("start the control thread"))?;
        let operator = Operator::new(Arc::new(Cores::new(*core_count, post)), storage.dir.clone());
        let control = with_admin(control, &config.storage_dir, desk(foundation, operator));
        let mut threads = vec![
            spawn("control".to_owned(), move || control.run())
                .map_err(system("start the control thread"))?,
        ];

        let service = ServiceClock::new(service_ms, Instant::now());
        let cpus = machine::usable_cpus();
        let shared = Shared::new(*core_count, &config.backend_keys);
        let runtime = config.runtime;
        for ((start, listeners), mailbox) in starts.into_iter().zip(shares).zip(receivers) {
            let core = start.core;
            let cpu = cpus[usize::from(core.0) % cpus.len()];
            let setup = Setup {
                listeners,
                mailbox,
                cores: cores.clone(),
                control: Box::new(control_mail(control_sender.clone(), notifier.clone())),
                helper: helper.clone(),
                backend: *backend,
            };
            let config = worker_config(config, start, *medium, service, shared.clone());
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
            let name = format!("core-{}", core.0);
            threads.push(spawn(name, body).map_err(system("start a core's thread"))?);
        }
        let life = Self { cores, control: control_sender, threads, orphans };
        life.wait_until_ready(notices, notifier)?;
        Ok(life)
    }

    /// Drains, and waits until every thread has ended: afterwards nothing of it writes anywhere.
    /// What else the server is told goes to `on_notice`, which may set a deadline. False: that has
    /// come, and some threads still run.
    pub(super) fn end(
        &mut self,
        notices: &mpsc::Receiver<Notice>,
        mut deadline: Option<Instant>,
        mut on_notice: impl FnMut(Notice) -> Option<Instant>,
    ) -> Result<bool, ServerError> {
        let (mut draining, mut running) = (self.cores.len(), self.cores.len());
        self.cores.iter().for_each(|it| it.send(Mail::Drain));
        while running > 0 {
            let patience =
                deadline.map_or(Duration::MAX, |it| it.saturating_duration_since(Instant::now()));
            match notices.recv_timeout(patience.min(PATIENCE_MAX)) {
                Ok(Notice::Drained) => {
                    draining -= 1;
                    // Cores ask each other until the last one is done.
                    if draining == 0 {
                        self.cores.iter().for_each(|it| it.send(Mail::Stop));
                    }
                }
                Ok(Notice::CoreEnded { result: Ok(()), .. }) => running -= 1,
                Ok(Notice::CoreEnded { core, result: Err(error) }) => {
                    return Err(ServerError::Core { core, error });
                }
                Ok(other) => deadline = on_notice(other).or(deadline),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => unreachable!("the server holds a sender"),
            }
            if running > 0 && deadline.is_some_and(|it| it <= Instant::now()) {
                // What was acknowledged is on the disk; what was not, clients send again.
                tracing::warn!(cores = running, "some cores have not ended; stopping anyway");
                return Ok(false);
            }
        }
        self.control.send(Mail::Stop);
        // The helper threads end with the last core.
        for thread in self.threads.drain(..) {
            // A thread that panics ends the process.
            let _ = thread.join();
        }
        Ok(true)
    }

    fn wait_until_ready(
        &self,
        notices: &mpsc::Receiver<Notice>,
        notifier: &mpsc::Sender<Notice>,
    ) -> Result<(), ServerError> {
        let mut ready = 0;
        let mut others = Vec::new();
        while ready < self.cores.len() {
            match notices.recv() {
                Ok(Notice::CoreEnded { core, result: Err(error) }) => {
                    return Err(ServerError::Core { core, error });
                }
                Ok(Notice::CoreReady) => ready += 1,
                // Whoever comes so early waits.
                Ok(other) => others.push(other),
                Err(_) => unreachable!("the server holds a sender"),
            }
        }
        for notice in others {
            let _ = notifier.send(notice);
        }
        Ok(())
    }
}

fn desk(foundation: &Foundation, operator: Operator) -> Desk {
    let notifier = foundation.notifier.clone();
    Desk {
        listen: vec![foundation.address],
        operator,
        on_replace: foundation.hands_over.then(|| -> Box<dyn Fn(_) + Send + Sync> {
            Box::new(move |candidate| {
                let _ = notifier.send(Notice::Replace(candidate));
            })
        }),
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

/// What cores send to the control thread. What is about the server's end is not its business.
fn control_mail(control: ControlSender, notifier: mpsc::Sender<Notice>) -> impl Fn(Mail) + Send {
    move |mail| match mail {
        Mail::JournalFailed { from, errno } => {
            let error = io::Error::from_raw_os_error(errno.0);
            let _ = notifier.send(Notice::CoreEnded { core: from, result: Err(error) });
        }
        Mail::Drained { .. } => {
            let _ = notifier.send(Notice::Drained);
        }
        mail => control.send(mail),
    }
}

/// Starts a thread whose panic ends the process: it would leave others waiting for ever.
pub(super) fn spawn(
    name: String,
    body: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
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
    thread::Builder::new().name(name).spawn(body)
}

/// Waiting has no limit then, but the clock's arithmetic has one.
const PATIENCE_MAX: Duration = Duration::from_secs(3600);
