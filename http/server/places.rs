//! Where files are handed over, and to whom: tried once at the start, so that no upload is the first
//! to find out.

use std::io;
use std::path::Path;
use std::time::Duration;

use engine::driver::StorageDir;
use engine::op::OpenHow;
use engine::store::PARTS_NAME;

use super::ServerError;
use super::storage::{Storage, is_full};
use crate::config::{Config, Group};

/// The storage directory and what else the operator has said about files, tried.
pub(super) fn open(config: &Config) -> Result<Storage, ServerError> {
    let storage = Storage::open(&config.storage_dir, LOCK_PATIENCE)
        .map_err(|error| ServerError::Storage { dir: config.storage_dir.clone(), error })?;
    try_group(&storage, config.handover_group.as_ref())?;
    Ok(storage)
}

/// Gives a file to the group that handed-over files shall have.
fn try_group(storage: &Storage, group: Option<&Group>) -> Result<(), ServerError> {
    let Some(group) = group else { return Ok(()) };
    let given = with_trial_file(&storage.dir, |trial| {
        storage.dir.set_owner(trial, TRIAL_MODE, Some(group.gid), None)
    });
    given.map_err(|error| ServerError::HandoverGroup { name: group.name.clone(), error })
}

/// Tries something with a new file among the parts. Nothing is tried where the disk is full: room
/// may come.
fn with_trial_file(
    storage: &StorageDir,
    body: impl FnOnce(&Path) -> io::Result<()>,
) -> io::Result<()> {
    let trial = Path::new(PARTS_NAME).join(TRIAL_NAME);
    // A killed process may have left it behind.
    let _ = storage.remove(&trial);
    match storage.open_file(&trial, OpenHow { create: true, ..OpenHow::default() }) {
        Err(error) if is_full(&error) => return Ok(()),
        result => drop(result?),
    }
    let result = body(&trial);
    let _ = storage.remove(&trial);
    result
}

/// A server that was just told to stop needs a moment for it.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);
const TRIAL_NAME: &str = ".trial";
const TRIAL_MODE: u32 = 0o600;
