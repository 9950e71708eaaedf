//! What a restarted server has to know is recorded, and what must not happen before waits here.

use std::time::{Duration, Instant};

use engine::journal::{JournalEvent, Position, Source};
use engine::op::{Address, Errno, Op, Token};
use engine::record::TicketRecord;
use engine::store::{Offsets, UploadKey};
use engine::ticket::TicketId;
use engine::tickets::{ClientKey, Tickets};
use tracing::error;

use super::Worker;
use crate::codec::response::Response;
use crate::mail::{Mail, ReplyTo};

/// What follows once a record is durable.
#[derive(Debug)]
pub(super) enum Then {
    /// A web app hears what was recorded.
    Reply(ReplyTo, Response),
    /// The control thread hears it.
    Post(Mail),
    /// A web app is told what became of its upload.
    Call(TicketId),
    /// The browser hears that the web app has cancelled.
    Revoke(ClientKey),
    /// The file of a cancelled upload goes.
    Discard(UploadKey),
    /// The upload is over, and its file is the web app's business or goes. If the web app has it,
    /// the browser hears so.
    Over { id: TicketId, upload: Option<UploadKey>, remove: bool },
}

/// The core's tickets as they are now, for the journal.
pub(super) struct Live<'a> {
    pub(super) tickets: &'a Tickets,
    pub(super) offsets: Offsets<'a>,
    pub(super) service_ms: u64,
}

impl Source for Live<'_> {
    fn ticket(&self, id: TicketId) -> Option<TicketRecord> {
        let ticket = self.tickets.get(id)?;
        Some(ticket.record(self.durable_bytes(id).unwrap_or(0)))
    }

    fn durable_bytes(&self, id: TicketId) -> Option<u64> {
        self.offsets.durable(self.tickets.get(id)?.upload?)
    }

    fn service_ms(&self) -> u64 {
        self.service_ms
    }
}

impl Worker {
    /// Something has happened to the ticket.
    pub(super) fn record(&mut self, now: Instant, id: TicketId) -> Position {
        let ticket = self.tickets.get_mut(id).expect("a known ticket");
        ticket.active_at_ms = self.service_ms;
        self.clock_at = Some(now + CLOCK_EVERY);
        self.note(id).expect("a known ticket")
    }

    fn note(&mut self, id: TicketId) -> Option<Position> {
        let (_, offsets) = self.store.memory_and_offsets();
        let live = Live { tickets: &self.tickets, offsets, service_ms: self.service_ms };
        Some(self.journal.note_ticket(&live.ticket(id)?))
    }

    /// Commits carry the time. When there are none for long, one is made, so that a killed server
    /// forgets little of the time for which its tickets have lived.
    pub(super) fn on_clock_timeout(&mut self, now: Instant) {
        if self.clock_at.is_some_and(|it| it <= now) {
            self.note_clock();
            self.clock_at = (!self.tickets.is_empty()).then_some(now + CLOCK_EVERY);
        }
    }

    pub(super) fn note_clock(&mut self) {
        let any = self.tickets.iter().next().map(|it| it.new.id);
        if let Some(id) = any {
            self.note(id);
        }
    }

    /// Does something when everything up to `position` is durable.
    pub(super) fn after(&mut self, position: Position, then: Then) {
        assert!(self.awaiting.back().is_none_or(|it| it.0 <= position), "records are in order");
        self.awaiting.push_back((position, then));
    }

    pub(super) fn on_journal_events(&mut self, now: Instant) {
        while let Some(event) = self.journal.poll_event() {
            match event {
                JournalEvent::Committed { position } => self.on_recorded(now, position),
                JournalEvent::Offset { id, committed_bytes } => {
                    self.on_committed(now, id, committed_bytes);
                }
                JournalEvent::Failed { errno } => self.on_journal_failed(errno),
            }
        }
    }

    fn on_recorded(&mut self, now: Instant, position: Position) {
        while self.awaiting.front().is_some_and(|it| it.0 <= position) {
            let (_, then) = self.awaiting.pop_front().expect("there is a front");
            match then {
                Then::Reply(reply_to, response) => self.reply(now, reply_to, response),
                Then::Post(mail) => self.post(Address::Control, mail),
                // A server that stops leaves it to the next one.
                Then::Call(id) if !self.is_stopping => self.call(id),
                Then::Call(_) => {}
                Then::Revoke(key) => {
                    if let Some(client) = self.clients.get_mut(key) {
                        client.connection.on_revoked("cancelled by the web app");
                        self.pump_later(key);
                    }
                }
                Then::Discard(upload) => self.store.discard(now, upload),
                Then::Over { id, upload, remove } => {
                    match upload {
                        Some(upload) if remove => self.store.discard(now, upload),
                        Some(upload) => self.store.forget(upload),
                        None => {}
                    }
                    self.on_over_recorded(id);
                }
            }
        }
        self.on_store_events(now);
    }

    pub(super) fn poll_journal(&mut self) -> Option<(Token, Op<Mail>)> {
        let (memory, offsets) = self.store.memory_and_offsets();
        let live = Live { tickets: &self.tickets, offsets, service_ms: self.service_ms };
        self.journal.poll_op(memory, &live)
    }

    /// Nothing can be promised any more. What was is safe.
    fn on_journal_failed(&mut self, errno: Errno) {
        error!(core = self.config.core.0, %errno, "the journal cannot be written");
        let from = self.config.core;
        self.post(Address::Control, Mail::JournalFailed { from, errno });
    }

    /// Everything below the offset is safe: now its browser may know.
    fn on_committed(&mut self, now: Instant, id: TicketId, committed_bytes: u64) {
        let Some(ticket) = self.tickets.get_mut(id) else { return };
        let (Some(upload), client) = (ticket.upload, ticket.client) else { return };
        ticket.active_at_ms = self.service_ms;
        self.store.on_committed(now, upload, committed_bytes);
        if let Some(key) = client {
            self.acknowledge(key, upload);
        }
        self.on_store_events(now);
        self.settle(now, id);
    }
}

/// A killed server forgets at most so much time.
const CLOCK_EVERY: Duration = Duration::from_secs(600);
