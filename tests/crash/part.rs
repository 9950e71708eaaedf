//! What all parts have in common.

use tempfile::TempDir;

use crate::world::Findings;

/// One kind of crash.
pub struct Part {
    pub name: &'static str,
    /// Nothing may be lost. Arguments: the long form; the seed.
    pub run: fn(bool, u64) -> Report,
    /// The same over something that is wrong on purpose: something must be lost.
    pub control: fn(u64) -> Report,
}

/// What a part has found.
#[derive(Debug)]
pub struct Report {
    /// What was done, with numbers.
    pub what: String,
    pub findings: Findings,
}

impl Report {
    pub fn new(what: String, findings: Findings) -> Self {
        Self { what, findings }
    }
}

/// A directory on the file system of the build directory.
pub fn directory_on_disk() -> TempDir {
    directory_in(env!("CARGO_TARGET_TMPDIR"))
}

/// A directory in memory: for the images of file systems.
pub fn directory_in_memory() -> TempDir {
    directory_in("/dev/shm")
}

fn directory_in(parent: &str) -> TempDir {
    tempfile::Builder::new()
        .prefix("incoming-crash-")
        .tempdir_in(parent)
        .unwrap_or_else(|error| panic!("{parent}: {error} (mount -t tmpfs tmpfs /dev/shm)"))
}
