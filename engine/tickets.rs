//! What a core knows of its tickets: who asked for them, how far they are, what comes next.

mod ticket;

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Instant;

pub use ticket::{AfterFailure, ClientKey, State, Telling, Ticket};

use crate::handover::Outcome;
pub use crate::record::NewTicket;
use crate::record::TicketRecord;
use crate::ticket::TicketId;
use crate::timer::Timers;

/// The tickets of one core, by id.
#[derive(Debug, Default)]
pub struct Tickets {
    map: HashMap<TicketId, Ticket>,
    timers: Timers<TicketId>,
}

/// Why a web app's request for a ticket is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TicketError {
    Unknown,
    WrongSecret,
    TooLateToCancel,
    NotHandingOver,
    /// The answer to the callback has not come yet.
    NotWaiting,
    /// The web app is not waited for.
    NothingToRetry,
}

/// Whether what a web app asks for is still to be done. It may ask twice, because an answer was
/// lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    ToDo,
    Done,
}

impl Tickets {
    pub fn len(&self) -> usize {
        self.map.len()
    }

    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// A new ticket, or one of an earlier run. Who inserts it sets its deadline and, where one is
    /// there, gives it its file.
    pub fn insert(&mut self, ticket: Ticket) -> &mut Ticket {
        let id = ticket.new.id;
        let previous = self.map.insert(id, ticket);
        assert!(previous.is_none(), "ids are drawn from 122 random bits");
        self.map.get_mut(&id).expect("just inserted")
    }

    /// A ticket of an earlier run, as its journal has it. Its file lies at `path` if it has
    /// arrived.
    pub fn restore(&mut self, record: TicketRecord, path: PathBuf) -> &mut Ticket {
        self.insert(Ticket::restore(record, path))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Ticket> {
        self.map.values()
    }

    pub fn get(&self, id: TicketId) -> Option<&Ticket> {
        self.map.get(&id)
    }

    pub fn get_mut(&mut self, id: TicketId) -> Option<&mut Ticket> {
        self.map.get_mut(&id)
    }

    pub fn remove(&mut self, id: TicketId) -> Option<Ticket> {
        self.map.remove(&id)
    }

    /// When the ticket is to be looked at again.
    pub fn set_deadline(&mut self, id: TicketId, deadline: Option<Instant>) {
        let Some(ticket) = self.map.get_mut(&id) else { return };
        let earlier = ticket.deadline.is_none_or(|old| deadline.is_some_and(|new| new < old));
        let is_first = ticket.deadline.is_none();
        ticket.deadline = deadline;
        // A later deadline needs no new entry: the old one puts itself back when it fires.
        if let (Some(at), true) = (deadline, earlier || is_first) {
            self.timers.insert(at, id);
        }
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// The next ticket whose deadline has passed. Its deadline is then none.
    pub fn pop_due(&mut self, now: Instant) -> Option<TicketId> {
        while let Some(id) = self.timers.pop_due(now) {
            let Some(ticket) = self.map.get_mut(&id) else { continue };
            match ticket.deadline {
                Some(at) if at <= now => {
                    ticket.deadline = None;
                    return Some(id);
                }
                Some(at) => self.timers.insert(at, id),
                None => {}
            }
        }
        None
    }

    /// The web app wants the upload to end. One that could not be handed over may end, too: the web
    /// app says so.
    pub fn check_cancel(&self, id: TicketId, secret: &str) -> Result<Standing, TicketError> {
        let ticket = self.checked(id, secret)?;
        match ticket.state {
            State::Issued | State::Receiving | State::Failed { .. } => Ok(Standing::ToDo),
            State::Cancelled { .. } => Ok(Standing::Done),
            State::Storing | State::Telling { .. } | State::Finished => {
                Err(TicketError::TooLateToCancel)
            }
        }
    }

    /// The web app has the file, after it had answered `wait`.
    pub fn check_finish(
        &self,
        id: TicketId,
        secret: Option<&str>,
    ) -> Result<Standing, TicketError> {
        let ticket = match secret {
            None if self.get(id).is_some_and(|it| it.new.finish_without_secret) => &self.map[&id],
            secret => self.checked(id, secret.unwrap_or(""))?,
        };
        match &ticket.state {
            State::Telling { outcome: Outcome::Arrived { .. }, phase } => match phase {
                // Asked again after its `wait` ran out, it may finish as before.
                Telling::Calling if ticket.telling.has_waited => Ok(Standing::ToDo),
                Telling::Calling => Err(TicketError::NotWaiting),
                // Also when the last attempt failed: it says it has the file, so it was told.
                Telling::Waiting | Telling::BackingOff => Ok(Standing::ToDo),
            },
            State::Failed { outcome: Outcome::Arrived { .. } } => Ok(Standing::ToDo),
            State::Finished => Ok(Standing::Done),
            _ => Err(TicketError::NotHandingOver),
        }
    }

    /// The web app wants to be told again, now.
    pub fn check_retry(&self, id: TicketId, secret: &str) -> Result<(), TicketError> {
        match self.checked(id, secret)?.state {
            State::Failed { .. } | State::Telling { phase: Telling::BackingOff, .. } => Ok(()),
            _ => Err(TicketError::NothingToRetry),
        }
    }

    fn checked(&self, id: TicketId, secret: &str) -> Result<&Ticket, TicketError> {
        let ticket = self.map.get(&id).ok_or(TicketError::Unknown)?;
        if !is_same_secret(&ticket.new.secret, secret) {
            return Err(TicketError::WrongSecret);
        }
        Ok(ticket)
    }
}

/// Compares without telling by its time how much was right.
pub fn is_same_secret(expected: &str, given: &str) -> bool {
    let differing = expected.bytes().zip(given.bytes()).fold(0, |sum, (a, b)| sum | (a ^ b));
    expected.len() == given.len() && std::hint::black_box(differing) == 0
}

#[cfg(test)]
mod tests;
