//! What each backend key has under way: tickets that are not over, and the bytes that their browsers
//! have declared. Counted for all cores together.

use engine::ticket::TicketId;
use engine::tickets::Ticket;

use super::{Worker, WorkerConfig};
use crate::keys::{KeyId, LimitReached};

impl WorkerConfig {
    /// A browser declares the length of its file. What it has declared before counts no more.
    pub(super) fn declare(&self, ticket: &Ticket, length_bytes: u64) -> Result<(), LimitReached> {
        match self.keys.find(&ticket.new.key) {
            Some(key) => self.keys.declare(key, ticket.length_bytes, length_bytes),
            None => Ok(()),
        }
    }
}

impl Worker {
    /// What this core's part of a key's usage must be: counted anew, one ticket after the other.
    pub fn open_tickets_of(&self, key: KeyId) -> (u32, u64) {
        let is_its = |it: &&Ticket| it.new.key == self.config.keys.name(key);
        let open = self.tickets.iter().filter(is_its).filter(|it| !it.state.is_over());
        open.fold((0, 0), |(count, bytes), it| (count + 1, bytes + it.length_bytes))
    }

    /// A ticket of an earlier run.
    pub(super) fn restore_usage(&self, id: TicketId) {
        if let Some((key, ticket)) = self.key_of(id).filter(|it| !it.1.state.is_over()) {
            self.config.keys.restore(key, ticket.length_bytes);
        }
    }

    /// The ticket is about to be over.
    pub(super) fn release_usage(&self, id: TicketId) {
        if let Some((key, ticket)) = self.key_of(id).filter(|it| !it.1.state.is_over()) {
            self.config.keys.release(key, ticket.length_bytes);
        }
    }

    /// The operator may have removed the key: then nothing is counted.
    fn key_of(&self, id: TicketId) -> Option<(KeyId, &Ticket)> {
        let ticket = self.tickets.get(id)?;
        Some((self.config.keys.find(&ticket.new.key)?, ticket))
    }
}
