//! How this storage directory is written, found out once at start.

use engine::driver::{self, DirectSupport};
use engine::durability::{Durability, SyncMethod};
use engine::store::PARTS_NAME;

use crate::config::{Config, DurabilityLevel};

/// What the cores are told of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Medium {
    /// Files are written without the page cache.
    pub(super) direct: bool,
    pub(super) durability: Durability,
}

impl Medium {
    /// Tries the disk, and says in the log what it found.
    pub(super) fn probe(config: &Config) -> Self {
        let direct = match driver::probe_direct(&config.storage_dir.join(PARTS_NAME)) {
            Ok(DirectSupport::Direct) => true,
            Ok(DirectSupport::Buffered(reason)) => {
                tracing::info!(%reason, "writing through the page cache");
                false
            }
            Err(error) => {
                tracing::warn!(%error, "cannot try direct writes; writing through the page cache");
                false
            }
        };
        let durability = match config.durability {
            DurabilityLevel::Written => Durability::Written,
            DurabilityLevel::Synced => Durability::Synced(SyncMethod::Fdatasync),
        };
        Self { direct, durability }
    }
}
