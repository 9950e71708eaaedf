//! The engine: what happens to the bytes of an upload, from arrival to hand-over.
//!
//! Everything above [`driver`] is a state machine: completions go in, [`op::Op`]s come out, time is
//! an argument. Only the drivers talk to the kernel. Modules are listed by floor; a file imports
//! only from floors below its own (`tests/tidy.rs` checks it).
#![deny(unsafe_code)]

// Floor 0: plain data and memory.
pub mod buffer;
pub mod durability;
pub mod error;
pub mod limits;
pub mod mask;
pub mod op;

// Floor 1: one thing each, pure.
pub mod handover;
pub mod outbox;
pub mod pool;
pub mod record;
pub mod service;
pub mod ticket;
pub mod timer;
pub mod upload;

// Floor 2: what a core knows.
pub mod journal;
pub mod store;
pub mod tickets;

// Floor 3: the kernel.
pub mod driver;
