//! The storage directory: made if it is missing, tried, and locked against a second server.
//! Nothing that lies in it is ever changed or removed here.

use std::fmt;
use std::fs::{DirBuilder, File};
use std::io::{self, ErrorKind, Read, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use engine::driver::{StorageDir, sync_directory};
use engine::journal::JOURNAL_NAME;
use engine::op::OpenHow;
use engine::store::{ARRIVED_NAME, PARTS_NAME};
use rustix::fs::{FlockOperation, flock};

/// A storage directory that this process may use, and nobody else while this lives.
#[derive(Debug)]
pub struct Storage {
    pub dir: Arc<StorageDir>,
    /// Gives the lock back when it is closed.
    _lock: File,
}

/// Why a storage directory cannot be used.
#[derive(Debug)]
pub enum StorageError {
    /// It, or something on the way to it or in it, is a file or a symbolic link.
    NotDirectory(PathBuf),
    /// A server uses it. Its process id, if it could be read.
    Locked(Option<u32>),
    /// `parts/` and `arrived/` are on different file systems.
    Divided,
    /// This file would have to be overwritten without having been understood.
    JournalOfOtherVersion(PathBuf),
    /// What could not be done, with which path.
    Denied { what: &'static str, path: PathBuf, error: io::Error },
}

impl Storage {
    /// Opens `dir`, which is absolute. Where another server holds it, that one gets `patience` to
    /// end.
    ///
    /// # Errors
    /// Whatever would later stop an upload: see [`StorageError`].
    pub fn open(dir: &Path, patience: Duration) -> Result<Self, StorageError> {
        make_root(dir)?;
        let mut storage = StorageDir::open(dir).map_err(denied("open", dir))?;
        let lock = lock(&storage, patience)?;
        for (name, mode) in LAYOUT {
            storage.make_dir(name.as_ref(), mode).map_err(|error| match error.kind() {
                ErrorKind::NotADirectory => StorageError::NotDirectory(dir.join(name)),
                _ => denied("make the directory", &dir.join(name))(error),
            })?;
        }
        storage.sync_directory(".".as_ref()).map_err(denied("sync", dir))?;
        try_out(&storage)?;
        Ok(Self { dir: Arc::new(storage), _lock: lock })
    }
}

/// Makes the storage directory and what is missing on the way to it, durably.
fn make_root(dir: &Path) -> Result<(), StorageError> {
    let missing: Vec<&Path> = dir.ancestors().take_while(|it| !it.is_dir()).collect();
    for path in missing.iter().rev() {
        DirBuilder::new().mode(ROOT_MODE).create(path).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists | ErrorKind::NotADirectory => {
                StorageError::NotDirectory(path.to_path_buf())
            }
            _ => denied("make the directory", path)(error),
        })?;
        let parent = path.parent().unwrap_or(path);
        sync_directory(parent).map_err(denied("sync", parent))?;
    }
    Ok(())
}

fn lock(storage: &StorageDir, patience: Duration) -> Result<File, StorageError> {
    let path = storage.path().join(LOCK_NAME);
    let mut file = open_or_make(storage, LOCK_NAME.as_ref())
        .map(File::from)
        .map_err(denied("open the lock file", &path))?;
    let give_up = Instant::now() + patience;
    let mut is_first = true;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = String::new();
                let _ = file.rewind();
                let _ = (&mut file).take(PID_BYTES_MAX).read_to_string(&mut text);
                let pid = text.trim().parse().ok();
                if Instant::now() >= give_up {
                    return Err(StorageError::Locked(pid));
                }
                if std::mem::take(&mut is_first) {
                    tracing::info!(
                        pid,
                        "another server uses the storage directory; waiting for it"
                    );
                }
                thread::sleep(LOCK_PAUSE);
            }
            Err(error) => return Err(denied("lock", &path)(error.into())),
        }
    }
    // Only for the message of a second server; the lock itself is the kernel's. A full disk must
    // not stop a start.
    let text = format!("{:<1$}\n", std::process::id(), PID_BYTES_MAX as usize - 1);
    let _ = file.write_all_at(text.as_bytes(), 0);
    Ok(file)
}

/// Opens a file of the storage directory, made if it is missing (mode 0600).
fn open_or_make(storage: &StorageDir, path: &Path) -> io::Result<OwnedFd> {
    let create = OpenHow { create: true, ..OpenHow::default() };
    match storage.open_file(path, create) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            storage.open_file(path, OpenHow::default())
        }
        result => result,
    }
}

/// Does once what every upload does: makes a part and moves it to where it has arrived.
fn try_out(storage: &StorageDir) -> Result<(), StorageError> {
    let [from, to] = [PARTS_NAME, ARRIVED_NAME].map(|it| Path::new(it).join(TRIAL_NAME));
    let [parts, arrived] = [PARTS_NAME, ARRIVED_NAME].map(|it| storage.path().join(it));
    match open_or_make(storage, &from) {
        // Room may come.
        Err(error) if is_full(&error) => return Ok(()),
        result => result.map_err(denied("make a file in", &parts))?,
    };
    // A killed process may have left it behind.
    let _ = storage.remove(&to);
    let moved = storage.rename(&from, &to);
    let removed = storage.remove(if moved.is_ok() { &to } else { &from });
    match moved {
        Err(error) if error.kind() == ErrorKind::CrossesDevices => {
            return Err(StorageError::Divided);
        }
        Err(error) if is_full(&error) => {}
        result => result.map_err(denied("make a file in", &arrived))?,
    }
    removed.map_err(denied("remove a file from", &arrived))
}

pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

pub(super) fn denied(
    what: &'static str,
    path: &Path,
) -> impl Fn(io::Error) -> StorageError + use<> {
    let path = path.to_owned();
    move |error| StorageError::Denied { what, path: path.clone(), error }
}

impl StorageError {
    /// What the operator can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NotDirectory(_) => "give a directory, or a path where one can be made",
            Self::Locked(_) => "stop that server, or give this one a directory of its own",
            Self::Divided => "mount the file system on the storage directory itself",
            Self::JournalOfOtherVersion(_) => {
                "start the version that wrote it; or move journal/ away, which forgets its tickets"
            }
            Self::Denied { error, .. } => match error.kind() {
                ErrorKind::PermissionDenied => {
                    "give this process's user the directory (chown), or choose another one"
                }
                ErrorKind::ReadOnlyFilesystem => "mount it writable, or choose another one",
                ErrorKind::WouldBlock => "wait until the disk has ended what a killed server wrote",
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                    "make room, or choose another one"
                }
                _ => "mend the file system, or choose another one",
            },
        }
    }
}

impl fmt::Display for StorageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotDirectory(path) => write!(f, "{} is not a directory", path.display()),
            Self::Locked(Some(pid)) => write!(f, "another server uses it (process {pid})"),
            Self::Locked(None) => f.write_str("another server uses it"),
            Self::Divided => write!(
                f,
                "{PARTS_NAME}/ and {ARRIVED_NAME}/ in it are on different file systems, so that \
                 files cannot be moved between them"
            ),
            Self::JournalOfOtherVersion(path) => {
                write!(f, "another version of this server has written {}", path.display())
            }
            Self::Denied { what, path, error } => {
                write!(f, "cannot {what} {}: {error}", path.display())
            }
        }
    }
}

impl std::error::Error for StorageError {}

/// Parts and journals are nobody else's business. What has arrived is handed to web apps, which may
/// take it away if they belong to the group.
const LAYOUT: [(&str, u32); 3] =
    [(PARTS_NAME, 0o700), (ARRIVED_NAME, 0o2775), (JOURNAL_NAME, 0o700)];
const ROOT_MODE: u32 = 0o755;
const LOCK_NAME: &str = "lock";
const LOCK_PAUSE: Duration = Duration::from_millis(50);
const TRIAL_NAME: &str = ".trial";
const PID_BYTES_MAX: u64 = 20;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn open(dir: &Path) -> Result<Storage, StorageError> {
        Storage::open(dir, Duration::ZERO)
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn makes_what_is_missing() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("a/b");
        let storage = open(&dir).unwrap();
        assert_eq!(storage.dir.path(), dir);
        assert_eq!(mode(&dir.join("parts")), 0o700);
        assert_eq!(mode(&dir.join("journal")), 0o700);
        assert_eq!(mode(&dir.join("arrived")), 0o2775);
        assert_eq!(fs::read_dir(dir.join("arrived")).unwrap().count(), 0);
    }

    #[test]
    fn leaves_everything_that_is_there() {
        let temp = tempfile::tempdir().unwrap();
        drop(open(temp.path()).unwrap());
        fs::set_permissions(temp.path().join("arrived"), fs::Permissions::from_mode(0o2770))
            .unwrap();
        for name in ["parts/one", "parts/two", "arrived/three", "other"] {
            fs::write(temp.path().join(name), name).unwrap();
        }
        open(temp.path()).unwrap();
        assert_eq!(mode(&temp.path().join("arrived")), 0o2770);
        for name in ["parts/one", "parts/two", "arrived/three", "other"] {
            assert_eq!(fs::read_to_string(temp.path().join(name)).unwrap(), name);
        }
    }

    #[test]
    fn one_server_at_a_time() {
        let temp = tempfile::tempdir().unwrap();
        let first = open(temp.path()).unwrap();
        let error = open(temp.path()).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("another server uses it (process {})", std::process::id())
        );
        drop(first);
        open(temp.path()).unwrap();
    }

    #[test]
    fn says_what_is_in_the_way() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("file");
        fs::write(&file, "").unwrap();
        for path in [file.clone(), file.join("below")] {
            let error = open(&path).unwrap_err();
            assert!(matches!(error, StorageError::NotDirectory(_)), "{error}");
        }
        // Nobody can make directories in /proc, not even root.
        let error = open(Path::new("/proc/incoming")).unwrap_err();
        assert!(
            error.to_string().starts_with("cannot make the directory /proc/incoming: "),
            "{error}"
        );
        let blocked = temp.path().join("blocked");
        fs::create_dir(&blocked).unwrap();
        fs::write(blocked.join("parts"), "").unwrap();
        let error = open(&blocked).unwrap_err();
        assert!(matches!(error, StorageError::NotDirectory(it) if it == blocked.join("parts")));
        // What is behind a symbolic link would not be looked after.
        fs::remove_file(blocked.join("parts")).unwrap();
        symlink(temp.path(), blocked.join("parts")).unwrap();
        assert!(matches!(open(&blocked), Err(StorageError::NotDirectory(_))));
    }

    #[test]
    fn waits_for_a_server_that_ends() {
        let temp = tempfile::tempdir().unwrap();
        let first = open(temp.path()).unwrap();
        let path = temp.path().to_owned();
        let second = thread::spawn(move || Storage::open(&path, Duration::from_secs(60)));
        thread::sleep(2 * LOCK_PAUSE);
        drop(first);
        second.join().unwrap().unwrap();
    }
}
