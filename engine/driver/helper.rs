//! Calls that the ring has no business with: rare ones that can take long, on one thread for the
//! whole process, which keeps them in order; and, where io_uring is refused, direct reads and
//! writes, on two more threads (inline they would halve the throughput of the loop).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

use rustix::fs::{FallocateFlags, fallocate, ftruncate};
use rustix::io::Errno as OsError;

use super::Backend;
use super::directory::StorageDir;
use super::mailbox::{Parcel, Sender};
use crate::op::{Completion, Errno, FileId, OpenHow, Output, Token};

/// A handle to the helper threads; clone it for every core. They end with the last handle: who drops
/// it waits for them.
#[derive(Clone, Debug)]
pub struct Helper {
    calls: Arc<Workers>,
    storage: Arc<StorageDir>,
    /// Under epoll only.
    writers: Option<Arc<Workers>>,
}

impl Helper {
    /// Starts the thread for rare calls, and the writers where they are needed. All paths of ops
    /// are relative to `storage`. Call it before a core is pinned: threads begin where the one that
    /// starts them may run.
    ///
    /// # Errors
    /// What starting a thread says (`EAGAIN`).
    pub fn start(backend: Backend, storage: Arc<StorageDir>) -> io::Result<Self> {
        let writers = match backend {
            Backend::IoUring => None,
            Backend::Epoll => Some(Arc::new(Workers::start("writer", WRITER_COUNT)?)),
        };
        Ok(Self { calls: Arc::new(Workers::start("helper", 1)?), storage, writers })
    }

    pub(super) fn call<M>(&self, token: Token, call: Call, answer_to: &Sender<M>)
    where
        M: Send + 'static,
    {
        let (storage, answer_to) = (self.storage.clone(), answer_to.clone());
        self.calls.run(Box::new(move || answer_to.put(call.run(&storage, token))));
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
        writers.run(Box::new(move || {
            answer_to.put(Parcel::Completion(Completion { token, result: io() }));
        }));
    }
}

/// One rare call.
#[derive(Debug)]
pub(super) enum Call {
    Open { file: FileId, path: PathBuf, how: OpenHow },
    Allocate { fd: OwnedFd, offset_bytes: u64, length_bytes: u64 },
    Truncate { fd: OwnedFd, length_bytes: u64 },
    SetOwner { path: PathBuf, mode: u32, group_gid: Option<u32>, owner_uid: Option<u32> },
    Rename { from: PathBuf, to: PathBuf },
    Remove { path: PathBuf },
    SyncDirectory { path: PathBuf },
    CheckDirectory { path: PathBuf },
    CheckStorage,
}

impl Call {
    fn run<M>(self, storage: &StorageDir, token: Token) -> Parcel<M> {
        let done = match self {
            Self::Open { file, path, how } => {
                let result = storage.open_file(&path, how).map_err(|it| io_errno(&it));
                return Parcel::Opened { token, file, how, result };
            }
            Self::Allocate { fd, offset_bytes, length_bytes } => {
                let flags = FallocateFlags::empty();
                let done = retry(|| fallocate(&fd, flags, offset_bytes, length_bytes));
                done.map_err(io::Error::from)
            }
            Self::Truncate { fd, length_bytes } => {
                retry(|| ftruncate(&fd, length_bytes)).map_err(io::Error::from)
            }
            Self::SetOwner { path, mode, group_gid, owner_uid } => {
                storage.set_owner(&path, mode, group_gid, owner_uid)
            }
            Self::Rename { from, to } => storage.rename(&from, &to),
            Self::Remove { path } => storage.remove(&path),
            Self::SyncDirectory { path } => storage.sync_directory(&path),
            Self::CheckDirectory { path } => storage.check_directory(&path),
            Self::CheckStorage => {
                let result = Ok(Output::Storage(storage.state()));
                return Parcel::Completion(Completion { token, result });
            }
        };
        let result = done.map(|()| Output::Done).map_err(|it| io_errno(&it));
        Parcel::Completion(Completion { token, result })
    }
}

pub(super) fn errno(error: OsError) -> Errno {
    Errno(error.raw_os_error())
}

/// What the kernel never said (a path with a NUL byte) is as good as an invalid argument.
pub(super) fn io_errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EINVAL, Errno)
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

type Job = Box<dyn FnOnce() + Send>;

/// Threads at one queue.
#[derive(Debug)]
struct Workers {
    /// Until they are to end.
    queue: Option<mpsc::Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    fn start(name: &str, count: usize) -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel::<Job>();
        let receiver = Arc::new(Mutex::new(receiver));
        let mut it = Self { queue: Some(sender), threads: Vec::new() };
        for _ in 0..count {
            let receiver = receiver.clone();
            it.threads.push(thread::Builder::new().name(name.into()).spawn(move || {
                loop {
                    // One thread waits at the queue, the others for their turn.
                    let job = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    match job {
                        Ok(job) => job(),
                        Err(mpsc::RecvError) => break,
                    }
                }
            })?);
        }
        Ok(it)
    }

    fn run(&self, job: Job) {
        let sent = self.queue.as_ref().map(|it| it.send(job));
        assert!(matches!(sent, Some(Ok(()))), "the threads live as long as their handles");
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        drop(self.queue.take());
        for thread in self.threads.drain(..) {
            // Nobody waits any more for what one that panicked has left undone.
            let _ = thread.join();
        }
    }
}

/// Two keep a disk busy that one core writes to; more would only reorder.
const WRITER_COUNT: usize = 2;
