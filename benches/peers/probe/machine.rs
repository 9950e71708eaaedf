//! The floor as a [`Machine`]: what a driver runs instead of the server.

use std::collections::VecDeque;
use std::io;
use std::time::Instant;

use bytes::{Buf, Bytes};
use engine::buffer::Memory;
use engine::limits::RECEIVE_BUFFER_BYTES;
use engine::op::{
    Completion, Direction, Errno, Event, Machine, Op, Output, SocketId, SocketOp, Token,
};

use super::conversation::Conversation;

/// One core that discards. It never stops.
#[derive(Debug)]
pub(super) struct Probe {
    with_checksum: bool,
    clients: Vec<Option<Client>>,
    free: Vec<u32>,
    is_accepting: bool,
    ops: VecDeque<(Token, Op<()>)>,
    /// Who is to be told something when nothing else is left to start in this turn, so that the
    /// acknowledgements of a turn go out together.
    unsent: Vec<u32>,
    receive_buffer: Vec<u8>,
    memory: Memory,
}

#[derive(Debug)]
struct Client {
    socket: SocketId,
    conversation: Conversation,
    /// With the kernel.
    sending: Option<Bytes>,
    is_unsent_noted: bool,
    is_polling: bool,
    /// The connection ends when no op is in flight on it.
    is_dead: bool,
}

impl Probe {
    /// # Errors
    /// No memory.
    pub(super) fn new(with_checksum: bool) -> io::Result<Self> {
        Ok(Self {
            with_checksum,
            clients: Vec::new(),
            free: Vec::new(),
            is_accepting: false,
            ops: VecDeque::new(),
            unsent: Vec::new(),
            receive_buffer: vec![0; RECEIVE_BUFFER_BYTES as usize],
            memory: Memory::new(1)?,
        })
    }

    fn on_accepted(&mut self, result: Result<Output, Errno>) {
        self.is_accepting = false;
        // Out of descriptors: the probe is of no use any more, and says so.
        let Ok(Output::Accepted { socket, .. }) = result else { panic!("accept: {result:?}") };
        let client = Client {
            socket,
            conversation: Conversation::new(self.with_checksum),
            sending: None,
            is_unsent_noted: false,
            is_polling: false,
            is_dead: false,
        };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.clients.push(None);
            self.clients.len() as u32 - 1
        });
        self.clients[slot as usize] = Some(client);
        self.wait_readable(slot);
    }

    fn on_readable(&mut self, slot: u32, result: Result<Output, Errno>) {
        let client = self.at(slot);
        client.is_polling = false;
        if client.is_dead || result.is_err() {
            return self.bury(slot);
        }
        let op = Op::Recv { socket: client.socket, length_bytes: RECEIVE_BUFFER_BYTES };
        self.ops.push_back((token(slot, SocketOp::Recv), op));
    }

    /// One receive for each `Readable`, as in the server.
    fn on_received(&mut self, slot: u32, result: Result<Output, Errno>) {
        match result.map(Output::bytes) {
            Err(Errno::EAGAIN) => self.wait_readable(slot),
            Ok(0) | Err(_) => self.bury(slot),
            Ok(count) => {
                let mut buffer = std::mem::take(&mut self.receive_buffer);
                let client = self.at(slot);
                let outcome = client.conversation.on_bytes(&mut buffer[..count as usize]);
                self.receive_buffer = buffer;
                if let Err(broken) = outcome {
                    eprintln!("connection {slot} is broken: {broken:?}");
                    return self.bury(slot);
                }
                self.note_unsent(slot);
                self.wait_readable(slot);
            }
        }
    }

    fn on_sent(&mut self, slot: u32, result: Result<Output, Errno>) {
        let client = self.at(slot);
        let mut rest = client.sending.take().expect("a send was in flight");
        match result {
            Err(_) => self.bury(slot),
            Ok(_) if client.is_dead => self.bury(slot),
            Ok(output) => {
                rest.advance(output.bytes() as usize);
                if !rest.is_empty() {
                    self.send(slot, rest);
                } else if !client.conversation.out().is_empty() {
                    self.note_unsent(slot);
                } else if client.conversation.is_closed() {
                    self.bury(slot);
                }
            }
        }
    }

    fn wait_readable(&mut self, slot: u32) {
        let client = self.at(slot);
        client.is_polling = true;
        let op = Op::Readable { socket: client.socket };
        self.ops.push_back((token(slot, SocketOp::Readable), op));
    }

    fn note_unsent(&mut self, slot: u32) {
        let client = self.at(slot);
        let is_something = !client.conversation.out().is_empty();
        if is_something && !client.is_unsent_noted {
            client.is_unsent_noted = true;
            self.unsent.push(slot);
        }
    }

    fn poll_send(&mut self) -> Option<(Token, Op<()>)> {
        while let Some(slot) = self.unsent.pop() {
            let Some(client) = &mut self.clients[slot as usize] else { continue };
            client.is_unsent_noted = false;
            if client.sending.is_none() && !client.is_dead {
                let bytes = client.conversation.out().split().freeze();
                self.send(slot, bytes);
                return self.ops.pop_front();
            }
        }
        None
    }

    fn send(&mut self, slot: u32, bytes: Bytes) {
        let client = self.at(slot);
        client.sending = Some(bytes.clone());
        let op = Op::Send { socket: client.socket, bytes };
        self.ops.push_back((token(slot, SocketOp::Send), op));
    }

    fn bury(&mut self, slot: u32) {
        let client = self.at(slot);
        let (socket, was_dead) = (client.socket, std::mem::replace(&mut client.is_dead, true));
        let op = if client.is_polling || client.sending.is_some() {
            if was_dead {
                return;
            }
            Op::Shutdown { socket, how: Direction::Both }
        } else {
            self.clients[slot as usize] = None;
            self.unsent.retain(|it| *it != slot);
            self.free.push(slot);
            Op::Close { socket }
        };
        self.ops.push_back((Token::None, op));
    }

    fn at(&mut self, slot: u32) -> &mut Client {
        self.clients[slot as usize].as_mut().expect("no op outlives its client")
    }
}

impl Machine for Probe {
    type Mail = ();

    fn on_event(&mut self, _now: Instant, event: Event<()>) {
        let Event::Completion(Completion { token, result }) = event else {
            unreachable!("nobody sends mail");
        };
        match token {
            Token::Accept => self.on_accepted(result),
            Token::Socket { slot, what: SocketOp::Readable, .. } => self.on_readable(slot, result),
            Token::Socket { slot, what: SocketOp::Recv, .. } => self.on_received(slot, result),
            Token::Socket { slot, what: SocketOp::Send, .. } => self.on_sent(slot, result),
            _ => unreachable!("{token:?}"),
        }
    }

    fn on_timeout(&mut self, _now: Instant) {}

    fn poll_op(&mut self) -> Option<(Token, Op<()>)> {
        if !std::mem::replace(&mut self.is_accepting, true) {
            return Some((Token::Accept, Op::Accept));
        }
        self.ops.pop_front().or_else(|| self.poll_send())
    }

    fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    fn receive_buffer(&mut self) -> &mut [u8] {
        &mut self.receive_buffer
    }

    fn memory(&self) -> &Memory {
        &self.memory
    }

    fn is_stopped(&self) -> bool {
        false
    }
}

/// A slot is not reused while an op is in flight on it, so a generation has nothing to tell.
fn token(slot: u32, what: SocketOp) -> Token {
    Token::Socket { slot, generation: 0, what }
}
