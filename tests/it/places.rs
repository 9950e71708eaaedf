//! Where files arrive, whose they are then, and what their owners may do with them.

use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::backend::{Answer, Backend};
use crate::client::Client;
use crate::content::Content;
use crate::server::{Place, Server, Setup, start_refused, storage, wait_until};
use crate::storage::{SERVER_ID, identity, open_to_all};

#[test]
fn files_have_the_mode_and_group_that_the_operator_wants() {
    assert!(rustix::process::geteuid().is_root(), "run this as root: it gives files away");
    let group = GROUP_ID.to_string();
    let setup = Setup::default().with_environment("INCOMING_HANDOVER_MODE", "0640");
    let server = setup.with_environment("INCOMING_HANDOVER_GROUP", &group).start();
    let backend = Backend::scripted(|call| {
        let metadata = call.path().metadata().expect("the file");
        assert_eq!((metadata.mode() & 0o7777, metadata.gid()), (0o640, GROUP_ID));
        let uid = if call.form.contains_key("metadata") { 4711 } else { 0 };
        assert_eq!(metadata.uid(), uid);
        Answer::Done
    });
    let content = Content::new(120, 100_000);
    for parameters in [
        &[("removeFileWhenFinished", "true")][..],
        &[("removeFileWhenFinished", "false")],
        &[("removeFileWhenFinished", "false"), ("fileOwnerUid", "4711"), ("metadata", "given")],
    ] {
        let id = backend.ticket_with(&server, parameters);
        Client::upload(&server, &id, content, 60_000);
        assert_eq!(backend.call_count(&id), 1, "the first answer was done");
    }
}

#[test]
fn a_group_that_the_server_is_not_in_stops_the_start() {
    assert!(rustix::process::geteuid().is_root(), "run this as root: it becomes another user");
    let temp = tempfile::Builder::new().prefix("incoming-it-").tempdir_in("/tmp").unwrap();
    open_to_all(temp.path());
    let binary = temp.path().join("incoming");
    std::fs::copy(env!("CARGO_BIN_EXE_incoming"), &binary).unwrap();
    let storage = TempDir::new_in(temp.path()).unwrap();
    chown(storage.path(), Some(SERVER_ID), Some(SERVER_ID)).unwrap();
    let setup = Setup { binary: Some(binary), ..Setup::default() };
    let setup = setup.with_environment("INCOMING_HANDOVER_GROUP", &GROUP_ID.to_string());
    let stranger = Setup { within: Some(as_stranger), ..setup.clone() };
    let (status, said) = start_refused(stranger.command(storage.path()));
    assert_eq!(status.code(), Some(1));
    let expected = format!("handover_group = \"{GROUP_ID}\": this process may not give files");
    assert!(said.contains(&expected) && said.contains("remedy: make its user a member"), "{said}");
    let nothing_left = storage.path().join("parts").read_dir().unwrap().count();
    assert_eq!(nothing_left, 0);

    let server = Server::start(&Setup { within: Some(as_member), ..setup }, storage);
    let backend = Backend::done();
    let id = backend.ticket_kept(&server);
    Client::upload(&server, &id, Content::new(121, 1000), 1000);
    let metadata = backend.call(&id, 1).path().metadata().unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (SERVER_ID, GROUP_ID));
}

#[test]
fn an_unknown_group_stops_the_start() {
    let storage = storage(Place::Disk);
    let setup = Setup::default().with_environment("INCOMING_HANDOVER_GROUP", "nobody-has-this");
    let (status, said) = start_refused(setup.command(storage.path()));
    assert!(!status.success());
    let expected = r#"INCOMING_HANDOVER_GROUP="nobody-has-this": there is no such group"#;
    assert!(said.contains(expected) && said.contains("remedy: "), "{said}");
}

#[test]
fn files_arrive_where_their_web_apps_want_them() {
    let apps = storage(Place::Disk);
    let files = apps.path().join("deep/files");
    std::fs::create_dir_all(&files).unwrap();
    let server = with_root(&Setup::default(), apps.path()).start();
    let backend = Backend::done();
    let content = Content::new(122, 300_000);
    let dest = [("destDir", files.to_str().unwrap())];
    let id = backend.ticket_with(&server, &dest);
    Client::upload(&server, &id, content, 100_000);
    assert_eq!(backend.call(&id, 1).path(), files.join(&id));
    content.assert_file(&files.join(&id));
    server.wait_without_files();
    content.assert_file(&files.join(&id));

    let removed = [dest[0], ("removeFileWhenFinished", "true")];
    let id = backend.ticket_with(&server, &removed);
    Client::upload(&server, &id, content, 100_000);
    assert_eq!(backend.call(&id, 1).path(), files.join(&id));
    wait_until("the file is removed", || !files.join(&id).exists());

    // What stands there is never replaced, and somebody else's file is not removed.
    let id = backend.ticket_with(&server, &removed);
    std::fs::write(files.join(&id), "mine").unwrap();
    let mut client = Client::open(&server, &id, content.length_bytes);
    client.send_rest(content, || 100_000);
    assert_eq!(backend.call(&id, 1).cancel_reason(), "storage error");
    assert_eq!(std::fs::read(files.join(&id)).unwrap(), b"mine");
    content.assert_file(&server.storage_dir().join(format!("parts/{id}.failed")));
}

#[test]
fn a_directory_that_cannot_be_used_is_refused_with_the_ticket() {
    let apps = storage(Place::Disk);
    let at = |path: &str| apps.path().join(path).to_str().unwrap().to_owned();
    std::fs::create_dir(at("real")).unwrap();
    std::fs::write(at("file"), "").unwrap();
    std::os::unix::fs::symlink("real", at("link")).unwrap();
    let url = Backend::done().url();
    let refuse = |server: &Server, dest_dir: &str, why: &str| {
        let form = [("signalFinishURL", url.as_str()), ("destDir", dest_dir)];
        let answer = server.post("/incoming/0.1/backend/new_upload", &form);
        let expected = format!("destDir invalid: {why}: {dest_dir:?}");
        assert_eq!((answer.status, answer.text()), (400, expected.as_str()));
    };
    let server = with_root(&Setup::default(), apps.path()).start();
    // Whichever core answers, and whichever has the ticket.
    for _ in 0..4 {
        refuse(&server, &at("none"), "there is no such directory");
        refuse(&server, &at("file"), "it, or something on the way to it, is no directory");
        refuse(&server, &at("link"), "a symbolic link is on the way to it");
        refuse(&server, "/", "not below one of dest_roots");
    }
    refuse(&Setup::default().start(), &at("real"), "this server has no dest_roots");
}

#[test]
fn a_root_that_cannot_be_used_stops_the_start() {
    let dir = storage(Place::Disk);
    let elsewhere = storage(Place::Tmpfs);
    let apps = storage(Place::Disk);
    std::fs::write(apps.path().join("file"), "").unwrap();
    std::fs::create_dir(dir.path().join("files")).unwrap();
    for (root, what, remedy) in [
        (apps.path().join("none"), "No such file or directory", "make the directory"),
        (apps.path().join("file"), "it is no directory", "give a directory"),
        (dir.path().join("files"), "it is in the storage directory", "beside storage_dir"),
        (dir.path().parent().unwrap().into(), "or around it", "beside storage_dir"),
        (elsewhere.path().into(), "on another file system", "by renaming, not copied"),
    ] {
        let (status, said) = start_refused(with_root(&Setup::default(), &root).command(dir.path()));
        assert_eq!(status.code(), Some(1));
        let begins = format!("dest_roots = \"{}\": ", root.display());
        assert!(said.contains(&begins) && said.contains(what), "{said}");
        assert!(said.contains("remedy: ") && said.contains(remedy), "{said}");
    }
    let nothing_left = dir.path().join("parts").read_dir().unwrap().count();
    assert_eq!(nothing_left, 0);
}

#[test]
fn a_directory_that_is_gone_fails_its_own_upload_only() {
    let apps = storage(Place::Disk);
    let gone = apps.path().join("gone");
    std::fs::create_dir(&gone).unwrap();
    let server = with_root(&Setup::default(), apps.path()).start();
    let backend = Backend::done();
    let content = Content::new(123, 200_000);
    let id = backend.ticket_with(&server, &[("destDir", gone.to_str().unwrap())]);
    let mut client = Client::open(&server, &id, content.length_bytes);
    std::fs::remove_dir(&gone).unwrap();
    client.send_rest(content, || 100_000);
    assert_eq!(backend.call(&id, 1).cancel_reason(), "storage error");
    content.assert_file(&server.storage_dir().join(format!("parts/{id}.failed")));

    let usual = backend.ticket_kept(&server);
    Client::upload(&server, &usual, content, 100_000);
    content.assert_file(&backend.call(&usual, 1).path());
}

#[test]
fn a_restart_finds_what_has_arrived_elsewhere() {
    let apps = storage(Place::Disk);
    let setup = with_root(&Setup::default(), apps.path());
    let mut server = setup.start();
    let backend = Backend::scripted(|_| Answer::Wait);
    let content = Content::new(124, 200_000);
    let parameters =
        [("destDir", apps.path().to_str().unwrap()), ("removeFileWhenFinished", "true")];
    let id = backend.ticket_with(&server, &parameters);
    let mut client = Client::open(&server, &id, content.length_bytes);
    client.send_rest(content, || 100_000);
    assert_eq!(backend.call(&id, 1).path(), apps.path().join(&id));
    server.signal(Signal::KILL);
    server.exit_status();
    let server = server.start_again(&setup);
    content.assert_file(&apps.path().join(&id));
    let answer = server.post("/incoming/0.1/backend/finish_upload", &[("id", &id)]);
    assert_eq!((answer.status, answer.text()), (200, "ok"));
    wait_until("the file is removed", || !apps.path().join(&id).exists());
}

fn with_root(setup: &Setup, root: &Path) -> Setup {
    setup.clone().with_environment("INCOMING_DEST_ROOTS", root.to_str().expect("UTF-8"))
}

fn as_stranger(_: &Path) -> Vec<String> {
    identity(SERVER_ID, "--clear-groups")
}

fn as_member(_: &Path) -> Vec<String> {
    identity(SERVER_ID, "--groups=61003")
}

/// That no machine has.
const GROUP_ID: u32 = 61_003;
