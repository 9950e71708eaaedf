//! Receiving: how much, when, and what becomes of it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use engine::limits::RECEIVE_BUFFER_BYTES;
use engine::op::{Errno, Output};
use engine::store::Room;
use tracing::error;

use super::Worker;
use crate::connection::{Event, Wants};

impl Worker {
    pub(super) fn on_received(&mut self, now: Instant, slot: u32, result: Result<Output, Errno>) {
        self.clients.at(slot).is_receiving = false;
        if let Some(upload) = self.upload_of(slot) {
            self.store.on_received(upload);
        }
        let client = self.clients.at(slot);
        let has_more = matches!(result, Ok(Output::Received { has_more: true, .. }));
        match result.map(Output::bytes) {
            _ if client.is_dead => self.close_if_quiet(slot),
            Err(Errno::EAGAIN) => self.pump(now, slot),
            Err(_) => self.bury(now, slot),
            Ok(0) => self.on_end_of_stream(now, slot),
            Ok(count) => {
                let client = self.clients.at(slot);
                client.heard_at = now;
                client.is_pinged = false;
                let buffer = std::mem::take(&mut self.receive_buffer);
                self.on_input(now, slot, &buffer[..count as usize]);
                self.receive_buffer = buffer;
                // What comes next makes larger writes of what acknowledgements wait for. A client
                // that may send no more before it is acknowledged has nothing to wait for.
                let wants_more = self.clients.at(slot).connection.wants() == Wants::FileBytes;
                if !(has_more && wants_more) {
                    self.flush_for_acks(now, slot);
                }
                self.on_store_events(now);
                self.pump(now, slot);
            }
        }
    }

    /// How much may be received now. `None`: wait for room.
    pub(super) fn receive_budget(&mut self, now: Instant, slot: u32) -> Option<u32> {
        let client = self.clients.at(slot);
        match client.connection.wants() {
            Wants::Nothing => None,
            Wants::Discard => Some(RECEIVE_BUFFER_BYTES),
            // At least one byte: a head that fills its limit is refused when it exceeds it.
            Wants::Bytes(limit) => Some(limit.saturating_sub(client.input.len() as u32).max(1)),
            Wants::FileBytes => {
                let Some(upload) = self.upload_of(slot) else { return Some(RECEIVE_BUFFER_BYTES) };
                match self.store.reserve(now, upload) {
                    Room::Bytes(count) => Some(count),
                    Room::Waiting => {
                        // The client is not silent, we are deaf.
                        self.clients.at(slot).heard_at = now;
                        None
                    }
                }
            }
        }
    }

    /// Reads what came earlier and could not be read then. False: there is no room for it yet.
    pub(super) fn read_kept_input(&mut self, now: Instant, slot: u32) -> bool {
        let is_file = self.clients.at(slot).connection.wants() == Wants::FileBytes;
        let budget = self.receive_budget(now, slot);
        let Some(budget) = budget else { return false };
        if let Some(upload) = self.upload_of(slot) {
            self.store.on_received(upload);
        }
        let client = self.clients.at(slot);
        client.is_input_blocked = false;
        let mut kept = std::mem::take(&mut client.input);
        let now_bytes = if is_file { kept.len().min(budget as usize) } else { kept.len() };
        let later = kept.split_off(now_bytes);
        self.on_input(now, slot, &kept);
        if !later.is_empty() {
            let client = self.clients.at(slot);
            client.input.extend_from_slice(&later);
            client.is_input_blocked = true;
        }
        self.flush_for_acks(now, slot);
        self.on_store_events(now);
        true
    }

    /// Reads a client's bytes until nothing more can be read.
    fn on_input(&mut self, now: Instant, slot: u32, bytes: &[u8]) {
        let kept = std::mem::take(&mut self.clients.at(slot).input);
        let joined;
        let mut input = bytes;
        if !kept.is_empty() {
            joined = [&kept, bytes].concat();
            input = &joined;
        }
        self.date(now);
        let had_room = self.clients.at(slot).connection.wants() == Wants::FileBytes;
        loop {
            let client = self.clients.at(slot);
            // Bytes of a file may follow the handshake at once; there is no room for them yet.
            let needs_room = !had_room && client.connection.wants() == Wants::FileBytes;
            if client.is_dead || client.moving.is_some() || needs_room {
                break;
            }
            let (router, date) = (&self.router, self.date.1.as_str());
            // What a peer's bytes can reach of our bugs ends here, with this connection.
            let polled = catch_unwind(AssertUnwindSafe(|| {
                client.connection.poll_event(router, date, &mut input)
            }));
            match polled {
                Ok(Some(event)) => self.on_event_of(now, slot, event),
                Ok(None) => break,
                Err(_) => {
                    error!(peer = %client.peer, "a connection's bytes made its reader panic");
                    client.is_dead = true;
                    self.detach(now, slot);
                    break;
                }
            }
        }
        let client = self.clients.at(slot);
        client.input.extend_from_slice(input);
        // Otherwise it lacks its end, and waits for more.
        let is_ours_to_act = matches!(client.connection.wants(), Wants::Nothing | Wants::FileBytes);
        client.is_input_blocked = !client.input.is_empty() && is_ours_to_act;
    }

    fn on_event_of(&mut self, now: Instant, slot: u32, event: Event<'_>) {
        let key = self.clients.key(slot);
        match event {
            Event::Alive => {}
            Event::Append { bytes, mask } => self.append(now, key, bytes, mask),
            Event::MessageEnd => self.on_message_end(now, key),
            Event::Command(command) => self.on_command(now, key, command),
            Event::Backend(call) => self.on_backend_call(now, key, call),
        }
    }

    /// Acknowledgements are due: what they wait for is written, be it a full block or not.
    pub(super) fn flush_for_acks(&mut self, now: Instant, slot: u32) {
        let Some(upload) = self.upload_of(slot) else { return };
        if let Some(up_to) = self.clients.at(slot).connection.ack_due_bytes() {
            self.store.flush(now, upload, up_to);
        }
    }

    /// The client has closed its direction. What is left to say is still sent.
    fn on_end_of_stream(&mut self, now: Instant, slot: u32) {
        self.detach(now, slot);
        let client = self.clients.at(slot);
        client.connection.end();
        client.is_ended = true;
        self.pump(now, slot);
    }
}
