//! System calls on sockets. None of them ever waits: whoever would have to polls first.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::io::Errno as OsError;
use rustix::net::{RecvFlags, SendFlags, SocketFlags};

use super::helper::{errno, output_bytes, retry};
use super::pump::{Kernel, Wait};
use crate::op::{Errno, Output};

pub(super) type Accepted = Result<(OwnedFd, SocketAddr), Errno>;

/// Waits for a connection and takes it.
pub(super) async fn accept<K: Kernel>(listener: Rc<K::Socket>) -> Accepted {
    loop {
        K::ready(listener.clone(), Wait::Read).await?;
        match accept_now(&*listener) {
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
            result => return result.map_err(errno),
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
