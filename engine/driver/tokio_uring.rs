//! tokio-uring: the second runtime, measured beside the first.
//!
//! Its own API has no wait for readiness, so this driver keeps plain descriptors and submits raw
//! entries. DEFER_TASKRUN is not for it: it waits in epoll on the ring's descriptor.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::time::Instant;

use ::tokio_uring::{OneshotOutputTransform, UnsubmittedOneshot};
use io_uring::types::{Fd, FsyncFlags};
use io_uring::{cqueue, opcode, squeue};
use rustix::event::PollFlags;
use tokio::time::Sleep;

use super::pump::{FileIo, Hub, Kernel, Pump, Wait};
use super::{Setup, ring};
use crate::op::{Errno, Machine, Output, Token};

/// Runs the machine.
///
/// # Errors
/// Where io_uring is refused: this runtime has nothing else.
pub(super) fn run<W: Machine>(machine: W, setup: Setup<W::Mail>) -> io::Result<()> {
    let mut builder = ::tokio_uring::builder();
    builder.entries(ring::ENTRY_COUNT).uring_builder(&ring::plain());
    ring::patiently(|| ::tokio_uring::Runtime::new(&builder))?.block_on(async {
        Pump::new(machine, TokioUring, setup)?.run().await;
        Ok(())
    })
}

struct TokioUring;

impl Kernel for TokioUring {
    type Socket = OwnedFd;
    type File = OwnedFd;
    type Sleep = Sleep;

    fn adopt_socket(fd: OwnedFd) -> io::Result<OwnedFd> {
        Ok(fd)
    }

    fn adopt_file(fd: OwnedFd) -> io::Result<OwnedFd> {
        Ok(fd)
    }

    async fn ready(socket: Rc<OwnedFd>, wait: Wait) -> Result<(), Errno> {
        let events = match wait {
            Wait::Read => PollFlags::IN,
            Wait::Write => PollFlags::OUT,
        };
        let poll = opcode::PollAdd::new(Fd(socket.as_raw_fd()), events.bits().into()).build();
        submit(socket, poll).await.map(drop)
    }

    fn spawn(task: impl Future<Output = ()> + 'static) {
        drop(::tokio_uring::spawn(task));
    }

    fn sleep_until(at: Instant) -> Sleep {
        tokio::time::sleep_until(at.into())
    }

    fn reset(sleep: Pin<&mut Sleep>, at: Instant) {
        sleep.reset(at.into());
    }

    fn start_io<M: Send + 'static>(
        &self,
        token: Token,
        file: Rc<OwnedFd>,
        io: FileIo,
        hub: &Rc<Hub<M>>,
    ) {
        let fd = Fd(file.as_raw_fd());
        let hub = hub.clone();
        Self::spawn(async move {
            // A lease lives as long as the op anyway, because the loop does not end before.
            let result = match io {
                FileIo::Write { lease, offset_bytes } => {
                    let write = opcode::Write::new(fd, lease.address(), lease.length());
                    submit((file, lease), write.offset(offset_bytes).build())
                        .await
                        .map(Output::Bytes)
                }
                FileIo::Read { lease, offset_bytes } => {
                    let read = opcode::Read::new(fd, lease.address(), lease.length());
                    submit((file, lease), read.offset(offset_bytes).build())
                        .await
                        .map(Output::Bytes)
                }
                FileIo::Sync => {
                    let sync = opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC);
                    submit(file, sync.build()).await.map(|_| Output::Done)
                }
            };
            hub.complete(token, result);
        });
    }
}

/// Gives an entry to the ring, with `owner`, which keeps what it uses until the completion.
async fn submit<T: Unpin + 'static>(owner: T, entry: squeue::Entry) -> Result<u32, Errno> {
    UnsubmittedOneshot::new(owner, ResultOnly(PhantomData), entry).submit().await
}

struct ResultOnly<T>(PhantomData<T>);

impl<T> OneshotOutputTransform for ResultOnly<T> {
    type Output = Result<u32, Errno>;
    type StoredData = T;

    fn transform_oneshot_output(self, _owner: T, entry: cqueue::Entry) -> Self::Output {
        u32::try_from(entry.result()).map_err(|_| Errno(-entry.result()))
    }
}
