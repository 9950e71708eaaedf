//! What other threads have for a core: a queue and an eventfd that its ring waits on.
//!
//! One mechanism serves both runtimes: wakers of tasks do not cross threads in monoio without a
//! feature that costs as much. The eventfd is written once for a whole burst: who finds the
//! receiver notified already leaves it at the queue.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use crate::op::{Completion, Errno, FileId, OpenHow, Token};

/// A new mailbox: many senders, one receiver.
///
/// # Errors
/// What `eventfd` says (`EMFILE`, `ENFILE`, `ENOMEM`).
pub fn mailbox<M>() -> io::Result<(Sender<M>, Receiver<M>)> {
    let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let queue = Queue { parcels: Vec::new(), notified: false };
    let shared = Arc::new(Shared { queue: Mutex::new(queue), bell });
    Ok((Sender { shared: shared.clone() }, Receiver { shared }))
}

/// Puts mail into a core's mailbox, from any thread. What is sent to a core that has stopped is
/// dropped with the mailbox.
pub struct Sender<M> {
    shared: Arc<Shared<M>>,
}

impl<M> Sender<M> {
    /// Sends one message; the core gets it as [`crate::op::Event::Mail`].
    pub fn send(&self, mail: M) {
        self.put(Parcel::Mail(mail));
    }

    pub(super) fn put(&self, parcel: Parcel<M>) {
        let mut queue = self.shared.lock();
        queue.parcels.push(parcel);
        let is_first = !std::mem::replace(&mut queue.notified, true);
        drop(queue);
        if is_first {
            // It cannot fail: the counter would have to overflow first.
            let rung = rustix::io::write(&self.shared.bell, &ONE);
            debug_assert_eq!(rung, Ok(8));
        }
    }
}

impl<M> Clone for Sender<M> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<M> fmt::Debug for Sender<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}

/// The core's end of its mailbox.
pub struct Receiver<M> {
    shared: Arc<Shared<M>>,
}

impl<M> Receiver<M> {
    /// Another sender to this mailbox.
    pub fn sender(&self) -> Sender<M> {
        Sender { shared: self.shared.clone() }
    }

    /// Readable when there may be parcels.
    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.shared.bell.as_fd()
    }

    /// Stops the bell, then takes everything. What comes after rings again.
    pub(super) fn take(&self, parcels: &mut Vec<Parcel<M>>) {
        // `EAGAIN`, if it has not rung, is as good.
        let _ = rustix::io::read(&self.shared.bell, &mut [0_u8; 8]);
        let mut queue = self.shared.lock();
        queue.notified = false;
        parcels.append(&mut queue.parcels);
    }
}

impl<M> fmt::Debug for Receiver<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").finish_non_exhaustive()
    }
}

/// Something that happened, for the loop of a core: in its own tasks or in another thread.
pub(super) enum Parcel<M> {
    Mail(M),
    Completion(Completion),
    Accepted { token: Token, result: Result<(OwnedFd, SocketAddr), Errno> },
    Opened { token: Token, file: FileId, how: OpenHow, result: Result<OwnedFd, Errno> },
    Migrated { socket: OwnedFd, mail: M },
}

struct Shared<M> {
    queue: Mutex<Queue<M>>,
    bell: OwnedFd,
}

impl<M> Shared<M> {
    fn lock(&self) -> MutexGuard<'_, Queue<M>> {
        // A push or a take leaves no half-done queue behind a panic.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Queue<M> {
    parcels: Vec<Parcel<M>>,
    /// The bell rings, or is about to.
    notified: bool,
}

/// What an eventfd is told: a number as this machine has it.
#[expect(clippy::host_endian_bytes, reason = "the kernel's own number")]
const ONE: [u8; 8] = 1_u64.to_ne_bytes();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_once_for_a_burst_and_again_after_it_was_taken() {
        let (sender, receiver) = mailbox::<u32>().unwrap();
        let rung = || {
            let mut count = [0_u8; 8];
            rustix::io::read(receiver.bell(), &mut count).map(|_| count)
        };
        assert_eq!(rung(), Err(rustix::io::Errno::AGAIN));
        (0..3).for_each(|it| sender.send(it));
        assert_eq!(rung(), Ok(ONE));

        let mut parcels = Vec::new();
        receiver.take(&mut parcels);
        assert_eq!(parcels.len(), 3);
        sender.clone().send(3);
        assert_eq!(rung(), Ok(ONE));
    }

    #[test]
    fn loses_nothing_that_many_threads_send() {
        let (sender, receiver) = mailbox::<u32>().unwrap();
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let sender = sender.clone();
                std::thread::spawn(move || (0..1000).for_each(|it| sender.send(thread * 1000 + it)))
            })
            .collect();
        let mut parcels = Vec::new();
        while parcels.len() < 4000 {
            let mut poll = [rustix::event::PollFd::from_borrowed_fd(
                receiver.bell(),
                rustix::event::PollFlags::IN,
            )];
            rustix::event::poll(&mut poll, None).unwrap();
            receiver.take(&mut parcels);
        }
        threads.into_iter().for_each(|it| it.join().unwrap());
        let mut mails: Vec<u32> = parcels
            .iter()
            .map(|it| match it {
                Parcel::Mail(mail) => *mail,
                _ => unreachable!("only mail was sent"),
            })
            .collect();
        mails.sort_unstable();
        assert!(mails.into_iter().eq(0..4000));
    }
}
