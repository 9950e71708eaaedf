//! Where files are handed over, and to whom: tried once at the start, so that no upload is the first
//! to find out.

use std::fmt;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use engine::driver::StorageDir;
use engine::op::OpenHow;
use engine::store::PARTS_NAME;

use super::ServerError;
use super::storage::{Storage, StorageError, is_full};
use crate::config::{Config, Group};

/// The storage directory and what else the operator has said about files, tried.
pub(super) fn open(
    config: &Config,
    take_over: impl FnMut() -> Result<Option<OwnedFd>, StorageError>,
) -> Result<Storage, ServerError> {
    let mut storage = Storage::open_with(&config.storage_dir, LOCK_PATIENCE, take_over)
        .map_err(|error| ServerError::Storage { dir: config.storage_dir.clone(), error })?;
    try_group(&storage, config.handover_group.as_ref())?;
    for root in &config.dest_roots {
        allow(&mut storage, root)
            .map_err(|problem| ServerError::DestRoot { root: root.clone(), problem })?;
    }
    Ok(storage)
}

/// Why files cannot arrive in a directory.
#[derive(Debug)]
pub enum RootProblem {
    /// It is in the storage directory, or around it.
    Entangled,
    /// A file would have to be copied there.
    OtherFileSystem,
    NotDirectory,
    Denied(io::Error),
}

/// Has files arrive in `root` and below, after one has been moved there and back.
fn allow(storage: &mut Storage, root: &Path) -> Result<(), RootProblem> {
    let [itself, there] = [storage.dir.path(), root].map(Path::canonicalize);
    let (itself, there) = (itself.map_err(RootProblem::Denied)?, there.map_err(RootProblem::of)?);
    if there.starts_with(&itself) || itself.starts_with(&there) {
        return Err(RootProblem::Entangled);
    }
    let dir = Arc::get_mut(&mut storage.dir).expect("nobody else has it yet");
    dir.allow(root);
    dir.check_directory(root).map_err(RootProblem::of)?;
    let dir = &storage.dir;
    let moved = with_trial_file(dir, |trial| {
        let to = root.join(TRIAL_NAME);
        // A killed process may have left it behind.
        let _ = dir.remove(&to);
        dir.rename(trial, &to)?;
        dir.sync_directory(root)?;
        dir.remove(&to)
    });
    moved.or_else(|error| if is_full(&error) { Ok(()) } else { Err(RootProblem::of(error)) })
}

impl RootProblem {
    fn of(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::CrossesDevices => Self::OtherFileSystem,
            ErrorKind::NotADirectory => Self::NotDirectory,
            _ => Self::Denied(error),
        }
    }

    fn remedy(&self) -> &'static str {
        match self {
            Self::Entangled => "choose a directory beside storage_dir",
            Self::OtherFileSystem => {
                "choose a directory on the file system and the mount of storage_dir, or move \
                 storage_dir there: files are moved by renaming, not copied"
            }
            Self::NotDirectory => "give a directory",
            Self::Denied(error) if error.kind() == ErrorKind::NotFound => {
                "make the directory, or leave it out"
            }
            Self::Denied(_) => "let this process's user read it and write to it, or leave it out",
        }
    }
}

impl fmt::Display for RootProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entangled => f.write_str("it is in the storage directory, or around it"),
            Self::OtherFileSystem => {
                f.write_str("it is on another file system than the storage directory")
            }
            Self::NotDirectory => f.write_str("it is no directory"),
            Self::Denied(error) => write!(f, "files cannot arrive there: {error}"),
        }?;
        write!(f, "\n  remedy: {}", self.remedy())
    }
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

/// A server that was just told to stop needs a moment for it: 5 seconds at most.
const LOCK_PATIENCE: Duration = Duration::from_secs(8);
const TRIAL_NAME: &str = ".trial";
const TRIAL_MODE: u32 = 0o600;
