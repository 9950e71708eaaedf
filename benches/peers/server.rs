//! The servers that are measured: how each is called, started and spoken to.

mod command;
mod error;
mod running;
mod version;

use std::path::Path;

pub(crate) use self::error::ServerError;
pub(crate) use self::running::{Running, stop_all};
use Durability::{Synced, Written};
use Runtime::{Monoio, TokioUring};
use workload::Protocol;

/// A server that can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Server {
    Ours {
        runtime: Runtime,
        durability: Durability,
    },
    /// Receives, unmasks and discards, on the driver of ours.
    Floor {
        runtime: Runtime,
    },
    /// The same on the bare ring.
    Ring,
    /// tokio, tokio-tungstenite and tokio's files.
    Naive,
    Nginx256k,
    NginxDefault,
    NodeWs,
    TusNode,
    Copyparty,
    Rustus,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Runtime {
    Monoio,
    TokioUring,
}

/// What an acknowledgement of our server promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Durability {
    Written,
    Synced,
}

/// What a server is started with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup<'a> {
    /// Absolute, there and empty. Whatever the server writes goes below it.
    pub(crate) directory: &'a Path,
    /// The processors that it may use; ours has as many cores.
    pub(crate) cpus: &'a [usize],
    /// Of each core of ours, instead of its default.
    pub(crate) memory_bytes: Option<u64>,
    /// For each core of ours, instead of its default.
    pub(crate) connections_max: Option<u32>,
}

impl Server {
    /// For results and tables; never renamed.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours { runtime: Monoio, durability: Written } => "ours-monoio-written",
            Self::Ours { runtime: Monoio, durability: Synced } => "ours-monoio-synced",
            Self::Ours { runtime: TokioUring, durability: Written } => "ours-tokio-uring-written",
            Self::Ours { runtime: TokioUring, durability: Synced } => "ours-tokio-uring-synced",
            Self::Floor { runtime: Monoio } => "floor-monoio",
            Self::Floor { runtime: TokioUring } => "floor-tokio-uring",
            Self::Ring => "floor-ring",
            Self::Naive => "naive",
            Self::Nginx256k => "nginx-256k",
            Self::NginxDefault => "nginx-default",
            Self::NodeWs => "node-ws",
            Self::TusNode => "tus-node",
            Self::Copyparty => "copyparty",
            Self::Rustus => "rustus",
        }
    }

    pub(crate) fn all() -> impl Iterator<Item = Self> {
        [
            Self::Ours { runtime: Monoio, durability: Written },
            Self::Ours { runtime: Monoio, durability: Synced },
            Self::Ours { runtime: TokioUring, durability: Written },
            Self::Ours { runtime: TokioUring, durability: Synced },
            Self::Floor { runtime: Monoio },
            Self::Floor { runtime: TokioUring },
            Self::Ring,
            Self::Naive,
            Self::Nginx256k,
            Self::NginxDefault,
            Self::NodeWs,
            Self::TusNode,
            Self::Copyparty,
            Self::Rustus,
        ]
        .into_iter()
    }

    /// What its clients speak.
    pub(crate) fn protocol(self) -> Protocol {
        let path = "/files/".to_owned();
        match self {
            Self::Ours { .. } => Protocol::Incoming,
            Self::Floor { .. } | Self::Ring | Self::Naive | Self::NodeWs => Protocol::WebSocketOnly,
            Self::Nginx256k | Self::NginxDefault | Self::Copyparty => Protocol::Put { path },
            Self::TusNode => Protocol::Tus { path: "/files".to_owned(), patch_bytes: None },
            // It takes the body of a request into memory.
            Self::Rustus => {
                Protocol::Tus { path: "/files".to_owned(), patch_bytes: Some(RUSTUS_PATCH_BYTES) }
            }
        }
    }

    /// False: it discards, and there is nothing to compare.
    pub(crate) fn stores(self) -> bool {
        !matches!(self, Self::Floor { .. } | Self::Ring)
    }

    /// What is measured, with its version.
    pub(crate) fn version(self) -> Result<String, ServerError> {
        version::version(self)
    }

    /// Returns when the server answers.
    pub(crate) fn start(self, setup: &Setup<'_>) -> Result<Running, ServerError> {
        running::start(self, setup)
    }
}

/// As long as the messages of the others; a body is gathered in memory before it is written.
const RUSTUS_PATCH_BYTES: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_server_has_a_name_of_its_own() {
        let names: HashSet<_> = Server::all().map(Server::name).collect();
        assert_eq!((names.len(), Server::all().count()), (14, 14));
    }
}
