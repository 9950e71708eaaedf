//! Where the server listens: sockets of its own, those that it was given, or those of the server
//! before it. How many there are does not depend on the number of cores.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use engine::driver;
use rustix::fs::fstat;
use socket2::{Domain, Protocol, Socket, Type};

use super::ServerError;
use crate::config::Config;

/// The sockets that were passed to this process (`LISTEN_FDS`), which go before what is configured.
///
/// # Errors
/// They are not what was asked for.
pub(super) fn given(config: &Config) -> Result<Vec<TcpListener>, ServerError> {
    let given = driver::inherited_listeners().map_err(|error| ServerError::Given { error })?;
    for it in &given {
        let address = it.local_addr().map_err(|error| ServerError::Given { error })?;
        if config.listen_is_chosen && address != config.listen {
            return Err(ServerError::GivenElsewhere { listen: config.listen, address });
        }
    }
    Ok(given)
}

/// Both, without those that are there twice.
pub(super) fn join(
    first: Vec<TcpListener>,
    second: Vec<TcpListener>,
) -> io::Result<Vec<TcpListener>> {
    let mut joined: Vec<TcpListener> = Vec::new();
    let mut known = Vec::new();
    for it in first.into_iter().chain(second) {
        // Two descriptors of one socket.
        let inode = fstat(&it)?.st_ino;
        if !known.contains(&inode) {
            known.push(inode);
            joined.push(it);
        }
    }
    Ok(joined)
}

/// Each core's part of the listeners: every listener has a core, and every core a listener. None is
/// ever closed while the server may serve, because connections wait in its queue.
pub(super) fn share(
    listeners: &[TcpListener],
    core_count: u16,
) -> io::Result<Vec<Vec<TcpListener>>> {
    let mut shares: Vec<Vec<TcpListener>> = (0..core_count).map(|_| Vec::new()).collect();
    for index in 0..listeners.len().max(shares.len()) {
        let core = index % shares.len();
        shares[core].push(listeners[index % listeners.len()].try_clone()?);
    }
    Ok(shares)
}

/// One listener for each core at the same address; the kernel spreads connections over them. Port 0
/// is replaced by a free one.
pub(super) fn listen(address: SocketAddr, core_count: u16) -> io::Result<Vec<TcpListener>> {
    if address.port() != 0 {
        // Two servers of one user may share a port without noticing. A plain bind notices.
        bind_when_free(address)?;
    }
    let first = bind(address, true)?;
    let address = first.local_addr()?;
    first.set_nonblocking(true)?;
    let mut listeners = vec![first];
    for _ in 1..core_count {
        listeners.push(bind(address, true)?);
    }
    for it in &listeners {
        // Only now, so that no connection waits at a listener of a start that failed.
        rustix::net::listen(it, BACKLOG)?;
    }
    Ok(listeners)
}

/// The kernel ends the requests of a process's ring some time after the process; until then its
/// listeners live on. So a restart has some patience.
fn bind_when_free(address: SocketAddr) -> io::Result<TcpListener> {
    let give_up = Instant::now() + PORT_PATIENCE;
    loop {
        match bind(address, false) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < give_up => {
                thread::sleep(PORT_PAUSE);
            }
            result => return result,
        }
    }
}

fn bind(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart does not wait for the old connections of the port.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Connections that wait to be accepted; the kernel may allow fewer (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;
/// Measured: some 10 milliseconds.
const PORT_PATIENCE: Duration = Duration::from_secs(2);
const PORT_PAUSE: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn cores_share_a_free_port() {
        let listeners = listen("127.0.0.1:0".parse().unwrap(), 3).unwrap();
        let addresses: Vec<_> = listeners.iter().map(|it| it.local_addr().unwrap()).collect();
        assert_eq!(addresses.len(), 3);
        assert!(addresses[0].port() != 0 && addresses.iter().all(|it| *it == addresses[0]));
        TcpStream::connect(addresses[0]).unwrap();
    }

    #[test]
    fn a_port_in_use_is_refused_even_if_it_is_shared() {
        for _ in 0..2 {
            let first = listen("127.0.0.1:0".parse().unwrap(), 2).unwrap();
            let address = first[0].local_addr().unwrap();
            assert_eq!(listen(address, 2).unwrap_err().kind(), ErrorKind::AddrInUse);
            drop(first);
            listen(address, 2).unwrap();
        }
    }

    #[test]
    fn a_restart_does_not_wait_for_old_connections() {
        let first = listen("127.0.0.1:0".parse().unwrap(), 1).unwrap();
        let address = first[0].local_addr().unwrap();
        let client = TcpStream::connect(address).unwrap();
        first[0].set_nonblocking(false).unwrap();
        let (accepted, _) = first[0].accept().unwrap();
        // The side that closes first keeps the port busy (TIME_WAIT).
        drop(accepted);
        drop(first);
        drop(client);
        listen(address, 1).unwrap();
    }

    #[test]
    fn every_listener_has_a_core_and_every_core_a_listener() {
        let inode = |it: &TcpListener| fstat(it).unwrap().st_ino;
        for (listener_count, core_count) in [(1, 1), (1, 4), (4, 4), (4, 3), (5, 2), (3, 8)] {
            let listeners = listen("127.0.0.1:0".parse().unwrap(), listener_count).unwrap();
            let shares = share(&listeners, core_count).unwrap();
            assert_eq!(shares.len(), usize::from(core_count));
            assert!(shares.iter().all(|it| !it.is_empty()));
            let mut shared: Vec<_> = shares.iter().flatten().map(inode).collect();
            shared.sort_unstable();
            shared.dedup();
            let mut all: Vec<_> = listeners.iter().map(inode).collect();
            all.sort_unstable();
            assert_eq!(shared, all);
        }
    }

    #[test]
    fn one_socket_that_came_twice_is_one() {
        let [first, second] =
            [0; 2].map(|_| listen("127.0.0.1:0".parse().unwrap(), 1).unwrap().remove(0));
        let again = first.try_clone().unwrap();
        assert_eq!(join(vec![first], vec![again, second]).unwrap().len(), 2);
    }
}
