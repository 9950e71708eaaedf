//! After a restart: every ticket goes on where its journal says it was.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Instant;

use engine::outbox::start_delay;
use engine::record::{RecordState, Stand, TicketRecord};
use engine::store::{FilePlace, arrival_path};
use engine::tickets::{State, Telling};

use super::Worker;
use super::lifecycle::RETURN_TIME;

/// A ticket of an earlier run.
#[derive(Clone, Debug)]
pub struct RecoveredTicket {
    pub record: TicketRecord,
    pub place: FilePlace,
}

impl Worker {
    pub(super) fn restore(&mut self, now: Instant, recovered: Vec<RecoveredTicket>) {
        for ticket in recovered {
            self.restore_ticket(now, ticket);
        }
    }

    fn restore_ticket(&mut self, now: Instant, recovered: RecoveredTicket) {
        let RecoveredTicket { record, place } = recovered;
        let (id, length_bytes) = (record.new.id, record.length_bytes);
        let path = arrival_path(&record.new);
        let is_receiving = record.state == RecordState::Receiving;
        // A browser had come, and the record of that had not: the next one finds its file made.
        let is_begun = record.state == RecordState::Issued && place == FilePlace::Parts;
        let (is_arrived, is_told) = match record.state {
            RecordState::Arrived { stand } => (true, stand == Stand::Told),
            _ => (false, false),
        };
        let needs_file = is_receiving || is_begun || is_arrived && !is_told;
        let is_apps = is_told && !record.new.remove_when_finished;
        // A file leaves the parts when it is complete and synced, whatever its record says.
        let is_partial = is_receiving && place != FilePlace::Arrived;
        let committed_bytes =
            if is_partial { record.committed_bytes.min(length_bytes) } else { length_bytes };
        let upload = (needs_file || place != FilePlace::Nowhere && !is_apps)
            .then(|| self.store.restore(id, length_bytes, committed_bytes, place, path.clone()));
        let path = self.absolute(path);
        let ticket = self.tickets.restore(record, path);
        let active_at = self.config.service.instant(ticket.active_at_ms);
        let at = match ticket.state {
            // Only its way out of the parts is left.
            State::Receiving if length_bytes > 0 && committed_bytes == length_bytes => Some(now),
            State::Issued | State::Receiving => {
                // Time for browsers to come back.
                let idle = (active_at + self.config.idle_timeout).max(now + RETURN_TIME);
                Some(idle.min(self.config.life_end(ticket)))
            }
            State::Finished | State::Cancelled { .. } => Some(active_at + self.config.idle_timeout),
            State::Telling { phase: Telling::Waiting, .. } => {
                Some((active_at + self.config.finish_timeout).max(now + start_delay(id)))
            }
            State::Storing | State::Telling { .. } => Some(now + start_delay(id)),
            State::Failed { .. } => None,
        };
        if ticket.state.is_over() {
            self.over.push_back(id);
        }
        match upload {
            Some(_) if needs_file => ticket.upload = upload,
            // The server ended between the record and the removal of the file.
            Some(upload) => self.store.discard(now, upload),
            None => {}
        }
        self.tickets.set_deadline(id, at);
        self.restore_usage(id);
        self.config.loads[usize::from(self.config.core.0)].fetch_add(1, Ordering::Relaxed);
    }

    /// Ops name files within the storage directory, unless they arrive elsewhere; web apps need the
    /// whole path.
    pub(super) fn absolute(&self, path: PathBuf) -> PathBuf {
        self.config.storage_dir.join(path)
    }
}
