//! Whether the machine has started anew since the run before.
//!
//! A server that acknowledges without syncs promises that bytes survive its own end, not that of the
//! machine. Its journal may say more than what the disk has then: states are synced, and with them
//! the offsets of that moment, but not the bytes. So such a run notes in which start of the machine
//! it lives, and a run in a later one believes none of its offsets.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use engine::driver::StorageDir;
use engine::journal::JOURNAL_NAME;
use engine::op::OpenHow;

/// This start of the machine, as the kernel names it; empty where it does not.
#[derive(Debug)]
pub(super) struct Boot(String);

impl Boot {
    pub(super) fn new() -> Self {
        Self(fs::read_to_string(KERNEL_PATH).unwrap_or_default())
    }

    /// The last run that noted it lived in this start of the machine.
    pub(super) fn is_noted(&self, storage: &StorageDir) -> io::Result<bool> {
        let mut noted = String::new();
        match storage.open_file(&path(), OpenHow::default()) {
            Ok(fd) => File::from(fd).take(NOTE_BYTES_MAX).read_to_string(&mut noted)?,
            Err(error) if error.kind() == ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        Ok(!self.0.is_empty() && noted == self.0)
    }

    /// Durably. Only when the journals of the new run count: until then, those before it belong to
    /// what is noted.
    pub(super) fn note(&self, storage: &StorageDir) -> io::Result<()> {
        let open = |create| storage.open_file(&path(), OpenHow { create, ..OpenHow::default() });
        let opened = match open(true) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => open(false),
            opened => opened,
        };
        let file = File::from(opened?);
        file.set_len(self.0.len() as u64)?;
        file.write_all_at(self.0.as_bytes(), 0)?;
        file.sync_all()?;
        storage.sync_directory(JOURNAL_NAME.as_ref())
    }
}

pub(super) fn path() -> PathBuf {
    Path::new(JOURNAL_NAME).join("boot")
}

const KERNEL_PATH: &str = "/proc/sys/kernel/random/boot_id";
const NOTE_BYTES_MAX: u64 = 100;
