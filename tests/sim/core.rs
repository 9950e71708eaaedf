//! One core: a worker and the simulated kernel under it.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use bytes::Bytes;
use engine::op::{
    Address, Completion, CoreId, Direction, Errno, Event, Machine, Op, Output, SocketId, SocketOp,
    Token,
};
use incoming::mail::Mail;
use incoming::worker::Worker;

use crate::disk::Disk;
use crate::net::{Pipe, PipeId};
use crate::rng::Rng;
use crate::trace::Trace;

#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) worker: Worker,
    id: CoreId,
    /// Connections that wait to be accepted.
    pub(crate) backlog: VecDeque<PipeId>,
    /// What others sent, in order for each sender.
    inboxes: Vec<VecDeque<Sent>>,
    sockets: HashMap<SocketId, Socket>,
    socket_next: u32,
    accepting: bool,
    readables: Vec<(Token, SocketId)>,
    sends: Vec<(Token, SocketId, Bytes)>,
    /// Accepts that may fail.
    pub(crate) accept_faults_left: u32,
}

#[derive(Debug)]
struct Socket {
    pipe: PipeId,
    is_write_shut: bool,
    is_shut: bool,
    low_water_bytes: usize,
}

/// What the cores of a server share.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) disk: Disk,
    pub(crate) pipes: Vec<Pipe>,
    pub(crate) trace: Trace,
}

/// Something on its way to a core or to the control thread.
#[derive(Debug)]
pub(crate) enum Sent {
    Mail(Mail),
    Socket(PipeId, Mail),
}

/// Who gets it.
pub(crate) type Outbox = Vec<(Address, Sent)>;

#[derive(Clone, Copy)]
enum Ready {
    Accept,
    Readable(usize),
    Send(usize),
    Disk,
    Inbox(usize),
}

impl Core {
    pub(crate) fn new(worker: Worker, id: CoreId, sender_count: usize) -> Self {
        Self {
            worker,
            id,
            backlog: VecDeque::new(),
            inboxes: (0..sender_count).map(|_| VecDeque::new()).collect(),
            sockets: HashMap::new(),
            socket_next: 0,
            accepting: false,
            readables: Vec::new(),
            sends: Vec::new(),
            accept_faults_left: 0,
        }
    }

    pub(crate) fn deliver(&mut self, sender: usize, sent: Sent) {
        self.inboxes[sender].push_back(sent);
    }

    /// One wake-up: some of what is ready, in any order, then everything the worker wants.
    pub(crate) fn step(&mut self, now: Instant, kernel: &mut Kernel, rng: &mut Rng) -> Outbox {
        for _ in 0..rng.within(1..4) {
            let ready = self.ready(kernel);
            if ready.is_empty() {
                break;
            }
            let one = rng.pick(&ready);
            self.happen(now, one, kernel, rng);
            self.check_timeouts(now);
        }
        self.run_ops(now, kernel, rng)
    }

    /// As a driver does before it sleeps.
    pub(crate) fn tick(&mut self, now: Instant, kernel: &mut Kernel, rng: &mut Rng) -> Outbox {
        self.check_timeouts(now);
        assert!(self.worker.is_each_upload_bound_once(), "two connections own one upload");
        self.run_ops(now, kernel, rng)
    }

    /// Something is ready to happen without anybody else.
    pub(crate) fn is_busy(&self, kernel: &Kernel) -> bool {
        !self.ready(kernel).is_empty()
    }

    /// Every op on a socket is over and nothing is on its way here.
    pub(crate) fn check_end(&self, disk: &Disk) {
        assert!(self.worker.is_stopped());
        assert_eq!(self.worker.leased_bytes(), 0, "no lease is held");
        assert_eq!(self.worker.client_count(), 0, "no connection is left");
        assert!(self.sockets.is_empty() && self.readables.is_empty() && self.sends.is_empty());
        assert!(disk.is_idle(self.id));
        // Its journal stays open to the end.
        assert!(disk.open_files(self.id).all(|it| it.0 < 2), "no upload's file is open");
    }

    pub(crate) fn has_mail(&self) -> bool {
        self.inboxes.iter().any(|it| !it.is_empty())
    }

    fn check_timeouts(&mut self, now: Instant) {
        let mut rounds = 0;
        while self.worker.poll_timeout().is_some_and(|it| it <= now) {
            self.worker.on_timeout(now);
            rounds += 1;
            assert!(rounds < 10, "a timeout that has been handled fires again and again");
        }
    }

    fn ready(&self, kernel: &Kernel) -> Vec<Ready> {
        let mut ready = Vec::new();
        if self.accepting && !self.backlog.is_empty() {
            ready.push(Ready::Accept);
        }
        for (index, (_, socket)) in self.readables.iter().enumerate() {
            let it = &self.sockets[socket];
            let pipe = &kernel.pipes[it.pipe];
            // A full pipe counts as well (`tcp_epollin_ready`).
            let is_enough = pipe.up.len() >= it.low_water_bytes || pipe.up.space() == 0;
            if it.is_shut || pipe.is_reset || is_enough || pipe.up.is_ended() {
                ready.push(Ready::Readable(index));
            }
        }
        for (index, (_, socket, _)) in self.sends.iter().enumerate() {
            let it = &self.sockets[socket];
            let pipe = &kernel.pipes[it.pipe];
            if it.is_shut || pipe.is_reset || pipe.down.space() > 0 {
                ready.push(Ready::Send(index));
            }
        }
        if !kernel.disk.is_idle(self.id) {
            ready.push(Ready::Disk);
        }
        let full = self.inboxes.iter().enumerate().filter(|it| !it.1.is_empty());
        ready.extend(full.map(|it| Ready::Inbox(it.0)));
        ready
    }

    fn happen(&mut self, now: Instant, ready: Ready, kernel: &mut Kernel, rng: &mut Rng) {
        let event = match ready {
            Ready::Accept => {
                self.accepting = false;
                completion(Token::Accept, self.accept(kernel, rng))
            }
            Ready::Readable(index) => {
                let (token, _) = self.readables.swap_remove(index);
                completion(token, Ok(Output::Done))
            }
            Ready::Send(index) => {
                let (token, socket, bytes) = self.sends.swap_remove(index);
                let it = &self.sockets[&socket];
                let pipe = &mut kernel.pipes[it.pipe];
                let result = if it.is_shut || pipe.is_reset {
                    Err(EPIPE)
                } else {
                    let most = bytes.len().min(pipe.down.space());
                    let count = if rng.chance(60) { most } else { rng.within(1..most + 1) };
                    pipe.down.push(&bytes[..count]);
                    Ok(Output::Bytes(count as u32))
                };
                completion(token, result)
            }
            Ready::Disk => {
                let Some(done) = kernel.disk.complete(self.id, self.worker.memory_mut()) else {
                    return;
                };
                Event::Completion(done)
            }
            Ready::Inbox(sender) => match self.inboxes[sender].pop_front().expect("not empty") {
                Sent::Mail(mail) => Event::Mail(mail),
                Sent::Socket(pipe, mail) => {
                    let socket = self.insert(pipe);
                    Event::Arrived { socket, mail }
                }
            },
        };
        kernel.trace.note_event(self.id, &event);
        self.worker.on_event(now, event);
    }

    fn accept(&mut self, kernel: &mut Kernel, rng: &mut Rng) -> Result<Output, Errno> {
        if self.accept_faults_left > 0 && rng.chance(10) {
            self.accept_faults_left -= 1;
            return Err(Errno::EMFILE);
        }
        let pipe = self.backlog.pop_front().expect("somebody waits");
        kernel.pipes[pipe].is_accepted = true;
        let peer = "127.0.0.1:50000".parse().unwrap();
        Ok(Output::Accepted { socket: self.insert(pipe), peer })
    }

    fn insert(&mut self, pipe: PipeId) -> SocketId {
        let socket = SocketId(self.socket_next);
        self.socket_next += 1;
        self.sockets.insert(
            socket,
            Socket { pipe, is_write_shut: false, is_shut: false, low_water_bytes: 1 },
        );
        socket
    }

    fn run_ops(&mut self, now: Instant, kernel: &mut Kernel, rng: &mut Rng) -> Outbox {
        let mut outbox = Outbox::new();
        while let Some((token, op)) = self.worker.poll_op() {
            kernel.trace.note_op(self.id, token, &op);
            match op {
                Op::Accept => {
                    assert!(!self.accepting, "one accept at a time");
                    self.accepting = true;
                }
                Op::CancelAccept => self.accepting = false,
                Op::Readable { socket } => {
                    assert!(!self.readables.iter().any(|it| it.1 == socket));
                    assert!(matches!(token, Token::Socket { what: SocketOp::Readable, .. }));
                    assert!(self.sockets.contains_key(&socket));
                    self.readables.push((token, socket));
                }
                Op::LowWater { socket, bytes } => {
                    let it = self.sockets.get_mut(&socket).expect("an open socket");
                    assert!(bytes > 0);
                    it.low_water_bytes = bytes as usize;
                }
                Op::Recv { socket, length_bytes } => {
                    let result = self.receive(socket, length_bytes, kernel, rng);
                    self.worker.on_event(now, completion(token, result));
                }
                Op::Send { socket, bytes } => {
                    assert!(!bytes.is_empty() && !self.sends.iter().any(|it| it.1 == socket));
                    assert!(!self.sockets[&socket].is_write_shut, "a send after the shutdown");
                    self.sends.push((token, socket, bytes));
                }
                Op::Shutdown { socket, how } => self.shut(socket, how, kernel),
                Op::Close { socket } => {
                    let pipe = self.forget(socket);
                    kernel.pipes[pipe].close();
                }
                Op::Migrate { socket, to, mail } => {
                    let pipe = self.forget(socket);
                    outbox.push((Address::Core(to), Sent::Socket(pipe, mail)));
                }
                Op::Post { to, mail } => outbox.push((to, Sent::Mail(mail))),
                op => kernel.disk.start(self.id, token, op, self.worker.memory()),
            }
        }
        outbox
    }

    fn receive(
        &mut self,
        socket: SocketId,
        length_bytes: u32,
        kernel: &mut Kernel,
        rng: &mut Rng,
    ) -> Result<Output, Errno> {
        let it = &self.sockets[&socket];
        let pipe = &mut kernel.pipes[it.pipe];
        assert!(length_bytes > 0);
        if pipe.is_reset {
            return Err(ECONNRESET);
        }
        if it.is_shut || pipe.up.has_ended() {
            return Ok(Output::Received { count: 0, has_more: false });
        }
        let most = pipe.up.len().min(length_bytes as usize);
        if most == 0 || rng.chance(3) {
            return Err(Errno::EAGAIN);
        }
        let count = if rng.chance(60) { most } else { rng.within(1..most + 1) };
        let bytes = pipe.up.take(count);
        let has_more = count == length_bytes as usize && pipe.up.len() > 0;
        let buffer = self.worker.receive_buffer();
        buffer[..count].copy_from_slice(&bytes);
        // What was there before is not to be looked at.
        let stale = buffer.len().min(count + 64);
        buffer[count..stale].fill(0xaa);
        Ok(Output::Received { count: count as u32, has_more })
    }

    fn shut(&mut self, socket: SocketId, how: Direction, kernel: &mut Kernel) {
        let it = self.sockets.get_mut(&socket).expect("an open socket");
        assert!(
            how == Direction::Both || !self.sends.iter().any(|it| it.1 == socket),
            "a direction is not closed under a send"
        );
        it.is_write_shut = true;
        it.is_shut |= how == Direction::Both;
        kernel.pipes[it.pipe].down.end();
    }

    fn forget(&mut self, socket: SocketId) -> PipeId {
        let is_used = self.readables.iter().any(|it| it.1 == socket)
            || self.sends.iter().any(|it| it.1 == socket);
        assert!(!is_used, "no op is in flight on a socket that is given away");
        self.sockets.remove(&socket).expect("given away once").pipe
    }
}

fn completion(token: Token, result: Result<Output, Errno>) -> Event<Mail> {
    Event::Completion(Completion { token, result })
}

pub(crate) fn core_index(core: CoreId) -> usize {
    usize::from(core.0)
}

const EPIPE: Errno = Errno(32);
const ECONNRESET: Errno = Errno(104);
