//! Listeners that were opened before the process began: by systemd for a socket unit, or by anybody
//! else who follows `sd_listen_fds(3)`.

use std::env;
use std::io::{self, ErrorKind};
use std::net::TcpListener;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::sockopt::socket_acceptconn;

/// Takes the listeners that were passed to this process: `LISTEN_FDS` of them, if `LISTEN_PID` is
/// this process. Only the first call of a process gets them.
///
/// # Errors
/// What was passed is no TCP socket that listens.
pub fn inherited_listeners() -> io::Result<Vec<TcpListener>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let number = |name| env::var(name).ok().and_then(|it| it.parse::<u32>().ok());
    if number("LISTEN_PID") != Some(std::process::id()) || TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let count = number("LISTEN_FDS").unwrap_or(0).min(COUNT_MAX) as RawFd;
    (FIRST_FD..FIRST_FD + count).map(inherited).collect()
}

fn inherited(fd: RawFd) -> io::Result<TcpListener> {
    // SAFETY: by the protocol the descriptors from `FIRST_FD` on are open and this process's own,
    // and nobody took them before (`TAKEN`). If the one who passed them lied, the next line fails.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    let listener = TcpListener::from(fd);
    if !socket_acceptconn(&listener)? {
        return Err(ErrorKind::InvalidInput.into());
    }
    // Fails for what is no Internet socket.
    listener.local_addr()?;
    Ok(listener)
}

/// `SD_LISTEN_FDS_START`.
const FIRST_FD: RawFd = 3;
/// Nobody passes more; a wrong number must not make us try them all.
const COUNT_MAX: u32 = 1024;
