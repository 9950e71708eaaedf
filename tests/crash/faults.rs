//! Disks that are full, broken, slow, read-only or gone, under a server that goes on.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::browser::{End, post};
use crate::content::Content;
use crate::disk::Disk;
use crate::mounts::{Kind, Mount, must};
use crate::part::{Part, Report, directory_in_memory, directory_on_disk};
use crate::server::{Driver, PATIENCE, Server, Setup};
use crate::upload::{Session, Upload};
use crate::world::{Answers, Findings, World};

pub const PART: Part = Part { name: "faults", run, control };

fn run(_long: bool, _seed: u64) -> Report {
    let mut findings = Findings::default();
    type Case = (&'static str, fn(&mut Scene));
    let cases: [Case; 6] = [
        ("full disk", full_disk),
        ("full below", full_below),
        ("failing disk", failing_disk),
        ("slow disk", slow_disk),
        ("read-only", read_only),
        ("away", away),
    ];
    let drivers = [Driver::Monoio, Driver::TokioUring, Driver::Epoll];
    for driver in drivers {
        for (fault, case) in cases {
            let mut scene = Scene::new(driver, fault);
            case(&mut scene);
            findings.add(scene.end());
        }
    }
    let what = format!("{} faults of the disk on {} drivers", cases.len(), drivers.len());
    Report::new(what, findings)
}

/// A disk that says `ok` and has lost what was written while it failed.
fn control(_seed: u64) -> Report {
    let mut scene = Scene::new(Driver::Monoio, "failing disk");
    scene.durability = "written";
    for _ in 0..CONTROL_ATTEMPTS {
        failing_disk(&mut scene);
        if !scene.world().findings().is_clean() {
            break;
        }
        let findings = scene.end();
        scene = Scene::new(Driver::Monoio, "failing disk");
        scene.durability = "written";
        drop(findings);
    }
    Report::new("a failing disk, not synced".to_owned(), scene.end())
}

/// No room: the upload pauses and goes on when there is room again.
fn full_disk(scene: &mut Scene) {
    scene.mount_image(160);
    let server = scene.start();
    let address = server.address;
    let mut upload = scene.issue(address, 60_000_000);
    scene.claim(address, &mut upload);
    let filler = scene.mount().path.join("filler");
    fill_up(&filler, &scene.mount().path, 20_000_000);
    scene.send_until_closed(address, &mut upload, 1013);
    // Full is not broken: however often it is tried, the upload stays.
    for _ in 0..3 {
        scene.send_until_closed(address, &mut upload, 1013);
    }
    scene.expect_no_ticket(address, 507);
    fs::remove_file(filler).expect("make room");
    scene.finish(address, &mut upload);
    scene.expect_ticket(address);
}

/// The file system has room, but the disk below it has not: writes and syncs fail with `EIO`, some
/// of them only the first time.
fn full_below(scene: &mut Scene) {
    let thin = scene.directory("thin");
    must(Command::new("mount").args(["-t", "tmpfs", "-o", "size=40m", "none"]).arg(&thin));
    let image = thin.join("image");
    fs::File::create(&image).and_then(|it| it.set_len(256 << 20)).expect("make an image");
    let options = ["-q", "-F", "-E", "nodiscard,lazy_itable_init=1"];
    must(Command::new("mkfs.ext4").args(options).arg(&image));
    scene.mount_device(&image);
    let mut server = scene.start();
    let mut upload = scene.issue(server.address, 80_000_000);
    let end = scene.send_until_end(server.address, &mut upload);
    if !matches!(end, End::Closed(Some(1011 | 1013)) | End::Lost) {
        scene.stuck(format!("a disk without room below: {end:?}"));
    }
    scene.cut_power(&mut server);
    must(Command::new("mount").args(["-o", "remount,size=400m"]).arg(&thin));
    scene.mount().remount();
    let server = scene.start();
    scene.finish(server.address, &mut upload);
    drop(server);
    scene.unmount();
    must(Command::new("umount").arg(&thin));
}

/// Every write and sync of the disk fails for a while.
fn failing_disk(scene: &mut Scene) {
    scene.mount_disk();
    let mut server = scene.start();
    let mut uploads = scene.issue_some(server.address);
    thread::scope(|scope| {
        let (scene, address) = (&*scene, server.address);
        for upload in &mut uploads {
            scope.spawn(move || scene.send_until_end(address, upload));
        }
        thread::sleep(Duration::from_millis(150));
        scene.disk().set_failing(true);
        // The server may end itself when it cannot write its journal; browsers come back.
    });
    scene.cut_power(&mut server);
    scene.disk().set_failing(false);
    scene.mount().remount();
    let server = scene.start();
    for upload in &mut uploads {
        scene.finish(server.address, upload);
    }
}

/// Acknowledgements are late, and right.
fn slow_disk(scene: &mut Scene) {
    scene.mount_disk();
    let mut server = scene.start();
    scene.disk().set_delay(Duration::from_millis(20));
    let mut uploads = scene.issue_some(server.address);
    thread::scope(|scope| {
        let (scene, address) = (&*scene, server.address);
        for upload in &mut uploads {
            scope.spawn(move || scene.send_until_end(address, upload));
        }
        thread::sleep(Duration::from_millis(1000));
        scene.cut_power(&mut server);
    });
    scene.disk().set_delay(Duration::ZERO);
    scene.mount().remount();
    let server = scene.start();
    for upload in &mut uploads {
        scene.finish(server.address, upload);
    }
}

/// After an error of its own the file system takes no more writes.
fn read_only(scene: &mut Scene) {
    scene.mount_image(256);
    let mut server = scene.start();
    let mut upload = scene.issue(server.address, 30_000_000);
    scene.send_some(server.address, &mut upload);
    must(Command::new("mount").args(["-o", "remount,errors=remount-ro"]).arg(&scene.mount().path));
    scene.mount().fail_with_error();
    let end = scene.send_until_end(server.address, &mut upload);
    if !matches!(end, End::Closed(Some(1011 | 1013)) | End::Lost) {
        scene.stuck(format!("read-only: {end:?}"));
    }
    // It has either stopped or gives out no tickets.
    if !server.ends_within(Duration::from_millis(500)) {
        scene.expect_no_ticket(server.address, 503);
    }
    scene.cut_power(&mut server);
    scene.mount().repair();
    let server = scene.start();
    scene.finish(server.address, &mut upload);
}

/// The file system is unmounted, or the directory renamed, or removed, under the server.
fn away(scene: &mut Scene) {
    scene.mount_image(256);
    let storage_dir = scene.world().storage_dir.clone();
    let elsewhere = storage_dir.with_file_name("elsewhere");
    let mut server = scene.start();
    let mut upload = scene.issue(server.address, 30_000_000);
    scene.send_some(server.address, &mut upload);
    fs::rename(&storage_dir, &elsewhere).expect("rename the storage directory");
    scene.expect_no_ticket(server.address, 503);
    scene.send_slowly_until_away(server.address, &mut upload);
    scene.expect_nothing_at(&storage_dir);
    fs::rename(&elsewhere, &storage_dir).expect("rename it back");
    scene.world().is_away.store(false, Ordering::Relaxed);
    // It is what it was: nothing needs to be restarted.
    scene.expect_ticket(server.address);
    scene.send_some(server.address, &mut upload);

    let mount_point = scene.mount().path.clone();
    must(Command::new("umount").arg("--lazy").arg(&mount_point));
    scene.expect_no_ticket(server.address, 503);
    scene.send_slowly_until_away(server.address, &mut upload);
    scene.expect_nothing_at(&storage_dir);
    server.kill();
    scene.mount().mount();
    scene.world().is_away.store(false, Ordering::Relaxed);
    let server = scene.start();
    scene.finish(server.address, &mut upload);

    fs::remove_dir_all(&storage_dir).expect("remove the storage directory");
    scene.expect_no_ticket(server.address, 503);
    scene.expect_nothing_at(&storage_dir);
}

/// One fault: a file system and a world on it.
struct Scene {
    driver: Driver,
    fault: &'static str,
    durability: &'static str,
    world: Option<Arc<World>>,
    mount: Option<Mount>,
    disk: Option<Disk>,
    directories: [TempDir; 2],
}

impl Scene {
    fn new(driver: Driver, fault: &'static str) -> Self {
        let directories = [directory_in_memory(), directory_on_disk()];
        let durability = "synced";
        Self { driver, fault, durability, world: None, mount: None, disk: None, directories }
    }

    fn world(&self) -> &World {
        self.world.as_ref().expect("a world")
    }

    fn mount(&self) -> &Mount {
        self.mount.as_ref().expect("a file system")
    }

    fn disk(&self) -> &Disk {
        self.disk.as_ref().expect("a disk")
    }

    fn directory(&self, name: &str) -> PathBuf {
        let path = self.directories[1].path().join(name);
        fs::create_dir_all(&path).expect("make a directory");
        path
    }

    fn mount_image(&mut self, size_mib: u64) {
        let image = self.directories[0].path().join("image");
        fs::File::create(&image).and_then(|it| it.set_len(size_mib << 20)).expect("make an image");
        Kind::Ext4.make(&image);
        self.mount_device(&image);
    }

    fn mount_disk(&mut self) {
        // Room enough that nobody is refused because what others are just being given counts twice.
        let disk = Disk::new(&self.directory("disk"), 512 << 20);
        Kind::Ext4.make(&disk.file);
        self.mount_device(&disk.file);
        self.disk = Some(disk);
    }

    fn mount_device(&mut self, source: &Path) {
        let mount = Mount::new(source, &self.directory("mount"));
        let storage_dir = mount.path.join("storage");
        fs::create_dir(&storage_dir).expect("make the storage directory");
        rustix::fs::sync();
        self.world = Some(World::new(&storage_dir, self.directories[1].path(), None));
        self.mount = Some(mount);
    }

    fn start(&self) -> Server {
        let setup = Setup::new(self.driver, 2).option("--durability", self.durability);
        let world = self.world();
        Server::start(&setup, &world.storage_dir, &world.log_path())
            .unwrap_or_else(|error| panic!("{error}"))
    }

    fn stuck(&self, what: String) {
        let what = format!("{:?}: {}: {what}", self.driver, self.fault);
        self.world().find(|it| it.stuck.push(what));
    }

    fn issue(&self, address: SocketAddr, length_bytes: u64) -> Upload {
        let content = Content::new(length_bytes, length_bytes);
        Upload::issue(self.world(), address, content, CHUNK_BYTES, true, Answers::Done)
            .expect("a ticket")
    }

    fn issue_some(&self, address: SocketAddr) -> Vec<Upload> {
        (0..4).map(|it| self.issue(address, 30_000_000 + it)).collect()
    }

    /// Sends until the connection ends, and says how.
    fn send_until_end(&self, address: SocketAddr, upload: &mut Upload) -> End {
        let world = self.world();
        let ended = Session::open(world, address, upload)
            .and_then(|it| it.finish(world, address, upload))
            .err();
        let end = ended.unwrap_or_else(|| End::Unexpected("all of it was taken".to_owned()));
        if let End::Refused(..) | End::Silent = end {
            self.stuck(format!("{}: {end:?}", upload.id));
        }
        end
    }

    /// A browser comes, and goes before it has sent anything.
    fn claim(&self, address: SocketAddr, upload: &mut Upload) {
        if let Err(end) = Session::open(self.world(), address, upload) {
            self.stuck(format!("{end:?} for the first browser"));
        }
    }

    fn send_until_closed(&self, address: SocketAddr, upload: &mut Upload, code: u16) {
        let end = self.send_until_end(address, upload);
        if end != End::Closed(Some(code)) {
            self.stuck(format!("{end:?} instead of close {code}"));
        }
    }

    /// Sends now and then until it is sent away: the owner of the upload looks at the directory
    /// every other second.
    fn send_slowly_until_away(&self, address: SocketAddr, upload: &mut Upload) {
        let world = self.world();
        world.is_away.store(true, Ordering::Relaxed);
        let mut session = match Session::open(world, address, upload) {
            Ok(session) => session,
            Err(End::Closed(Some(1013))) => return,
            Err(end) => return self.stuck(format!("{end:?} instead of close 1013")),
        };
        let end = loop {
            if session.is_all_sent(upload) {
                return self.stuck("the directory is away, and it took everything".to_owned());
            }
            let sent = session.step(world, upload);
            if let Err(end) = sent.and_then(|()| session.all_acknowledgements(world, upload)) {
                break end;
            }
            thread::sleep(Duration::from_millis(60));
        };
        if end != End::Closed(Some(1013)) {
            self.stuck(format!("{end:?} instead of close 1013"));
        }
    }

    fn send_some(&self, address: SocketAddr, upload: &mut Upload) {
        let world = self.world();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let sent = Session::open(world, address, upload).and_then(|mut session| {
                for _ in 0..4 {
                    session.step(world, upload)?;
                }
                session.all_acknowledgements(world, upload)
            });
            match sent {
                Ok(()) => return,
                Err(End::Closed(Some(1013))) if Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(100));
                }
                Err(end) => return self.stuck(format!("{}: {end:?}", upload.id)),
            }
        }
    }

    /// Brings an upload to its end, however often the server sends the browser away meanwhile.
    fn finish(&self, address: SocketAddr, upload: &mut Upload) {
        let world = self.world();
        let deadline = Instant::now() + PATIENCE;
        while !upload.is_over() {
            let ended = Session::open(world, address, upload)
                .and_then(|it| it.finish(world, address, upload));
            if Instant::now() > deadline || matches!(ended, Err(End::Refused(..))) {
                return self.stuck(format!("{} does not end: {ended:?}", upload.id));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// New tickets are refused with this status and a text, soon.
    fn expect_no_ticket(&self, address: SocketAddr, status: u16) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.ask_for_ticket(address);
            match &answer {
                Some((got, text)) if *got == status && text.len() > 10 => return,
                _ if Instant::now() > deadline => {
                    return self.stuck(format!("{answer:?} instead of {status} for a ticket"));
                }
                _ => thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    fn expect_ticket(&self, address: SocketAddr) {
        self.expect_no_ticket(address, 200);
    }

    fn ask_for_ticket(&self, address: SocketAddr) -> Option<(u16, String)> {
        let url = self.world().callback_url();
        post(address, "new_upload", &[("signalFinishURL", &url)])
    }

    fn expect_nothing_at(&self, path: &Path) {
        if path.exists() {
            self.stuck(format!("{} was made", path.display()));
        }
    }

    fn cut_power(&self, server: &mut Server) {
        server.signal(rustix::process::Signal::STOP);
        self.mount().cut_power();
        server.kill();
    }

    fn unmount(&mut self) {
        self.mount = None;
    }

    fn end(mut self) -> Findings {
        let findings = self.world().findings();
        self.mount = None;
        self.disk = None;
        findings
    }
}

/// Leaves only so much room on a file system.
fn fill_up(filler: &Path, on: &Path, leave_bytes: u64) {
    let state = rustix::fs::statvfs(on).expect("statvfs");
    let free_bytes = state.f_bfree * state.f_frsize;
    must(
        Command::new("fallocate")
            .args(["--length", &free_bytes.saturating_sub(leave_bytes).to_string()])
            .arg(filler),
    );
}

const CHUNK_BYTES: u64 = 300_001;
const CONTROL_ATTEMPTS: u64 = 10;
