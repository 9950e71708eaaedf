//! Web apps: what they ask for, and how they are told.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use engine::handover::{Answer, Callback, Outcome, retry_delay};
use engine::journal::Position;
use engine::op::{Address, CoreId};
use engine::ticket::TicketId;
use engine::tickets::{ClientKey, NewTicket, State, Telling, Ticket, TicketError};
use tracing::{info, warn};

use super::Worker;
use super::journal::Then;
use crate::codec::response::Response;
use crate::mail::{Mail, OwnedRequest, ReplyTo};
use crate::routes::{BackendRequest, NewUpload, ticket_error_response};

/// What a web app hears, and the record that must be durable before.
type Answered = (Option<Position>, Response);

/// A request to finish an upload while the answer to the callback is still on its way.
#[derive(Debug)]
pub(super) struct HeldFinish {
    ticket: TicketId,
    reply_to: ReplyTo,
    pub(super) until: Instant,
}

impl Worker {
    /// Sends a web app's request to the core that owns the ticket: perhaps this one.
    pub(super) fn on_backend_request(
        &mut self,
        now: Instant,
        client: ClientKey,
        request: BackendRequest,
    ) {
        let id = match &request {
            BackendRequest::NewUpload(_) => self.draw_id_for(self.least_loaded()),
            BackendRequest::CancelUpload { id, .. } | BackendRequest::FinishUpload { id, .. } => {
                *id
            }
        };
        let reply_to = ReplyTo { core: self.config.core, client };
        let request = OwnedRequest { id, request };
        match id.owner(self.config.core_count) {
            owner if owner == self.config.core => self.on_backend(now, reply_to, request),
            owner => self.post(Address::Core(owner), Mail::Backend { reply_to, request }),
        }
    }

    /// A web app's request for a ticket of this core.
    pub(super) fn on_backend(&mut self, now: Instant, reply_to: ReplyTo, request: OwnedRequest) {
        match request.request {
            BackendRequest::NewUpload(_) => self.on_ticket_wanted(now, reply_to, request),
            _ => self.answer_backend(now, reply_to, request),
        }
    }

    pub(super) fn answer_backend(
        &mut self,
        now: Instant,
        reply_to: ReplyTo,
        request: OwnedRequest,
    ) {
        let OwnedRequest { id, request } = request;
        let (position, response) = match request {
            BackendRequest::NewUpload(new) => self.new_upload(now, id, new),
            BackendRequest::CancelUpload { secret, .. } => self.cancel_upload(now, id, &secret),
            BackendRequest::FinishUpload { secret, .. } => {
                match self.tickets.check_finish(id, secret.as_deref()) {
                    Ok(()) => (self.finished(now, id), Response::text(200, "ok")),
                    // The app may be faster than its own `wait`.
                    Err(TicketError::NotWaiting) if self.held.len() < HELD_COUNT_MAX => {
                        let until = now + HOLD_FINISH;
                        self.held.push(HeldFinish { ticket: id, reply_to, until });
                        return;
                    }
                    Err(error) => (None, ticket_error_response(error, false)),
                }
            }
        };
        self.reply_after(now, position, reply_to, response);
    }

    /// Tells the web app what became of an upload, as soon as that is recorded. Repeated until it
    /// has been told.
    pub(super) fn tell(&mut self, id: TicketId, outcome: Outcome) -> Option<Position> {
        let ticket = self.tickets.get_mut(id)?;
        ticket.state = State::Telling { outcome, phase: Telling::Calling };
        ticket.attempt = 0;
        self.tickets.set_deadline(id, None);
        let position = self.record(id);
        self.after(position, Then::Call(id));
        Some(position)
    }

    pub(super) fn on_callback_answer(
        &mut self,
        now: Instant,
        id: TicketId,
        attempt: u32,
        answer: Answer,
    ) {
        let finish_timeout = self.config.finish_timeout;
        let Some(ticket) = self.tickets.get_mut(id) else { return };
        let is_current = ticket.attempt == attempt;
        let State::Telling { outcome, phase } = &mut ticket.state else { return };
        if !is_current || *phase != Telling::Calling {
            return;
        }
        let is_arrival = matches!(outcome, Outcome::Arrived { .. });
        match answer {
            Answer::Done if is_arrival => {
                self.finished(now, id);
            }
            Answer::Done | Answer::Wait if !is_arrival => self.forget_cancelled(id),
            Answer::Done | Answer::Wait => {
                *phase = Telling::Waiting;
                ticket.has_waited = true;
                info!(upload = %id.short(), "the web app asks to wait");
                self.tickets.set_deadline(id, Some(now + finish_timeout));
                self.record(id);
            }
            Answer::Unreached { error, retry_after } | Answer::Refused { error, retry_after } => {
                *phase = Telling::BackingOff;
                let delay = retry_delay(attempt, retry_after);
                warn!(upload = %id.short(), attempt, %error, retry_s = delay.as_secs(),
                    "the web app could not be told");
                self.tickets.set_deadline(id, Some(now + delay));
                self.record(id);
                if !is_arrival {
                    self.end_cancelled_client(id);
                    if attempt >= CANCEL_ATTEMPTS_MAX {
                        self.remove_ticket(id);
                    }
                }
            }
        }
        self.answer_held(now, id);
    }

    pub(super) fn on_ticket_timeouts(&mut self, now: Instant) {
        while let Some(id) = self.tickets.pop_due(now) {
            let Some(ticket) = self.tickets.get(id) else { continue };
            match &ticket.state {
                // In use, or complete and in need of another try.
                State::Receiving if ticket.client.is_some() => {
                    self.tickets.set_deadline(id, Some(now + self.config.idle_timeout));
                }
                State::Receiving if self.is_complete(id) => self.settle(now, id),
                State::Issued | State::Receiving => {
                    info!(upload = %id.short(), "timed out");
                    self.end_upload(now, id, "upload timed out".into());
                }
                State::Telling { phase: Telling::Calling, .. } | State::Storing => {}
                State::Telling { .. } => self.call(id),
                State::Finished => {
                    // Nearly always the oldest.
                    if let Some(index) = self.finished.iter().position(|it| *it == id) {
                        self.finished.remove(index);
                    }
                    self.remove_ticket(id);
                }
            }
        }
    }

    pub(super) fn on_held_timeouts(&mut self, now: Instant) {
        while let Some(index) = self.held.iter().position(|it| it.until <= now) {
            let held = self.held.swap_remove(index);
            let response = ticket_error_response(TicketError::NotWaiting, false);
            self.reply(now, held.reply_to, response);
        }
    }

    fn new_upload(&mut self, now: Instant, id: TicketId, new: NewUpload) -> Answered {
        if self.is_stopping {
            return (None, Response::text(503, "the server is stopping"));
        }
        if let Some(refusal) = self.refuse_for_storage() {
            return (None, refusal);
        }
        if self.tickets.len() - self.finished.len() >= self.config.tickets_max as usize {
            let message = "too many tickets are open; finish or cancel some";
            return (None, Response::text(503, message).with_header("Retry-After", "60"));
        }
        let NewUpload { url, secret, finish_without_secret, remove_when_finished, owner_uid } = new;
        let new =
            NewTicket { id, url, secret, finish_without_secret, remove_when_finished, owner_uid };
        let record_bytes = Ticket::new(new.clone()).record(0).encoded_bytes() + NAME_BYTES_USUAL;
        if !self.journal.has_room_for(now, record_bytes) {
            let message = "the journal is full: finish or cancel uploads, or make room on the disk";
            return (None, Response::text(507, message).with_header("Retry-After", "60"));
        }
        self.tickets.insert(now, new, self.config.idle_timeout);
        self.config.loads[usize::from(self.config.core.0)].fetch_add(1, Ordering::Relaxed);
        info!(upload = %id.short(), "ticket issued");
        (Some(self.record(id)), Response::text(200, id.to_string()))
    }

    fn cancel_upload(&mut self, now: Instant, id: TicketId, secret: &str) -> Answered {
        if let Err(error) = self.tickets.check_cancel(id, secret) {
            return (None, ticket_error_response(error, true));
        }
        info!(upload = %id.short(), "cancelled by the web app");
        let (ticket, position) = self.remove_ticket(id).expect("just checked");
        if let Some(upload) = ticket.upload {
            self.store.detach(now, upload);
            self.after(position, Then::Discard(upload));
            self.on_store_events(now);
        }
        if let Some(key) = ticket.client {
            self.unbind(key);
            self.after(position, Then::Revoke(key));
        }
        (Some(position), Response::text(200, "ok"))
    }

    /// The web app has the file.
    fn finished(&mut self, now: Instant, id: TicketId) -> Option<Position> {
        let ticket = self.tickets.get_mut(id)?;
        info!(upload = %id.short(), length_bytes = ticket.length_bytes, "handed over");
        ticket.on_finished();
        let (upload, remove) = (ticket.upload.take(), ticket.new.remove_when_finished);
        self.tickets.set_deadline(id, Some(now + self.config.idle_timeout));
        let position = self.record(id);
        self.after(position, Then::Finished { id, upload, remove });
        Some(position)
    }

    /// That the web app has the file is durable: nobody needs it here any more.
    pub(super) fn on_finish_recorded(&mut self, id: TicketId) {
        let Some(ticket) = self.tickets.get_mut(id) else { return };
        ticket.is_recorded = true;
        if let Some(key) = ticket.client {
            // One in the middle of the handshake hears it at the end of it.
            let waiting = self.clients.get_mut(key).filter(|it| it.connection.is_waiting());
            if let Some(client) = waiting {
                client.connection.on_finished();
                self.unbind(key);
                self.pump_later(key);
            }
        }
        self.finished.push_back(id);
        if self.finished.len() > FINISHED_COUNT_MAX {
            let oldest = self.finished.pop_front().expect("not empty");
            self.remove_ticket(oldest);
        }
    }

    /// The web app knows that the upload was cancelled.
    fn forget_cancelled(&mut self, id: TicketId) {
        self.end_cancelled_client(id);
        self.remove_ticket(id);
    }

    fn end_cancelled_client(&mut self, id: TicketId) {
        let Some(key) = self.tickets.get_mut(id).and_then(|it| it.client.take()) else { return };
        let was_bound = self.unbind(key).is_some();
        if let Some(client) = self.clients.get_mut(key).filter(|_| was_bound) {
            client.connection.on_cancelled();
            self.pump_later(key);
        }
    }

    pub(super) fn call(&mut self, id: TicketId) {
        let Some(ticket) = self.tickets.get_mut(id) else { return };
        let State::Telling { outcome, phase } = &mut ticket.state else { return };
        *phase = Telling::Calling;
        ticket.attempt += 1;
        let callback = Callback {
            ticket: id,
            url: ticket.new.url.clone(),
            backend_secret: ticket.new.secret.clone(),
            signing_secret: String::new(),
            metadata: String::new(),
            filename_from_browser: ticket.filename_from_browser.clone(),
            outcome: outcome.clone(),
            attempt: ticket.attempt,
        };
        self.tickets.set_deadline(id, None);
        let from = self.config.core;
        self.post(Address::Control, Mail::Callback { from, callback });
    }

    /// Those who wanted to finish while the answer was on its way.
    fn answer_held(&mut self, now: Instant, id: TicketId) {
        if self.is_calling(id) {
            return;
        }
        while let Some(index) = self.held.iter().position(|it| it.ticket == id) {
            let held = self.held.swap_remove(index);
            // The secret was right when it was held.
            let secret = self.tickets.get(id).map(|it| it.new.secret.clone()).unwrap_or_default();
            let (position, response) = match self.tickets.check_finish(id, Some(&secret)) {
                Ok(()) => (self.finished(now, id), Response::text(200, "ok")),
                Err(error) => (None, ticket_error_response(error, false)),
            };
            self.reply_after(now, position, held.reply_to, response);
        }
    }

    /// Answers at once, or when what the answer says is durable.
    fn reply_after(
        &mut self,
        now: Instant,
        position: Option<Position>,
        reply_to: ReplyTo,
        response: Response,
    ) {
        match position {
            Some(position) => self.after(position, Then::Reply(reply_to, response)),
            None => self.reply(now, reply_to, response),
        }
    }

    pub(super) fn reply(&mut self, now: Instant, reply_to: ReplyTo, response: Response) {
        let ReplyTo { core, client } = reply_to;
        if core == self.config.core {
            self.on_answer(now, client, &response);
        } else {
            self.post(Address::Core(core), Mail::BackendAnswer { client, response });
        }
    }

    fn remove_ticket(&mut self, id: TicketId) -> Option<(Ticket, Position)> {
        let ticket = self.tickets.remove(id)?;
        self.config.loads[usize::from(self.config.core.0)].fetch_sub(1, Ordering::Relaxed);
        Some((ticket, self.journal.note_removed(id)))
    }

    pub(super) fn is_complete(&self, id: TicketId) -> bool {
        let upload = self.tickets.get(id).and_then(|it| it.upload);
        let upload = upload.and_then(|it| self.store.upload(it));
        upload.is_some_and(|it| it.is_complete())
            && self.tickets.get(id).is_some_and(|it| it.length_bytes > 0)
    }

    fn least_loaded(&self) -> CoreId {
        let loads = self.config.loads.iter().map(|it| it.load(Ordering::Relaxed));
        let least = loads.enumerate().min_by_key(|it| it.1).expect("there is a core");
        CoreId(least.0 as u16)
    }

    /// Draws until the owner is who it should be: a few draws, because ids are random.
    fn draw_id_for(&mut self, owner: CoreId) -> TicketId {
        loop {
            let id = (self.config.draw_id)();
            if id.owner(self.config.core_count) == owner {
                return id;
            }
        }
    }
}

/// How long a request to finish waits for the answer to the callback, as in the original.
const HOLD_FINISH: Duration = Duration::from_secs(1);
const HELD_COUNT_MAX: usize = 64;

/// What a ticket's record grows by when a browser has come.
const NAME_BYTES_USUAL: u32 = 256;

/// Finished uploads that one core remembers.
const FINISHED_COUNT_MAX: usize = 100_000;

/// A web app that cannot be told of a cancellation for about an hour is not told.
const CANCEL_ATTEMPTS_MAX: u32 = 18;
