//! All clients on one thread: who is connected, who may send, who waits.

use std::mem;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::sockopt::{set_tcp_congestion, set_tcp_nodelay, socket_error};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, connect, recv, socket_with};

use crate::content::Block;
use crate::conversation::{Conversation, Stage};
use crate::error::{Problem, Step, WorkloadError};
use crate::outbox::Outbox;
use crate::outcome::jain;
use crate::turns::Turns;

/// The clients of a run: first those that upload, then those that are only there.
pub(crate) struct Crowd {
    server: SocketAddr,
    block: &'static Block,
    epoll: OwnedFd,
    clients: Vec<Client>,
    active_count: usize,
    turns: Turns,
    step: Step,
    /// How many clients, active or not, have come at least so far; index: [`Stage`].
    reached: [usize; STAGES],
    /// The same of the active ones alone.
    active_reached: [usize; STAGES],
    opened_count: usize,
    pub(crate) acked_bytes: u64,
    pub(crate) ack_latency_us: Histogram<u64>,
    /// Jain's index when the first client had everything.
    pub(crate) fairness: f64,
    last_motion: Instant,
    buffer: Vec<u8>,
}

struct Client {
    socket: Option<OwnedFd>,
    is_connected: bool,
    conversation: Box<dyn Conversation>,
    out: Outbox,
    /// What has come of something that is not whole yet.
    input: Vec<u8>,
    /// It waits its turn.
    has_asked: bool,
    /// Of its messages, those whose acknowledgement is counted.
    acked_count: u64,
    stage: Stage,
    whole_at: Option<Instant>,
}

impl Crowd {
    pub(crate) fn new(
        server: SocketAddr,
        block: &'static Block,
        conversations: Vec<Box<dyn Conversation>>,
        active_count: usize,
        in_flight_bytes_max: Option<u64>,
    ) -> Result<Self, WorkloadError> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|errno| WorkloadError::Machine { what: "epoll", errno })?;
        let clients = conversations.into_iter().map(|conversation| Client {
            socket: None,
            is_connected: false,
            conversation,
            out: Outbox::default(),
            input: Vec::new(),
            has_asked: false,
            acked_count: 0,
            stage: Stage::Preparing,
            whole_at: None,
        });
        Ok(Self {
            server,
            block,
            epoll,
            clients: clients.collect(),
            active_count,
            turns: Turns::new(in_flight_bytes_max),
            step: Step::Prepare,
            reached: [0; STAGES],
            active_reached: [0; STAGES],
            opened_count: 0,
            acked_bytes: 0,
            ack_latency_us: Histogram::new_with_bounds(1, LATENCY_US_MAX, 3)
                .expect("bounds that make sense"),
            fairness: 1.0,
            last_motion: Instant::now(),
            buffer: vec![0; BUFFER_BYTES],
        })
    }

    pub(crate) fn reached(&self, stage: Stage) -> usize {
        self.reached[stage as usize]
    }

    pub(crate) fn active_reached(&self, stage: Stage) -> usize {
        self.active_reached[stage as usize]
    }

    pub(crate) fn conversations(&self) -> impl Iterator<Item = &dyn Conversation> {
        self.clients[..self.active_count].iter().map(|it| &*it.conversation)
    }

    /// When each active client had everything acknowledged.
    pub(crate) fn whole_at(&self) -> impl Iterator<Item = Instant> {
        self.clients[..self.active_count].iter().filter_map(|it| it.whole_at)
    }

    pub(crate) fn step(&self) -> Step {
        self.step
    }

    pub(crate) fn begin(&mut self, step: Step) {
        self.step = step;
        self.last_motion = Instant::now();
    }

    /// Lets all send.
    pub(crate) fn start(&mut self) -> Result<(), WorkloadError> {
        for client in 0..self.active_count {
            self.pump(client)?;
        }
        self.pass_turns()
    }

    /// Those that never sent anything go.
    pub(crate) fn cancel_idle(&mut self) -> Result<(), WorkloadError> {
        self.last_motion = Instant::now();
        for client in self.active_count..self.clients.len() {
            let it = &mut self.clients[client];
            it.conversation.cancel(&mut it.out);
            self.settle(client)?;
            self.flush(client)?;
        }
        Ok(())
    }

    /// After a failure: what was begun is cancelled as far as the server listens, so that it need
    /// not keep it for hours.
    pub(crate) fn give_up(&mut self) {
        self.step = Step::Finish;
        self.opened_count = self.clients.len();
        let begun: Vec<usize> = (0..self.clients.len())
            .filter(|it| self.clients[*it].socket.is_some())
            .filter(|it| self.clients[*it].stage == Stage::Ready)
            .collect();
        for client in &begun {
            let it = &mut self.clients[*client];
            it.conversation.cancel(&mut it.out);
            // One failure has ended the run already; others do not matter.
            let _ = self.settle(*client).and_then(|()| self.flush(*client));
        }
        let deadline = Instant::now() + GIVE_UP_TIME;
        let is_open = |it: &Client| it.socket.is_some() && it.stage < Stage::Done;
        while begun.iter().any(|it| is_open(&self.clients[*it])) && Instant::now() < deadline {
            let _ = self.turn(Duration::MAX);
        }
    }

    /// One turn of the loop: waits for events, at most for `TICK`, and does what they call for.
    pub(crate) fn turn(&mut self, stall_timeout: Duration) -> Result<(), WorkloadError> {
        self.open_more()?;
        let mut events = Vec::with_capacity(EVENT_COUNT);
        let timeout = Timespec::try_from(TICK).expect("a short time");
        match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(WorkloadError::Machine { what: "epoll", errno }),
        }
        for event in events {
            let event: epoll::Event = event;
            self.on_event(event.data.u64() as usize, event.flags)?;
            self.pass_turns()?;
        }
        let silence = self.last_motion.elapsed();
        if silence < stall_timeout {
            return Ok(());
        }
        let wanted = match self.step {
            Step::Prepare => Stage::Ready,
            Step::Transfer => Stage::Whole,
            Step::Finish | Step::Verify => Stage::Done,
        };
        let client = self.clients.iter().position(|it| it.stage < wanted).unwrap_or(0);
        Err(WorkloadError::Stalled { client, step: self.step, silence: stall_timeout })
    }

    /// Not all at once: servers have a limited queue of those who connect, and of tickets.
    fn open_more(&mut self) -> Result<(), WorkloadError> {
        while self.opened_count < self.clients.len()
            && self.opened_count - self.reached(Stage::Ready) < OPENING_COUNT_MAX
        {
            let client = self.opened_count;
            self.opened_count += 1;
            let machine = |errno| WorkloadError::Machine { what: "a client's socket", errno };
            let family = match self.server {
                SocketAddr::V4(_) => AddressFamily::INET,
                SocketAddr::V6(_) => AddressFamily::INET6,
            };
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let socket = socket_with(family, SocketType::STREAM, flags, None).map_err(machine)?;
            set_tcp_nodelay(&socket, true).map_err(machine)?;
            // BBR paces with timers, and then much of the client's sending is done, and billed, where
            // the server's acknowledgements arrive. Where there is no CUBIC the machine's own stays.
            let _ = set_tcp_congestion(&socket, "cubic");
            match connect(&socket, &self.server) {
                Ok(()) | Err(Errno::INPROGRESS) => {}
                Err(errno) => {
                    return Err(WorkloadError::Connect { server: self.server, errno });
                }
            }
            let flags = epoll::EventFlags::IN
                | epoll::EventFlags::OUT
                | epoll::EventFlags::RDHUP
                | epoll::EventFlags::ET;
            let data = epoll::EventData::new_u64(client as u64);
            epoll::add(&self.epoll, &socket, data, flags).map_err(machine)?;
            self.clients[client].socket = Some(socket);
        }
        Ok(())
    }

    fn on_event(&mut self, client: usize, flags: epoll::EventFlags) -> Result<(), WorkloadError> {
        let it = &mut self.clients[client];
        let Some(socket) = &it.socket else { return Ok(()) };
        if !it.is_connected {
            let ready = epoll::EventFlags::OUT | epoll::EventFlags::ERR | epoll::EventFlags::HUP;
            if !flags.intersects(ready) {
                return Ok(());
            }
            let result = socket_error(socket).unwrap_or_else(Err);
            result.map_err(|errno| WorkloadError::Connect { server: self.server, errno })?;
            it.is_connected = true;
            it.conversation.on_connected(&mut it.out);
            self.last_motion = Instant::now();
            self.settle(client)?;
        }
        if flags != epoll::EventFlags::OUT {
            self.hear(client)?;
        }
        self.pump(client)
    }

    /// Reads what there is.
    fn hear(&mut self, client: usize) -> Result<(), WorkloadError> {
        loop {
            let it = &mut self.clients[client];
            let Some(socket) = &it.socket else { return Ok(()) };
            let length = match recv(socket, &mut self.buffer[..], RecvFlags::empty()) {
                Ok((length, _)) => length,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(errno) => return self.over(client, Problem::Broken(errno)),
            };
            if length == 0 {
                return self.over(client, Problem::Closed);
            }
            let mut input = mem::take(&mut it.input);
            let mut heard = if input.is_empty() {
                &self.buffer[..length]
            } else {
                input.extend_from_slice(&self.buffer[..length]);
                &input
            };
            let result = loop {
                match it.conversation.on_bytes(heard, &mut it.out) {
                    Ok(0) => break Ok(()),
                    Ok(taken) => heard = &heard[taken..],
                    Err(problem) => break Err(problem),
                }
                if heard.is_empty() {
                    break Ok(());
                }
            };
            it.input = heard.to_vec();
            if let Err(problem) = result {
                return self.over(client, problem);
            }
            if self.clients[client].input.len() > INPUT_BYTES_MAX {
                return self.over(client, Problem::Garbage("an answer that is too long"));
            }
            self.settle(client)?;
        }
    }

    /// A connection has come to its end. That is as it should be when everything was said.
    fn over(&mut self, client: usize, problem: Problem) -> Result<(), WorkloadError> {
        self.clients[client].socket = None;
        if self.clients[client].stage == Stage::Done {
            return Ok(());
        }
        Err(WorkloadError::Client { client, step: self.step, problem })
    }

    /// Takes note of what a client's conversation has come to.
    fn settle(&mut self, client: usize) -> Result<(), WorkloadError> {
        let is_active = client < self.active_count;
        let it = &mut self.clients[client];
        let (messages, stage) = (it.conversation.messages(), it.conversation.stage());
        let now = Instant::now();
        while it.acked_count < messages.acked_count {
            let Some(first_byte) = it.out.first_bytes.pop_front() else {
                let problem = Problem::Garbage("an acknowledgement of what was not sent");
                return self.over(client, problem);
            };
            let bytes = messages.bytes_of(it.acked_count);
            it.acked_count += 1;
            self.acked_bytes += bytes;
            self.turns.give_back(bytes);
            let latency_us = now.duration_since(first_byte).as_micros() as u64;
            self.ack_latency_us.saturating_record(latency_us);
            self.last_motion = now;
        }
        if stage == it.stage {
            return Ok(());
        }
        for reached in it.stage as usize + 1..=stage as usize {
            self.reached[reached] += 1;
            self.active_reached[reached] += usize::from(is_active);
        }
        it.stage = stage;
        self.last_motion = now;
        if is_active && stage >= Stage::Whole && it.whole_at.is_none() {
            it.whole_at = Some(now);
            if self.active_reached(Stage::Whole) == 1 {
                let shares: Vec<u64> =
                    self.conversations().map(|it| it.messages().acked_bytes()).collect();
                self.fairness = jain(&shares);
            }
        }
        Ok(())
    }

    /// Lets a client send what it may.
    fn pump(&mut self, client: usize) -> Result<(), WorkloadError> {
        if self.step == Step::Transfer && client < self.active_count {
            let it = &mut self.clients[client];
            while it.stage == Stage::Ready
                && !it.has_asked
                && it.conversation.may_send()
                && !it.conversation.messages().all_sent()
            {
                let messages = it.conversation.messages();
                if self.turns.ask(client, messages.bytes_of(messages.sent_count)) {
                    it.conversation.send_message(&mut it.out);
                } else {
                    it.has_asked = true;
                }
            }
        }
        self.flush(client)
    }

    /// Room has become free: those who waited send.
    fn pass_turns(&mut self) -> Result<(), WorkloadError> {
        while let Some(client) = self.turns.next() {
            let it = &mut self.clients[client];
            it.has_asked = false;
            it.conversation.send_message(&mut it.out);
            self.pump(client)?;
        }
        Ok(())
    }

    fn flush(&mut self, client: usize) -> Result<(), WorkloadError> {
        let it = &mut self.clients[client];
        let Some(socket) = it.socket.as_ref().filter(|_| it.is_connected) else { return Ok(()) };
        match it.out.flush(socket, self.block) {
            Ok(0) => Ok(()),
            Ok(_) => {
                self.last_motion = Instant::now();
                Ok(())
            }
            // The server's last words may say why.
            Err(errno) => {
                self.hear(client)?;
                self.over(client, Problem::Broken(errno))
            }
        }
    }
}

/// How long the loop waits at most, and how often progress is told.
pub(crate) const TICK: Duration = Duration::from_millis(100);
const GIVE_UP_TIME: Duration = Duration::from_secs(5);
const STAGES: usize = Stage::Done as usize + 1;
const OPENING_COUNT_MAX: usize = 256;
const EVENT_COUNT: usize = 256;
const BUFFER_BYTES: usize = 64 << 10;
const INPUT_BYTES_MAX: usize = 128 << 10;
const LATENCY_US_MAX: u64 = 3_600_000_000;
