//! Simulated TCP connections: two bounded pipes each, cut anywhere.

use std::collections::VecDeque;

/// Names a connection for the whole run.
pub(crate) type PipeId = usize;

#[derive(Debug)]
pub(crate) struct Pipe {
    pub(crate) up: Flow,
    pub(crate) down: Flow,
    pub(crate) is_accepted: bool,
    /// Broken: what was on its way is lost.
    pub(crate) is_reset: bool,
    /// The server has closed its socket.
    pub(crate) is_closed: bool,
}

/// One direction.
#[derive(Debug)]
pub(crate) struct Flow {
    bytes: VecDeque<u8>,
    bytes_max: usize,
    /// Nothing will follow.
    is_ended: bool,
}

impl Pipe {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            up: Flow::new(bytes_max),
            down: Flow::new(bytes_max.max(200)),
            is_accepted: false,
            is_reset: false,
            is_closed: false,
        }
    }

    pub(crate) fn reset(&mut self) {
        self.is_reset = true;
        self.up.bytes.clear();
        self.down.bytes.clear();
    }

    /// The server closes its socket. What it has not read makes the kernel answer with a reset.
    pub(crate) fn close(&mut self) {
        self.is_closed = true;
        self.down.end();
        if !self.up.bytes.is_empty() {
            self.reset();
        }
    }
}

impl Flow {
    fn new(bytes_max: usize) -> Self {
        Self { bytes: VecDeque::new(), bytes_max, is_ended: false }
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Nothing is on its way, not even the end.
    pub(crate) fn is_quiet(&self) -> bool {
        self.bytes.is_empty() && !self.is_ended
    }

    pub(crate) fn space(&self) -> usize {
        self.bytes_max - self.bytes.len()
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= self.space() && !self.is_ended);
        self.bytes.extend(bytes);
    }

    pub(crate) fn end(&mut self) {
        self.is_ended = true;
    }

    /// Nothing will follow what is on its way.
    pub(crate) fn is_ended(&self) -> bool {
        self.is_ended
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.is_ended && self.bytes.is_empty()
    }

    /// Takes the first `count` bytes.
    pub(crate) fn take(&mut self, count: usize) -> Vec<u8> {
        self.bytes.drain(..count).collect()
    }
}
