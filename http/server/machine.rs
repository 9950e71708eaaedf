//! What this process may use of its machine: CPUs, open files, sockets.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use socket2::{Domain, Protocol, Socket, Type};

/// The CPUs that this process may use, in order. Never empty: where the kernel does not say, it is
/// the first one.
pub(super) fn usable_cpus() -> Vec<usize> {
    let cpus: Vec<usize> = sched_getaffinity(None)
        .map(|set| (0..CpuSet::MAX_CPU).filter(|it| set.is_set(*it)).collect())
        .unwrap_or_default();
    if cpus.is_empty() { vec![0] } else { cpus }
}

/// Keeps the calling thread on one CPU.
pub(super) fn pin(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// Raises the limit of open files as far as this process may, and says what it is.
pub(super) fn raise_file_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let limit = if setrlimit(Resource::Nofile, raised).is_ok() { raised } else { limit };
    limit.current.unwrap_or(u64::MAX)
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
    fn pins_to_a_cpu_that_may_be_used() {
        let cpus = usable_cpus();
        let last = *cpus.last().unwrap();
        let pinned = std::thread::spawn(move || {
            pin(last).unwrap();
            usable_cpus()
        });
        assert_eq!(pinned.join().unwrap(), [last]);
        assert_eq!(usable_cpus(), cpus);
    }

    #[test]
    fn raises_the_file_limit_to_what_is_allowed() {
        let maximum = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
        assert_eq!(raise_file_limit(), maximum);
    }
}
