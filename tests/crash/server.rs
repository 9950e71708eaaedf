//! The server under test: started, ended in many ways, started again over the same directory.

use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::content::Random;

/// No step takes so long on any machine: whoever waits longer waits for nothing.
pub const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    Monoio,
    /// monoio where the kernel refuses io_uring: its epoll driver.
    Epoll,
    TokioUring,
}

impl Driver {
    pub const ALL: [Self; 3] = [Self::Monoio, Self::Epoll, Self::TokioUring];
}

/// How to start a server.
#[derive(Clone, Debug)]
pub struct Setup {
    pub driver: Driver,
    pub cores: u64,
    /// Options beside the usual ones.
    pub options: Vec<String>,
    /// A command that ends by running its last arguments.
    pub within: Vec<String>,
}

impl Setup {
    pub fn new(driver: Driver, cores: u64) -> Self {
        Self { driver, cores, options: Vec::new(), within: Vec::new() }
    }

    pub fn random(random: &mut Random) -> Self {
        let driver = Driver::ALL[random.below(3) as usize];
        Self::new(driver, 1 + random.below(3))
    }

    pub fn option(mut self, name: &str, value: &str) -> Self {
        self.options.extend([name.to_owned(), value.to_owned()]);
        self
    }

    pub fn command(&self, storage_dir: &Path) -> Command {
        let mut words = self.within.clone();
        if self.driver == Driver::Epoll {
            let wrapper = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/without_io_uring.py");
            words.extend(["python3", "-S", wrapper, "EPERM"].map(str::to_owned));
        }
        let usual = env!("CARGO_BIN_EXE_incoming").to_owned();
        words.push(std::env::var(BINARY_VARIABLE).unwrap_or(usual));
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg("serve");
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("INCOMING_")) {
            command.env_remove(name);
        }
        let runtime = if self.driver == Driver::TokioUring { "tokio-uring" } else { "monoio" };
        command.args(["--listen", "127.0.0.1:0", "--runtime", runtime, "--memory", "8MiB"]);
        command.args(["--cores", &self.cores.to_string()]);
        command.arg("--storage-dir").arg(storage_dir).args(&self.options);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command
    }
}

/// A running server. Dropped, it is killed.
pub struct Server {
    pub address: SocketAddr,
    child: Child,
    /// Where what it says on stderr goes.
    log: PathBuf,
}

impl Server {
    /// Starts a server and waits until it listens; otherwise says what it said.
    pub fn start(setup: &Setup, storage_dir: &Path, log: &Path) -> Result<Self, String> {
        let stderr = fs::File::create(log).map_err(|error| format!("{log:?}: {error}"))?;
        let child = setup.command(storage_dir).stderr(stderr).spawn();
        let mut child = child.map_err(|error| format!("start {setup:?}: {error}"))?;
        let stdout = child.stdout.take().expect("stdout is piped");
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let log = log.to_owned();
        let mut server = Self { address: ([127, 0, 0, 1], 0).into(), child, log };
        while let Ok(line) = receiver.recv_timeout(PATIENCE) {
            if let Some(address) = line.strip_prefix("listening on http://") {
                server.address = address.trim_end_matches('/').parse().expect("an address");
                return Ok(server);
            }
        }
        let status = server.child.try_wait();
        Err(format!("it does not start with {setup:?}: {status:?}\n{}", server.log()))
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32).expect("a process id");
        let _ = kill_process(pid, signal);
    }

    /// Kills it, and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Whether it has ended by itself, within the time.
    pub fn ends_within(&mut self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                return false;
            }
            thread::sleep(Duration::from_millis(2));
        }
        true
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({})", self.address)
    }
}

/// Another server than the one that was just built: one that is wrong on purpose.
pub const BINARY_VARIABLE: &str = "INCOMING_BINARY";
