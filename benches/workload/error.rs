//! What can go wrong, where, and at which client.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use rustix::io::Errno;

/// Why a run has no outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkloadError {
    /// A field of the workload has a value that makes no sense, and which ones do.
    Setting { field: &'static str, allowed: &'static str },
    /// Something of this machine: a socket, memory, the callback's listener.
    Machine { what: &'static str, errno: Errno },
    /// The process that was to be measured is not there (any more).
    NoProcess { pid: u32 },
    /// Nobody listens there, or it cannot be reached.
    Connect { server: SocketAddr, errno: Errno },
    /// One client could not go on.
    Client { client: usize, step: Step, problem: Problem },
    /// Nobody got anywhere; this client is the first of those that wait.
    Stalled { client: usize, step: Step, silence: Duration },
    /// The web app was not told about a file of which the client heard that it had arrived.
    NotHandedOver { client: usize },
    /// A file that cannot be read from here.
    Unreadable { path: PathBuf, error: io::ErrorKind },
    /// A file with other contents than were sent.
    Corrupt(Mismatch),
}

/// Where a file differs from what was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    pub client: usize,
    pub path: PathBuf,
    /// Of the first wrong byte; the shorter length, if one is the beginning of the other.
    pub offset: u64,
    pub length_bytes: u64,
    pub expected_length_bytes: u64,
}

/// What a run is about, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Tickets, connections, handshakes, up to the moment when all may send.
    Prepare,
    /// From there to the last acknowledgement.
    Transfer,
    /// From there until the server has said of every file that it is done.
    Finish,
    /// Files are read and hashed.
    Verify,
}

/// Why a client could not go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The server ended the connection without a word.
    Closed,
    /// The connection broke.
    Broken(Errno),
    /// The server closed the WebSocket.
    CloseFrame { code: Option<u16>, reason: String },
    /// The server sent `MsgError`.
    Refused { code: i64, message: String },
    /// The upload was cancelled from the other side.
    Cancelled { reason: String },
    /// A request was answered with another status than success.
    Status { status: u16, body: String },
    /// It is no HTTP or no WebSocket, or against the protocol.
    Garbage(&'static str),
}

impl fmt::Display for WorkloadError {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setting { field, allowed } => write!(to, "{field} is out of range: {allowed}"),
            Self::Machine { what, errno } => write!(to, "{what}: {}", io::Error::from(*errno)),
            Self::NoProcess { pid } => write!(to, "there is no process {pid} to be measured"),
            Self::Connect { server, errno } => write!(
                to,
                "nobody answers at {server}: {}. Start a server first: incoming serve --listen \
                 {server} --storage-dir DIRECTORY",
                io::Error::from(*errno)
            ),
            Self::Client { client, step, problem } => {
                write!(to, "client {client}, {step}: {problem}")
            }
            Self::Stalled { client, step, silence } => write!(
                to,
                "nothing happened for {} s, {step}; client {client} is the first that waits",
                silence.as_secs_f64()
            ),
            Self::NotHandedOver { client } => {
                write!(to, "client {client}: done, but the web app of this run got no callback")
            }
            Self::Unreadable { path, error } => write!(
                to,
                "{} cannot be read from here: {error}. Run this on the server's machine as a \
                 user who may read its files, or with --no-verify. The files of this run are \
                 left there",
                path.display()
            ),
            Self::Corrupt(it) => write!(
                to,
                "{} (client {}) is not what was sent: the first wrong byte is at {}; {} B long, \
                 expected {} B",
                it.path.display(),
                it.client,
                it.offset,
                it.length_bytes,
                it.expected_length_bytes
            ),
        }
    }
}

impl std::error::Error for WorkloadError {}

impl fmt::Display for Step {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(match self {
            Self::Prepare => "before the transfer",
            Self::Transfer => "during the transfer",
            Self::Finish => "after the transfer",
            Self::Verify => "while verifying",
        })
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => to.write_str("the server ended the connection"),
            Self::Broken(errno) => {
                write!(to, "the connection broke: {}", io::Error::from(*errno))
            }
            Self::CloseFrame { code: Some(code), reason } => {
                write!(to, "the server closed with {code}: {reason}")
            }
            Self::CloseFrame { code: None, .. } => to.write_str("the server closed without a code"),
            Self::Refused { code, message } => write!(to, "error {code}: {message}"),
            Self::Cancelled { reason } => write!(to, "cancelled: {reason}"),
            Self::Status { status, body } => write!(to, "status {status}: {body}"),
            Self::Garbage(what) => write!(to, "the server does not keep to the protocol: {what}"),
        }
    }
}
