//! Starting and ending with a machine that does nothing, or not even that.

use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use engine::buffer::Memory;
use engine::durability::Durability;
use engine::journal::{CommitSync, NewFile, Side};
use engine::limits::{BLOCK_BYTES, RECEIVE_BUFFER_BYTES};
use engine::op::{Event, Op, Token};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::SIGABRT;

use super::*;
use crate::config::{Home, Layers};

/// Waits for [`Mail::Stop`], and ends then unless it is stuck.
struct Idle {
    is_stuck: bool,
    is_stopped: bool,
    memory: Memory,
    receive_buffer: Vec<u8>,
}

impl Idle {
    fn new(is_stuck: bool) -> io::Result<Self> {
        Ok(Self {
            is_stuck,
            is_stopped: false,
            memory: Memory::new(BLOCK_BYTES as usize)?,
            receive_buffer: vec![0; RECEIVE_BUFFER_BYTES as usize],
        })
    }
}

impl Machine for Idle {
    type Mail = Mail;

    fn on_event(&mut self, _: Instant, event: Event<Mail>) {
        if matches!(event, Event::Mail(Mail::Stop)) {
            self.is_stopped = !self.is_stuck;
        }
    }

    fn on_timeout(&mut self, _: Instant) {}

    fn poll_op(&mut self) -> Option<(Token, Op<Mail>)> {
        None
    }

    fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    fn receive_buffer(&mut self) -> &mut [u8] {
        &mut self.receive_buffer
    }

    fn memory(&self) -> &Memory {
        &self.memory
    }

    fn is_stopped(&self) -> bool {
        self.is_stopped
    }
}

fn config(dir: &Path) -> Config {
    let mut layers = Layers::default();
    layers.add_flag("storage_dir", dir.display().to_string());
    layers.add_flag("listen", "127.0.0.1:0".to_owned());
    layers.add_flag("cores", "3".to_owned());
    Config::resolve(&layers, &Home::default()).unwrap()
}

#[test]
fn starts_listens_and_stops() {
    let temp = tempfile::tempdir().unwrap();
    let server = Server::start_with(&config(temp.path()), |it| {
        assert_eq!((it.core_count, it.loads.len()), (3, 3));
        Idle::new(false)
    })
    .unwrap();
    TcpStream::connect(server.address()).unwrap();
    server.stopper().stop();
    server.run().unwrap();
    assert!(Storage::open(temp.path(), Duration::ZERO).is_ok(), "the lock is given back");
}

#[test]
fn a_core_that_cannot_start_stops_the_start() {
    let temp = tempfile::tempdir().unwrap();
    let result = Server::start_with(&config(temp.path()), |it| {
        if it.core.0 == 1 { Err(io::ErrorKind::OutOfMemory.into()) } else { Idle::new(false) }
    });
    let error = result.unwrap_err();
    assert!(matches!(error, ServerError::Core { core: CoreId(1), .. }), "{error}");
    assert_eq!(error.to_string(), "core 1: out of memory");
}

#[test]
fn ids_are_drawn_at_random() {
    let temp = tempfile::tempdir().unwrap();
    let config = config(temp.path());
    let service = ServiceClock::new(0, Instant::now());
    let medium = Medium { direct: false, durability: Durability::Written };
    let log_start = NewFile::new(0, 1, 1, CommitSync::Dsync, 0, []).start(Side::A, [1 << 20; 2]);
    let start = CoreStart { core: CoreId(0), run: 1, log_start, tickets: Vec::new() };
    let mut it = worker_config(&config, start, medium, service, Shared::new(1, &[]));
    let (first, second) = ((it.draw_id)(), (it.draw_id)());
    assert!(first != second);
    assert_eq!(&first.to_string()[14..15], "4", "a version 4 UUID");
}

/// What the next tests start in a process of their own.
#[test]
fn child() {
    let Some(what) = std::env::var_os("INCOMING_TEST_CHILD") else { return };
    let temp = tempfile::tempdir().unwrap();
    let is_panic = what == "panic";
    let server = Server::start_with(&config(temp.path()), move |_| {
        assert!(!is_panic, "on purpose");
        Idle::new(true)
    })
    .unwrap();
    server.stop_on_signals().unwrap();
    println!("CHILD READY");
    server.run().unwrap();
}

fn start_child(what: &str) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "server::tests::child", "--nocapture"])
        .env("INCOMING_TEST_CHILD", what)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn a_panic_ends_the_process() {
    let output = start_child("panic").wait_with_output().unwrap();
    assert_eq!(output.status.signal(), Some(SIGABRT));
    assert!(String::from_utf8_lossy(&output.stderr).contains("on purpose"));
}

#[test]
fn a_second_signal_ends_the_process_at_once() {
    let mut child = start_child("stuck");
    let mut lines = io::BufRead::lines(io::BufReader::new(child.stdout.take().unwrap()));
    assert!(lines.any(|it| it.unwrap().contains("CHILD READY")));
    let pid = Pid::from_child(&child);
    // Two equal signals may become one while none has been taken; different ones do not.
    kill_process(pid, Signal::INT).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    let status = child.wait().unwrap();
    let codes = [SIGINT, SIGTERM].map(|it| Some(EXIT_SIGNAL_BASE + it));
    assert!(codes.contains(&status.code()), "{status}");
}
