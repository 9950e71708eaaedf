//! Who is connected, and how long each may be silent.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::op::SocketId;
use engine::ticket::TicketId;
use engine::tickets::ClientKey;
use engine::timer::Timers;
use tracing::debug;

use super::Worker;
use super::rate::Rate;
use crate::codec::close_code;
use crate::connection::{Connection, Pace, Wants};
use crate::dialect::message::UploadRequest;

/// The connections of one core.
#[derive(Debug)]
pub(super) struct Clients {
    slots: Vec<Slot>,
    free: Vec<u32>,
    pub(super) count: usize,
    pub(super) count_max: u32,
    pub(super) timers: Timers<ClientKey>,
    /// Who may have something to send.
    pub(super) unsent: Vec<ClientKey>,
    /// Who something happened to in this turn.
    pub(super) due: Vec<ClientKey>,
    pub(super) is_accepting: bool,
    /// The kernel had no room for a connection: try again then.
    pub(super) accept_at: Option<Instant>,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    client: Option<Client>,
}

#[derive(Debug)]
pub(super) struct Client {
    pub(super) socket: SocketId,
    pub(super) peer: SocketAddr,
    /// Which of two connections is the newer one.
    pub(super) accepted_at: Instant,
    pub(super) connection: Connection,
    /// The upload that this connection owns.
    pub(super) ticket: Option<TicketId>,
    /// Received, not yet understood.
    pub(super) input: Vec<u8>,
    /// `input` waits for us, not for more of it.
    pub(super) is_input_blocked: bool,
    /// A `Readable` is in flight.
    pub(super) is_polling: bool,
    /// A `Recv` was emitted. It completes on the spot, but other events of the turn come first.
    pub(super) is_receiving: bool,
    /// There is something to receive, and no room for it yet.
    pub(super) is_ready: bool,
    /// What is being sent.
    pub(super) sending: Option<Bytes>,
    pub(super) is_unsent_noted: bool,
    pub(super) is_due: bool,
    /// Our side has said everything and closed its direction.
    pub(super) is_shut: bool,
    /// The client has closed its direction.
    pub(super) is_ended: bool,
    /// Nothing more is to be said or heard: closed as soon as no op is in flight.
    pub(super) is_dead: bool,
    /// Both directions are shut, so that ops in flight end.
    pub(super) is_cut: bool,
    /// It belongs to another core.
    pub(super) moving: Option<(TicketId, UploadRequest)>,
    pub(super) pace: Pace,
    pub(super) pace_since: Instant,
    pub(super) heard_at: Instant,
    /// Of the file's bytes.
    pub(super) rate: Rate,
    pub(super) is_pinged: bool,
    /// The socket is readable from so many bytes on.
    pub(super) low_water_bytes: u32,
    /// The earliest entry among the timers.
    pub(super) timer_at: Instant,
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

    /// The client of a slot, if one is there.
    pub(super) fn find(&mut self, slot: u32) -> Option<&mut Client> {
        self.slots[slot as usize].client.as_mut()
    }

    pub(super) fn at(&mut self, slot: u32) -> &mut Client {
        self.find(slot).expect("an occupied slot")
    }

    /// All slots there ever were; some are empty.
    pub(super) fn slots(&self) -> std::ops::Range<u32> {
        0..self.slots.len() as u32
    }

    pub(super) fn insert(&mut self, now: Instant, socket: SocketId, peer: SocketAddr) -> u32 {
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
            accepted_at: now,
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
            rate: Rate::new(now),
            is_pinged: false,
            low_water_bytes: 1,
            timer_at,
        });
        self.count += 1;
        let key = self.key(slot);
        self.timers.insert(timer_at, key);
        slot
    }

    pub(super) fn remove(&mut self, slot: u32) -> Client {
        self.count -= 1;
        self.free.push(slot);
        self.slots[slot as usize].client.take().expect("an occupied slot")
    }
}

impl Client {
    /// A request head may not dribble in: bytes of it count as a handshake.
    pub(super) fn pace(&self) -> Pace {
        match self.connection.pace() {
            Pace::Idle if !self.input.is_empty() => Pace::Handshake,
            pace => pace,
        }
    }

    /// When this client is looked at again, and why.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.pace {
            Pace::Idle => Some(self.heard_at + IDLE_TIMEOUT),
            Pace::Handshake => Some(self.pace_since + HANDSHAKE_TIMEOUT),
            Pace::Revoked => Some(self.pace_since + REVOKED_TIMEOUT),
            Pace::Upload if self.is_pinged => Some(self.heard_at + DEAD_AFTER),
            Pace::Upload => Some(self.heard_at + PING_AFTER),
            Pace::Server => None,
            Pace::Ending => Some(self.pace_since + END_TIMEOUT),
        }
    }

    pub(super) fn has_op_in_flight(&self) -> bool {
        self.is_polling || self.is_receiving || self.sending.is_some()
    }
}

impl Worker {
    pub(super) fn note_pace(&mut self, now: Instant, slot: u32) {
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
            // It may have said something: we do not listen now. Unless it is the one that does not
            // listen.
            Pace::Upload
                if client.sending.is_none()
                    && (client.is_ready || client.connection.wants() == Wants::Nothing) =>
            {
                client.heard_at = now;
            }
            Pace::Upload if !client.is_pinged => {
                client.is_pinged = true;
                client.connection.ping();
                // It may have become so slow that the kernel keeps what it says from us.
                self.low_water(key.slot, 1);
                self.pump_later(key);
            }
            Pace::Handshake if client.connection.is_websocket() => {
                client.connection.close(close_code::POLICY_VIOLATION, "nothing was said in time");
                self.detach(now, key.slot);
                self.pump_later(key);
            }
            Pace::Upload | Pace::Handshake | Pace::Idle | Pace::Revoked | Pace::Ending => {
                debug!(peer = %client.peer, pace = ?client.pace, "connection timed out");
                self.bury(now, key.slot);
            }
            Pace::Server => {}
        }
    }
}

/// Between requests.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// For a request, and from the upgrade to the confirmed upload.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);
/// For a client to agree to a cancellation.
const REVOKED_TIMEOUT: Duration = Duration::from_secs(60);
/// An upload that is silent for so long is asked for a sign of life.
const PING_AFTER: Duration = Duration::from_secs(15);
/// And believed dead after so long.
const DEAD_AFTER: Duration = Duration::from_secs(30);
/// For a client to take its last bytes and close its side.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// A deadline that has passed is not looked at again sooner than this.
const TIMER_STEP: Duration = Duration::from_millis(100);
