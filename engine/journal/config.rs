//! What a journal is told when it begins.

use super::Side;
use crate::buffer::Slice;
use crate::durability::Durability;

#[derive(Clone, Debug)]
pub struct JournalConfig {
    pub core: u16,
    pub core_count: u16,
    /// Of this start of the server.
    pub run: u64,
    pub sync: CommitSync,
    /// The journal's part of the core's memory: [`super::REGION_BYTES`], at a block boundary.
    pub region: Slice,
    pub start: LogStart,
}

/// What a commit waits for before it counts. The end of a move is always synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitSync {
    /// Files are written without the page cache, and opened so that a write completes when it is
    /// durable.
    Dsync,
    /// Each commit is written, then synced; one sync serves those that are written.
    Fdatasync,
    /// Only commits with a ticket's state are synced. Offsets alone survive the death of the
    /// process, but not a power cut.
    StatesOnly,
}

/// Where a new run's log begins: after what [`super::NewFile`] had the server write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogStart {
    pub side: Side,
    /// Of the first commit to come.
    pub sequence: u64,
    pub end_bytes: u64,
    /// How large the files are, first [`Side::A`]'s: at least [`super::FILE_BYTES_MIN`] each, and
    /// no less than one commit beyond `end_bytes`.
    pub capacity_bytes: [u64; 2],
}

impl CommitSync {
    /// A commit is as safe as what it speaks of. A small direct write to blocks that are there
    /// already costs less than a sync of its own, also where large ones do not.
    pub fn new(durability: Durability, direct: bool) -> Self {
        match durability {
            Durability::Written => Self::StatesOnly,
            Durability::Synced(_) if direct => Self::Dsync,
            Durability::Synced(_) => Self::Fdatasync,
        }
    }
}
