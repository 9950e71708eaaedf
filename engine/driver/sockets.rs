//! System calls on sockets. None of them ever waits: whoever would have to polls first.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::task::{Context, Poll};

use rustix::io::Errno as OsError;
use rustix::net::{RecvFlags, SendFlags, SocketFlags};

use super::helper::{errno, output_bytes, retry};
use super::pump::{Kernel, Wait, Waiting};
use crate::op::{Errno, Output};

type Accepted = Result<(OwnedFd, SocketAddr), Errno>;

/// Where a core accepts. The sockets may be other cores' as well: who is too late finds nothing and
/// waits again.
pub(super) struct Listeners<K: Kernel> {
    listeners: Vec<Listener<K>>,
    /// Which is looked at first, so that none has to wait for the others.
    next: usize,
}

struct Listener<K: Kernel> {
    socket: Rc<K::Socket>,
    ready: Option<Waiting<Result<(), Errno>>>,
}

impl<K: Kernel> Listeners<K> {
    pub(super) fn new(listeners: Vec<TcpListener>) -> io::Result<Self> {
        let adopted = listeners.into_iter().map(|it| {
            it.set_nonblocking(true)?;
            Ok(Listener { socket: Rc::new(K::adopt_socket(it.into())?), ready: None })
        });
        Ok(Self { listeners: adopted.collect::<io::Result<_>>()?, next: 0 })
    }

    /// Takes a connection, if one is there. Whoever asks no more leaves them all where they are.
    pub(super) fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Accepted> {
        let count = self.listeners.len();
        for index in (self.next..self.next + count).map(|it| it % count) {
            if let Poll::Ready(accepted) = self.listeners[index].poll_accept(cx) {
                self.next = index + 1;
                return Poll::Ready(accepted);
            }
        }
        Poll::Pending
    }
}

impl<K: Kernel> Listener<K> {
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Accepted> {
        loop {
            let socket = &self.socket;
            let ready =
                self.ready.get_or_insert_with(|| Box::pin(K::ready(socket.clone(), Wait::Read)));
            let result = std::task::ready!(ready.as_mut().poll(cx));
            self.ready = None;
            if let Err(errno) = result {
                return Poll::Ready(Err(errno));
            }
            match accept_now(&**socket) {
                // Another core was faster.
                Err(OsError::AGAIN | OsError::INTR) => {}
                // These are errors of one connection, which is gone (accept(2), "Error handling").
                Err(
                    OsError::CONNABORTED
                    | OsError::PROTO
                    | OsError::NOPROTOOPT
                    | OsError::NETDOWN
                    | OsError::NETUNREACH
                    | OsError::HOSTDOWN
                    | OsError::HOSTUNREACH
                    | OsError::OPNOTSUPP,
                ) => {}
                result => return Poll::Ready(result.map_err(errno)),
            }
        }
    }
}

/// Non-blocking serves every runtime: nobody ever waits inside a call on a socket.
fn accept_now(listener: impl AsFd) -> Result<(OwnedFd, SocketAddr), OsError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (socket, peer) = rustix::net::acceptfrom_with(listener, flags)?;
    let peer = peer.and_then(|it| SocketAddr::try_from(it).ok()).ok_or(OsError::AFNOSUPPORT)?;
    // Acknowledgements are small and must not wait for more. Only an optimisation: no error counts.
    let _ = rustix::net::sockopt::set_tcp_nodelay(&socket, true);
    Ok((socket, peer))
}

/// Only an optimisation: where it fails, the socket is readable earlier.
pub(super) fn set_low_water(socket: impl AsFd, bytes: u32) {
    let bytes = i32::try_from(bytes).unwrap_or(i32::MAX);
    // SAFETY: the socket is open, and the option is an `int` that lives until the call returns.
    let _ = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            (&raw const bytes).cast(),
            size_of_val(&bytes) as libc::socklen_t,
        )
    };
}

pub(super) fn send_now(socket: impl AsFd, bytes: &[u8]) -> Result<Output, Errno> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let sent = retry(|| rustix::net::send(&socket, bytes, flags));
    sent.map(output_bytes).map_err(errno)
}

pub(super) fn recv_now(socket: impl AsFd, buffer: &mut [u8]) -> Result<Output, Errno> {
    let length = buffer.len();
    let received = retry(|| rustix::net::recv(&socket, &mut *buffer, RecvFlags::DONTWAIT));
    let (_, count) = received.map_err(errno)?;
    // Asked only where it is not clear.
    let has_more = count == length && rustix::io::ioctl_fionread(&socket).is_ok_and(|it| it > 0);
    Ok(Output::Received { count: output_bytes(count).bytes(), has_more })
}
