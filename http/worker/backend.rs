//! Web apps: what they ask for.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use engine::journal::Position;
use engine::op::{Address, CoreId};
use engine::ticket::TicketId;
use engine::tickets::{ClientKey, NewTicket, Standing, Ticket, TicketError};
use tracing::info;

use super::Worker;
use super::journal::Then;
use crate::codec::response::Response;
use crate::keys::KeyId;
use crate::mail::{Mail, OwnedRequest, ReplyTo};
use crate::routes::{BackendCall, BackendRequest, NewUpload, ticket_error_response};

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
    pub(super) fn on_backend_call(&mut self, now: Instant, client: ClientKey, call: BackendCall) {
        let BackendCall { key, request } = call;
        let id = match request {
            BackendRequest::NewUpload(_) => self.draw_id_for(self.least_loaded()),
            BackendRequest::CancelUpload { id, .. }
            | BackendRequest::FinishUpload { id, .. }
            | BackendRequest::RetryUpload { id, .. }
            | BackendRequest::ShowUpload { id } => id,
            BackendRequest::ListUploads(query) => return self.ask_cores(now, client, key, query),
        };
        let reply_to = ReplyTo { core: self.config.core, client };
        let request = OwnedRequest { id, key, request };
        match id.owner(self.config.core_count) {
            owner if owner == self.config.core => self.on_backend(now, reply_to, request),
            owner => self.post(Address::Core(owner), Mail::Backend { reply_to, request }),
        }
    }

    /// A web app's request for a ticket of this core.
    pub(super) fn on_backend(&mut self, now: Instant, reply_to: ReplyTo, request: OwnedRequest) {
        match &request.request {
            BackendRequest::NewUpload(new) if !new.dest_dir.is_empty() => {
                self.on_destination_wanted(new.dest_dir.clone(), reply_to, request);
            }
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
        let OwnedRequest { id, key, request } = request;
        let is_anothers = self.is_anothers(id, key);
        let (position, response) = match request {
            BackendRequest::ShowUpload { .. } => (None, self.show_upload(now, id, key)),
            _ if is_anothers => (None, ticket_error_response(TicketError::Unknown, false)),
            BackendRequest::NewUpload(new) => self.new_upload(now, id, key, new),
            BackendRequest::CancelUpload { secret, .. } => self.cancel_upload(now, id, &secret),
            BackendRequest::FinishUpload { secret, .. } => {
                let check = self.tickets.check_finish(id, secret.as_deref());
                // The app may be faster than its own `wait`.
                if check == Err(TicketError::NotWaiting) && self.held.len() < HELD_COUNT_MAX {
                    let until = now + HOLD_FINISH;
                    self.held.push(HeldFinish { ticket: id, reply_to, until });
                    return;
                }
                self.finish_upload(now, id, secret.as_deref())
            }
            BackendRequest::RetryUpload { secret, .. } => self.retry_upload(now, id, &secret),
            BackendRequest::ListUploads(_) => unreachable!("asked of all cores"),
        };
        self.reply_after(now, position, reply_to, response);
    }

    pub(super) fn on_held_timeouts(&mut self, now: Instant) {
        while let Some(index) = self.held.iter().position(|it| it.until <= now) {
            let held = self.held.swap_remove(index);
            let response = ticket_error_response(TicketError::NotWaiting, false);
            self.reply(now, held.reply_to, response);
        }
    }

    fn new_upload(
        &mut self,
        now: Instant,
        id: TicketId,
        key: Option<KeyId>,
        new: NewUpload,
    ) -> Answered {
        if let Some(refusal) = self.refuse_for_storage() {
            return (None, refusal);
        }
        if self.tickets.len() - self.over.len() >= self.config.tickets_max as usize {
            let message = "too many tickets are open; finish or cancel some";
            return (None, Response::text(503, message).with_header("Retry-After", "60"));
        }
        let lifetime_ms = self.config.lifetime.as_millis() as u64;
        let life_ms =
            new.expires_in_s.map_or(lifetime_ms, |it| lifetime_ms.min(it.saturating_mul(1000)));
        let ticket = Ticket::new(NewTicket {
            id,
            url: new.url,
            secret: new.secret,
            finish_without_secret: new.finish_without_secret,
            remove_when_finished: new.remove_when_finished,
            owner_uid: new.owner_uid,
            max_size_bytes: new.max_size_bytes,
            expires_at_ms: Some(self.service_ms.saturating_add(life_ms)),
            metadata: new.metadata,
            dest_dir: new.dest_dir,
            signing_secret: new.signing_secret,
            key: key.map_or("", |it| self.config.keys.name(it)).to_owned(),
        });
        let record_bytes = ticket.record(0).encoded_bytes() + GROWTH_BYTES_USUAL;
        if !self.journal.has_room_for(now, record_bytes) {
            let message = "the journal is full: finish or cancel uploads, or make room on the disk";
            return (None, Response::text(507, message).with_header("Retry-After", "60"));
        }
        if key.is_some_and(|it| self.config.keys.add_ticket(it).is_err()) {
            let message = "too many tickets of this key are open; finish or cancel some";
            return (None, Response::text(429, message).with_header("Retry-After", "60"));
        }
        self.tickets.insert(ticket);
        self.set_life_deadline(now, id);
        self.config.loads[usize::from(self.config.core.0)].fetch_add(1, Ordering::Relaxed);
        info!(upload = %id.short(), "ticket issued");
        (Some(self.record(now, id)), Response::text(200, id.to_string()))
    }

    fn cancel_upload(&mut self, now: Instant, id: TicketId, secret: &str) -> Answered {
        match self.tickets.check_cancel(id, secret) {
            Ok(Standing::ToDo) => {
                info!(upload = %id.short(), "cancelled by the web app");
                (Some(self.revoke(now, id)), Response::text(200, "ok"))
            }
            Ok(Standing::Done) => (None, Response::text(200, "ok")),
            Err(error) => (None, ticket_error_response(error, true)),
        }
    }

    fn finish_upload(&mut self, now: Instant, id: TicketId, secret: Option<&str>) -> Answered {
        match self.tickets.check_finish(id, secret) {
            Ok(Standing::ToDo) => (self.finished(now, id), Response::text(200, "ok")),
            Ok(Standing::Done) => (None, Response::text(200, "ok")),
            Err(error) => (None, ticket_error_response(error, false)),
        }
    }

    fn retry_upload(&mut self, now: Instant, id: TicketId, secret: &str) -> Answered {
        match self.tickets.check_retry(id, secret) {
            Ok(()) => (self.retry(now, id), Response::text(200, "ok")),
            Err(error) => (None, ticket_error_response(error, false)),
        }
    }

    /// Those who wanted to finish while the answer was on its way.
    pub(super) fn answer_held(&mut self, now: Instant, id: TicketId) {
        if self.is_calling(id) {
            return;
        }
        while let Some(index) = self.held.iter().position(|it| it.ticket == id) {
            let held = self.held.swap_remove(index);
            // The secret was right when it was held.
            let secret = self.tickets.get(id).map(|it| it.new.secret.clone()).unwrap_or_default();
            let (position, response) = self.finish_upload(now, id, Some(&secret));
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

    /// A ticket that is over is not remembered any more.
    pub(super) fn remove_ticket(&mut self, id: TicketId) {
        if self.tickets.remove(id).is_some() {
            self.config.loads[usize::from(self.config.core.0)].fetch_sub(1, Ordering::Relaxed);
            self.journal.note_removed(id);
        }
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

/// What a ticket's record usually grows by: the file's name, and why a web app could not be told.
const GROWTH_BYTES_USUAL: u32 = 256;
