//! Why a server does not start, or does not go on, in words for its operator.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use engine::driver::{self, Runtime};
use engine::op::CoreId;

use super::places::RootProblem;
use super::storage::StorageError;

/// Why a server does not start, or does not go on. The text names key, value and remedy.
#[derive(Debug)]
pub enum ServerError {
    Storage {
        dir: std::path::PathBuf,
        error: StorageError,
    },
    /// Files cannot arrive in this directory.
    DestRoot {
        root: std::path::PathBuf,
        problem: RootProblem,
    },
    /// Files cannot be handed over to this group.
    HandoverGroup {
        name: String,
        error: io::Error,
    },
    Listen {
        address: SocketAddr,
        error: io::Error,
    },
    /// What was passed to the process is no TCP socket that listens.
    Given {
        error: io::Error,
    },
    /// The socket that was passed is bound to another address.
    GivenElsewhere {
        listen: SocketAddr,
        address: SocketAddr,
    },
    /// tokio-uring cannot work without io_uring.
    IoUringRefused {
        error: io::Error,
    },
    /// A thread, a mailbox or the signals.
    System {
        what: &'static str,
        error: io::Error,
    },
    Core {
        core: CoreId,
        error: io::Error,
    },
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Storage { dir, error } => write!(
                f,
                "storage_dir = \"{}\": {error}\n  remedy: {}",
                dir.display(),
                error.remedy()
            ),
            Self::DestRoot { root, problem } => {
                write!(f, "dest_roots = \"{}\": {problem}", root.display())
            }
            Self::HandoverGroup { name, error } => write!(
                f,
                "handover_group = \"{name}\": this process may not give files to the group: \
                 {error}\n  remedy: make its user a member (SupplementaryGroups= in the unit, usermod \
                 -aG), or name a group that it is in"
            ),
            Self::Listen { address, error } => write!(
                f,
                "listen = \"{address}\": cannot listen there: {error}\n  remedy: {}",
                match error.kind() {
                    io::ErrorKind::AddrInUse =>
                        "stop what uses the port (ss -ltnp shows it), or choose another one",
                    io::ErrorKind::AddrNotAvailable =>
                        "choose an address of this machine (ip addr shows them)",
                    io::ErrorKind::PermissionDenied =>
                        "choose a port from 1024 on, or give the process CAP_NET_BIND_SERVICE",
                    _ => "choose another address",
                }
            ),
            Self::Given { error } => write!(
                f,
                "LISTEN_FDS: what was passed to this process is no TCP socket that listens: \
                 {error}\n  remedy: pass sockets as systemd does, for ListenStream= with a port"
            ),
            Self::GivenElsewhere { listen, address } => write!(
                f,
                "listen = \"{listen}\": the socket that was passed to this process (LISTEN_FDS) is \
                 bound to {address}\n  remedy: make ListenStream= of the socket unit and listen the \
                 same, or leave listen away"
            ),
            Self::IoUringRefused { error } => write!(
                f,
                "runtime = \"{}\": io_uring is refused: {error}\n  remedy: {}; or choose \
                 --runtime {}",
                Runtime::TokioUring,
                driver::io_uring_remedy(error),
                Runtime::Monoio
            ),
            Self::System { what, error } => write!(f, "cannot {what}: {error}"),
            Self::Core { core, error } => write!(f, "core {}: {error}", core.0),
        }
    }
}

impl std::error::Error for ServerError {}
