//! The canonical workload: many clients upload files at once, and everything that they see is
//! measured. For the benchmarks of the project, and for operators against a server of their own.
//!
//! One thread, one epoll, one state machine for each client. It is cheap on purpose, so that the
//! server is what is measured: the payload lies once in memory, and the kernel sends it from there.
//!
//! ```text
//! run.rs           the steps, and what is measured in each
//! crowd.rs         the loop: who may send, who waits         turns.rs    whose turn it is
//! conversation.rs  what every client is for the crowd        outbox.rs   down to its socket
//! websocket.rs     a client that speaks WebSocket            frame.rs    in such pieces
//! http.rs          one that speaks PUT or tus
//! content.rs       what is in the files                      verify.rs   are they right?
//! web_app.rs       who takes them                            cpu.rs      what the server spends
//! outcome.rs       what was measured                         report.rs   the same as text and JSON
//! ```

mod content;
mod conversation;
mod cpu;
mod crowd;
mod error;
mod frame;
mod http;
mod outbox;
mod outcome;
mod report;
mod run;
#[cfg(test)]
mod tests;
mod turns;
mod verify;
mod web_app;
mod websocket;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use error::{Mismatch, Problem, Step, WorkloadError};
pub use outcome::{Cpu, Memory, Outcome, Phase, Phases, Rates};
pub use report::Report;

/// What is uploaded, how, and what is looked at meanwhile. Start from [`Workload::new`].
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    pub server: SocketAddr,
    /// For the `Host` header.
    pub host: String,
    pub protocol: Protocol,
    /// How many upload at the same time, one file each. At least 1.
    pub clients: usize,
    /// How many more are connected, their upload of 64 KiB confirmed, and never send anything. Not
    /// with [`Protocol::Put`] and [`Protocol::Tus`].
    pub idle_clients: usize,
    /// Of each file.
    pub file_bytes: u64,
    /// Of each message, 1 B to 64 MiB (the server takes up to 8 MiB). Not for `Put` and `Tus`.
    pub chunk_bytes: u32,
    /// How many messages of a client are under way without an acknowledgement. At least 1.
    pub send_ahead: u32,
    /// Take both numbers from the server's `MsgUploadConf` instead, as a browser does.
    pub announced: bool,
    /// Cut each message into frames of at most so many bytes. Chromium: 131,000.
    pub frame_bytes: Option<u32>,
    /// So many bytes of all clients together are under way; who wants to send more waits its
    /// turn, first come, first served. At least one message.
    pub in_flight_bytes_max: Option<u64>,
    /// Another seed makes other contents.
    pub seed: u64,
    pub verify: Verify,
    /// Where the server keeps files when it does not tell: for every protocol but `Incoming`. The
    /// files in it are called as they were sent, `file-0` and so on; with tus as in the URL.
    /// Without it they are neither verified nor removed.
    pub stored_in: Option<PathBuf>,
    /// The process of the server: CPU and memory of it and of its descendants are measured.
    pub server_process: Option<u32>,
    /// Where the web app of the workload takes files. `Incoming` only.
    pub callback_listen: SocketAddr,
    /// The host by which the server reaches it, if it is not that of `callback_listen`.
    pub callback_host: Option<String>,
    /// For a server whose backend routes demand a key.
    pub backend_key: Option<String>,
    /// When no client has got anywhere for so long, the run fails.
    pub stall_timeout: Duration,
}

impl Workload {
    /// 16 clients with 256 MiB each, messages of 1 MiB, two of them under way, every file verified.
    pub fn new(server: SocketAddr) -> Self {
        Self {
            server,
            host: server.to_string(),
            protocol: Protocol::Incoming,
            clients: 16,
            idle_clients: 0,
            file_bytes: 256 << 20,
            chunk_bytes: 1 << 20,
            send_ahead: 2,
            announced: false,
            frame_bytes: None,
            in_flight_bytes_max: None,
            seed: 1,
            verify: Verify::Hash,
            stored_in: None,
            server_process: None,
            callback_listen: ([127, 0, 0, 1], 0).into(),
            callback_host: None,
            backend_key: None,
            stall_timeout: STALL_TIMEOUT,
        }
    }
}

/// What the clients speak.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The whole of it: tickets, WebSocket, hand-over to a web app.
    Incoming,
    /// The same messages without tickets and hand-over. The first message names the file:
    /// `file-0` and so on.
    WebSocketOnly,
    /// One request per file, to this path with the file's name appended.
    Put { path: String },
    /// tus 1.0.0: `POST` to this path makes a file, then come `PATCH` requests of at most so many
    /// bytes; without a number, one for the whole file.
    Tus { path: String, patch_bytes: Option<u64> },
}

/// What happens to files that have arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// The server removes them, or whoever owns `stored_in` does.
    Off,
    /// They are read, compared with what was sent by SHA-256, and removed.
    Hash,
}

/// How far a run is.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    pub step: Step,
    /// Since this step began.
    pub elapsed: Duration,
    /// How many clients, idle ones too, stand at the start.
    pub ready_count: usize,
    /// How many files the server has whole.
    pub done_count: usize,
    pub verified_count: usize,
    /// Of all files, what the server has acknowledged.
    pub acked_bytes: u64,
    /// Of all files.
    pub total_bytes: u64,
}

/// Runs it. Progress is told about ten times a second, and at each step.
pub fn run(
    workload: &Workload,
    on_progress: &mut dyn FnMut(&Progress),
) -> Result<Outcome, WorkloadError> {
    run::run(workload, on_progress)
}

const STALL_TIMEOUT: Duration = Duration::from_secs(30);
