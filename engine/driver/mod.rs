//! The kernel: what runs a [`Machine`].
//!
//! [`run`] is one core: it starts the machine's ops on a runtime and brings back events, until the
//! machine is stopped. The loop is `pump`; a runtime adds what only it can do (`monoio`,
//! `tokio_uring`). Cores share nothing but each other's `mailbox`es and one `helper` thread.
#![allow(unsafe_code)]

mod alarm;
mod directory;
mod helper;
mod inherited;
mod lease;
mod mailbox;
mod monoio;
mod probe_direct;
mod probe_sync;
mod pump;
mod ring;
mod slots;
mod sockets;
mod tokio_uring;

use std::fmt;
use std::io;
use std::net::TcpListener;
use std::str::FromStr;

pub use self::directory::{StorageDir, sync_directory};
pub use self::helper::Helper;
pub use self::inherited::inherited_listeners;
pub use self::mailbox::{Receiver, Sender, mailbox};
pub use self::probe_direct::{DirectSupport, WhyBuffered, probe_direct};
pub use self::probe_sync::{SyncProbe, probe_dsync};
pub use self::ring::{io_uring_remedy, probe_io_uring};
use crate::op::Machine;

/// What a core runs with.
#[expect(missing_debug_implementations, reason = "holds a closure")]
pub struct Setup<M> {
    /// Where the core accepts; others may accept from the same sockets.
    pub listeners: Vec<TcpListener>,
    /// The core's own mailbox.
    pub mailbox: Receiver<M>,
    /// How to reach every core, this one too. Index: core.
    pub cores: Vec<Sender<M>>,
    /// How to reach the control thread. It must not block.
    pub control: Box<dyn Fn(M) + Send>,
    /// One for the whole process.
    pub helper: Helper,
    pub backend: Backend,
}

/// The runtime that a core runs on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Runtime {
    #[default]
    Monoio,
    TokioUring,
}

/// What the runtime waits with. Ask [`probe_io_uring`] once at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    IoUring,
    /// Where io_uring is refused. Slower, and [`Runtime::Monoio`] only.
    Epoll,
}

/// Runs the machine on the calling thread until it is stopped.
///
/// A machine that panics while ops are in flight ends the process, because the kernel still has its
/// memory.
///
/// # Errors
/// The runtime could not be built: what the kernel says, or `Unsupported` for tokio-uring without
/// io_uring.
pub fn run<W>(runtime: Runtime, machine: W, setup: Setup<W::Mail>) -> io::Result<()>
where
    W: Machine + 'static,
{
    match (runtime, setup.backend) {
        (Runtime::Monoio, _) => monoio::run(machine, setup),
        (Runtime::TokioUring, Backend::IoUring) => tokio_uring::run(machine, setup),
        (Runtime::TokioUring, Backend::Epoll) => Err(io::ErrorKind::Unsupported.into()),
    }
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Monoio => "monoio",
            Self::TokioUring => "tokio-uring",
        })
    }
}

impl FromStr for Runtime {
    type Err = UnknownRuntime;

    fn from_str(name: &str) -> Result<Self, UnknownRuntime> {
        [Self::Monoio, Self::TokioUring]
            .into_iter()
            .find(|it| it.to_string() == name)
            .ok_or(UnknownRuntime)
    }
}

/// A name that is no [`Runtime`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownRuntime;

impl fmt::Display for UnknownRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected monoio or tokio-uring")
    }
}

impl std::error::Error for UnknownRuntime {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_runtimes_by_their_names() {
        for (runtime, name) in [(Runtime::Monoio, "monoio"), (Runtime::TokioUring, "tokio-uring")] {
            assert_eq!(runtime.to_string(), name);
            assert_eq!(name.parse(), Ok(runtime));
        }
        assert_eq!("tokio".parse::<Runtime>(), Err(UnknownRuntime));
    }
}
