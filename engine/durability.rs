//! How safe bytes are when they are acknowledged.

/// What an acknowledgement promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The bytes survive the end of the process, however sudden; not a power cut.
    Written,
    /// The bytes survive a power cut.
    Synced(SyncMethod),
}

/// How bytes become as safe as the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncMethod {
    /// Every write is durable when it completes: files are opened with `O_DSYNC`. For disks where
    /// that costs next to nothing.
    Dsync,
    /// One `fdatasync` makes many writes durable.
    Fdatasync,
}
