//! Sockets: accept, receive, send, end, move to another core.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use engine::limits::RECEIVE_BUFFER_BYTES;
use engine::op::{Address, Direction, Errno, Op, Output, SocketId, SocketOp, Token};
use engine::store::Room;
use engine::ticket::TicketId;
use engine::tickets::ClientKey;
use engine::timer::Timers;
use tracing::{debug, error};

use super::Worker;
use crate::codec::response::Response;
use crate::connection::{Connection, Event, Pace, Wants};
use crate::dialect::message::UploadRequest;
use crate::mail::{Mail, MovedClient};

/// The connections of one core.
#[derive(Debug)]
pub(super) struct Clients {
    slots: Vec<Slot>,
    free: Vec<u32>,
    count: usize,
    count_max: u32,
    timers: Timers<ClientKey>,
    /// Who may have something to send.
    unsent: Vec<ClientKey>,
    /// Who something happened to in this turn.
    due: Vec<ClientKey>,
    is_accepting: bool,
    /// The kernel had no room for a connection: try again then.
    accept_at: Option<Instant>,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    client: Option<Client>,
}

#[derive(Debug)]
pub(super) struct Client {
    socket: SocketId,
    peer: SocketAddr,
    pub(super) connection: Connection,
    /// The upload that this connection owns.
    pub(super) ticket: Option<TicketId>,
    /// Received, not yet understood.
    input: Vec<u8>,
    /// `input` waits for us, not for more of it.
    is_input_blocked: bool,
    /// A `Readable` is in flight.
    is_polling: bool,
    /// A `Recv` was emitted. It completes on the spot, but other events of the turn come first.
    is_receiving: bool,
    /// There is something to receive, and no room for it yet.
    is_ready: bool,
    /// What is being sent.
    sending: Option<Bytes>,
    is_unsent_noted: bool,
    is_due: bool,
    /// Our side has said everything and closed its direction.
    is_shut: bool,
    /// The client has closed its direction.
    is_ended: bool,
    /// Nothing more is to be said or heard: closed as soon as no op is in flight.
    is_dead: bool,
    /// Both directions are shut, so that ops in flight end.
    is_cut: bool,
    /// It belongs to another core.
    moving: Option<(TicketId, UploadRequest)>,
    pace: Pace,
    pace_since: Instant,
    heard_at: Instant,
    is_pinged: bool,
    /// The earliest entry among the timers.
    timer_at: Instant,
}

impl Clients {
    pub(super) fn new(count_max: u32) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            count: 0,
            count_max,
            timers: Timers::new(),
            unsent: Vec::new(),
            due: Vec::new(),
            is_accepting: false,
            accept_at: None,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn is_current(&self, slot: u32, generation: u32) -> bool {
        self.get(ClientKey { slot, generation }).is_some()
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        [self.timers.next(), self.accept_at].into_iter().flatten().min()
    }

    pub(super) fn get(&self, key: ClientKey) -> Option<&Client> {
        let slot = self.slots.get(key.slot as usize)?;
        slot.client.as_ref().filter(|_| slot.generation == key.generation)
    }

    pub(super) fn get_mut(&mut self, key: ClientKey) -> Option<&mut Client> {
        let slot = self.slots.get_mut(key.slot as usize)?;
        slot.client.as_mut().filter(|_| slot.generation == key.generation)
    }

    pub(super) fn key(&self, slot: u32) -> ClientKey {
        ClientKey { slot, generation: self.slots[slot as usize].generation }
    }

    fn at(&mut self, slot: u32) -> &mut Client {
        self.slots[slot as usize].client.as_mut().expect("an occupied slot")
    }

    fn insert(&mut self, now: Instant, socket: SocketId, peer: SocketAddr) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, client: None });
            u32::try_from(self.slots.len() - 1).expect("connections are bounded")
        });
        let it = &mut self.slots[slot as usize];
        it.generation = it.generation.wrapping_add(1);
        let timer_at = now + IDLE_TIMEOUT;
        it.client = Some(Client {
            socket,
            peer,
            connection: Connection::new(),
            ticket: None,
            input: Vec::new(),
            is_input_blocked: false,
            is_polling: false,
            is_receiving: false,
            is_ready: false,
            sending: None,
            is_unsent_noted: false,
            is_due: false,
            is_shut: false,
            is_ended: false,
            is_dead: false,
            is_cut: false,
            moving: None,
            pace: Pace::Idle,
            pace_since: now,
            heard_at: now,
            is_pinged: false,
            timer_at,
        });
        self.count += 1;
        let key = self.key(slot);
        self.timers.insert(timer_at, key);
        slot
    }

    fn remove(&mut self, slot: u32) -> Client {
        self.count -= 1;
        self.free.push(slot);
        self.slots[slot as usize].client.take().expect("an occupied slot")
    }
}

impl Client {
    /// A request head may not dribble in: bytes of it count as a handshake.
    fn pace(&self) -> Pace {
        match self.connection.pace() {
            Pace::Idle if !self.input.is_empty() => Pace::Handshake,
            pace => pace,
        }
    }

    /// When this client is looked at again, and why.
    fn deadline(&self) -> Option<Instant> {
        match self.pace {
            Pace::Idle => Some(self.heard_at + IDLE_TIMEOUT),
            Pace::Handshake => Some(self.pace_since + HANDSHAKE_TIMEOUT),
            Pace::Upload if self.is_pinged => Some(self.heard_at + DEAD_AFTER),
            Pace::Upload => Some(self.heard_at + PING_AFTER),
            Pace::Server => None,
            Pace::Ending => Some(self.pace_since + END_TIMEOUT),
        }
    }

    fn has_op_in_flight(&self) -> bool {
        self.is_polling || self.is_receiving || self.sending.is_some()
    }
}

impl Worker {
    pub(super) fn accept(&mut self) {
        let clients = &mut self.clients;
        let is_wanted = !clients.is_accepting
            && !self.is_stopping
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
            Ok(Output::Accepted { socket, .. }) if self.is_stopping => {
                self.ops.push_back((Token::None, Op::Close { socket }));
            }
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
        let MovedClient { peer, connection, input, ticket, request } = moved;
        let slot = self.clients.insert(now, socket, peer);
        let client = self.clients.at(slot);
        client.connection = connection;
        client.is_input_blocked = !input.is_empty();
        client.input = input;
        if self.is_stopping {
            client.connection.close(CLOSE_GOING_AWAY, STOPPING);
        } else {
            let key = self.clients.key(slot);
            self.claim(now, key, ticket, request);
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

    pub(super) fn on_received(&mut self, now: Instant, slot: u32, count: Result<u32, Errno>) {
        self.clients.at(slot).is_receiving = false;
        if let Some(upload) = self.upload_of(slot) {
            self.store.on_received(upload);
        }
        let client = self.clients.at(slot);
        match count {
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
                self.flush_for_acks(now, slot);
                self.on_store_events(now);
                self.pump(now, slot);
            }
        }
    }

    pub(super) fn on_sent(&mut self, now: Instant, slot: u32, count: Result<u32, Errno>) {
        let client = self.clients.at(slot);
        let mut rest = client.sending.take().expect("a send was in flight");
        match count {
            Err(_) => return self.bury(now, slot),
            Ok(count) => rest.advance(count as usize),
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
    fn pump(&mut self, now: Instant, slot: u32) {
        loop {
            let Some(client) = self.clients.slots[slot as usize].client.as_mut() else { return };
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
            let wants = client.connection.wants();
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
            let token = self.token(slot, SocketOp::Readable);
            if !self.clients.at(slot).is_ready {
                self.clients.at(slot).is_polling = true;
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

    /// How much may be received now. `None`: wait for room.
    fn receive_budget(&mut self, now: Instant, slot: u32) -> Option<u32> {
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
    fn read_kept_input(&mut self, now: Instant, slot: u32) -> bool {
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
            let client = self.clients.slots[slot as usize].client.as_mut();
            let client = client.expect("a client that is read stays");
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
            Event::Backend(request) => self.on_backend_request(now, key, request),
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

    /// Closes a connection as soon as no op is in flight on it.
    pub(super) fn bury(&mut self, now: Instant, slot: u32) {
        self.detach(now, slot);
        self.clients.at(slot).is_dead = true;
        self.close_if_quiet(slot);
    }

    fn close_if_quiet(&mut self, slot: u32) {
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
            if client.connection.is_ending() && !client.is_shut {
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
        let is_something = !client.connection.out().is_empty() || client.connection.is_ending();
        if is_something && !client.is_unsent_noted {
            client.is_unsent_noted = true;
            self.clients.unsent.push(key);
        }
    }

    fn note_pace(&mut self, now: Instant, slot: u32) {
        let key = self.clients.key(slot);
        let client = self.clients.at(slot);
        let pace = client.pace();
        if pace != client.pace {
            client.pace = pace;
            client.pace_since = now;
        }
        // Later deadlines need no entry: the one that is there asks again when it fires.
        if let Some(at) = client.deadline().filter(|it| *it < client.timer_at) {
            client.timer_at = at;
            self.clients.timers.insert(at, key);
        }
    }

    pub(super) fn on_client_timeouts(&mut self, now: Instant) {
        if self.clients.accept_at.is_some_and(|it| it <= now) {
            self.clients.accept_at = None;
            self.accept();
        }
        while let Some(key) = self.clients.timers.pop_due(now) {
            let Some(client) = self.clients.get_mut(key) else { continue };
            if client.timer_at > now {
                continue;
            }
            match client.deadline() {
                Some(at) if at <= now => self.on_silence(now, key),
                _ => {}
            }
            let Some(client) = self.clients.get_mut(key) else { continue };
            let at = client.deadline().unwrap_or(now + IDLE_TIMEOUT).max(now + TIMER_STEP);
            client.timer_at = at;
            self.clients.timers.insert(at, key);
        }
    }

    /// A client's time is up.
    fn on_silence(&mut self, now: Instant, key: ClientKey) {
        let client = self.clients.at(key.slot);
        match client.pace {
            // It may have said something: we do not listen now.
            Pace::Upload if client.is_ready || client.connection.wants() == Wants::Nothing => {
                client.heard_at = now;
            }
            Pace::Upload if !client.is_pinged => {
                client.is_pinged = true;
                client.connection.ping();
                self.pump_later(key);
            }
            Pace::Handshake if client.connection.is_websocket() => {
                client.connection.close(CLOSE_POLICY, "nothing was said in time");
                self.detach(now, key.slot);
                self.pump_later(key);
            }
            Pace::Upload | Pace::Handshake | Pace::Idle | Pace::Ending => {
                debug!(peer = %client.peer, pace = ?client.pace, "connection timed out");
                self.bury(now, key.slot);
            }
            Pace::Server => {}
        }
    }

    /// The server stops: everybody may come back later.
    pub(super) fn close_all(&mut self, now: Instant) {
        for slot in 0..self.clients.slots.len() as u32 {
            if self.clients.slots[slot as usize].client.is_some() {
                self.detach(now, slot);
                self.clients.at(slot).moving = None;
                self.clients.at(slot).connection.close(CLOSE_GOING_AWAY, STOPPING);
                self.pump_later(self.clients.key(slot));
            }
        }
    }

    fn token(&self, slot: u32, what: SocketOp) -> Token {
        Token::Socket { slot, generation: self.clients.key(slot).generation, what }
    }

    pub(super) fn post(&mut self, to: Address, mail: Mail) {
        self.ops.push_back((Token::None, Op::Post { to, mail }));
    }
}

/// Close codes of RFC 6455 section 7.4.1.
pub(super) const CLOSE_GOING_AWAY: u16 = 1001;
const CLOSE_POLICY: u16 = 1008;

const STOPPING: &str = "the server is stopping";

/// Between requests.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// For a request, and from the upgrade to the confirmed upload.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);
/// An upload that is silent for so long is asked for a sign of life.
const PING_AFTER: Duration = Duration::from_secs(15);
/// And believed dead after so long.
const DEAD_AFTER: Duration = Duration::from_secs(30);
/// For a client to take its last bytes and close its side.
const END_TIMEOUT: Duration = Duration::from_secs(5);
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// A deadline that has passed is not looked at again sooner than this.
const TIMER_STEP: Duration = Duration::from_millis(100);
