//! The control thread: everything that speaks to other servers, with ordinary client libraries, so
//! that the cores never wait. It gets and gives plain [`Mail`].

pub mod admin;
mod answer;
mod callbacks;
mod client;
pub mod cores;
mod dial;
mod form;
mod lookup;
mod sign;
#[cfg(test)]
mod tests;
mod turns;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use engine::op::CoreId;
use rustix::process::{Resource, getrlimit};
use rustls::pki_types::CertificateDer;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use crate::config::{Config, Secret};
use crate::mail::Mail;
use admin::{AdminSocket, Desk};
use callbacks::Callbacks;
use cores::Cores;

/// What the control thread runs.
#[expect(missing_debug_implementations, reason = "holds a closure")]
pub struct Control<P> {
    runtime: Runtime,
    receiver: UnboundedReceiver<Mail>,
    settings: Settings,
    post: P,
    admin: Option<(Desk, AdminSocket)>,
}

/// What an operator decides about callbacks.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long a whole callback may take.
    pub timeout: Duration,
    /// What callbacks are signed with whose tickets have no secret for it of their own.
    pub secret: Option<Secret>,
    /// Authorities that are trusted beside those of the system.
    pub own_ca: Vec<CertificateDer<'static>>,
    /// All of them are told when a web app is back.
    pub core_count: u16,
}

impl<P: Fn(CoreId, Mail)> Control<P> {
    /// `post` takes answers to the cores. Each callback gets exactly one: once its turn has come, at
    /// the latest after the time-out. Mail comes in through the sender.
    ///
    /// # Errors
    /// When the system gives no event queue.
    pub fn new(settings: Settings, post: P) -> io::Result<(Self, ControlSender)> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            // Name look-ups, and looks at the storage for operators.
            .max_blocking_threads(lookup::THREADS_MAX)
            .thread_stack_size(lookup::STACK_BYTES)
            .build()?;
        let (sender, receiver) = mpsc::unbounded_channel();
        let control = Self { runtime, receiver, settings, post, admin: None };
        Ok((control, ControlSender(sender)))
    }

    /// Serves an admin socket as well.
    pub fn with_admin(self, desk: Desk, socket: AdminSocket) -> Self {
        Self { admin: Some((desk, socket)), ..self }
    }

    /// Works until [`Mail::Stop`]; callbacks that have no answer by then are given up.
    pub fn run(self) {
        let Self { runtime, receiver, settings, post, admin } = self;
        let cores = admin.as_ref().map(|it| Arc::clone(it.0.operator.cores()));
        if let Some((desk, socket)) = admin {
            runtime.spawn(async move {
                if let Err(error) = desk.serve(socket).await {
                    tracing::error!(%error, "the admin socket is not served");
                }
            });
        }
        let files_max = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let callbacks = Callbacks::new(settings, callbacks::sockets_max(files_max), post);
        runtime.block_on(serve(callbacks, receiver, cores));
        // A look-up that hangs does not hold the process.
        runtime.shutdown_background();
    }
}

impl Settings {
    pub fn new(config: &Config, core_count: u16) -> Self {
        Self {
            timeout: config.callback_timeout,
            secret: config.callback_secret.clone(),
            own_ca: config.callback_ca.clone(),
            core_count,
        }
    }
}

/// The way to the control thread. Sending never waits; there is never more than one callback under
/// way for each ticket, and the number of tickets is limited.
#[derive(Clone, Debug)]
pub struct ControlSender(UnboundedSender<Mail>);

impl ControlSender {
    /// What is sent after the end of the thread is dropped.
    pub fn send(&self, mail: Mail) {
        let _ = self.0.send(mail);
    }
}

async fn serve<P: Fn(CoreId, Mail)>(
    mut callbacks: Callbacks<P>,
    mut receiver: UnboundedReceiver<Mail>,
    cores: Option<Arc<Cores>>,
) {
    loop {
        tokio::select! {
            mail = receiver.recv() => match mail {
                Some(Mail::Callback { from, callback }) => callbacks.ask(from, callback),
                Some(Mail::Stop) | None => return,
                Some(other) => {
                    let is_answer = cores.as_ref().is_some_and(|it| it.on_mail(other));
                    assert!(is_answer, "for cores only");
                }
            },
            () = callbacks.next() => {}
        }
    }
}
