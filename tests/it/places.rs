//! Where files arrive, whose they are then, and what their owners may do with them.

use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use tempfile::TempDir;

use crate::backend::Backend;
use crate::client::Client;
use crate::content::Content;
use crate::server::{Place, Server, Setup, start_refused, storage};
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
        crate::backend::Answer::Done
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

fn as_stranger(_: &Path) -> Vec<String> {
    identity(SERVER_ID, "--clear-groups")
}

fn as_member(_: &Path) -> Vec<String> {
    identity(SERVER_ID, "--groups=61003")
}

/// That no machine has.
const GROUP_ID: u32 = 61_003;
