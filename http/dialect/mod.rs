//! Dialects turn a client's messages into what the engine understands, and what the engine says
//! into messages. Nothing else knows which one a client speaks.

pub mod incoming;
pub mod message;
