//! A storage directory that is not there any more, or cannot be written: it is noticed, nothing is
//! promised, nothing is written elsewhere, and all goes on when it is back.

use std::path::Path;
use std::process::Command;

use crate::backend::Backend;
use crate::client::{Client, Event};
use crate::content::Content;
use crate::server::{Driver, Place, Server, Setup, wait_until};

#[test]
fn a_directory_that_is_mounted_over_is_waited_for() {
    for_every_driver(|server| {
        let upload = Begun::new(server);
        in_mounts_of(server, &["mount", "-t", "tmpfs", "tmpfs"]);
        upload.assert_refused(server, "the storage directory is gone");
        let path = server.seen_by_server(server.storage_dir());
        assert_eq!(path.read_dir().unwrap().count(), 0, "nothing is written to what lies there");
        in_mounts_of(server, &["umount"]);
        upload.assert_goes_on(server);
    });
}

#[test]
fn a_directory_that_is_unmounted_is_gone() {
    for_every_driver(|server| {
        let upload = Begun::new(server);
        in_mounts_of(server, &["umount", "--lazy"]);
        upload.assert_refused(server, "the storage directory is gone");
        let path = server.seen_by_server(server.storage_dir());
        assert_eq!(path.read_dir().unwrap().count(), 0, "nothing is written to what lies below");
    });
}

#[test]
fn a_directory_that_is_renamed_or_swapped_is_gone() {
    let names = ["", "parts", "arrived", "journal"];
    for (name, driver) in names.into_iter().zip(DRIVERS.into_iter().cycle()) {
        let server = Setup::new(driver, Place::Disk).start();
        let upload = Begun::new(&server);
        let path = server.storage_dir().join(name);
        let aside = path.with_file_name(format!("aside-{}", std::process::id()));
        std::fs::rename(&path, &aside).unwrap();
        std::fs::create_dir(&path).unwrap();
        upload.assert_refused(&server, "the storage directory is gone");
        assert_eq!(path.read_dir().unwrap().count(), 0, "nothing is written to the other one");
        std::fs::remove_dir(&path).unwrap();
        std::fs::rename(&aside, &path).unwrap();
        upload.assert_goes_on(&server);
    }
}

/// An upload of which a part is acknowledged.
struct Begun {
    backend: Backend,
    id: String,
    content: Content,
    client: std::cell::RefCell<Client>,
}

impl Begun {
    fn new(server: &Server) -> Self {
        let backend = Backend::done();
        let id = backend.ticket_kept(server);
        let content = Content::new(140, 3_000_000);
        let mut client = Client::open(server, &id, content.length_bytes);
        for _ in 0..2 {
            client.chunk(content.piece(client.position, 400_000));
            client.chunk_ack();
        }
        Self { backend, id, content, client: client.into() }
    }

    /// New tickets are refused, and browsers are asked to come back later.
    fn assert_refused(&self, server: &Server, told: &str) {
        let url = self.backend.url();
        let form = [("signalFinishURL", url.as_str())];
        wait_until("tickets are refused", || {
            let answer = server.post("/incoming/0.1/backend/new_upload", &form);
            assert!(answer.status == 200 || answer.text() == told, "{}", answer.text());
            answer.status == 503
        });
        let event = self.client.borrow_mut().receive();
        assert!(matches!(event, Event::Close(Some(1013), _)), "{event:?}");
        let mut client = Client::connect(server);
        client.request(&self.id, self.content.length_bytes, "name");
        let event = client.receive();
        assert!(matches!(event, Event::Close(Some(1013), _)), "{event:?}");
    }

    fn assert_goes_on(&self, server: &Server) {
        let url = self.backend.url();
        let form = [("signalFinishURL", url.as_str())];
        wait_until("there are tickets again", || {
            server.post("/incoming/0.1/backend/new_upload", &form).status == 200
        });
        // Every core looks for itself, every other second.
        wait_until("the upload's core knows as well", || {
            let mut client = Client::connect(server);
            client.request(&self.id, self.content.length_bytes, "name");
            matches!(client.receive(), Event::Message { kind, .. } if kind == "MsgUploadConf")
        });
        let mut client = Client::open(server, &self.id, self.content.length_bytes);
        assert!(client.position >= self.client.borrow().acknowledged());
        client.send_rest(self.content, || 300_000);
        client.finish();
        let path = self.backend.call(&self.id, 1).path();
        self.content.assert_file(&server.seen_by_server(&path));
    }
}

/// On a file system of its own, mounted where only the server sees it.
fn for_every_driver(test: impl Fn(&Server)) {
    assert!(rustix::process::getuid().is_root(), "run this as root: it mounts a tmpfs");
    for driver in DRIVERS {
        let within = Some(on_a_tmpfs as fn(&Path) -> Vec<String>);
        test(&Setup { within, ..Setup::new(driver, Place::Disk) }.start());
    }
}

fn on_a_tmpfs(storage_dir: &Path) -> Vec<String> {
    let script = format!(
        "mount -t tmpfs -o size=256m tmpfs '{}' && exec \"$0\" \"$@\"",
        storage_dir.display()
    );
    ["unshare", "--mount", "sh", "-c", &script].map(str::to_owned).into()
}

/// Runs a command on the storage directory, among the server's mounts.
fn in_mounts_of(server: &Server, command: &[&str]) {
    let mut nsenter = Command::new("nsenter");
    nsenter.args(["--mount", "--root", "--target", &server.process_id().to_string()]);
    nsenter.args(command).arg(server.storage_dir());
    let output = nsenter.output().expect("nsenter, of util-linux");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

const DRIVERS: [Driver; 3] = [Driver::Monoio, Driver::MonoioRefused, Driver::TokioUring];
