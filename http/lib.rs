//! Incoming!!: large-file uploads for any web app.
//!
//! This crate is how clients and web apps speak to the engine: HTTP/1.1, WebSocket, the upload
//! dialects, and the loop that joins them. Modules are listed by floor, highest first; a file
//! imports only from floors below its own.
#![forbid(unsafe_code)]

// Floor 8: the command.
pub mod cli;
pub mod demo;

// Floor 7: settings, threads, and everything that speaks to other servers.
pub mod config;
pub mod control;
pub mod server;

// Floor 6: one core's logic.
pub mod worker;

// Floor 5: conversations.
pub mod assets;
pub mod connection;
pub mod dialect;
pub mod keys;
pub mod mail;
pub mod query;
pub mod routes;

// Floor 4: bytes to meaning and back.
pub mod codec;
