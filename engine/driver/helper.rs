//! Calls that the ring has no business with: rare ones that can take long, on one thread for the
//! whole process, which keeps them in order; and, where io_uring is refused, direct reads and
//! writes, on two more threads (inline they would halve the throughput of the loop).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, Mode, OFlags, RenameFlags, Uid, chmod, chown, fallocate, fsync,
    ftruncate, open, renameat_with, statat, unlink,
};
use rustix::io::Errno as OsError;

use super::Backend;
use super::mailbox::{Parcel, Sender};
use crate::op::{Completion, Errno, FileId, Output, Token};

/// A handle to the helper threads; clone it for every core. They end with the last handle.
#[derive(Clone, Debug)]
pub struct Helper {
    calls: mpsc::Sender<Job>,
    /// Under epoll only.
    writers: Option<mpsc::Sender<Job>>,
}

impl Helper {
    /// Starts the thread for rare calls, and the writers where they are needed. Call it before a
    /// core is pinned: threads begin where the one that starts them may run.
    ///
    /// # Errors
    /// What starting a thread says (`EAGAIN`).
    pub fn start(backend: Backend) -> io::Result<Self> {
        let writers = match backend {
            Backend::IoUring => None,
            Backend::Epoll => Some(start_threads("writer", WRITER_COUNT)?),
        };
        Ok(Self { calls: start_threads("helper", 1)?, writers })
    }

    pub(super) fn call<M>(&self, token: Token, call: Call, answer_to: &Sender<M>)
    where
        M: Send + 'static,
    {
        let answer_to = answer_to.clone();
        let sent = self.calls.send(Box::new(move || answer_to.put(call.run(token))));
        assert!(sent.is_ok(), "the helper thread lives as long as its handles");
    }

    /// Runs `io` on a writer.
    pub(super) fn write<M>(
        &self,
        token: Token,
        io: impl FnOnce() -> Result<Output, Errno> + Send + 'static,
        answer_to: &Sender<M>,
    ) where
        M: Send + 'static,
    {
        let writers = self.writers.as_ref().expect("started for epoll");
        let answer_to = answer_to.clone();
        let sent = writers.send(Box::new(move || {
            answer_to.put(Parcel::Completion(Completion { token, result: io() }));
        }));
        assert!(sent.is_ok(), "the writers live as long as their handles");
    }
}

/// One rare call.
#[derive(Debug)]
pub(super) enum Call {
    Open { file: FileId, path: PathBuf, create: bool, direct: bool },
    Allocate { fd: OwnedFd, offset_bytes: u64, length_bytes: u64 },
    Truncate { fd: OwnedFd, length_bytes: u64 },
    SetOwner { path: PathBuf, mode: u32, owner_uid: Option<u32> },
    Rename { from: PathBuf, to: PathBuf },
    Remove { path: PathBuf },
    SyncDirectory { path: PathBuf },
}

impl Call {
    fn run<M>(self, token: Token) -> Parcel<M> {
        let done = match self {
            Self::Open { file, path, create, direct } => {
                let result = open_file(&path, create, direct).map_err(errno);
                return Parcel::Opened { token, file, direct, result };
            }
            Self::Allocate { fd, offset_bytes, length_bytes } => {
                retry(|| fallocate(&fd, FallocateFlags::empty(), offset_bytes, length_bytes))
            }
            Self::Truncate { fd, length_bytes } => retry(|| ftruncate(&fd, length_bytes)),
            Self::SetOwner { path, mode, owner_uid } => set_owner(&path, mode, owner_uid),
            Self::Rename { from, to } => rename(&from, &to),
            Self::Remove { path } => unlink(&path),
            Self::SyncDirectory { path } => sync_directory(&path),
        };
        let result = done.map(|()| Output::Done).map_err(errno);
        Parcel::Completion(Completion { token, result })
    }
}

pub(super) fn errno(error: OsError) -> Errno {
    Errno(error.raw_os_error())
}

/// Calls again what a signal has interrupted.
pub(super) fn retry<T>(call: impl FnMut() -> Result<T, OsError>) -> Result<T, OsError> {
    rustix::io::retry_on_intr(call)
}

/// The plain write of every driver: what goes through the page cache never waits long.
pub(super) fn write_at(fd: impl AsFd, bytes: &[u8], offset_bytes: u64) -> Result<Output, Errno> {
    let written = retry(|| rustix::io::pwrite(&fd, bytes, offset_bytes));
    written.map(output_bytes).map_err(errno)
}

pub(super) fn read_at(fd: impl AsFd, bytes: &mut [u8], offset_bytes: u64) -> Result<Output, Errno> {
    let read = retry(|| rustix::io::pread(&fd, &mut *bytes, offset_bytes));
    read.map(output_bytes).map_err(errno)
}

/// The kernel moves less than 2 GiB at a time.
pub(super) fn output_bytes(count: usize) -> Output {
    Output::Bytes(u32::try_from(count).expect("less than 2 GiB"))
}

fn open_file(path: &Path, create: bool, direct: bool) -> Result<OwnedFd, OsError> {
    let mut flags = OFlags::RDWR | OFlags::CLOEXEC;
    flags.set(OFlags::CREATE | OFlags::EXCL, create);
    flags.set(OFlags::DIRECT, direct);
    retry(|| open(path, flags, Mode::RUSR | Mode::WUSR))
}

fn set_owner(path: &Path, mode: u32, owner_uid: Option<u32>) -> Result<(), OsError> {
    // The mode first: once the file belongs to another, only a privileged server may change it.
    chmod(path, Mode::from_raw_mode(mode))?;
    match owner_uid {
        Some(uid) => chown(path, Some(Uid::from_raw(uid)), None),
        None => Ok(()),
    }
}

fn rename(from: &Path, to: &Path) -> Result<(), OsError> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // The file system (or a sandbox) does not know the flag. Looking first has a gap, which
        // nobody uses: the server alone makes names in its directories.
        Err(OsError::INVAL | OsError::NOSYS) => match statat(CWD, to, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Err(OsError::EXIST),
            Err(OsError::NOENT) => rustix::fs::rename(from, to),
            Err(error) => Err(error),
        },
        result => result,
    }
}

fn sync_directory(path: &Path) -> Result<(), OsError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fsync(open(path, flags, Mode::empty())?)
}

type Job = Box<dyn FnOnce() + Send>;

fn start_threads(name: &str, count: usize) -> io::Result<mpsc::Sender<Job>> {
    let (sender, receiver) = mpsc::channel::<Job>();
    let receiver = Arc::new(Mutex::new(receiver));
    for _ in 0..count {
        let receiver = receiver.clone();
        thread::Builder::new().name(name.into()).spawn(move || {
            loop {
                // One thread waits at the queue, the others for their turn.
                let job = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
                match job {
                    Ok(job) => job(),
                    Err(mpsc::RecvError) => break,
                }
            }
        })?;
    }
    Ok(sender)
}

/// Two keep a disk busy that one core writes to; more would only reorder.
const WRITER_COUNT: usize = 2;
