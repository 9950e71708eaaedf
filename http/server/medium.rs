//! How this storage directory is written, found out once at start.

use std::io;
use std::path::Path;

use engine::driver::{self, DirectSupport, StorageDir, SyncProbe};
use engine::durability::{Durability, SyncMethod};
use engine::journal::JOURNAL_NAME;
use engine::store::PARTS_NAME;

use crate::config::DurabilityLevel;

/// What the cores are told of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Medium {
    /// Files are written without the page cache.
    pub(super) direct: bool,
    pub(super) durability: Durability,
}

impl Medium {
    /// Tries the disk, and says in the log what it found.
    pub(super) fn probe(storage: &StorageDir, level: DurabilityLevel) -> Self {
        let parts = Path::new(PARTS_NAME);
        // Whoever mounts something in the storage directory may do so with the journal's.
        let kinds = [parts, Path::new(JOURNAL_NAME)].map(|it| Kind::of(storage, it));
        let direct = kinds == [Kind::Direct; 2];
        let is_memory = kinds.contains(&Kind::Memory);
        let durability = match level {
            DurabilityLevel::Written => {
                tracing::info!("acknowledged bytes survive a crash, but not a power cut");
                Durability::Written
            }
            DurabilityLevel::Synced if direct => {
                Durability::Synced(choose(driver::probe_dsync(storage, parts)))
            }
            DurabilityLevel::Synced if is_memory => {
                tracing::warn!("the storage directory is in memory: a power cut takes all of it");
                Durability::Synced(SyncMethod::Fdatasync)
            }
            DurabilityLevel::Synced => {
                tracing::info!(
                    method = "fdatasync",
                    reason = "the page cache is between",
                    "acknowledged bytes survive a power cut"
                );
                Durability::Synced(SyncMethod::Fdatasync)
            }
        };
        Self { direct, durability }
    }
}

/// How a directory's files can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Direct,
    Buffered,
    /// Through the page cache, which is all there is.
    Memory,
}

impl Kind {
    fn of(storage: &StorageDir, directory: &Path) -> Self {
        let dir = directory.display();
        match driver::probe_direct(storage, directory) {
            Ok(DirectSupport::Direct) => Self::Direct,
            Ok(DirectSupport::Buffered(reason)) => {
                tracing::info!(%dir, %reason, "writing through the page cache");
                if reason.is_memory() { Self::Memory } else { Self::Buffered }
            }
            Err(error) => {
                tracing::warn!(%dir, %error, "cannot try direct writes; writing through the page cache");
                Self::Buffered
            }
        }
    }
}

fn choose(probed: io::Result<SyncProbe>) -> SyncMethod {
    match probed {
        Ok(SyncProbe { method, plain_us, dsync_us }) => {
            tracing::info!(
                method = match method {
                    SyncMethod::Dsync => "O_DSYNC",
                    SyncMethod::Fdatasync => "fdatasync",
                },
                reason = "measured for writes of 2 MiB",
                plain_us,
                dsync_us,
                "acknowledged bytes survive a power cut"
            );
            method
        }
        Err(error) => {
            tracing::warn!(
                method = "fdatasync",
                %error,
                "cannot measure durable writes; acknowledged bytes survive a power cut all the same"
            );
            SyncMethod::Fdatasync
        }
    }
}
