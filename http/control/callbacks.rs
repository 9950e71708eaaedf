//! Callbacks to web apps: each gets its turn, a time limit, and exactly one answer.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use engine::handover::{Answer, Callback, Outcome, host_of};
use engine::op::CoreId;
use engine::ticket::TicketId;
use tokio::task::{Id, JoinError, JoinSet};

use super::answer::{Reply, interpret};
use super::client::{CallError, Post, WebClient};
use super::turns::{Ending, Turn, Turns};
use super::{Settings, form};
use crate::config::format_duration;
use crate::mail::Mail;

/// The callbacks that wait and those that run.
pub(super) struct Callbacks<P> {
    client: Arc<WebClient>,
    turns: Turns<Asked>,
    calls: JoinSet<Result<Reply, CallError>>,
    running: HashMap<Id, Running>,
    settings: Settings,
    post: P,
}

/// A callback and the core that waits for its answer.
struct Asked {
    from: CoreId,
    callback: Callback,
}

/// What is kept of a callback while it runs.
struct Running {
    turn: Turn,
    from: CoreId,
    ticket: TicketId,
    attempt: u32,
    outcome: Outcome,
    started: Instant,
}

impl<P: Fn(CoreId, Mail)> Callbacks<P> {
    pub(super) fn new(settings: Settings, sockets_max: usize, post: P) -> Self {
        Self {
            client: Arc::new(WebClient::new(&settings.own_ca)),
            turns: Turns::new(sockets_max),
            calls: JoinSet::new(),
            running: HashMap::new(),
            settings,
            post,
        }
    }

    pub(super) fn ask(&mut self, from: CoreId, callback: Callback) {
        let host = host_of(&callback.url);
        self.turns.push(Instant::now(), &host, Asked { from, callback });
        self.start();
    }

    /// Waits for the end of a call and answers it. Never ends while there is none. Nothing is lost
    /// when the future is dropped.
    pub(super) async fn next(&mut self) {
        let Some(ended) = self.calls.join_next_with_id().await else {
            return std::future::pending().await;
        };
        let (id, result) = match ended {
            Ok((id, result)) => (id, Ok(result)),
            Err(error) => (error.id(), Err(error)),
        };
        let running = self.running.remove(&id).expect("each call is known until it ends");
        self.ended(running, result);
        self.start();
    }

    /// Starts what may run.
    fn start(&mut self) {
        while let Some((turn, Asked { from, callback })) = self.turns.next() {
            let form = form::encode(&callback);
            let Callback { ticket, url, signing_secret, outcome, attempt, .. } = callback;
            let global = self.settings.secret.as_ref().map_or("", |it| it.as_str());
            let post = Post {
                url,
                form: form.into(),
                idempotency_key: ticket.to_string(),
                attempt,
                secret: if signing_secret.is_empty() { global.to_owned() } else { signing_secret },
                body_wanted: matches!(outcome, Outcome::Arrived { .. }),
            };
            let (client, timeout) = (Arc::clone(&self.client), self.settings.timeout);
            let call = self.calls.spawn(async move {
                let call = tokio::time::timeout(timeout, client.post(&post)).await;
                call.unwrap_or(Err(CallError::TimedOut(timeout)))
            });
            let started = Instant::now();
            let running = Running { turn, from, ticket, attempt, outcome, started };
            self.running.insert(call.id(), running);
        }
    }

    fn ended(&mut self, call: Running, result: Result<Result<Reply, CallError>, JoinError>) {
        let Running { turn, from, ticket, attempt, outcome, started } = call;
        let (answer, ending) = match result {
            Ok(Ok(reply)) => {
                let answer = interpret(&outcome, &reply);
                let ending = match &answer {
                    Answer::Unreached { .. } => Ending::Busy,
                    Answer::Done | Answer::Wait if reply.is_ok() => Ending::Taken,
                    _ => Ending::Refused,
                };
                (answer, ending)
            }
            Ok(Err(error)) => {
                let ending = if error.is_silence() { Ending::Silent } else { Ending::Refused };
                (error.meaning(&outcome), ending)
            }
            // What a web app sends must not end the thread that serves all others.
            Err(error) => (unreached(format!("the call has failed here: {error}")), Ending::Silent),
        };
        let host = Arc::clone(turn.host());
        let latency_ms = started.elapsed().as_millis() as u64;
        tracing::debug!(ticket = %ticket.short(), %host, attempt, latency_ms, ?answer, "callback");
        self.answer(from, ticket, attempt, answer);
        if self.turns.ended(turn, ending) {
            tracing::info!(%host, "the web app is back");
            for core in 0..self.settings.core_count {
                (self.post)(CoreId(core), Mail::HostBack { host: host.to_string() });
            }
        }
        if ending == Ending::Silent {
            self.dismiss(&host);
        }
    }

    /// Answers those who have waited behind silence for as long as a call may take. At a host that
    /// hangs their turns would come one by one, perhaps days later; so they come again by their own
    /// schedules, which also know when to give up.
    fn dismiss(&mut self, host: &str) {
        let (now, timeout) = (Instant::now(), self.settings.timeout);
        while let Some(Asked { from, callback }) = self.turns.pop_overdue(now, host, timeout) {
            let text = "not sent: the host gave no answer to others within";
            let answer = unreached(format!("{text} {}", format_duration(timeout)));
            self.answer(from, callback.ticket, callback.attempt, answer);
        }
    }

    fn answer(&self, from: CoreId, ticket: TicketId, attempt: u32, answer: Answer) {
        (self.post)(from, Mail::CallbackAnswer { ticket, attempt, answer });
    }
}

fn unreached(error: String) -> Answer {
    Answer::Unreached { error, retry_after: None }
}

/// How many calls may run at a time when the process may have so many files open.
pub(super) fn sockets_max(files_max: u64) -> usize {
    usize::try_from(files_max / FILES_SHARE).unwrap_or(SOCKETS_MAX).clamp(SOCKETS_MIN, SOCKETS_MAX)
}

/// Beyond that, more calls at a time would not be faster.
const SOCKETS_MAX: usize = 4096;
const SOCKETS_MIN: usize = 32;
/// Most files are for browsers.
const FILES_SHARE: u64 = 4;
