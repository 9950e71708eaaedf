//! The storage directory: made if it is missing, tried, and locked against a second server.
//! Nothing that lies in it is ever changed or removed here.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use engine::store::{ARRIVED_NAME, PARTS_NAME};
use rustix::fs::{FlockOperation, flock};

/// A storage directory that this process may use, and nobody else while this lives.
#[derive(Debug)]
pub struct Storage {
    /// Files of uploads that an earlier run did not finish. They are left alone.
    pub leftover_count: usize,
    /// Gives the lock back when it is closed.
    _lock: File,
}

/// Why a storage directory cannot be used.
#[derive(Debug)]
pub enum StorageError {
    /// It, or something on the way to it, is a file.
    NotDirectory,
    /// A server uses it. Its process id, if it could be read.
    Locked(Option<u32>),
    /// `parts/` and `arrived/` are on different file systems.
    Divided,
    /// What could not be done, with which path.
    Denied { what: &'static str, path: PathBuf, error: io::Error },
}

impl Storage {
    /// Opens `dir`, which is absolute.
    ///
    /// # Errors
    /// Whatever would later stop an upload: see [`StorageError`].
    pub fn open(dir: &Path) -> Result<Self, StorageError> {
        make_dir(dir, None)?;
        let lock = lock(&dir.join(LOCK_NAME))?;
        // Parts are nobody else's business. What has arrived is handed to web apps, which may take
        // it away if they belong to the group.
        make_dir(&dir.join(PARTS_NAME), Some(0o700))?;
        make_dir(&dir.join(ARRIVED_NAME), Some(0o2775))?;
        try_out(dir)?;
        let leftover_count = count(&dir.join(PARTS_NAME))?;
        Ok(Self { leftover_count, _lock: lock })
    }
}

/// Makes a directory unless it exists. `mode` is set on a new one, whatever the umask is; an
/// existing one keeps what its owner gave it.
fn make_dir(path: &Path, mode: Option<u32>) -> Result<(), StorageError> {
    if path.is_dir() {
        return Ok(());
    }
    let made = DirBuilder::new().recursive(true).mode(mode.unwrap_or(0o755)).create(path);
    made.map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists | ErrorKind::NotADirectory => StorageError::NotDirectory,
        _ => denied("make the directory", path)(error),
    })?;
    let Some(mode) = mode else { return Ok(()) };
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(denied("set the mode of", path))
}

fn lock(path: &Path) -> Result<File, StorageError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(path).map_err(denied("open the lock file", path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            let _ = (&mut file).take(PID_BYTES_MAX).read_to_string(&mut text);
            return Err(StorageError::Locked(text.trim().parse().ok()));
        }
        Err(error) => return Err(denied("lock", path)(error.into())),
    }
    // Only for the message of a second server; the lock itself is the kernel's.
    let written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(denied("write", path))?;
    Ok(file)
}

/// Does once what every upload does: makes a part and moves it to where it has arrived.
fn try_out(dir: &Path) -> Result<(), StorageError> {
    let from = dir.join(PARTS_NAME).join(TRIAL_NAME);
    let to = dir.join(ARRIVED_NAME).join(TRIAL_NAME);
    let _ = fs::remove_file(&from);
    fs::write(&from, b"").map_err(denied("make a file in", &dir.join(PARTS_NAME)))?;
    let moved = fs::rename(&from, &to);
    let removed = fs::remove_file(if moved.is_ok() { &to } else { &from });
    moved.map_err(|error| match error.kind() {
        ErrorKind::CrossesDevices => StorageError::Divided,
        _ => denied("make a file in", &dir.join(ARRIVED_NAME))(error),
    })?;
    removed.map_err(denied("remove a file from", &dir.join(ARRIVED_NAME)))
}

fn count(path: &Path) -> Result<usize, StorageError> {
    fs::read_dir(path).map(Iterator::count).map_err(denied("list", path))
}

fn denied(what: &'static str, path: &Path) -> impl Fn(io::Error) -> StorageError {
    let path = path.to_owned();
    move |error| StorageError::Denied { what, path: path.clone(), error }
}

impl StorageError {
    /// What the operator can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NotDirectory => "give a directory, or a path where one can be made",
            Self::Locked(_) => "stop that server, or give this one a directory of its own",
            Self::Divided => "mount the file system on the storage directory itself",
            Self::Denied { error, .. } => match error.kind() {
                ErrorKind::PermissionDenied => {
                    "give this process's user the directory (chown), or choose another one"
                }
                ErrorKind::ReadOnlyFilesystem => "mount it writable, or choose another one",
                ErrorKind::StorageFull => "make room, or choose another one",
                _ => "mend the file system, or choose another one",
            },
        }
    }
}

impl fmt::Display for StorageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotDirectory => f.write_str("it is not a directory"),
            Self::Locked(Some(pid)) => write!(f, "another server uses it (process {pid})"),
            Self::Locked(None) => f.write_str("another server uses it"),
            Self::Divided => write!(
                f,
                "{PARTS_NAME}/ and {ARRIVED_NAME}/ in it are on different file systems, so that \
                 files cannot be moved between them"
            ),
            Self::Denied { what, path, error } => {
                write!(f, "cannot {what} {}: {error}", path.display())
            }
        }
    }
}

impl std::error::Error for StorageError {}

const LOCK_NAME: &str = "lock";
const TRIAL_NAME: &str = ".trial";
const PID_BYTES_MAX: u64 = 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn makes_what_is_missing() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("a/b");
        let storage = Storage::open(&dir).unwrap();
        assert_eq!(storage.leftover_count, 0);
        assert_eq!(mode(&dir.join("parts")), 0o700);
        assert_eq!(mode(&dir.join("arrived")), 0o2775);
        assert_eq!(fs::read_dir(dir.join("arrived")).unwrap().count(), 0);
    }

    #[test]
    fn leaves_everything_that_is_there() {
        let temp = tempfile::tempdir().unwrap();
        drop(Storage::open(temp.path()).unwrap());
        fs::set_permissions(temp.path().join("arrived"), fs::Permissions::from_mode(0o2770))
            .unwrap();
        for name in ["parts/one", "parts/two", "arrived/three", "other"] {
            fs::write(temp.path().join(name), name).unwrap();
        }
        let storage = Storage::open(temp.path()).unwrap();
        assert_eq!(storage.leftover_count, 2);
        assert_eq!(mode(&temp.path().join("arrived")), 0o2770);
        for name in ["parts/one", "parts/two", "arrived/three", "other"] {
            assert_eq!(fs::read_to_string(temp.path().join(name)).unwrap(), name);
        }
    }

    #[test]
    fn one_server_at_a_time() {
        let temp = tempfile::tempdir().unwrap();
        let first = Storage::open(temp.path()).unwrap();
        let error = Storage::open(temp.path()).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("another server uses it (process {})", std::process::id())
        );
        drop(first);
        Storage::open(temp.path()).unwrap();
    }

    #[test]
    fn says_what_is_in_the_way() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("file");
        fs::write(&file, "").unwrap();
        for path in [file.clone(), file.join("below")] {
            let error = Storage::open(&path).unwrap_err();
            assert!(matches!(error, StorageError::NotDirectory), "{error}");
        }
        // Nobody can make directories in /proc, not even root.
        let error = Storage::open(Path::new("/proc/incoming")).unwrap_err();
        assert!(
            error.to_string().starts_with("cannot make the directory /proc/incoming: "),
            "{error}"
        );
        let blocked = temp.path().join("blocked");
        fs::create_dir(&blocked).unwrap();
        fs::write(blocked.join("parts"), "").unwrap();
        assert!(matches!(Storage::open(&blocked), Err(StorageError::NotDirectory)));
    }
}
