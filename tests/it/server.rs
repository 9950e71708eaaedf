//! The server under test: its process, its storage directory, its log.

use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::client::Client;

/// No step of any test takes so long on any machine: whoever waits longer waits for nothing.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// How the kernel is driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    Monoio,
    /// monoio where the kernel refuses io_uring, as container runtimes make it do.
    MonoioRefused,
    TokioUring,
    TokioUringRefused,
}

/// Where the storage directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The file system of the build directory.
    Disk,
    Tmpfs,
}

/// How to start a server.
#[derive(Clone, Debug)]
pub struct Setup {
    pub driver: Driver,
    pub place: Place,
    pub listen: String,
    pub cores: u32,
    pub memory_mib: u32,
    pub environment: Vec<(&'static str, String)>,
    /// Where the server is started within: a command that ends by running its last arguments,
    /// made from the storage directory.
    pub within: Option<fn(&Path) -> Vec<String>>,
    /// A listener that is passed to it as a service manager does.
    pub socket: Option<Arc<TcpListener>>,
    /// A copy of the server, for users who may not go to the build directory.
    pub binary: Option<PathBuf>,
}

impl Setup {
    pub fn new(driver: Driver, place: Place) -> Self {
        Self {
            driver,
            place,
            listen: "127.0.0.1:0".to_owned(),
            cores: 2,
            memory_mib: 16,
            environment: Vec::new(),
            within: None,
            socket: None,
            binary: None,
        }
    }

    pub fn with_environment(mut self, name: &'static str, value: &str) -> Self {
        self.environment.push((name, value.to_owned()));
        self
    }

    pub fn start(&self) -> Server {
        Server::start(self, storage(self.place))
    }

    /// The command that would start it, for tests that want to see it fail.
    pub fn command(&self, storage_dir: &Path) -> Command {
        let mut words = self.within.map_or_else(Vec::new, |it| it(storage_dir));
        if matches!(self.driver, Driver::MonoioRefused | Driver::TokioUringRefused) {
            let wrapper = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/without_io_uring.py");
            words.extend(["python3", wrapper, "EPERM"].map(str::to_owned));
        }
        if self.socket.is_some() {
            words.extend(["sh", "-c", SOCKET_SCRIPT].map(str::to_owned));
        }
        let binary = self.binary.as_deref().map(|it| it.to_str().expect("UTF-8").to_owned());
        words.push(binary.unwrap_or_else(|| env!("CARGO_BIN_EXE_incoming").to_owned()));
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        let runtime = match self.driver {
            Driver::Monoio | Driver::MonoioRefused => "monoio",
            Driver::TokioUring | Driver::TokioUringRefused => "tokio-uring",
        };
        command.args(["serve", "--listen", &self.listen, "--runtime", runtime]);
        command.arg("--storage-dir").arg(storage_dir);
        command.args(["--cores", &self.cores.to_string()]);
        command.args(["--memory", &format!("{}MiB", self.memory_mib)]);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("INCOMING_")) {
            command.env_remove(name);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(match &self.socket {
            Some(it) => Stdio::from(OwnedFd::from(it.try_clone().expect("duplicate"))),
            None => Stdio::null(),
        });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

impl Default for Setup {
    fn default() -> Self {
        Self::new(Driver::Monoio, Place::Disk)
    }
}

/// A running server. Dropped, it is killed; a test that fails prints its log.
pub struct Server {
    pub address: SocketAddr,
    child: Child,
    storage: Arc<TempDir>,
    log: Arc<Mutex<String>>,
    log_reader: Option<thread::JoinHandle<()>>,
}

impl Server {
    pub fn start(setup: &Setup, storage: TempDir) -> Self {
        Self::start_in(setup, Arc::new(storage))
    }

    /// Another one on the same directory, after this one has ended.
    pub fn start_again(&self, setup: &Setup) -> Self {
        Self::start_in(setup, self.storage.clone())
    }

    fn start_in(setup: &Setup, storage: Arc<TempDir>) -> Self {
        let mut child = setup
            .command(storage.path())
            .spawn()
            .expect("start the server (with io_uring refused: apt-get install python3)");
        let log = Arc::new(Mutex::new(String::new()));
        let stderr = child.stderr.take().expect("stderr is piped");
        let kept = Arc::clone(&log);
        let log_reader = thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut kept = kept.lock().unwrap();
                kept.push_str(&line);
                kept.push('\n');
            }
        });
        let stdout = child.stdout.take().expect("stdout is piped");
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let (address, log_reader) = (([127, 0, 0, 1], 0).into(), Some(log_reader));
        let mut server = Self { address, child, storage, log, log_reader };
        loop {
            match receiver.recv_timeout(PATIENCE) {
                Ok(line) => {
                    if let Some(address) = line.strip_prefix("listening on http://") {
                        server.address = address.trim_end_matches('/').parse().expect("address");
                        return server;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    panic!("the server does not say where it listens")
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = server.child.wait();
                    panic!("the server stopped before it listened: {status:?}: {}", server.log());
                }
            }
        }
    }

    pub fn storage_dir(&self) -> &Path {
        self.storage.path()
    }

    /// Every regular file below the storage directory that is or was an upload's.
    pub fn upload_files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for folder in ["parts", "arrived"] {
            let Ok(entries) = fs::read_dir(self.storage_dir().join(folder)) else { continue };
            found.extend(entries.filter_map(Result::ok).map(|it| it.path()));
        }
        found
    }

    /// Waits until no upload has a file any more.
    pub fn wait_without_files(&self) {
        wait_until("no upload has a file", || self.upload_files().is_empty());
    }

    /// Waits until the web app has been told that the upload is cancelled. Who comes late hears
    /// so.
    pub fn wait_until_cancelled(&self, id: &str) {
        self.wait_for_cancel(id, (200, "ok"));
        let mut client = Client::connect(self);
        client.request(id, 1_000_000, "x");
        client.finish_with_error(301, "upload already finished or cancelled");
    }

    /// Waits until the web app has been told and its time to be remembered is over, too.
    pub fn wait_until_forgotten(&self, id: &str) {
        self.wait_for_cancel(id, (400, "id unknown"));
        let mut client = Client::connect(self);
        client.request(id, 1_000_000, "x");
        client.finish_with_error(300, "Unknown upload id - maybe upload timed out?");
    }

    fn wait_for_cancel(&self, id: &str, wanted: (u16, &str)) {
        wait_until("the upload is over", || {
            let response = self.post("/incoming/0.1/backend/cancel_upload", &[("id", id)]);
            let answer = (response.status, response.text());
            let is_wanted = answer == wanted;
            let is_on_the_way = matches!(answer.0, 200 | 412);
            assert!(is_wanted || is_on_the_way, "{answer:?}");
            is_wanted
        });
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// A path as the server sees it, which may have mounts of its own.
    pub fn seen_by_server(&self, path: &Path) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{}", self.child.id(), path.display()))
    }

    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// The most memory the process has had resident so far, in bytes.
    pub fn resident_bytes_max(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("proc");
        let line = status.lines().find(|it| it.starts_with("VmHWM:")).expect("VmHWM");
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib * 1024
    }

    /// What the process has used of all CPUs so far.
    pub fn cpu_time(&self) -> Duration {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("proc");
        let nanoseconds = tasks.flatten().map(|task| {
            let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            text.split(' ').next().and_then(|it| it.parse::<u64>().ok()).unwrap_or(0)
        });
        Duration::from_nanos(nanoseconds.sum())
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32).expect("a process id");
        kill_process(pid, signal).expect("signal the server");
    }

    /// Waits for its end, and for its last words.
    pub fn exit_status(&mut self) -> ExitStatus {
        let status = wait_for_exit(&mut self.child);
        if let Some(reader) = self.log_reader.take() {
            reader.join().expect("the log is read to its end");
        }
        status
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let log = self.log();
        if thread::panicking() {
            let skip = log.len().saturating_sub(LOG_SHOWN_BYTES);
            let skip = (skip..log.len()).find(|it| log.is_char_boundary(*it)).unwrap_or(0);
            eprintln!("--- log of the server ---\n{}--- end of the log ---", &log[skip..]);
        } else {
            assert!(!log.contains("panicked"), "the server panicked:\n{log}");
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({})", self.address)
    }
}

/// A new storage directory.
pub fn storage(place: Place) -> TempDir {
    let parent = match place {
        Place::Disk => env!("CARGO_TARGET_TMPDIR"),
        Place::Tmpfs => "/dev/shm",
    };
    tempfile::Builder::new()
        .prefix("incoming-it-")
        .tempdir_in(parent)
        .unwrap_or_else(|error| panic!("{parent}: {error} (mount -t tmpfs tmpfs /dev/shm)"))
}

/// A server that must not start: its exit status and everything it said.
pub fn start_refused(mut command: Command) -> (ExitStatus, String) {
    let mut child = command.spawn().expect("start the server");
    let status = wait_for_exit(&mut child);
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).expect("stderr");
    child.stdout.take().unwrap().read_to_string(&mut said).expect("stdout");
    assert!(!said.contains("panicked"), "{said}");
    (status, said)
}

/// Waits for something that no event announces.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Runs each named function of the parent module on every driver, on a disk and in memory.
macro_rules! on_every_driver {
    ($($name:ident),+ $(,)?) => {
        $crate::server::on_every_driver!(@ monoio, Monoio, Disk, $($name),+);
        $crate::server::on_every_driver!(@ monoio_tmpfs, Monoio, Tmpfs, $($name),+);
        $crate::server::on_every_driver!(@ epoll, MonoioRefused, Disk, $($name),+);
        $crate::server::on_every_driver!(@ epoll_tmpfs, MonoioRefused, Tmpfs, $($name),+);
        $crate::server::on_every_driver!(@ tokio_uring, TokioUring, Disk, $($name),+);
        $crate::server::on_every_driver!(@ tokio_uring_tmpfs, TokioUring, Tmpfs, $($name),+);
    };
    (@ $module:ident, $driver:ident, $place:ident, $($name:ident),+) => {
        mod $module {
            use $crate::server::{Driver, Place, Setup};
            $(
                #[test]
                fn $name() {
                    super::$name(&Setup::new(Driver::$driver, Place::$place));
                }
            )+
        }
    };
}
pub(crate) use on_every_driver;

fn wait_for_exit(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().expect("wait") {
            return status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("the server does not end");
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// As `sd_listen_fds(3)` wants it: the descriptor 3, and whose it is.
const SOCKET_SCRIPT: &str =
    r#"exec 3<&0 0</dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec "$0" "$@""#;
const LOG_SHOWN_BYTES: usize = 20_000;
