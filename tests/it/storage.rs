//! The storage directory: one server at a time, and what other users may do in it.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::backend::Backend;
use crate::client::Client;
use crate::content::Content;
use crate::server::{Driver, Place, Server, Setup, on_every_driver, start_refused, storage};

on_every_driver! { a_second_server_waits_for_the_first_to_end }

fn a_second_server_waits_for_the_first_to_end(setup: &Setup) {
    let storage = storage(setup.place);
    let path = storage.path().to_owned();
    let mut first = Server::start(setup, storage);
    let mut second = Waiting::start(setup.command(&path));
    first.signal(Signal::TERM);
    assert_eq!(first.exit_status().code(), Some(0));
    assert!(second.listens());
}

#[test]
fn a_second_server_takes_over_from_a_killed_one() {
    for driver in [Driver::Monoio, Driver::MonoioRefused, Driver::TokioUring] {
        let setup = Setup::new(driver, Place::Disk);
        let storage = storage(setup.place);
        let path = storage.path().to_owned();
        let mut first = Server::start(&setup, storage);
        let backend = Backend::done();
        let id = backend.ticket(&first);
        let mut client = Client::open(&first, &id, 100_000_000);
        let mut second = Waiting::start(setup.command(&path));
        // Killed with writes under way.
        client.chunk(vec![1; 8_000_000]);
        first.signal(Signal::KILL);
        assert!(!first.exit_status().success());
        assert!(second.listens(), "{driver:?}");
    }
}

#[test]
fn a_second_server_does_not_wait_for_ever() {
    let server = Setup::default().start();
    let (status, said) = start_refused(Setup::default().command(server.storage_dir()));
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("another server uses it (process "), "{said}");
    assert_eq!(server.get("/incoming/0.1/health").status, 200, "the first one is unharmed");
}

/// The server is one user, the web app another one, in the server's group.
#[test]
fn a_web_app_of_the_group_gets_its_files_and_nothing_else() {
    assert!(rustix::process::geteuid().is_root(), "run this as root: it becomes other users");
    // Every user can get there, whatever the way to the build directory allows.
    let temp = tempfile::Builder::new().prefix("incoming-it-").tempdir_in("/tmp").unwrap();
    let world = Path::new(temp.path());
    open_to_all(world);
    let binary = world.join("incoming");
    std::fs::copy(env!("CARGO_BIN_EXE_incoming"), &binary).unwrap();
    let apps = world.join("apps");
    std::fs::create_dir(&apps).unwrap();
    chown(&apps, Some(APP_ID), Some(APP_ID)).unwrap();
    let storage = TempDir::new_in(world).unwrap();
    chown(storage.path(), Some(SERVER_ID), Some(SERVER_ID)).unwrap();
    open_to_all(storage.path());

    let setup = Setup { within: Some(as_server), ..Setup::default() };
    let command = binary.to_str().unwrap().to_owned();
    let server = Server::start(&Setup { binary: Some(binary), ..setup }, storage);
    let dir = server.storage_dir().to_owned();
    let backend = Backend::done();
    let content = Content::new(120, 3_000_000);
    let mut unfinished = Client::open(&server, &backend.ticket(&server), content.length_bytes);
    unfinished.chunk(content.piece(0, 1_000_000));
    unfinished.chunk_ack();
    let id = backend.ticket_kept(&server);
    Client::upload(&server, &id, content, 500_000);
    let arrived = backend.call(&id, 1).path();
    assert_eq!(arrived, dir.join("arrived").join(&id));
    let metadata = std::fs::metadata(&arrived).unwrap();
    assert_eq!(
        (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777),
        (SERVER_ID, SERVER_ID, 0o770)
    );

    let path = |it: &Path| it.to_str().unwrap().to_owned();
    // What is not handed over is nobody else's business, and neither is the journal.
    for words in [
        ["ls".to_owned(), path(&dir.join("parts"))],
        ["ls".to_owned(), path(&dir.join("journal"))],
        ["cat".to_owned(), path(&dir.join("lock"))],
        ["touch".to_owned(), path(&dir.join("new"))],
        ["rmdir".to_owned(), path(&dir.join("arrived"))],
    ] {
        assert!(!as_app(&words), "{words:?}");
    }
    // Nor is what operators may do.
    let status = [command, "status".to_owned(), "--storage-dir".to_owned(), path(&dir)];
    let refused = run_as(APP_ID, &status);
    let error = String::from_utf8_lossy(&refused.stderr);
    assert!(error.contains("only root and the user that the server runs as"), "{error}");
    assert_eq!(refused.status.code(), Some(1));
    assert!(run_as(SERVER_ID, &status).status.success());
    let taken = apps.join("taken");
    assert!(as_app(&["mv".to_owned(), path(&arrived), path(&taken)]), "takes its file away");
    content.assert_file(&taken);
    assert!(as_app(&["sh".to_owned(), "-c".to_owned(), format!("echo >> {}", path(&taken))]));
    // And the other upload goes on.
    unfinished.chunk(content.piece(1_000_000, 1_000_000));
    unfinished.chunk_ack();
}

/// A server that waits for another one.
struct Waiting {
    child: Child,
    _log: BufReader<ChildStderr>,
}

impl Waiting {
    /// Returns when it says that it waits.
    fn start(mut command: Command) -> Self {
        let mut child = command.spawn().expect("start the server");
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("waiting for it") {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "it ended");
        }
        Self { child, _log: log }
    }

    fn listens(&mut self) -> bool {
        let mut line = String::new();
        BufReader::new(self.child.stdout.take().unwrap()).read_line(&mut line).expect("a line");
        line.starts_with("listening on http://")
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn as_server(_: &Path) -> Vec<String> {
    identity(SERVER_ID, "--clear-groups")
}

fn as_app(words: &[String]) -> bool {
    run_as(APP_ID, words).status.success()
}

/// Runs a command as a user who is in the server's group.
fn run_as(id: u32, words: &[String]) -> Output {
    let setpriv = identity(id, &format!("--groups={SERVER_ID}"));
    let mut command = Command::new(&setpriv[0]);
    command.args(&setpriv[1..]).args(words);
    command.output().expect("setpriv, of util-linux")
}

/// Runs what follows as this user.
pub fn identity(id: u32, groups: &str) -> Vec<String> {
    ["setpriv", &format!("--reuid={id}"), &format!("--regid={id}"), groups]
        .map(str::to_owned)
        .into()
}

pub fn open_to_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Users that no machine has.
pub const SERVER_ID: u32 = 61_001;
const APP_ID: u32 = 61_002;
