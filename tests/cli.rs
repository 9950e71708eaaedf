//! The command as an operator meets it: help texts, wrong settings, exit codes, start and stop.
//!
//! The help texts stand in `tests/cli/*.txt`. After a change that is meant:
//! `INCOMING_TEST_WRITE=1 cargo test --test cli`, and read the difference.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

#[test]
fn help_texts() {
    for (name, arguments) in [
        ("help", &["--help"][..]),
        ("serve", &["serve", "--help"]),
        ("serve-short", &["serve", "-h"]),
        ("status", &["status", "--help"]),
        ("retry", &["retry", "--help"]),
        ("demo", &["demo", "--help"]),
    ] {
        let output = run(incoming().args(arguments));
        assert_eq!(output.status.code(), Some(0));
        assert_golden(name, &text(&output.stdout));
    }
}

#[test]
fn help_fits_a_terminal() {
    for arguments in [
        &["--help"][..],
        &["serve", "--help"],
        &["serve", "-h"],
        &["status", "-h"],
        &["retry", "-h"],
        &["demo", "-h"],
    ] {
        let help = text(&run(incoming().args(arguments)).stdout);
        for line in help.lines() {
            assert!(line.chars().count() < 100, "{line}");
        }
    }
}

#[test]
fn version() {
    let output = run(incoming().arg("--version"));
    assert_eq!(text(&output.stdout), format!("incoming {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_usage_ends_with_2() {
    for (arguments, told) in [
        (&[][..], "Usage: incoming <COMMAND>"),
        (&["sevre"], "a similar subcommand exists: 'serve'"),
        (&["serve", "--sotrage-dir", "x"], "a similar argument exists: '--storage-dir'"),
        (&["serve", "extra"], "unexpected argument 'extra'"),
        (&["demo", "--page", "4080"], "invalid value '4080' for '--page <IP:PORT>'"),
        (
            &["serve", "--listen", "localhost:80"],
            "error: command line: --listen \"localhost:80\": it is not an IP address and a port\n  \
             remedy: write 127.0.0.1:80 for this machine only, 0.0.0.0:80 or [::]:80 for every \
             network\n",
        ),
        (
            &["serve", "--memory", "64M", "--cores", "0"],
            "error: command line: --cores \"0\": it is out of range\n  \
             remedy: write a value from 1 to 1024\n\
             error: command line: --memory \"64M\": \"M\" is not a unit of size\n  \
             remedy: did you mean 64MiB? (units: B, KiB, MiB, GiB, TiB)\n",
        ),
        (&["retry"], "required arguments were not provided"),
        (&["retry", "--all", "an-id"], "cannot be used with"),
        (&["status", "--state", "failed", "an-id"], "cannot be used with"),
        (&["serve", "--backend-behind-proxy=maybe"], "remedy: write one of true, false"),
        (
            &["serve", "--config", "/nonexistent.toml"],
            "error: command line: --config /nonexistent.toml: the file cannot be read: No such \
             file or directory (os error 2)\n  remedy: give a file that exists",
        ),
    ] {
        assert_refused(incoming().args(arguments), 2, told);
    }
}

#[test]
fn wrong_settings_end_with_78() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("incoming.toml");
    let place = file.display().to_string();
    for (content, told) in [
        (
            "\nlsiten = '127.0.0.1:1'\n",
            ", line 2: lsiten = '127.0.0.1:1': this key is not known\n  remedy: did you mean listen?",
        ),
        (
            "runtime = 'tokio'",
            ", line 1: runtime = \"tokio\": it is none of the possible values\n  remedy: write one of monoio, tokio-uring",
        ),
        ("listen", ", line 1: it is not TOML: "),
    ] {
        fs::write(&file, content).unwrap();
        assert_refused(
            incoming().arg("serve").arg("--config").arg(&file),
            78,
            &format!("error: {place}{told}"),
        );
        assert_refused(incoming().arg("serve").env("INCOMING_CONFIG", &file), 78, &place);
    }
    for (name, value, told) in [
        (
            "INCOMING_MEMORY",
            "lots",
            "error: environment: INCOMING_MEMORY=\"lots\": it does not begin with a whole number\n",
        ),
        (
            "INCOMING_MEMROY",
            "64MiB",
            "this key is not known\n  remedy: did you mean INCOMING_MEMORY?",
        ),
        ("INCOMING_LOG", "incoming=loud", "it is not a filter for the log: "),
        (
            "INCOMING_CONFIG",
            "/nonexistent.toml",
            "environment: INCOMING_CONFIG=/nonexistent.toml: the file cannot be read",
        ),
    ] {
        assert_refused(incoming().arg("serve").env(name, value), 78, told);
    }
    // Without a home there is no default directory.
    if !rustix::process::geteuid().is_root() {
        let mut command = incoming();
        command.arg("serve").env_remove("HOME").env_remove("XDG_DATA_HOME");
        assert_refused(&mut command, 78, "give a directory with --storage-dir");
    }
}

#[test]
fn what_cannot_start_ends_with_1_and_says_why() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("file");
    fs::write(&file, "").unwrap();
    let told = format!(
        "error: storage_dir = \"{0}\": {0} is not a directory\n  \
         remedy: give a directory, or a path where one can be made\n",
        file.display()
    );
    assert_refused(&mut serve(&file), 1, &told);

    let taken = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let taken = TcpListener::bind(taken).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = temp.path().join("storage");
    let told =
        format!("error: listen = \"{address}\": cannot listen there: Address already in use");
    assert_refused(serve(&dir).args(["--listen", &address]), 1, &told);
    assert_refused(
        serve(&dir).args(["--listen", "192.0.2.1:4000"]),
        1,
        "remedy: choose an address of this machine",
    );
    let page = ["demo", "--listen", "127.0.0.1:0", "--page", &address, "--storage-dir"];
    assert_refused(
        incoming().args(page).arg(temp.path().join("demo")),
        1,
        &format!("error: --page {address}: cannot listen there: Address already in use"),
    );
}

#[test]
fn commands_for_a_server_say_when_there_is_none() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().to_str().unwrap();
    let told = format!(
        "error: {dir}: no server runs on this directory\n  remedy: name that of a running one with \
         --storage-dir (its log says it at start), or start it: incoming serve\n"
    );
    assert_refused(incoming().args(["status", "--storage-dir", dir]), 1, &told);
    assert_refused(incoming().args(["retry", "--all", "--storage-dir", dir]), 1, &told);
    let missing = temp.path().join("missing");
    let mut command = incoming();
    assert_refused(
        command.arg("status").env("INCOMING_STORAGE_DIR", &missing),
        1,
        "no server runs",
    );

    let mut server = Running::start(&mut serve(temp.path()));
    let output = run(incoming().arg("status").env("INCOMING_STORAGE_DIR", dir));
    let shown = text(&output.stdout);
    let expected =
        format!("incoming {}, process {}, up ", env!("CARGO_PKG_VERSION"), server.child.id());
    assert!(shown.starts_with(&expected), "{shown}");
    assert!(shown.contains(&format!(", on {}\n{dir}: ", server.address)), "{shown}");
    assert!(shown.contains(" free\nuploads: none; "), "{shown}");
    assert_eq!(server.stop(Signal::TERM), Some(0));
    assert_refused(incoming().args(["status", "--storage-dir", dir]), 1, &told);
}

#[test]
fn wrong_keys_end_with_78() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("keys.toml");
    let place = file.display().to_string();
    let set_mode = |mode| fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
    fs::write(&file, "[shop]\nkey = '0123456789'\n").unwrap();
    set_mode(0o644);
    let told = format!(
        "error: environment: INCOMING_BACKEND_KEYS=\"{place}\": others may read or change the keys \
         in it (mode 0644)\n  remedy: chmod 600 {place}\n"
    );
    let mut command = serve(temp.path());
    command.env("INCOMING_BACKEND_KEYS", &file);
    assert_refused(&mut command, 78, &told);
    set_mode(0o600);
    let told = format!("error: {place}, line 2: key = (hidden): a key has 16 to 1024 letters");
    assert_refused(&mut command, 78, &told);
}

#[test]
fn a_second_server_on_the_same_directory_or_port_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let mut first = Running::start(&mut serve(temp.path()));
    let told =
        format!("another server uses it (process {})\n  remedy: stop that", first.child.id());
    assert_refused(&mut serve(temp.path()), 1, &told);
    let other = temp.path().join("other");
    assert_refused(
        serve(&other).args(["--listen", &first.address]),
        1,
        "remedy: stop what uses the port (ss -ltnp shows it), or choose another one",
    );
    assert_eq!(first.stop(Signal::TERM), Some(0));
    // And now it may.
    let mut second = Running::start(serve(temp.path()).args(["--listen", &first.address]));
    assert_eq!(second.stop(Signal::INT), Some(0));
}

#[test]
fn start_and_stop_are_logged() {
    let temp = tempfile::tempdir().unwrap();
    let mut server = Running::start(serve(temp.path()).args(["--cores", "3", "--memory", "8MiB"]));
    assert_eq!(server.stop(Signal::TERM), Some(0));
    let log = server.log();
    let lines: Vec<serde_json::Value> =
        log.lines().map(|it| serde_json::from_str(it).expect(it)).collect();
    let find = |message: &str| {
        lines.iter().find(|it| it["message"] == message).unwrap_or_else(|| panic!("{log}"))
    };
    let ready = find("ready");
    assert_eq!(ready["level"], "INFO");
    assert_eq!(ready["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(ready["listen"], server.address.as_str());
    assert_eq!(ready["storage_dir"], temp.path().to_str().unwrap());
    assert_eq!(ready["runtime"], "monoio");
    assert_eq!(ready["cores"], 3);
    assert_eq!(ready["memory_total"], "24MiB");
    assert!(ready["direct"].is_boolean() && ready["engine"].is_string());
    find("stopping");
    find("stopped");
}

#[test]
fn warnings_that_an_operator_needs() {
    let temp = tempfile::tempdir().unwrap();
    let mut command = serve(temp.path());
    let mut server =
        Running::start(command.args(["--listen", "0.0.0.0:0", "--log-format", "text"]));
    server.stop(Signal::TERM);
    let log = server.log();
    assert!(log.contains("WARN the network reaches the backend routes; let the proxy"), "{log}");
    assert_eq!(log.contains("running as root"), rustix::process::geteuid().is_root());
    assert!(!log.contains('\u{1b}'), "colours are for terminals");
}

#[test]
fn the_log_can_be_filtered() {
    let temp = tempfile::tempdir().unwrap();
    let mut server = Running::start(serve(temp.path()).env("INCOMING_LOG", "off"));
    server.stop(Signal::TERM);
    assert_eq!(server.log(), "");
}

fn incoming() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_incoming"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("INCOMING_") {
            command.env_remove(name);
        }
    }
    command.env_remove("COLUMNS").stdin(Stdio::null());
    command
}

fn serve(storage_dir: &Path) -> Command {
    let mut command = incoming();
    command.args(["serve", "--storage-dir"]).arg(storage_dir);
    command.env("INCOMING_LISTEN", "127.0.0.1:0");
    command
}

fn run(command: &mut Command) -> Output {
    command.output().expect("the command starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[track_caller]
fn assert_refused(command: &mut Command, exit_code: i32, told: &str) {
    let output = run(command);
    let error = text(&output.stderr);
    assert!(error.contains(told), "{told}\n--- is not in ---\n{error}");
    assert_eq!(output.status.code(), Some(exit_code), "{error}");
    assert!(!text(&output.stdout).contains("listening"));
}

#[track_caller]
fn assert_golden(name: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/cli/{name}.txt"));
    // Ends of lines are blank where clap fills a column.
    let actual: String = actual.lines().map(|it| format!("{}\n", it.trim_end())).collect();
    if std::env::var_os("INCOMING_TEST_WRITE").is_some() {
        fs::write(&path, &actual).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(actual == expected, "{} differs; the command says now:\n{actual}", path.display());
}

/// A server that runs; killed if a test fails.
struct Running {
    child: Child,
    address: String,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let Some(address) = line.trim_end().strip_prefix("listening on http://") else {
            let _ = child.kill();
            panic!("{line}{}", text(&child.wait_with_output().unwrap().stderr));
        };
        Self { address: address.to_owned(), child }
    }

    fn stop(&mut self, signal: Signal) -> Option<i32> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap();
        self.child.wait().unwrap().code()
    }

    /// What it has logged; after its end.
    fn log(&mut self) -> String {
        let mut log = String::new();
        self.child.stderr.as_mut().unwrap().read_to_string(&mut log).unwrap();
        log
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
