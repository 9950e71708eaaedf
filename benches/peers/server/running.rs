//! A server that was started, and its end.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::command::{command, remedy, stored};
use super::{Server, ServerError, Setup};

/// A server that answers. It ends with this value, and all of its processes with it.
#[derive(Debug)]
pub(crate) struct Running {
    server: Server,
    child: Child,
    address: SocketAddr,
    stored: PathBuf,
}

/// Starts it on its processors, in a process group of its own.
pub(super) fn start(server: Server, setup: &Setup<'_>) -> Result<Running, ServerError> {
    let name = server.name();
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => {
            ServerError::NotInstalled { server: name, remedy: remedy(server) }
        }
        _ => ServerError::Machine { server: name, what: "start", error },
    };
    let log = setup.directory.join(LOG);
    let stored = stored(server, setup.directory);
    // Ours makes its own, with the permissions that it wants.
    if !matches!(server, Server::Ours { .. }) {
        fs::create_dir_all(&stored).map_err(failed)?;
    }
    let mut running = spawn(server, setup, &log, stored).map_err(failed)?;
    let give_up = Instant::now() + PATIENCE;
    while !answers(running.address) {
        let has_ended = !matches!(running.child.try_wait(), Ok(None));
        if has_ended || Instant::now() > give_up {
            return Err(ServerError::NotReady { server: name, log: end_of(&log) });
        }
        thread::sleep(PAUSE);
    }
    Ok(running)
}

/// Ends whatever runs, for a program that has to end at once.
pub(crate) fn stop_all() {
    for group in groups().iter() {
        // Perhaps it has ended.
        let _ = kill_process_group(*group, Signal::KILL);
    }
}

impl Running {
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Of the process that was started; others may descend from it.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where files that have arrived lie.
    pub(crate) fn stored(&self) -> &Path {
        &self.stored
    }

    /// # Errors
    /// It had ended by itself.
    pub(crate) fn stop(mut self) -> Result<(), ServerError> {
        let ended = self.child.try_wait();
        match ended {
            Ok(None) => Ok(()),
            Ok(Some(status)) => {
                let error = io::Error::other(format!("it has ended by itself, {status}"));
                Err(ServerError::Machine { server: self.server.name(), what: "stop", error })
            }
            Err(error) => {
                Err(ServerError::Machine { server: self.server.name(), what: "stop", error })
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The number belongs to this group until it was waited for.
        let mut groups = groups();
        let group = Pid::from_child(&self.child);
        let _ = kill_process_group(group, Signal::KILL);
        let _ = self.child.wait();
        groups.retain(|it| *it != group);
    }
}

fn spawn(server: Server, setup: &Setup<'_>, log: &Path, stored: PathBuf) -> io::Result<Running> {
    let port = free_port()?;
    let log = File::create(log)?;
    let mut command = command(server, setup, port)?;
    command
        // Nothing of this user's settings; what a server writes at home goes to its directory.
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", setup.directory)
        .current_dir(setup.directory)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0);
    let mut groups = groups();
    let child = spawn_on(setup.cpus, &mut command)?;
    groups.push(Pid::from_child(&child));
    Ok(Running { server, child, address: (Ipv4Addr::LOCALHOST, port).into(), stored })
}

/// Children run where the thread may that starts them; this one is for that alone.
fn spawn_on(cpus: &[usize], command: &mut Command) -> io::Result<Child> {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|it| set.set(*it));
    thread::scope(|scope| {
        let spawning = scope.spawn(|| {
            sched_setaffinity(None, &set)?;
            command.spawn()
        });
        spawning.join().expect("spawning does not panic")
    })
}

/// Nobody else should take it before the server does: the kernel gives each number once before it
/// begins anew.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Whether it says something to an HTTP request; servers of WebSockets may also just hang up.
fn answers(address: SocketAddr) -> bool {
    let request = format!("GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let answer = TcpStream::connect(address).and_then(|mut stream| {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(request.as_bytes())?;
        stream.read(&mut [0; 1])
    });
    answer.map_or_else(|error| error.kind() == io::ErrorKind::ConnectionReset, |_| true)
}

fn end_of(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES_MAX)..].join("\n")
}

/// The process groups that run, for [`stop_all`].
fn groups() -> MutexGuard<'static, Vec<Pid>> {
    static GROUPS: Mutex<Vec<Pid>> = Mutex::new(Vec::new());
    GROUPS.lock().unwrap_or_else(PoisonError::into_inner)
}

const LOG: &str = "log";
const LOG_LINES_MAX: usize = 20;
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn child_runs_on_its_processors_only() {
        let mut command = Command::new("cat");
        command.arg("/proc/self/status").stdout(Stdio::piped());
        let output = spawn_on(&[0], &mut command).unwrap().wait_with_output().unwrap();
        let status = String::from_utf8(output.stdout).unwrap();
        assert!(status.contains("Cpus_allowed_list:\t0\n"), "{status}");
    }

    /// The program of this server is the one that runs, and tests do not understand its command line.
    #[test]
    fn server_that_ends_shows_what_it_printed() {
        let directory = tempfile::tempdir().unwrap();
        let setup = Setup {
            directory: directory.path(),
            cpus: &[0],
            memory_bytes: None,
            connections_max: None,
        };
        match start(Server::Ring, &setup) {
            Err(ServerError::NotReady { server: "floor-ring", log }) => {
                assert!(log.contains("listen"), "{log}");
            }
            other => panic!("{other:?}"),
        }
        assert!(groups().is_empty());
    }

    #[test]
    fn whoever_hangs_up_answers_and_whoever_is_not_there_does_not() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = thread::spawn(move || drop(listener.accept()));
        assert!(answers(address));
        accepting.join().unwrap();
        assert!(!answers(address));
    }
}
