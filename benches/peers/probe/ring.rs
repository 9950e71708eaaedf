//! `peers ring`: the floor on the bare ring, without a driver between. What a driver costs is the
//! difference to `peers floor`.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use engine::limits::RECEIVE_BUFFER_BYTES;

use super::Common;
use super::conversation::Conversation;
use super::uring::{Done, Uring};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Ring {
    /// Let the kernel receive into a ring of buffers, instead of a poll and a recv(2) for each turn
    #[arg(long)]
    multishot: bool,
    #[command(flatten)]
    common: Common,
}

impl Ring {
    /// Runs until the process ends.
    pub(crate) fn run(self) -> io::Result<()> {
        let listener = self.common.listen()?;
        listener.set_nonblocking(true)?;
        let mut core = Core {
            uring: Uring::new()?,
            listener,
            receive_buffer: vec![0; RECEIVE_BUFFER_BYTES as usize],
            clients: Vec::new(),
            free: Vec::new(),
            unsent: Vec::new(),
            config: self,
        };
        if core.config.multishot {
            core.uring.register_buffers()?;
        }
        core.run()
    }
}

struct Core {
    config: Ring,
    uring: Uring,
    listener: TcpListener,
    receive_buffer: Vec<u8>,
    clients: Vec<Option<Client>>,
    free: Vec<usize>,
    /// Who is to be told something when this turn ends.
    unsent: Vec<usize>,
}

struct Client {
    stream: TcpStream,
    conversation: Conversation,
    /// The connection ends when the ring has nothing of it any more.
    is_dead: bool,
}

impl Core {
    fn run(&mut self) -> io::Result<()> {
        self.uring.poll(self.listener.as_raw_fd(), LISTENER)?;
        let mut batch = Vec::new();
        loop {
            self.uring.wait(&mut batch)?;
            for done in batch.drain(..) {
                match usize::try_from(done.user_data) {
                    Ok(slot) if done.user_data != LISTENER => self.on_done(slot, done)?,
                    _ => self.accept()?,
                }
            }
            self.send()?;
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => self.welcome(stream)?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(error),
            }
        }
        self.uring.poll(self.listener.as_raw_fd(), LISTENER)
    }

    fn welcome(&mut self, stream: TcpStream) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let conversation = Conversation::new(self.config.common.checksum);
        let client = Some(Client { stream, conversation, is_dead: false });
        let slot = self.free.pop().unwrap_or(self.clients.len());
        if slot == self.clients.len() {
            self.clients.push(client);
        } else {
            self.clients[slot] = client;
        }
        self.wait_for_bytes(slot)
    }

    fn wait_for_bytes(&mut self, slot: usize) -> io::Result<()> {
        let Some(client) = &self.clients[slot] else { return Ok(()) };
        let socket = client.stream.as_raw_fd();
        if self.config.multishot {
            self.uring.receive_multishot(socket, slot as u64)
        } else {
            self.uring.poll(socket, slot as u64)
        }
    }

    fn on_done(&mut self, slot: usize, done: Done) -> io::Result<()> {
        let client = self.clients[slot].as_mut().expect("nothing of the ring outlives its client");
        let outcome = if client.is_dead {
            Outcome::Over
        } else if self.config.multishot {
            match (done.result, done.buffer) {
                (Ok(count), Some(buffer)) if count > 0 => {
                    let bytes = &mut self.uring.buffer(buffer)[..count as usize];
                    client.on_bytes(slot, bytes)
                }
                (Err(ENOBUFS), _) => Outcome::GoOn,
                _ => Outcome::Over,
            }
        } else {
            // One receive for each wake-up, as in the server.
            match client.stream.read(&mut self.receive_buffer) {
                Ok(0) => Outcome::Over,
                Ok(count) => client.on_bytes(slot, &mut self.receive_buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => Outcome::GoOn,
                Err(_) => Outcome::Over,
            }
        };
        if let Some(buffer) = done.buffer {
            self.uring.give_back(buffer);
        }
        match outcome {
            Outcome::GoOn if done.has_more => {}
            Outcome::GoOn => self.wait_for_bytes(slot)?,
            Outcome::Over if done.has_more => client.end(),
            Outcome::Over => {
                self.clients[slot] = None;
                self.free.push(slot);
                return Ok(());
            }
        }
        let client = self.clients[slot].as_mut().expect("it goes on");
        if !client.conversation.out().is_empty() && self.unsent.last() != Some(&slot) {
            self.unsent.push(slot);
        }
        Ok(())
    }

    /// The acknowledgements of a turn go out together.
    fn send(&mut self) -> io::Result<()> {
        while let Some(slot) = self.unsent.pop() {
            let Some(client) = &mut self.clients[slot] else { continue };
            let out = client.conversation.out().split();
            let is_sent = client.stream.write(&out).is_ok_and(|count| count == out.len());
            // Who does not read the little that is said is cut off.
            if !is_sent || client.conversation.is_closed() {
                client.end();
            }
        }
        Ok(())
    }
}

enum Outcome {
    GoOn,
    Over,
}

impl Client {
    fn on_bytes(&mut self, slot: usize, bytes: &mut [u8]) -> Outcome {
        match self.conversation.on_bytes(bytes) {
            Ok(()) => Outcome::GoOn,
            Err(broken) => {
                eprintln!("connection {slot} is broken: {broken:?}");
                Outcome::Over
            }
        }
    }

    /// What waits in the ring for this client then completes.
    fn end(&mut self) {
        self.is_dead = true;
        // `ENOTCONN` where the peer was faster.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

const LISTENER: u64 = u64::MAX;

const ENOBUFS: i32 = 105;
