//! An upload on its way: claimed by a connection, appended to, acknowledged, stored.

use std::time::{Duration, Instant};

use engine::error::PeerError;
use engine::handover::Outcome;
use engine::op::Errno;
use engine::store::{Finish, StoreEvent, UploadKey, arrival_path};
use engine::ticket::TicketId;
use engine::tickets::{AfterFailure, ClientKey, State};
use engine::upload::AppendError;
use tracing::{info, warn};

use super::Worker;
use super::journal::Then;
use super::room::{Claim, Look};
use super::watch::STORAGE_AWAY;
use crate::codec::close_code;
use crate::connection::Pace;
use crate::dialect::incoming::Command;

/// An upload could not be stored.
#[derive(Debug)]
pub(super) struct Failure {
    ticket: TicketId,
    /// Who had it.
    client: Option<ClientKey>,
    errno: Errno,
}

impl Worker {
    pub(super) fn on_command(&mut self, now: Instant, key: ClientKey, command: Command) {
        match command {
            Command::Claim(request) => match TicketId::parse(&request.id) {
                None => self.refuse(now, key, PeerError::TicketUnknown),
                Some(id) if id.owner(self.config.core_count) == self.config.core => {
                    self.claim(now, key, Claim { id, request }, Look::IsToCome);
                }
                Some(id) => self.start_move(key, id, request),
            },
            Command::Start => self.on_start(now, key),
            Command::Pause => {
                if let Some(id) = self.ticket_of(key) {
                    info!(upload = %id.short(), "paused");
                }
            }
            Command::Cancel { reason } => self.on_cancel(now, key, reason),
            Command::Abandon { reason } => {
                if let Some(id) = self.ticket_of(key) {
                    self.end_upload(now, id, reason);
                }
                self.close(now, key, close_code::NORMAL, "");
            }
            Command::Refuse(error) => self.refuse(now, key, error),
        }
    }

    /// A browser says which upload its connection is for. Whoever had it before loses it.
    pub(super) fn claim(&mut self, now: Instant, key: ClientKey, claim: Claim, look: Look) {
        let Claim { id, request } = &claim;
        let (id, length_bytes) = (*id, request.length_bytes);
        let Some(ticket) = self.tickets.get_mut(id) else {
            return self.refuse(now, key, PeerError::TicketUnknown);
        };
        match &ticket.state {
            State::Telling { outcome: Outcome::Cancelled { .. }, .. }
            | State::Failed { outcome: Outcome::Cancelled { .. } }
            | State::Cancelled { .. } => return self.refuse(now, key, PeerError::UploadOver),
            State::Failed { outcome: Outcome::Arrived { .. } } => {
                return self.refuse(now, key, PeerError::HandoverFailed);
            }
            State::Issued | State::Receiving | State::Storing => {}
            State::Telling { .. } | State::Finished => {}
        }
        let received = ticket.upload.and_then(|it| self.store.upload(it)).map(|it| it.received());
        let has_left = ticket.upload.is_some_and(|it| self.store.has_left(it));
        // An empty file is complete without a byte.
        let is_begun = match ticket.state {
            State::Issued => false,
            State::Receiving => received != Some(0) || has_left,
            _ => true,
        };
        if is_begun && ticket.length_bytes != length_bytes {
            return self.refuse(now, key, PeerError::FileSizeChanged);
        }
        if !is_begun && self.config.is_too_large(&ticket.new, length_bytes) {
            return self.refuse(now, key, PeerError::FileTooLarge);
        }
        // A browser that reconnects at once may be read here before its older connection is.
        let accepted_at = |key| self.clients.get(key).map(|it| it.accepted_at);
        if ticket.client.and_then(accepted_at) > accepted_at(key) {
            return self.close(now, key, close_code::TAKEN_OVER, TAKEN_OVER);
        }
        let needs_storage = matches!(ticket.state, State::Issued | State::Receiving);
        if needs_storage && !self.watch.is_good() {
            return self.close(now, key, close_code::TRY_AGAIN_LATER, STORAGE_AWAY);
        }
        // What was let in before has its room; on a disk that is full meanwhile it waits.
        let was_let_in = ticket.state == State::Receiving && length_bytes <= ticket.length_bytes;
        let needs_room = !is_begun && !was_let_in;
        if needs_room && look == Look::IsToCome {
            return self.claim_later(key, claim);
        }
        let upload = ticket.upload;
        if needs_room && !self.has_room_for(upload, length_bytes) {
            return self.refuse(now, key, PeerError::NoRoom);
        }
        let ticket = self.tickets.get_mut(id).expect("just found");
        if ticket.client.is_some() && !ticket.on_take_over(now) {
            return self.close(now, key, close_code::TRY_AGAIN_LATER, "taken over too often");
        }
        // The last question: what is counted now belongs to the upload.
        if !is_begun && self.config.declare(ticket, length_bytes).is_err() {
            return self.refuse(now, key, PeerError::QuotaExceeded);
        }
        if !is_begun {
            ticket.filename_from_browser = claim.request.name;
            ticket.length_bytes = length_bytes;
        }
        let older = ticket.client.replace(key);
        let is_first = ticket.state == State::Issued;
        if is_first {
            ticket.state = State::Receiving;
            ticket.upload.get_or_insert_with(|| self.store.insert(id, length_bytes));
        }
        let is_receiving = ticket.state == State::Receiving;
        let upload = ticket.upload;
        if let Some(client) = self.clients.get_mut(key) {
            client.ticket = Some(id);
        }
        if !is_begun {
            self.record(now, id);
        }
        if let Some(older) = older {
            info!(upload = %id.short(), "taken over by another connection");
            self.unbind(older);
            self.close(now, older, close_code::TAKEN_OVER, TAKEN_OVER);
        }
        match upload {
            Some(upload) if is_receiving => {
                if !is_begun {
                    self.store.set_length(upload, length_bytes);
                }
                let is_complete = self.store.upload(upload).is_some_and(|it| it.is_complete());
                if is_complete && is_begun {
                    // Everything is there; only the way out of the parts failed before.
                    self.attach_complete(key, length_bytes);
                } else {
                    self.store.attach(now, upload);
                    self.on_store_events(now);
                }
            }
            _ => self.attach_complete(key, length_bytes),
        }
    }

    /// The connection that owned the upload is gone: what has come is kept.
    pub(super) fn detach(&mut self, now: Instant, slot: u32) {
        let key = self.clients.key(slot);
        let Some(id) = self.unbind(key) else { return };
        let Some(ticket) = self.tickets.get_mut(id) else { return };
        if ticket.client != Some(key) {
            return;
        }
        ticket.client = None;
        if ticket.state == State::Receiving {
            let upload = ticket.upload.expect("received into a file");
            ticket.active_at_ms = self.service_ms;
            self.set_life_deadline(now, id);
            let received = self.store.upload(upload).map_or(0, |it| it.received());
            info!(upload = %id.short(), received_bytes = received, "disconnected");
            self.store.detach(now, upload);
            self.on_store_events(now);
            self.settle(now, id);
        }
    }

    pub(super) fn append(&mut self, now: Instant, key: ClientKey, bytes: &[u8], mask: [u8; 4]) {
        let Some((id, upload)) = self.bound(key) else { return };
        self.watch_storage(now);
        match self.store.append(now, upload, bytes, mask) {
            Ok(()) => {
                if let Some(client) = self.clients.get_mut(key) {
                    client.connection.on_appended(bytes.len() as u64);
                    client.rate.on_received(now, bytes.len() as u64);
                }
            }
            Err(AppendError::PastLength) => {
                let error = PeerError::FileLongerThanDeclared;
                self.unbind(key);
                self.end_upload(now, id, error.message().to_owned());
                self.refuse(now, key, error);
            }
        }
    }

    pub(super) fn on_message_end(&mut self, now: Instant, key: ClientKey) {
        if let Some((id, upload)) = self.bound(key) {
            self.acknowledge(key, upload);
            self.settle(now, id);
        }
    }

    pub(super) fn on_store_events(&mut self, now: Instant) {
        while let Some(event) = self.store.poll_event() {
            self.on_store_event(now, event);
        }
    }

    fn on_store_event(&mut self, now: Instant, event: StoreEvent) {
        match event {
            StoreEvent::Attached { upload, offset_bytes } => {
                let Some((id, client)) = self.owner(upload) else { return };
                let Some(key) = client else { return };
                let length_bytes = self.store.upload(upload).map_or(0, |it| it.length());
                if let Some(client) = self.clients.get_mut(key) {
                    client.connection.on_attached(offset_bytes, length_bytes);
                    info!(upload = %id.short(), offset_bytes, length_bytes, "connected");
                    self.pump_later(key);
                }
            }
            StoreEvent::Room { upload } => {
                if let Some((_, Some(key))) = self.owner(upload) {
                    self.pump_later(key);
                }
            }
            StoreEvent::Durable { upload, .. } => {
                if let Some((id, _)) = self.owner(upload) {
                    self.journal.note_offset(id);
                }
            }
            StoreEvent::Arrived { upload, path } => {
                let Some((id, _)) = self.owner(upload) else { return };
                info!(upload = %id.short(), "arrived");
                let path = self.absolute(path);
                self.tell(now, id, Outcome::Arrived { path });
            }
            StoreEvent::Failed { upload, errno } => self.on_failed(now, upload, errno),
            StoreEvent::Removed { .. } => {}
        }
    }

    /// The handshake is over: chunks come, or nothing is left to come.
    fn on_start(&mut self, now: Instant, key: ClientKey) {
        let Some(id) = self.ticket_of(key) else { return };
        let Some(ticket) = self.tickets.get(id) else {
            // It was finished and its time ran out during the handshake.
            return self.refuse(now, key, PeerError::TicketUnknown);
        };
        let Some(client) = self.clients.get_mut(key) else { return };
        match ticket.state {
            State::Issued | State::Receiving => self.settle(now, id),
            State::Storing | State::Telling { .. } => client.connection.on_stored(),
            State::Finished => {
                client.connection.on_stored();
                // Otherwise it hears so when the record is durable.
                if ticket.is_recorded {
                    client.connection.on_finished();
                    self.unbind(key);
                }
            }
            // Given up, or cancelled, during the handshake.
            State::Failed { .. } => self.refuse(now, key, PeerError::HandoverFailed),
            State::Cancelled { .. } => self.refuse(now, key, PeerError::UploadOver),
        }
    }

    /// Starts the way out of the parts once every byte is safe and every message acknowledged.
    pub(super) fn settle(&mut self, now: Instant, id: TicketId) {
        let Some(ticket) = self.tickets.get_mut(id) else { return };
        let Some(upload) = ticket.upload.filter(|_| ticket.state == State::Receiving) else {
            return;
        };
        let is_complete = self.store.upload(upload).is_some_and(|it| it.is_complete());
        let client = ticket.client.and_then(|it| self.clients.get_mut(it));
        // A browser in the handshake has to hear first that nothing is left to send.
        let is_heard = client
            .as_ref()
            .is_none_or(|it| it.connection.is_receiving() && it.connection.is_settled());
        // An empty file that nobody has confirmed is no upload yet.
        let is_confirmed = client.is_some() || ticket.length_bytes > 0;
        if !is_complete || !is_heard || !is_confirmed {
            return;
        }
        if let Some(client) = client {
            client.connection.on_stored();
        }
        ticket.state = State::Storing;
        let finish = Finish {
            path: arrival_path(&ticket.new),
            // As the original: an app that takes the file away itself may also write it.
            mode: self.config.handover_mode.unwrap_or(match ticket.new.remove_when_finished {
                true => 0o644,
                false => 0o770,
            }),
            group_gid: self.config.handover_gid,
            owner_uid: ticket.new.owner_uid.filter(|_| !ticket.new.remove_when_finished),
        };
        self.tickets.set_deadline(id, None);
        self.store.finish(now, upload, finish);
        self.on_store_events(now);
    }

    fn on_cancel(&mut self, now: Instant, key: ClientKey, reason: String) {
        let Some(id) = self.ticket_of(key) else {
            // It agrees to what the web app wanted, or will hear of it.
            let client = self.clients.get_mut(key);
            if let Some(client) = client.filter(|it| it.connection.pace() == Pace::Revoked) {
                client.connection.on_cancelled();
                self.pump_later(key);
            }
            return;
        };
        let is_receiving = self.tickets.get(id).is_some_and(|it| it.state == State::Receiving);
        if is_receiving {
            info!(upload = %id.short(), reason, "cancelled by the browser");
            self.end_upload(now, id, reason);
        } else {
            self.refuse(now, key, PeerError::UploadOver);
        }
    }

    /// Ends an upload that will never be complete: its bytes go, the web app is told. The browser,
    /// if it is still bound, hears when the web app knows.
    pub(super) fn end_upload(&mut self, now: Instant, id: TicketId, reason: String) {
        let Some(ticket) = self.tickets.get_mut(id) else { return };
        let upload = ticket.upload.take();
        let position = self.tell(now, id, Outcome::Cancelled { reason });
        if let (Some(upload), Some(position)) = (upload, position) {
            self.store.detach(now, upload);
            self.after(position, Then::Discard(upload));
            self.on_store_events(now);
        }
    }

    fn on_failed(&mut self, now: Instant, upload: UploadKey, errno: Errno) {
        let Some((id, client)) = self.owner(upload) else { return };
        let Some(ticket) = self.tickets.get_mut(id) else { return };
        warn!(upload = %id.short(), %errno, "could not be stored");
        ticket.state = State::Receiving;
        // It may have lost what was recorded.
        self.journal.note_offset(id);
        // If only the way out of the parts failed, nobody needs to come for the next try.
        if self.is_complete(id) {
            self.tickets.set_deadline(id, Some(now + STORE_AGAIN_AFTER));
        } else {
            self.set_life_deadline(now, id);
        }
        if !errno.is_shortage() {
            // A look at the storage says whose failure it is.
            return self.judge_later(Failure { ticket: id, client, errno });
        }
        if let Some(key) = client {
            self.lose_client(now, id, key);
            self.close(now, key, close_code::TRY_AGAIN_LATER, NO_ROOM);
        }
    }

    /// The storage was looked at after a failure. When all of it is bad, uploads wait; otherwise
    /// the failure is the upload's own.
    pub(super) fn judge(&mut self, now: Instant, failure: Failure) {
        let Failure { ticket: id, client, errno } = failure;
        let is_good = self.watch.is_good();
        let Some(ticket) = self.tickets.get_mut(id) else { return };
        // Somebody may have cancelled it, or come for it, meanwhile.
        let Some(upload) = ticket.upload.filter(|_| ticket.state == State::Receiving) else {
            return;
        };
        let current = ticket.client;
        if is_good && ticket.on_failure(now, errno) == AfterFailure::GiveUp {
            // The file stays for the operator.
            ticket.upload = None;
            self.store.set_aside(now, upload);
            if let Some(key) = current {
                self.unbind(key);
                self.refuse(now, key, PeerError::StorageFailed);
            }
            self.tell(now, id, Outcome::Cancelled { reason: "storage error".into() });
        } else if let Some(key) = current.filter(|_| current == client) {
            self.lose_client(now, id, key);
            self.close(now, key, close_code::INTERNAL_ERROR, "storage error");
        }
    }

    fn lose_client(&mut self, now: Instant, id: TicketId, key: ClientKey) {
        if let Some(ticket) = self.tickets.get_mut(id) {
            ticket.client = None;
            if let Some(upload) = ticket.upload {
                self.store.detach(now, upload);
            }
        }
        self.unbind(key);
    }

    pub(super) fn acknowledge(&mut self, key: ClientKey, upload: UploadKey) {
        let Some(committed) = self.store.upload(upload).map(|it| it.committed()) else { return };
        let Some(client) = self.clients.get_mut(key) else { return };
        if let Some(acked) = client.connection.on_committed(committed) {
            self.store.on_acked(upload, acked);
        }
        self.pump_later(key);
    }

    /// The connection of an upload that lacks nothing any more.
    fn attach_complete(&mut self, key: ClientKey, length_bytes: u64) {
        if let Some(client) = self.clients.get_mut(key) {
            client.connection.on_attached(length_bytes, length_bytes);
        }
    }

    /// Ends an upload's conversation for good.
    pub(super) fn refuse(&mut self, now: Instant, key: ClientKey, error: PeerError) {
        if let Some(client) = self.clients.get_mut(key) {
            client.connection.on_refused(error);
            self.detach(now, key.slot);
            self.pump_later(key);
        }
    }

    /// Ends a connection whose browser may come back.
    pub(super) fn close(&mut self, now: Instant, key: ClientKey, code: u16, reason: &str) {
        if let Some(client) = self.clients.get_mut(key) {
            client.connection.close(code, reason);
            self.detach(now, key.slot);
            self.pump_later(key);
        }
    }

    /// The connection has no upload any more. Says which it had.
    pub(super) fn unbind(&mut self, key: ClientKey) -> Option<TicketId> {
        self.clients.get_mut(key)?.ticket.take()
    }

    pub(super) fn ticket_of(&self, key: ClientKey) -> Option<TicketId> {
        self.clients.get(key)?.ticket
    }

    /// The file that a connection sends to.
    pub(super) fn upload_of(&self, slot: u32) -> Option<UploadKey> {
        self.bound(self.clients.key(slot)).map(|it| it.1)
    }

    fn bound(&self, key: ClientKey) -> Option<(TicketId, UploadKey)> {
        let id = self.ticket_of(key)?;
        Some((id, self.tickets.get(id)?.upload?))
    }

    /// Whose file it is, and which connection has it.
    fn owner(&self, upload: UploadKey) -> Option<(TicketId, Option<ClientKey>)> {
        let id = self.store.ticket(upload)?;
        let ticket = self.tickets.get(id).filter(|it| it.upload == Some(upload))?;
        Some((id, ticket.client))
    }

    pub(super) fn is_complete(&self, id: TicketId) -> bool {
        let upload = self.tickets.get(id).and_then(|it| it.upload);
        let upload = upload.and_then(|it| self.store.upload(it));
        upload.is_some_and(|it| it.is_complete())
            && self.tickets.get(id).is_some_and(|it| it.length_bytes > 0)
    }
}

const TAKEN_OVER: &str = "taken over";
const NO_ROOM: &str = "no room on the disk, or file in use";

/// A complete file that could not leave the parts is tried again after this.
const STORE_AGAIN_AFTER: Duration = Duration::from_secs(5);
