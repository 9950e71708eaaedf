//! Telling web apps what became of their uploads, until they know.
//!
//! What is to be told is recorded before it is told, and that it is told before anything is given
//! away or removed: a server that ends in between tells it again.

use std::time::{Duration, Instant};

use engine::error::PeerError;
use engine::handover::{Answer, Callback, Outcome, host_of};
use engine::journal::Position;
use engine::op::Address;
use engine::outbox::Next;
use engine::record::{TellingRecord, shorten};
use engine::ticket::TicketId;
use engine::tickets::{ClientKey, State, Telling};
use tracing::{error, info, warn};

use super::Worker;
use super::journal::Then;
use crate::mail::Mail;

impl Worker {
    /// Tells the web app what became of an upload, as soon as that is recorded.
    pub(super) fn tell(
        &mut self,
        now: Instant,
        id: TicketId,
        outcome: Outcome,
    ) -> Option<Position> {
        let ticket = self.tickets.get_mut(id)?;
        ticket.state = State::Telling { outcome, phase: Telling::Calling };
        ticket.telling = TellingRecord { since_ms: self.service_ms, ..TellingRecord::default() };
        self.tickets.set_deadline(id, None);
        let position = self.record(now, id);
        self.after(position, Then::Call(id));
        Some(position)
    }

    pub(super) fn call(&mut self, id: TicketId) {
        if self.is_draining() {
            // It is the next server's business.
            return;
        }
        let Some(ticket) = self.tickets.get_mut(id) else { return };
        let State::Telling { outcome, phase } = &mut ticket.state else { return };
        *phase = Telling::Calling;
        ticket.telling.attempt = ticket.telling.attempt.saturating_add(1);
        let new = &ticket.new;
        let callback = Callback {
            ticket: id,
            url: new.url.clone(),
            backend_secret: new.secret.clone(),
            signing_secret: new.signing_secret.clone(),
            metadata: new.metadata.clone(),
            filename_from_browser: ticket.filename_from_browser.clone(),
            outcome: outcome.clone(),
            attempt: ticket.telling.attempt,
        };
        self.outbox.remove(&host_of(&new.url), id);
        self.tickets.set_deadline(id, None);
        let from = self.config.core;
        self.post(Address::Control, Mail::Callback { from, callback });
    }

    pub(super) fn on_callback_answer(
        &mut self,
        now: Instant,
        id: TicketId,
        attempt: u32,
        answer: Answer,
    ) {
        let Some(ticket) = self.tickets.get(id) else { return };
        let is_current = ticket.telling.attempt == attempt;
        let State::Telling { outcome, phase: Telling::Calling } = &ticket.state else { return };
        if !is_current {
            return;
        }
        let is_arrival = matches!(outcome, Outcome::Arrived { .. });
        // What is over forgets its URL.
        let is_back = matches!(answer, Answer::Done | Answer::Wait);
        let host = is_back.then(|| host_of(&ticket.new.url));
        match answer {
            Answer::Done if is_arrival => {
                self.finished(now, id);
            }
            Answer::Wait if is_arrival => self.on_wait(now, id),
            Answer::Done | Answer::Wait => self.cancellation_told(now, id),
            Answer::Unreached { error, retry_after } => {
                self.on_untold(now, id, error, retry_after, false);
            }
            Answer::Refused { error, retry_after } => {
                self.on_untold(now, id, error, retry_after, true);
            }
        }
        if let Some(host) = host {
            self.bring_forward(&host);
        }
        self.answer_held(now, id);
    }

    /// The web app will finish the upload itself. If it does not, it is asked again.
    fn on_wait(&mut self, now: Instant, id: TicketId) {
        let Some(ticket) = self.tickets.get_mut(id) else { return };
        let State::Telling { phase, .. } = &mut ticket.state else { return };
        *phase = Telling::Waiting;
        ticket.telling.has_waited = true;
        info!(upload = %id.short(), "the web app asks to wait");
        self.tickets.set_deadline(id, Some(now + self.config.finish_timeout));
        self.record(now, id);
    }

    fn on_untold(
        &mut self,
        now: Instant,
        id: TicketId,
        error: String,
        retry_after: Option<Duration>,
        is_refused: bool,
    ) {
        let Some(ticket) = self.tickets.get_mut(id) else { return };
        let State::Telling { outcome, phase } = &mut ticket.state else { return };
        let is_arrival = matches!(outcome, Outcome::Arrived { .. });
        let telling = &mut ticket.telling;
        telling.refusal_count += u32::from(is_refused);
        telling.last_error = error;
        shorten(&mut telling.last_error);
        let (attempt, error) = (telling.attempt, &telling.last_error);
        match self.config.patience.next(id, telling, self.service_ms, retry_after) {
            Next::TryAfter(delay) => {
                *phase = Telling::BackingOff;
                warn!(upload = %id.short(), attempt, %error, retry_ms = delay.as_millis() as u64,
                    "the web app could not be told");
                if !is_refused {
                    self.outbox.insert(host_of(&ticket.new.url), id);
                }
                self.tickets.set_deadline(id, Some(now + delay));
            }
            Next::GiveUp => {
                error!(upload = %id.short(), attempt, %error,
                    "the web app could not be told; everything is kept: incoming retry");
                let outcome = outcome.clone();
                ticket.state = State::Failed { outcome };
                if let Some(key) = ticket.client.filter(|_| is_arrival) {
                    self.unbind(key);
                    self.refuse(now, key, PeerError::HandoverFailed);
                    self.forget_client(id);
                }
            }
        }
        self.record(now, id);
        if !is_arrival {
            self.end_cancelled_client(id);
        }
    }

    /// Another try, now, for one that has failed or waits for its next one.
    pub(super) fn retry(&mut self, now: Instant, id: TicketId) -> Option<Position> {
        match &self.tickets.get(id)?.state {
            State::Failed { outcome } => {
                let outcome = outcome.clone();
                self.tell(now, id, outcome)
            }
            State::Telling { phase: Telling::BackingOff, .. } => {
                self.call(id);
                None
            }
            _ => None,
        }
    }

    /// The host has answered: others that wait for it need not wait longer.
    pub(super) fn bring_forward(&mut self, host: &str) {
        if self.is_draining() {
            return;
        }
        for id in self.outbox.take_some(host) {
            self.call(id);
        }
    }

    /// The web app has the file.
    pub(super) fn finished(&mut self, now: Instant, id: TicketId) -> Option<Position> {
        let ticket = self.tickets.get(id)?;
        info!(upload = %id.short(), length_bytes = ticket.length_bytes, "handed over");
        let remove = ticket.new.remove_when_finished;
        Some(self.end(now, id, State::Finished, remove))
    }

    /// The web app knows that the upload was cancelled.
    fn cancellation_told(&mut self, now: Instant, id: TicketId) {
        self.end_cancelled_client(id);
        let Some(ticket) = self.tickets.get(id) else { return };
        if let State::Telling { outcome: Outcome::Cancelled { reason }, .. } = &ticket.state {
            let mut reason = reason.clone();
            shorten(&mut reason);
            self.end(now, id, State::Cancelled { reason }, true);
        }
    }

    /// The web app does not want the upload, or not any more.
    pub(super) fn revoke(&mut self, now: Instant, id: TicketId) -> Position {
        let ticket = self.tickets.get_mut(id).expect("just checked");
        let client = ticket.client.take();
        if let Some(upload) = ticket.upload {
            self.store.detach(now, upload);
        }
        let reason = "cancelled by the web app".to_owned();
        let position = self.end(now, id, State::Cancelled { reason }, true);
        if let Some(key) = client {
            self.unbind(key);
            self.after(position, Then::Revoke(key));
        }
        self.on_store_events(now);
        position
    }

    /// The upload is over. Its file, if there is one, is given away or removed when that is
    /// recorded.
    fn end(&mut self, now: Instant, id: TicketId, over: State, remove: bool) -> Position {
        self.release_usage(id);
        let ticket = self.tickets.get_mut(id).expect("a known ticket");
        let upload = ticket.upload.take();
        self.outbox.remove(&host_of(&ticket.new.url), id);
        ticket.on_over(over);
        self.tickets.set_deadline(id, Some(now + self.config.idle_timeout));
        let position = self.record(now, id);
        self.after(position, Then::Over { id, upload, remove });
        position
    }

    /// That the upload is over is durable: nobody needs its file here any more.
    pub(super) fn on_over_recorded(&mut self, id: TicketId) {
        let Some(ticket) = self.tickets.get_mut(id) else { return };
        ticket.is_recorded = true;
        if let Some(key) = ticket.client.filter(|_| ticket.state == State::Finished) {
            // One in the middle of the handshake hears it at the end of it.
            let waiting = self.clients.get_mut(key).filter(|it| it.connection.is_waiting());
            if let Some(client) = waiting {
                client.connection.on_finished();
                self.unbind(key);
                self.pump_later(key);
            }
        }
        self.over.push_back(id);
        if self.over.len() > OVER_COUNT_MAX {
            let oldest = self.over.pop_front().expect("not empty");
            self.remove_ticket(oldest);
        }
    }

    fn end_cancelled_client(&mut self, id: TicketId) {
        let Some(key) = self.forget_client(id) else { return };
        let was_bound = self.unbind(key).is_some();
        if let Some(client) = self.clients.get_mut(key).filter(|_| was_bound) {
            client.connection.on_cancelled();
            self.pump_later(key);
        }
    }

    fn forget_client(&mut self, id: TicketId) -> Option<ClientKey> {
        self.tickets.get_mut(id)?.client.take()
    }

    pub(super) fn is_calling(&self, id: TicketId) -> bool {
        let state = self.tickets.get(id).map(|it| &it.state);
        matches!(state, Some(State::Telling { phase: Telling::Calling, .. }))
    }
}

/// Uploads that are over and that one core remembers.
const OVER_COUNT_MAX: usize = 100_000;
