//! What is asked about this core's tickets, and what web apps and operators ask of all cores.
//!
//! A page costs one pass over the core's tickets, without a clone of what is not on it: 11 to 20 ms
//! for 100,000 of them in a test build on a busy machine, whatever the limit.

use std::time::Instant;

use engine::handover::Outcome;
use engine::op::{Address, CoreId};
use engine::ticket::TicketId;
use engine::tickets::{ClientKey, State, Telling, Ticket, TicketError};

use super::Worker;
use super::journal::Then;
use crate::codec::response::Response;
use crate::keys::KeyId;
use crate::mail::{Mail, ReplyTo};
use crate::query::{
    Asker, CoreSummary, Page, Query, Retried, Retry, Totals, UploadState, UploadStatus, json_error,
    json_response, smallest,
};

/// A web app's question, until all cores have answered.
#[derive(Debug)]
pub(super) struct Asked {
    client: ClientKey,
    limit: usize,
    pages: Vec<Page>,
}

impl Worker {
    /// A web app wants the list of its uploads.
    pub(super) fn ask_cores(
        &mut self,
        now: Instant,
        client: ClientKey,
        key: Option<KeyId>,
        query: Query,
    ) {
        let query = Query { key: key.map(|it| self.config.keys.name(it).to_owned()), ..query };
        let here = self.config.core;
        let asker = Asker::Client(ReplyTo { core: here, client });
        for core in (0..self.config.core_count).map(CoreId).filter(|it| *it != here) {
            self.post(Address::Core(core), Mail::Query { asker, query: query.clone() });
        }
        self.asked.push(Asked { client, limit: query.limit, pages: Vec::new() });
        let page = self.page(now, &query);
        self.on_page(now, client, page);
    }

    /// A core's part of the answer to a question that this core has asked.
    pub(super) fn on_page(&mut self, now: Instant, client: ClientKey, page: Page) {
        // Every question waits for all cores, also when its client is gone.
        let index = self.asked.iter().position(|it| it.client == client);
        let index = index.expect("an answer follows a question");
        self.asked[index].pages.push(page);
        if self.asked[index].pages.len() == usize::from(self.config.core_count) {
            let Asked { client, limit, pages } = self.asked.swap_remove(index);
            // How busy the server is with others is not for web apps.
            let page = Page { cores: Vec::new(), ..Page::join(pages, limit) };
            self.on_answer(now, client, &json_response(200, &page));
        }
    }

    pub(super) fn on_query(&mut self, now: Instant, asker: Asker, query: &Query) {
        let page = self.page(now, query);
        let to = match asker {
            Asker::Client(reply_to) => Address::Core(reply_to.core),
            Asker::Control(_) => Address::Control,
        };
        self.post(to, Mail::QueryAnswer { asker, page });
    }

    /// A web app wants to know of one upload.
    pub(super) fn show_upload(&self, now: Instant, id: TicketId, key: Option<KeyId>) -> Response {
        let is_own = |it: &&Ticket| key.is_some_and(|key| it.new.key == self.config.keys.name(key));
        match self.tickets.get(id).filter(is_own) {
            Some(ticket) => json_response(200, &self.status(now, ticket)),
            None => json_error(404, "id unknown"),
        }
    }

    /// Whether the ticket is another key's, and so does not exist for this one. Those from a time
    /// without keys are anybody's who knows their secret.
    pub(super) fn is_anothers(&self, id: TicketId, key: Option<KeyId>) -> bool {
        let (Some(key), Some(ticket)) = (key, self.tickets.get(id)) else { return false };
        !ticket.new.key.is_empty() && ticket.new.key != self.config.keys.name(key)
    }

    /// An operator wants web apps to be told again.
    pub(super) fn on_retry(&mut self, now: Instant, number: u64, retry: Retry) {
        let (ids, next) = match retry {
            Retry::One(id) => match self.check_retry(id) {
                Ok(()) => (vec![id], None),
                Err(error) => {
                    let result = Err(error);
                    return self.post(Address::Control, Mail::RetryAnswer { number, result });
                }
            },
            Retry::Failed { after } => self.some_failed(after),
        };
        let count = ids.len() as u32;
        let mut position = None;
        for id in ids {
            position = self.retry(now, id).or(position);
        }
        let answer = Mail::RetryAnswer { number, result: Ok(Retried { count, next }) };
        match position {
            Some(position) => self.after(position, Then::Post(answer)),
            None => self.post(Address::Control, answer),
        }
    }

    fn page(&self, now: Instant, query: &Query) -> Page {
        let core = CoreSummary::new(self.config.core, self.tickets.len(), self.clients.len());
        let is_visible = |it: &&Ticket| query.key.as_ref().is_none_or(|key| it.new.key == *key);
        let mut totals = Totals::default();
        let wanted = self.tickets.iter().filter(is_visible).filter(|it| {
            let state = UploadState::of(&it.state);
            totals.add(state);
            query.states.has(state)
                && query.only.is_none_or(|only| it.new.id == only)
                && Some(it.new.id) > query.after
        });
        let (ids, has_more) = smallest(wanted.map(|it| it.new.id), query.limit);
        let uploads = ids.iter().filter_map(|id| self.tickets.get(*id));
        Page {
            uploads: uploads.map(|it| self.status(now, it)).collect(),
            next: ids.last().copied().filter(|_| has_more),
            totals,
            cores: vec![core],
        }
    }

    fn status(&self, now: Instant, ticket: &Ticket) -> UploadStatus {
        let new = &ticket.new;
        let upload = ticket.upload.and_then(|it| self.store.upload(it));
        let (received_bytes, committed_bytes) = match (upload, &ticket.state) {
            (Some(upload), _) => (upload.received(), upload.committed()),
            (None, State::Finished) => (ticket.length_bytes, ticket.length_bytes),
            (None, _) => (0, 0),
        };
        let client = ticket.client.and_then(|it| self.clients.get(it));
        let is_receiving = ticket.state == State::Receiving;
        let may_expire = matches!(ticket.state, State::Issued | State::Receiving);
        let is_due = matches!(
            ticket.state,
            State::Telling { phase: Telling::Waiting | Telling::BackingOff, .. }
        );
        let left_ms = |at: Instant| at.saturating_duration_since(now).as_millis() as u64;
        let cancel_reason = match &ticket.state {
            State::Telling { outcome: Outcome::Cancelled { reason }, .. }
            | State::Failed { outcome: Outcome::Cancelled { reason } }
            | State::Cancelled { reason } => Some(reason.clone()),
            _ => None,
        };
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        UploadStatus {
            id: new.id,
            state: UploadState::of(&ticket.state),
            length_bytes: ticket.length_bytes,
            received_bytes,
            committed_bytes,
            rate_bytes_per_s: client
                .filter(|_| is_receiving)
                .map_or(0, |it| it.rate.bytes_per_s(now)),
            connected: client.is_some(),
            attempts: ticket.telling.attempt,
            refusals: ticket.telling.refusal_count,
            last_error: some(&ticket.telling.last_error),
            next_attempt_in_ms: ticket.deadline.filter(|_| is_due).map(left_ms),
            idle_ms: self.service_ms.saturating_sub(ticket.active_at_ms),
            expires_in_ms: new
                .expires_at_ms
                .filter(|_| may_expire)
                .map(|it| it.saturating_sub(self.service_ms)),
            cancel_reason,
            filename_from_browser: ticket.filename_from_browser.clone(),
            metadata: new.metadata.clone(),
            remove_when_finished: new.remove_when_finished,
            key: some(&new.key),
        }
    }

    fn check_retry(&self, id: TicketId) -> Result<(), TicketError> {
        let ticket = self.tickets.get(id).ok_or(TicketError::Unknown)?;
        // An operator needs no secret.
        self.tickets.check_retry(id, &ticket.new.secret)
    }

    /// Some that have failed, and the last of them if there are more.
    fn some_failed(&self, after: Option<TicketId>) -> (Vec<TicketId>, Option<TicketId>) {
        let failed = self.tickets.iter().filter(|it| matches!(it.state, State::Failed { .. }));
        let ids = failed.map(|it| it.new.id).filter(|id| Some(*id) > after);
        let (ids, has_more) = smallest(ids, RETRIED_AT_ONCE);
        let next = ids.last().copied().filter(|_| has_more);
        (ids, next)
    }
}

/// What the journal writes in one turn without trouble.
const RETRIED_AT_ONCE: usize = 256;
