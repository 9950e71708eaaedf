//! monoio: the default. One core on io_uring, or on epoll where the kernel refuses io_uring.
//!
//! Under epoll monoio would do direct writes inline and block the loop; they go to the writers of
//! the [`Helper`] instead.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use ::monoio::net::UnixStream;
use ::monoio::time::Sleep;
use ::monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

use super::helper::{Helper, errno, io_errno, output_bytes, read_at, retry, write_at};
use super::pump::{FileIo, Hub, Kernel, Pump, Wait};
use super::{Backend, Setup, ring};
use crate::op::{Errno, Machine, Output, Token};

/// Runs the machine. The runtime is built here, because its ring belongs to this thread.
pub(super) fn run<W: Machine + 'static>(machine: W, setup: Setup<W::Mail>) -> io::Result<()> {
    match setup.backend {
        Backend::IoUring => ring::build(|ring| {
            RuntimeBuilder::<IoUringDriver>::new()
                .with_entries(ring::ENTRY_COUNT)
                .uring_builder(ring.clone())
                .enable_timer()
                .build()
        })?
        .block_on(async {
            // A task: monoio enters the ring once more in each turn in which the main future starts
            // tasks.
            ::monoio::spawn(Pump::new(machine, Uring, setup)?.run()).await;
            Ok(())
        }),
        Backend::Epoll => {
            let helper = setup.helper.clone();
            RuntimeBuilder::<LegacyDriver>::new().enable_timer().build()?.block_on(async {
                Pump::new(machine, Epoll { helper }, setup)?.run().await;
                Ok(())
            })
        }
    }
}

struct Uring;

impl Kernel for Uring {
    type Socket = Socket;
    type File = File;
    type Sleep = Sleep;

    fn adopt_socket(fd: OwnedFd) -> io::Result<Socket> {
        Socket::new(fd)
    }

    fn adopt_file(fd: OwnedFd) -> io::Result<File> {
        Ok(File(::monoio::fs::File::from_std(fd.into())?))
    }

    fn ready(socket: Rc<Socket>, wait: Wait) -> impl Future<Output = Result<(), Errno>> + 'static {
        ready(socket, wait)
    }

    fn spawn(task: impl Future<Output = ()> + 'static) {
        drop(::monoio::spawn(task));
    }

    fn sleep_until(at: Instant) -> Sleep {
        ::monoio::time::sleep_until(at.into())
    }

    fn reset(sleep: Pin<&mut Sleep>, at: Instant) {
        sleep.reset(at.into());
    }

    fn start_io<M: Send + 'static>(
        &self,
        token: Token,
        file: Rc<File>,
        io: FileIo,
        hub: &Rc<Hub<M>>,
    ) {
        let hub = hub.clone();
        Self::spawn(async move {
            let result = match io {
                FileIo::Write { lease, offset_bytes } => {
                    file.0.write_at(lease, offset_bytes).await.0.map(output_bytes)
                }
                FileIo::Read { lease, offset_bytes } => {
                    file.0.read_at(lease, offset_bytes).await.0.map(output_bytes)
                }
                FileIo::Sync => file.0.sync_data().await.map(|()| Output::Done),
            };
            hub.complete(token, result.map_err(|it| io_errno(&it)));
        });
    }
}

struct Epoll {
    helper: Helper,
}

impl Kernel for Epoll {
    type Socket = Socket;
    /// Shared with the writers while they write.
    type File = Arc<OwnedFd>;
    type Sleep = Sleep;

    fn adopt_socket(fd: OwnedFd) -> io::Result<Socket> {
        Socket::new(fd)
    }

    fn adopt_file(fd: OwnedFd) -> io::Result<Arc<OwnedFd>> {
        Ok(Arc::new(fd))
    }

    fn ready(socket: Rc<Socket>, wait: Wait) -> impl Future<Output = Result<(), Errno>> + 'static {
        ready(socket, wait)
    }

    fn spawn(task: impl Future<Output = ()> + 'static) {
        drop(::monoio::spawn(task));
    }

    fn sleep_until(at: Instant) -> Sleep {
        ::monoio::time::sleep_until(at.into())
    }

    fn reset(sleep: Pin<&mut Sleep>, at: Instant) {
        sleep.reset(at.into());
    }

    fn start_io<M: Send + 'static>(
        &self,
        token: Token,
        file: Rc<Arc<OwnedFd>>,
        io: FileIo,
        hub: &Rc<Hub<M>>,
    ) {
        let fd = Arc::clone(&file);
        let io = move || match io {
            FileIo::Write { lease, offset_bytes } => write_at(fd, lease.bytes(), offset_bytes),
            FileIo::Read { mut lease, offset_bytes } => {
                read_at(fd, lease.bytes_mut(), offset_bytes)
            }
            FileIo::Sync => {
                retry(|| rustix::fs::fdatasync(&fd)).map(|()| Output::Done).map_err(errno)
            }
        };
        self.helper.write(token, io, &hub.mailbox);
    }
}

/// Any descriptor that can be polled. Of monoio's types, a Unix stream is the one that assumes
/// nothing about it; it only waits and closes here.
struct Socket(UnixStream);

impl Socket {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        UnixStream::from_std(StdUnixStream::from(fd)).map(Self)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the stream owns the descriptor for as long as it lives.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

async fn ready(socket: Rc<Socket>, wait: Wait) -> Result<(), Errno> {
    // Not "relaxed": under epoll monoio asks poll(2), because it never sees our `EAGAIN`.
    let ready = match wait {
        Wait::Read => socket.0.readable(false).await,
        Wait::Write => socket.0.writable(false).await,
    };
    ready.map_err(|it| io_errno(&it))
}

struct File(::monoio::fs::File);

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the file owns the descriptor for as long as it lives.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}
