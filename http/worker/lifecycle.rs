//! What time does to tickets.

use std::time::{Duration, Instant};

use engine::ticket::TicketId;
use engine::tickets::{State, Telling, Ticket};
use tracing::info;

use super::{Worker, WorkerConfig};

impl WorkerConfig {
    /// When an upload that is not whole by then is cancelled, whatever happens to it.
    pub(super) fn life_end(&self, ticket: &Ticket) -> Instant {
        self.service.instant(ticket.new.expires_at_ms.unwrap_or(u64::MAX))
    }
}

impl Worker {
    /// Something has happened to an upload that is not whole: its idle time begins anew.
    pub(super) fn set_life_deadline(&mut self, now: Instant, id: TicketId) {
        let Some(ticket) = self.tickets.get(id) else { return };
        let at = (now + self.config.idle_timeout).min(self.config.life_end(ticket));
        self.tickets.set_deadline(id, Some(at));
    }

    pub(super) fn on_ticket_timeouts(&mut self, now: Instant) {
        // The process was stopped, or its machine was: browsers could not come meanwhile.
        let was_away = self.tickets.poll_timeout().is_some_and(|it| it + AWAY_AFTER < now);
        while let Some(id) = self.tickets.pop_due(now) {
            let Some(ticket) = self.tickets.get(id) else { continue };
            let has_expired = self.config.life_end(ticket) <= now;
            match &ticket.state {
                // In use, or in need of another try.
                State::Receiving if ticket.client.is_some() && !has_expired => {
                    self.set_life_deadline(now, id);
                }
                State::Receiving if self.is_complete(id) => self.settle(now, id),
                State::Issued | State::Receiving if was_away => {
                    self.tickets.set_deadline(id, Some(now + RETURN_TIME));
                }
                State::Issued | State::Receiving => {
                    info!(upload = %id.short(), has_expired, "timed out");
                    let reason = if has_expired { "upload expired" } else { "upload timed out" };
                    self.end_upload(now, id, reason.into());
                }
                State::Telling { phase: Telling::Calling, .. } | State::Storing => {}
                State::Telling { .. } => self.call(id),
                State::Failed { .. } => {}
                State::Finished | State::Cancelled { .. } => {
                    // Nearly always the oldest.
                    if let Some(index) = self.over.iter().position(|it| *it == id) {
                        self.over.remove(index);
                    }
                    self.remove_ticket(id);
                }
            }
        }
    }
}

/// A core that is so late has not run.
const AWAY_AFTER: Duration = Duration::from_secs(5);

/// After a time in which nobody could come, no upload is idle for too long before this: browsers
/// try at least once a minute.
pub(super) const RETURN_TIME: Duration = Duration::from_secs(120);
