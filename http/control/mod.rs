//! The control thread: everything that speaks to other servers, with ordinary client libraries, so
//! that the cores never wait. It gets and gives plain [`Mail`].

pub mod admin;
mod answer;
mod client;
pub mod cores;
mod form;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use engine::handover::{Answer, Callback, Outcome, host_of};
use engine::op::CoreId;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::JoinSet;

use crate::config::format_duration;
use crate::mail::Mail;
use admin::{AdminSocket, Desk};
use client::WebClient;
use cores::Cores;

/// What the control thread runs.
#[expect(missing_debug_implementations, reason = "holds a closure")]
pub struct Control<P> {
    runtime: Runtime,
    receiver: UnboundedReceiver<Mail>,
    shared: Shared<P>,
    admin: Option<(Desk, AdminSocket)>,
}

impl<P: Fn(CoreId, Mail) + Send + Sync + 'static> Control<P> {
    /// `post` takes answers to the cores; each callback gets exactly one, at the latest `timeout`
    /// after its turn has come. Mail comes in through the sender.
    ///
    /// # Errors
    /// When the system gives no event queue.
    pub fn new(timeout: Duration, post: P) -> io::Result<(Self, ControlSender)> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            // Name look-ups only.
            .max_blocking_threads(LOOKUP_THREADS_MAX)
            .build()?;
        let (sender, receiver) = mpsc::unbounded_channel();
        let shared = Shared { client: WebClient::new(), hosts: Hosts::default(), timeout, post };
        Ok((Self { runtime, receiver, shared, admin: None }, ControlSender(sender)))
    }

    /// Serves an admin socket as well.
    pub fn with_admin(self, desk: Desk, socket: AdminSocket) -> Self {
        Self { admin: Some((desk, socket)), ..self }
    }

    /// Works until [`Mail::Stop`]; callbacks that have no answer by then are given up.
    pub fn run(self) {
        let cores = self.admin.as_ref().map(|it| Arc::clone(it.0.operator.cores()));
        if let Some((desk, socket)) = self.admin {
            self.runtime.spawn(async move {
                if let Err(error) = desk.serve(socket).await {
                    tracing::error!(%error, "the admin socket is not served");
                }
            });
        }
        self.runtime.block_on(serve(Arc::new(self.shared), self.receiver, cores));
        // A look-up that hangs does not hold the process.
        self.runtime.shutdown_background();
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

struct Shared<P> {
    client: WebClient,
    hosts: Hosts,
    timeout: Duration,
    post: P,
}

async fn serve<P: Fn(CoreId, Mail) + Send + Sync + 'static>(
    shared: Arc<Shared<P>>,
    mut receiver: UnboundedReceiver<Mail>,
    cores: Option<Arc<Cores>>,
) {
    let mut calls = JoinSet::new();
    loop {
        tokio::select! {
            mail = receiver.recv() => match mail {
                Some(Mail::Callback { from, callback }) => {
                    calls.spawn(answer_one(Arc::clone(&shared), from, callback));
                }
                Some(Mail::Stop) | None => return,
                Some(other) => {
                    let is_answer = cores.as_ref().is_some_and(|it| it.on_mail(other));
                    assert!(is_answer, "for cores only");
                }
            },
            Some(ended) = calls.join_next() => {
                // An upload would wait forever for an answer that never comes.
                ended.expect("a callback ends with an answer");
            }
        }
    }
}

async fn answer_one<P: Fn(CoreId, Mail)>(shared: Arc<Shared<P>>, from: CoreId, callback: Callback) {
    let host = host_of(&callback.url);
    let slots = shared.hosts.slots(&host);
    let permit = slots.acquire().await.expect("never closed");
    let started = Instant::now();
    let form = form::encode(&callback);
    let arrived = matches!(callback.outcome, Outcome::Arrived { .. });
    let call = shared.client.post(&callback.url, form, arrived);
    let answer = match tokio::time::timeout(shared.timeout, call).await {
        Ok(Ok(reply)) => answer::interpret(&callback.outcome, &reply),
        Ok(Err(error)) => error.meaning(&callback.outcome),
        Err(_) => {
            let error = format!("no answer within {}", format_duration(shared.timeout));
            Answer::Unreached { error, retry_after: None }
        }
    };
    drop(permit);
    drop(slots);
    shared.hosts.forget_idle(&host);
    let Callback { ticket, attempt, .. } = callback;
    let latency_ms = started.elapsed().as_millis() as u64;
    tracing::debug!(ticket = %ticket.short(), host, attempt, latency_ms, ?answer, "callback");
    (shared.post)(from, Mail::CallbackAnswer { ticket, attempt, answer });
}

/// How many requests each web app may have at a time, so that one that hangs holds back only its
/// own.
#[derive(Debug, Default)]
struct Hosts {
    slots: Mutex<HashMap<String, Arc<Semaphore>>>,
}

impl Hosts {
    fn slots(&self, host: &str) -> Arc<Semaphore> {
        let mut slots = self.slots.lock().expect("nothing panics with it");
        let it = slots.entry(host.to_owned());
        Arc::clone(it.or_insert_with(|| Arc::new(Semaphore::new(CALLS_PER_HOST_MAX))))
    }

    fn forget_idle(&self, host: &str) {
        let mut slots = self.slots.lock().expect("nothing panics with it");
        if slots.get(host).is_some_and(|it| Arc::strong_count(it) == 1) {
            slots.remove(host);
        }
    }
}

const CALLS_PER_HOST_MAX: usize = 32;
/// The resolver of the system has no time limit of its own that we could set.
const LOOKUP_THREADS_MAX: usize = 64;
