//! Sockets: accept, poll, send, end, move to another core.

use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use engine::limits::RECEIVE_BUFFER_BYTES;
use engine::op::{Address, Direction, Errno, Op, Output, SocketId, SocketOp, Token};
use engine::ticket::TicketId;
use engine::tickets::ClientKey;
use tracing::{debug, error};

use super::Worker;
use super::drain::STOPPING;
use super::room::{Claim, Look};
use crate::codec::close_code;
use crate::codec::response::Response;
use crate::connection::{Pace, Wants};
use crate::dialect::message::UploadRequest;
use crate::mail::{Mail, MovedClient};

impl Worker {
    pub(super) fn accept(&mut self) {
        let is_draining = self.is_draining();
        let clients = &mut self.clients;
        let is_wanted = !clients.is_accepting
            && !is_draining
            && clients.accept_at.is_none()
            && clients.count < clients.count_max as usize;
        if is_wanted {
            clients.is_accepting = true;
            self.ops.push_back((Token::Accept, Op::Accept));
        }
    }

    pub(super) fn on_accepted(&mut self, now: Instant, result: Result<Output, Errno>) {
        self.clients.is_accepting = false;
        match result {
            Ok(Output::Accepted { socket, peer }) => {
                let slot = self.clients.insert(now, socket, peer);
                self.pump(now, slot);
            }
            Ok(_) => unreachable!("an accept gives a socket"),
            Err(errno) => {
                // Out of file descriptors or memory: others will end.
                error!(%errno, "cannot accept a connection; trying again in 100 ms");
                self.clients.accept_at = Some(now + ACCEPT_AGAIN_AFTER);
            }
        }
        self.accept();
    }

    /// A connection whose ticket this core owns.
    pub(super) fn on_moved(&mut self, now: Instant, socket: SocketId, moved: MovedClient) {
        let MovedClient { peer, accepted_at, connection, input, ticket, request } = moved;
        // Every core has its own limit, and clients do not choose where they are accepted. They do
        // choose where they move.
        if self.clients.count >= 2 * self.clients.count_max as usize {
            return self.ops.push_back((Token::None, Op::Close { socket }));
        }
        let slot = self.clients.insert(now, socket, peer);
        let client = self.clients.at(slot);
        client.accepted_at = accepted_at;
        client.connection = connection;
        client.is_input_blocked = !input.is_empty();
        client.input = input;
        if self.drain.is_some() {
            client.connection.close(close_code::GOING_AWAY, STOPPING);
        } else {
            let key = self.clients.key(slot);
            self.claim(now, key, Claim { id: ticket, request }, Look::IsToCome);
        }
        self.pump(now, slot);
    }

    pub(super) fn on_readable(&mut self, now: Instant, slot: u32, is_ok: bool) {
        let client = self.clients.at(slot);
        client.is_polling = false;
        if !is_ok {
            return self.bury(now, slot);
        }
        client.is_ready = true;
        self.pump(now, slot);
    }

    pub(super) fn on_sent(&mut self, now: Instant, slot: u32, count: Result<u32, Errno>) {
        let client = self.clients.at(slot);
        let mut rest = client.sending.take().expect("a send was in flight");
        match count {
            Err(_) => return self.bury(now, slot),
            Ok(count) => rest.advance(count as usize),
        }
        // That the kernel takes a ping says nothing about an upload's browser.
        if client.pace != Pace::Upload {
            client.heard_at = now;
        }
        if !rest.is_empty() && !client.is_dead {
            self.send(slot, rest);
        }
        self.pump(now, slot);
    }

    /// The answer of the core that owns the ticket.
    pub(super) fn on_answer(&mut self, now: Instant, key: ClientKey, response: &Response) {
        let date = self.date(now).to_owned();
        // Perhaps it did not wait for it.
        let Some(client) = self.clients.get_mut(key) else { return };
        if !client.connection.is_ending() {
            client.connection.on_response(&date, response);
        }
        self.pump_later(key);
    }

    /// Something happened to a client: it is looked at before this turn ends.
    pub(super) fn pump_later(&mut self, key: ClientKey) {
        let Some(client) = self.clients.get_mut(key) else { return };
        if !std::mem::replace(&mut client.is_due, true) {
            self.clients.due.push(key);
        }
    }

    pub(super) fn pump_due(&mut self, now: Instant) {
        while let Some(key) = self.clients.due.pop() {
            let Some(client) = self.clients.get_mut(key) else { continue };
            client.is_due = false;
            self.pump(now, key.slot);
        }
    }

    /// Does for a client whatever can be done: read what was kept, receive, poll, end.
    pub(super) fn pump(&mut self, now: Instant, slot: u32) {
        let is_draining = self.is_draining();
        if is_draining && self.clients.find(slot).is_some() {
            self.drain_client(now, slot);
        }
        loop {
            let Some(client) = self.clients.find(slot) else { return };
            if client.is_dead {
                return self.close_if_quiet(slot);
            }
            if client.moving.is_some() && !client.is_ended {
                return self.move_if_quiet(slot);
            }
            let has_unsent = client.sending.is_some() || !client.connection.out().is_empty();
            if client.is_ended && !has_unsent {
                return self.bury(now, slot);
            }
            self.note_unsent(slot);
            self.note_pace(now, slot);
            let client = self.clients.at(slot);
            if client.is_ended {
                return;
            }
            // Who drains takes nothing new from an upload.
            let wants = match client.connection.wants() {
                Wants::FileBytes if is_draining => Wants::Nothing,
                wants => wants,
            };
            if client.is_input_blocked && wants != Wants::Nothing {
                if !self.read_kept_input(now, slot) {
                    return;
                }
                continue;
            }
            if wants == Wants::Nothing || client.is_polling || client.is_receiving {
                return;
            }
            let socket = client.socket;
            if !client.is_ready {
                client.is_polling = true;
                self.set_low_water(now, slot);
                let token = self.token(slot, SocketOp::Readable);
                self.ops.push_back((token, Op::Readable { socket }));
                return;
            }
            let Some(length_bytes) = self.receive_budget(now, slot) else { return };
            let client = self.clients.at(slot);
            client.is_ready = false;
            client.is_receiving = true;
            let token = self.token(slot, SocketOp::Recv);
            self.ops.push_back((token, Op::Recv { socket, length_bytes }));
            return;
        }
    }

    /// Nobody is woken for less than what is sure to come soon: the bytes of a frame that has begun,
    /// as many as the client sends in a moment.
    fn set_low_water(&mut self, now: Instant, slot: u32) {
        let client = self.clients.at(slot);
        let soon = client.rate.bytes_per_s(now) / LOW_WATER_PER_S;
        let bytes = client.connection.expected_bytes().min(soon).clamp(1, LOW_WATER_BYTES_MAX);
        self.low_water(slot, bytes as u32);
    }

    pub(super) fn low_water(&mut self, slot: u32, bytes: u32) {
        let client = self.clients.at(slot);
        if std::mem::replace(&mut client.low_water_bytes, bytes) != bytes {
            let socket = client.socket;
            self.ops.push_back((Token::None, Op::LowWater { socket, bytes }));
        }
    }

    /// Closes a connection as soon as no op is in flight on it.
    pub(super) fn bury(&mut self, now: Instant, slot: u32) {
        self.detach(now, slot);
        self.clients.at(slot).is_dead = true;
        self.close_if_quiet(slot);
    }

    pub(super) fn close_if_quiet(&mut self, slot: u32) {
        let client = self.clients.at(slot);
        if client.has_op_in_flight() {
            if !std::mem::replace(&mut client.is_cut, true) {
                let (socket, how) = (client.socket, Direction::Both);
                self.ops.push_back((Token::None, Op::Shutdown { socket, how }));
            }
            return;
        }
        let client = self.clients.remove(slot);
        debug!(peer = %client.peer, "connection closed");
        self.ops.push_back((Token::None, Op::Close { socket: client.socket }));
        self.accept();
    }

    pub(super) fn start_move(&mut self, key: ClientKey, ticket: TicketId, request: UploadRequest) {
        self.clients.at(key.slot).moving = Some((ticket, request));
    }

    fn move_if_quiet(&mut self, slot: u32) {
        self.note_unsent(slot);
        let client = self.clients.at(slot);
        if client.has_op_in_flight() || !client.connection.out().is_empty() {
            return;
        }
        let mut client = self.clients.remove(slot);
        let (ticket, request) = client.moving.take().expect("it is moving");
        let moved = MovedClient {
            peer: client.peer,
            accepted_at: client.accepted_at,
            connection: client.connection,
            input: client.input,
            ticket,
            request,
        };
        let to = ticket.owner(self.config.core_count);
        let mail = Mail::Client(Box::new(moved));
        self.ops.push_back((Token::None, Op::Migrate { socket: client.socket, to, mail }));
        self.accept();
    }

    /// Gives the kernel what clients are to be told; once a turn, after everything else.
    pub(super) fn poll_send(&mut self) -> Option<(Token, Op<Mail>)> {
        while let Some(key) = self.clients.unsent.pop() {
            let Some(client) = self.clients.get_mut(key) else { continue };
            client.is_unsent_noted = false;
            if client.sending.is_some() || client.is_dead {
                continue;
            }
            let out = client.connection.out();
            if !out.is_empty() {
                let bytes = out.split().freeze();
                self.send(key.slot, bytes);
                return self.ops.pop_back();
            }
            if client.connection.may_shut() && !client.is_shut {
                client.is_shut = true;
                let (socket, how) = (client.socket, Direction::Write);
                return Some((Token::None, Op::Shutdown { socket, how }));
            }
        }
        None
    }

    fn send(&mut self, slot: u32, bytes: Bytes) {
        let token = self.token(slot, SocketOp::Send);
        let client = self.clients.at(slot);
        client.sending = Some(bytes.clone());
        let socket = client.socket;
        self.ops.push_back((token, Op::Send { socket, bytes }));
    }

    /// Somebody wrote to the connection's output, or ended it.
    fn note_unsent(&mut self, slot: u32) {
        let key = self.clients.key(slot);
        let client = self.clients.at(slot);
        let is_something = !client.connection.out().is_empty() || client.connection.may_shut();
        if is_something && !client.is_unsent_noted {
            client.is_unsent_noted = true;
            self.clients.unsent.push(key);
        }
    }

    fn token(&self, slot: u32, what: SocketOp) -> Token {
        Token::Socket { slot, generation: self.clients.key(slot).generation, what }
    }

    pub(super) fn post(&mut self, to: Address, mail: Mail) {
        if let Mail::Callback { .. } = mail {
            self.calls_in_flight += 1;
        }
        self.ops.push_back((Token::None, Op::Post { to, mail }));
    }
}

/// Half of what is received at a time: the other half may come while this one is handled.
const LOW_WATER_BYTES_MAX: u64 = (RECEIVE_BUFFER_BYTES / 2) as u64;

/// As many bytes as a client sends in a tenth of a second.
const LOW_WATER_PER_S: u64 = 10;

const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);
