//! What one client is about to say, and how it gets to the socket: heads from a small buffer, the
//! payload from the block in memory.
//!
//! By `send`, which copies, and not by `sendfile`, which would cost the client less: then the kernel's
//! buffers are the block's own pages, and whether they lie in a cache when the server copies them out
//! depends on what the server did before. Copied ones are fresh, as those of a network card are.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use crate::content::{Block, Piece};

#[derive(Debug, Default)]
pub(crate) struct Outbox {
    parts: VecDeque<Part>,
    /// Of the part in front.
    sent_bytes: usize,
    /// When the kernel took the first byte of each message that is not acknowledged yet.
    pub(crate) first_bytes: VecDeque<Instant>,
}

#[derive(Debug)]
enum Part {
    Words { bytes: Vec<u8>, begins_message: bool },
    Block(Piece),
}

impl Outbox {
    pub(crate) fn push(&mut self, bytes: Vec<u8>) {
        self.parts.push_back(Part::Words { bytes, begins_message: false });
    }

    /// The first bytes of a message whose latency is measured.
    pub(crate) fn push_beginning(&mut self, bytes: Vec<u8>) {
        self.parts.push_back(Part::Words { bytes, begins_message: true });
    }

    pub(crate) fn push_block(&mut self, piece: Piece) {
        self.parts.push_back(Part::Block(piece));
    }

    /// Gives the kernel what it takes. How many bytes of payload that was.
    pub(crate) fn flush(&mut self, socket: impl AsFd, block: &Block) -> Result<u64, Errno> {
        let mut flushed_bytes = 0;
        while let Some(part) = self.parts.front() {
            let bytes = part.bytes(block);
            let more = if self.parts.len() > 1 { SendFlags::MORE } else { SendFlags::empty() };
            let flags = more | SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            let sent = send(&socket, &bytes[self.sent_bytes..], flags);
            let sent = match sent {
                Ok(sent) => sent,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno),
            };
            if let (Part::Words { begins_message: true, .. }, 0) = (part, self.sent_bytes) {
                self.first_bytes.push_back(Instant::now());
            }
            flushed_bytes += if matches!(part, Part::Block(_)) { sent as u64 } else { 0 };
            self.sent_bytes += sent;
            if self.sent_bytes == bytes.len() {
                self.parts.pop_front();
                self.sent_bytes = 0;
            }
        }
        Ok(flushed_bytes)
    }

    #[cfg(test)]
    pub(crate) fn flat(&self, block: &Block) -> Vec<u8> {
        let flat = self.parts.iter().flat_map(|it| it.bytes(block));
        flat.copied().collect()
    }
}

impl Part {
    fn bytes<'a>(&'a self, block: &'a Block) -> &'a [u8] {
        match self {
            Self::Words { bytes, .. } => bytes,
            Self::Block(it) => &block.bytes[it.start as usize..][..it.length_bytes as usize],
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_goes_in_comes_out_however_little_the_socket_takes() {
        let block = Block::shared();
        let (from, mut to) = UnixStream::pair().unwrap();
        from.set_nonblocking(true).unwrap();
        let mut out = Outbox::default();
        for number in 0..40u64 {
            out.push_beginning(vec![number as u8; 14]);
            out.push_block(Piece { start: number * 5000, length_bytes: 100_001, key: [0; 4] });
            out.push(b"between".to_vec());
        }
        let expected = out.flat(block);
        let mut found = Vec::new();
        let mut buffer = vec![0; 70_000];
        while found.len() < expected.len() {
            out.flush(&from, block).unwrap();
            let length = to.read(&mut buffer).unwrap();
            found.extend_from_slice(&buffer[..length]);
        }
        assert!(found == expected);
        assert_eq!(out.first_bytes.len(), 40);
        assert_eq!(out.flush(&from, block), Ok(0));
        drop(to);
        out.push(b"x".to_vec());
        assert_eq!(out.flush(&from, block), Err(Errno::PIPE));
    }
}
