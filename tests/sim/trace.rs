//! What happened between the cores and the kernel, in one number.

use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};

use engine::op::{CoreId, Event, Op, Token};
use incoming::mail::Mail;

/// Two runs with the same trace did the same.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    /// `None`: nobody asks.
    hasher: Option<DefaultHasher>,
}

impl Trace {
    pub(crate) fn on() -> Self {
        Self { hasher: Some(DefaultHasher::new()) }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hasher.as_ref().map_or(0, Hasher::finish)
    }

    pub(crate) fn note_op(&mut self, core: CoreId, token: Token, op: &Op<Mail>) {
        match op {
            // The date in it is that of the wall clock, and mail holds times.
            Op::Send { socket, bytes } => self.note(&(core, token, socket, bytes.len())),
            Op::Migrate { socket, to, .. } => self.note(&(core, token, socket, to)),
            Op::Post { to, .. } => self.note(&(core, token, to)),
            op => self.note(&(core, token, op)),
        }
    }

    pub(crate) fn note_event(&mut self, core: CoreId, event: &Event<Mail>) {
        match event {
            Event::Completion(completion) => self.note(&(core, completion)),
            Event::Mail(_) => self.note(&(core, "mail")),
            Event::Arrived { socket, .. } => self.note(&(core, socket)),
        }
    }

    fn note(&mut self, what: &impl Debug) {
        if let Some(hasher) = &mut self.hasher {
            format!("{what:?}").hash(hasher);
        }
    }
}
