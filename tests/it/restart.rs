//! A server that was stopped or killed goes on where it was, also with other cores and another
//! driver.

use std::path::Path;

use rustix::process::Signal;

use crate::backend::{Answer, Backend, Gate};
use crate::client::Client;
use crate::content::Content;
use crate::server::{Driver, Place, Server, Setup, wait_until};

#[test]
fn tickets_and_uploads_go_on() {
    for_every_way(|setup, next, signal| {
        let first = setup.start();
        let backend = Backend::done();
        let content = Content::new(130, 5_000_003);
        let fresh = backend.ticket_kept(&first);
        let begun = backend.ticket_kept(&first);
        let mut client = Client::open(&first, &begun, content.length_bytes);
        for _ in 0..3 {
            client.chunk(content.piece(client.position, 333_333));
            client.chunk_ack();
        }
        client.chunk(content.piece(client.position, 1_000_000));
        let acknowledged = client.acknowledged();

        let second = restart(first, next, signal);
        let mut client = Client::open(&second, &begun, content.length_bytes);
        let file_pos = client.position;
        assert!(file_pos >= acknowledged, "{file_pos} below the acknowledged {acknowledged}");
        client.send_rest(content, || 400_000);
        client.finish();
        content.assert_file(&backend.call(&begun, 1).path());
        Client::upload(&second, &fresh, content, 1_000_000);
        content.assert_file(&backend.call(&fresh, 1).path());
    });
}

#[test]
fn a_hand_over_is_tried_again_and_a_finished_ticket_is_remembered() {
    for_every_way(|setup, next, signal| {
        let first = setup.start();
        let finished = Backend::done();
        let content = Content::new(131, 100_000);
        let done = finished.ticket_kept(&first);
        Client::upload(&first, &done, content, 50_000);
        finished.call(&done, 1);

        // This web app does not answer before the end of the server.
        let gate = Gate::default();
        let closed = gate.clone();
        let slow = Backend::scripted(move |call| {
            if call.attempt == 1 {
                closed.pass();
            }
            Answer::Done
        });
        let id = slow.ticket_kept(&first);
        let mut client = Client::open(&first, &id, content.length_bytes);
        client.send_rest(content, || 50_000);
        content.assert_file(&slow.call(&id, 1).path());

        let second = restart(first, next, signal);
        content.assert_file(&slow.call(&id, 2).path());
        gate.open();
        for (id, backend, call_count) in [(&id, &slow, 2), (&done, &finished, 1)] {
            wait_until("the ticket is finished", || {
                let response = second.post("/incoming/0.1/backend/cancel_upload", &[("id", id)]);
                matches!(response.status, 400 | 412)
            });
            assert_eq!(backend.call_count(id), call_count);
        }
    });
}

#[test]
fn a_full_disk_does_not_stop_a_start() {
    assert!(rustix::process::getuid().is_root(), "run this as root: it mounts file systems");
    for (driver, within) in [
        (Driver::Monoio, on_a_full_tmpfs as fn(&Path) -> Vec<String>),
        (Driver::MonoioRefused, on_a_full_tmpfs),
        (Driver::TokioUring, on_a_full_tmpfs),
        // It allocates nothing on a full disk, not even what is allocated.
        (Driver::Monoio, on_a_full_xfs),
    ] {
        let server = Setup { within: Some(within), ..Setup::new(driver, Place::Disk) }.start();
        assert!(server.log().contains(r#""run":2"#), "{}", server.log());
        let url = Backend::done().url();
        let form = [("signalFinishURL", url.as_str())];
        let answer = server.post("/incoming/0.1/backend/new_upload", &form);
        assert_eq!(answer.status, 507, "{}", answer.text());
    }
}

fn on_a_full_tmpfs(storage_dir: &Path) -> Vec<String> {
    after_a_run_that_filled("mount -t tmpfs -o size=20m tmpfs", storage_dir)
}

/// Needs mkfs.xfs: apt-get install xfsprogs.
fn on_a_full_xfs(storage_dir: &Path) -> Vec<String> {
    let mount = "i=$(mktemp) && truncate -s 400M $i && mkfs.xfs -q -f $i && mount -o loop $i";
    after_a_run_that_filled(mount, storage_dir)
}

/// Runs the server on a disk of its own, kills it, fills the disk, and runs it again.
fn after_a_run_that_filled(mount: &str, storage_dir: &Path) -> Vec<String> {
    let script = format!(
        "{mount} '{dir}' && rm -f $i && said=$(mktemp) || exit
        \"$0\" \"$@\" >$said 2>&1 & first=$!
        until grep -q 'listening on' $said; do sleep 0.02; done
        kill -9 $first; wait $first; rm $said
        cat /dev/zero >'{dir}/filler' 2>/dev/null
        exec \"$0\" \"$@\"",
        dir = storage_dir.display()
    );
    ["unshare", "--mount", "sh", "-c", &script].map(str::to_owned).into()
}

/// Ends a server and starts the next one on its directory.
pub fn restart(mut first: Server, next: &Setup, signal: Signal) -> Server {
    first.signal(signal);
    first.exit_status();
    first.start_again(next)
}

fn for_every_way(test: impl Fn(&Setup, &Setup, Signal)) {
    let drivers = [Driver::Monoio, Driver::MonoioRefused, Driver::TokioUring, Driver::Monoio];
    for place in [Place::Disk, Place::Tmpfs] {
        for (index, cores) in [1, 3, 2].into_iter().enumerate() {
            let setup = Setup { cores, ..Setup::new(drivers[index], place) };
            let next = Setup { cores: 1 + cores % 3, ..Setup::new(drivers[index + 1], place) };
            let signal = if index == 1 { Signal::TERM } else { Signal::KILL };
            test(&setup, &next, signal);
        }
    }
}
