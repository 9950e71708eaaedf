//! The end of a core, with as little lost as can be: everybody hears what is due to them.
//!
//! A core that drains accepts nobody. What uploads have received is written, recorded and
//! acknowledged before their browsers are sent away (1001: they come back, to the next server). HTTP
//! requests that are under way get their answers. When nobody is left it says so, and still serves
//! other cores' questions until it is told to stop.

use std::time::{Duration, Instant};

use engine::op::{Address, Op, Token};
use engine::tickets::State;

use super::Worker;
use crate::codec::close_code;
use crate::connection::Pace;
use crate::mail::Mail;

/// A core's way out.
#[derive(Debug)]
pub(super) struct Drain {
    since: Instant,
    /// When to look again at who is left.
    pub(super) check_at: Instant,
    /// The control thread knows that nobody is left.
    is_reported: bool,
}

impl Worker {
    pub(super) fn is_draining(&self) -> bool {
        self.drain.is_some()
    }

    pub(super) fn start_drain(&mut self, now: Instant) {
        if self.is_draining() {
            return;
        }
        self.drain = Some(Drain { since: now, check_at: now + CHECK_EVERY, is_reported: false });
        self.router.is_draining = true;
        self.clients.accept_at = None;
        if std::mem::take(&mut self.clients.is_accepting) {
            self.ops.push_back((Token::None, Op::CancelAccept));
        }
        self.look_at_all(now);
    }

    pub(super) fn on_drain_timeout(&mut self, now: Instant) {
        let Some(drain) = self.drain.as_mut().filter(|it| it.check_at <= now) else { return };
        drain.check_at = now + CHECK_EVERY;
        self.look_at_all(now);
    }

    fn look_at_all(&mut self, now: Instant) {
        for slot in self.clients.slots() {
            if self.clients.find(slot).is_some() {
                self.drain_client(now, slot);
                if self.clients.find(slot).is_some() {
                    self.pump_later(self.clients.key(slot));
                }
            }
        }
    }

    /// Sends a client away, or gives it up, if nothing is due to it any more.
    pub(super) fn drain_client(&mut self, now: Instant, slot: u32) {
        let Some(since) = self.drain.as_ref().map(|it| it.since) else { return };
        let client = self.clients.at(slot);
        if client.is_dead {
            return;
        }
        let is_unsent = client.sending.is_some() || !client.connection.out().is_empty();
        let give_up_at = match client.pace() {
            Pace::Ending if !is_unsent => since.max(client.pace_since) + CLOSE_PATIENCE,
            _ => since + CLIENT_PATIENCE,
        };
        if give_up_at.min(since + CLIENT_PATIENCE) <= now {
            return self.bury(now, slot);
        }
        client.connection.drain();
        if client.connection.is_ending() {
            return;
        }
        if !client.connection.is_websocket() {
            // A request may be on its way: a new connection has hardly been made to say nothing.
            let is_new = client.heard_at == client.accepted_at;
            let request_at = client.accepted_at + NEW_PATIENCE;
            let idle_until = (since + IDLE_PATIENCE).max(if is_new { request_at } else { since });
            if client.pace() == Pace::Idle && idle_until <= now {
                client.connection.end();
            }
            return;
        }
        client.moving = None;
        if client.connection.ack_due_bytes().is_some() && client.ticket.is_some() {
            self.flush_for_acks(now, slot);
            return self.on_store_events(now);
        }
        let is_waiting = client.connection.is_waiting() && now < since + CALL_PATIENCE;
        if !(is_waiting && self.is_outcome_near(slot)) {
            self.clients.at(slot).connection.close(close_code::GOING_AWAY, STOPPING);
            self.detach(now, slot);
        }
    }

    /// The web app has been asked, or its answer is being recorded.
    fn is_outcome_near(&self, slot: u32) -> bool {
        let id = self.ticket_of(self.clients.key(slot));
        let is_finished = |id| self.tickets.get(id).is_some_and(|it| it.state == State::Finished);
        self.calls_in_flight > 0 || id.is_some_and(is_finished)
    }

    /// Tells the control thread, once, that nobody is left and nothing is to be written.
    pub(super) fn poll_drained(&mut self) -> Option<(Token, Op<Mail>)> {
        let is_empty = self.clients.is_empty() && self.is_quiet();
        let is_calling = self.calls_in_flight > 0;
        let drain = self.drain.as_mut().filter(|it| !it.is_reported && is_empty)?;
        // What web apps answer later is asked again by the next server.
        if is_calling && drain.check_at < drain.since + CALL_PATIENCE {
            return None;
        }
        drain.is_reported = true;
        let mail = Mail::Drained { from: self.config.core };
        Some((Token::None, Op::Post { to: Address::Control, mail }))
    }
}

pub(super) const STOPPING: &str = "the server is stopping";

const CHECK_EVERY: Duration = Duration::from_millis(100);
/// For a client to take its last bytes and answer our close, once the kernel has them all.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);
/// Between requests: one that was sent before it could know.
const IDLE_PATIENCE: Duration = Duration::from_millis(300);
/// From accepted to the first request.
const NEW_PATIENCE: Duration = Duration::from_secs(2);
/// For a web app to answer a callback.
const CALL_PATIENCE: Duration = Duration::from_secs(2);
/// For everybody.
const CLIENT_PATIENCE: Duration = Duration::from_secs(4);
