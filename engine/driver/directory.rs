//! The storage directory: opened once, and everything in it is reached through that descriptor.
//!
//! So a directory that is unmounted, renamed or swapped while the server runs is never written to
//! by mistake, and no symbolic link in it leads anywhere. Names are made durable by syncing the
//! directory they stand in; that is for the caller to ask for.

use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{
    Access, AtFlags, CWD, Dir, FileType, FlockOperation, Gid, Mode, OFlags, RenameFlags,
    ResolveFlags, Stat, StatVfsMountFlags, Timespec, Timestamps, UTIME_NOW, Uid, accessat, fchmod,
    fchown, flock, fstat, fstatvfs, fsync, futimens, mkdirat, open, openat, openat2, renameat,
    renameat_with, stat, statat, unlinkat,
};
use rustix::io::Errno as OsError;

use super::helper::retry;
use crate::op::{OpenHow, StorageHealth, StorageState};

/// A storage directory. All paths given to it are relative to it and never leave it, not by `..`
/// and not by a symbolic link; or they are absolute, and the same holds for one of the roots.
#[derive(Debug)]
pub struct StorageDir {
    path: PathBuf,
    fd: OwnedFd,
    itself: Identity,
    /// The directories in it that must stay what they are.
    children: Vec<(PathBuf, Identity)>,
    /// Other directories that files may be moved to, or below.
    roots: Vec<PathBuf>,
}

impl StorageDir {
    /// Opens `path`, which may be a symbolic link: it is followed once, now.
    pub fn open(path: &Path) -> io::Result<Self> {
        let fd = open(path, DIRECTORY, Mode::empty())?;
        let itself = Identity::of(&fstat(&fd)?);
        Ok(Self { path: path.to_owned(), fd, itself, children: Vec::new(), roots: Vec::new() })
    }

    /// As it was given to [`StorageDir::open`].
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Absolute paths may lead below `root`, which is absolute itself.
    pub fn allow(&mut self, root: &Path) {
        self.roots.push(root.to_owned());
    }

    /// Whether files can be moved to a directory.
    ///
    /// # Errors
    /// `CrossesDevices` where they would have to be copied, or where it is out of bounds.
    pub fn check_directory(&self, path: &Path) -> io::Result<()> {
        let directory = self.resolve(path, DIRECTORY, Mode::empty())?;
        if Identity::of(&fstat(&directory)?).device != self.itself.device {
            return Err(ErrorKind::CrossesDevices.into());
        }
        Ok(accessat(&directory, ".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)?)
    }

    /// Whether there is a regular file of this name.
    pub fn has_file(&self, path: &Path) -> io::Result<bool> {
        let (parent, name) = self.parent(path)?;
        let found = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(FileType::from_raw_mode(found.st_mode) == FileType::RegularFile)
    }

    /// Makes a directory unless it exists, and remembers it. `mode` is set on a new one, whatever
    /// the umask is; an existing one keeps what its owner gave it.
    ///
    /// # Errors
    /// `NotADirectory` where a file or a symbolic link is in the way.
    pub fn make_dir(&mut self, name: &Path, mode: u32) -> io::Result<()> {
        let (parent, last) = self.parent(name)?;
        let made = mkdirat(&parent, last, Mode::RWXU);
        let directory = self.resolve(name, DIRECTORY, Mode::empty()).map_err(|error| {
            match OsError::from_io_error(&error) {
                Some(OsError::LOOP) => ErrorKind::NotADirectory.into(),
                _ => error,
            }
        })?;
        match made {
            Ok(()) => fchmod(&directory, Mode::from_raw_mode(mode))?,
            Err(OsError::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        self.children.push((name.to_owned(), Identity::of(&fstat(&directory)?)));
        Ok(())
    }

    /// Opens a file for reading and writing.
    pub fn open_file(&self, path: &Path, how: OpenHow) -> io::Result<OwnedFd> {
        let OpenHow { create, direct, dsync, lock } = how;
        let mut flags = OFlags::RDWR;
        flags.set(OFlags::CREATE | OFlags::EXCL, create);
        flags.set(OFlags::DIRECT, direct);
        flags.set(OFlags::DSYNC, dsync);
        let mode = if create { Mode::RUSR | Mode::WUSR } else { Mode::empty() };
        let fd = self.resolve(path, flags, mode)?;
        if lock {
            retry(|| flock(&fd, FlockOperation::NonBlockingLockExclusive))?;
        }
        Ok(fd)
    }

    /// The group first, so that nobody else's may read what the mode allows. The owner last: once
    /// the file belongs to another, only a privileged server may change it.
    ///
    /// # Errors
    /// The first of what may not be set. The rest is set all the same.
    pub fn set_owner(
        &self,
        path: &Path,
        mode: u32,
        group_gid: Option<u32>,
        owner_uid: Option<u32>,
    ) -> io::Result<()> {
        let fd = self.resolve(path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())?;
        let group = group_gid.map_or(Ok(()), |it| fchown(&fd, None, Some(Gid::from_raw(it))));
        let mode = fchmod(&fd, Mode::from_raw_mode(mode));
        let owner = owner_uid.map_or(Ok(()), |it| fchown(&fd, Some(Uid::from_raw(it)), None));
        Ok(group.and(mode).and(owner)?)
    }

    /// Renames, replacing nothing (`AlreadyExists`).
    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let ((from_dir, from), (to_dir, to)) = (self.parent(from)?, self.parent(to)?);
        match renameat_with(&from_dir, from, &to_dir, to, RenameFlags::NOREPLACE) {
            // The file system (or a sandbox) does not know the flag. Looking first has a gap, which
            // nobody uses: the server alone makes names in its directories.
            Err(OsError::INVAL | OsError::NOSYS) => {
                match statat(&to_dir, to, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(_) => Err(OsError::EXIST.into()),
                    Err(OsError::NOENT) => Ok(renameat(&from_dir, from, &to_dir, to)?),
                    Err(error) => Err(error.into()),
                }
            }
            result => Ok(result?),
        }
    }

    pub fn remove(&self, path: &Path) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        Ok(unlinkat(parent, name, AtFlags::empty())?)
    }

    /// Makes the names in a directory durable. `.` is the storage directory itself.
    pub fn sync_directory(&self, path: &Path) -> io::Result<()> {
        let directory = self.resolve(path, DIRECTORY, Mode::empty())?;
        Ok(retry(|| fsync(&directory))?)
    }

    /// A file for trying the disk, which has no name any more. Only one process at a time does
    /// this, the one that has locked the directory.
    pub(super) fn probe_file(&self, directory: &Path, how: OpenHow) -> io::Result<OwnedFd> {
        let path = directory.join(PROBE_NAME);
        // A killed process may have left it behind.
        let _ = self.remove(&path);
        let file = self.open_file(&path, OpenHow { create: true, ..how })?;
        self.remove(&path)?;
        Ok(file)
    }

    /// The names of a directory's regular files, in no order.
    pub fn files(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let directory = self.resolve(path, DIRECTORY, Mode::empty())?;
        let mut found = Vec::new();
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            let kind = match entry.file_type() {
                // The file system does not tell it here. Who is gone since is of no kind.
                FileType::Unknown => {
                    let asked = statat(&directory, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW);
                    asked.map_or(FileType::Unknown, |it| FileType::from_raw_mode(it.st_mode))
                }
                kind => kind,
            };
            if kind == FileType::RegularFile {
                found.push(OsStr::from_bytes(entry.file_name().to_bytes()).to_owned());
            }
        }
        Ok(found)
    }

    /// When the content of a file was last changed.
    pub fn modified(&self, path: &Path) -> io::Result<SystemTime> {
        let (parent, name) = self.parent(path)?;
        let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        // Before 1970 is as good as 1970.
        let since_epoch = u64::try_from(stat.st_mtime).unwrap_or(0);
        Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(since_epoch))
    }

    /// Whether everything is still in its place, and how much room there is.
    pub fn state(&self) -> StorageState {
        let gone = StorageState { free_bytes: 0, health: StorageHealth::Gone };
        let is_here = |found: Result<Stat, OsError>, expected: Identity| {
            found.is_ok_and(|it| Identity::of(&it) == expected && it.st_nlink > 0)
        };
        let in_place = is_here(fstat(&self.fd), self.itself)
            && is_here(stat(&self.path), self.itself)
            && self.children.iter().all(|(name, expected)| {
                is_here(statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW), *expected)
            });
        let Ok(it) = fstatvfs(&self.fd) else { return gone };
        if !in_place {
            return gone;
        }
        let health = match self.touch() {
            _ if it.f_flag.contains(StatVfsMountFlags::RDONLY) => StorageHealth::ReadOnly,
            Err(OsError::ROFS) => StorageHealth::ReadOnly,
            Err(OsError::IO) => StorageHealth::Gone,
            // Not allowed, or no space for it: that says nothing about the files.
            Ok(()) | Err(_) => StorageHealth::Good,
        };
        // What is left to everybody: what is kept back for root is not for uploads.
        StorageState { free_bytes: it.f_bavail.saturating_mul(it.f_frsize), health }
    }

    /// Changes the directory's times: a file system that has given up after an error does not say
    /// so (ext4 since Linux 6.15), but it refuses every change.
    fn touch(&self) -> Result<(), OsError> {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        futimens(&self.fd, &Timestamps { last_access: now, last_modification: now })
    }

    /// Opens what `path` names, following no symbolic link.
    fn resolve(&self, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC;
        let beneath =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let (root, below) = self.base(path)?;
        let base = root.as_ref().unwrap_or(&self.fd);
        match retry(|| openat2(base, below, flags, mode, beneath)) {
            // Before Linux 5.6, or in a sandbox that does not know the call.
            Err(OsError::NOSYS | OsError::PERM) => self.resolve_stepwise(path, flags, mode),
            result => Ok(result?),
        }
    }

    /// The same without openat2.
    fn resolve_stepwise(&self, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let (root, below) = self.base(path)?;
        let base = root.as_ref().unwrap_or(&self.fd);
        let components = below.components().collect::<Vec<_>>();
        let (last, parents) = components.split_last().ok_or(ErrorKind::NotFound)?;
        let mut directory: Option<OwnedFd> = None;
        let at = |directory: &Option<OwnedFd>, name: &Component<'_>, flags, mode| match name {
            Component::Normal(_) | Component::CurDir => {
                let fd = directory.as_ref().unwrap_or(base);
                retry(|| openat(fd, name.as_os_str(), flags | OFlags::NOFOLLOW, mode))
            }
            // As openat2 says it.
            _ => Err(OsError::XDEV),
        };
        for name in parents {
            directory = Some(at(&directory, name, PARENT, Mode::empty())?);
        }
        Ok(at(&directory, last, flags, mode)?)
    }

    /// The root that an absolute path lies below, and what is left of the path.
    fn base<'p>(&self, path: &'p Path) -> io::Result<(Option<OwnedFd>, &'p Path)> {
        if !path.is_absolute() {
            return Ok((None, path));
        }
        let below = |root: &PathBuf| Some((root.clone(), path.strip_prefix(root).ok()?));
        // Out of bounds, as openat2 says it.
        let (root, below) = self.roots.iter().find_map(below).ok_or(OsError::XDEV)?;
        let below = if below.as_os_str().is_empty() { Path::new(".") } else { below };
        // Anew each time: it is the operator's, who may put another one there.
        Ok((Some(retry(|| open(&root, PARENT, Mode::empty()))?), below))
    }

    /// The directory that a name stands in, and the name. None of the calls on names follows a
    /// symbolic link at its end.
    fn parent<'p>(&self, path: &'p Path) -> io::Result<(OwnedFd, &'p OsStr)> {
        let name = path.file_name().ok_or(ErrorKind::InvalidInput)?;
        let parent = path.parent().filter(|it| !it.as_os_str().is_empty());
        let parent = self.resolve(parent.unwrap_or(Path::new(".")), PARENT, Mode::empty())?;
        Ok((parent, name))
    }
}

/// Syncs a directory outside of any storage directory.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = openat(CWD, path, DIRECTORY, Mode::empty())?;
    Ok(retry(|| fsync(&directory))?)
}

/// Takes the lock from an open file, also where the runtime closes the descriptor only later.
pub(super) fn unlock(fd: impl AsFd) {
    // It can only fail for a descriptor that is none.
    let _ = retry(|| flock(&fd, FlockOperation::Unlock));
}

/// What a path leads to, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    fn of(stat: &Stat) -> Self {
        Self { device: stat.st_dev, inode: stat.st_ino }
    }
}

const PROBE_NAME: &str = ".probe";
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const PARENT: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

#[cfg(test)]
mod tests;
