//! Incoming!!: large-file uploads for any web app.
//!
//! This crate is how clients and web apps speak to the engine: HTTP/1.1, WebSocket, the upload
//! dialects, and the loop that joins them. Modules are listed by floor, highest first; a file
//! imports only from floors below its own.
#![forbid(unsafe_code)]

pub mod codec;
pub mod config;
pub mod control;
pub mod mail;
pub mod worker;
