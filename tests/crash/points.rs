//! `kill -9` at every system call of a fixed scenario, and of a start after it.
//!
//! `strace` kills the server as it enters the n-th call of a kind, in whichever thread that is
//! first; n goes up until the scenario ends without being killed. Each kind of call is counted by
//! itself, so that a thread that calls often does not hide another one that does something else.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use crate::browser::End;
use crate::content::Content;
use crate::mounts::{Kind, Mount};
use crate::part::{Part, Report, directory_in_memory, directory_on_disk};
use crate::server::{Driver, Server, Setup};
use crate::upload::{Session, Upload};
use crate::world::{Answers, Findings, World};

pub const MONOIO: Part = Part {
    name: "points-monoio",
    run: |long, _| run(Driver::Monoio, long),
    control: |_| control(Driver::Monoio),
};

pub const TOKIO_URING: Part = Part {
    name: "points-tokio-uring",
    run: |long, _| run(Driver::TokioUring, long),
    control: |_| control(Driver::TokioUring),
};

fn run(driver: Driver, long: bool) -> Report {
    let mut findings = Findings::default();
    let ground = Ground::new();
    let silent = if long { SILENT_CALLS } else { &[] };
    let calls = || CALLS.iter().chain(silent);
    let mut scenario = 0;
    for call in calls() {
        scenario += every_point(&ground, driver, call, &|_| {}, u64::MAX, &mut findings);
    }
    let start: u64 =
        calls().map(|it| every_point_of_a_start(&ground, driver, it, &mut findings)).sum();
    let what = format!("{scenario} crash points in the scenario, {start} at a start after it");
    Report::new(what, findings)
}

/// A storage directory that loses its journal with the server.
fn control(driver: Driver) -> Report {
    let mut findings = Findings::default();
    let lose = |world: &World| {
        let _ = std::fs::remove_dir_all(world.storage_dir.join("journal"));
    };
    let count = every_point(&Ground::new(), driver, "sendto", &lose, 8, &mut findings);
    Report::new(format!("{count} crash points, the journal is removed after each"), findings)
}

/// Kills at the first, the second ... call of a kind. Returns at how many.
fn every_point(
    ground: &Ground,
    driver: Driver,
    call: &str,
    between: &dyn Fn(&World),
    points_max: u64,
    findings: &mut Findings,
) -> u64 {
    for point in 1..=points_max {
        let place = Place::new(ground);
        let mut uploads = Vec::new();
        let setup = Setup::new(driver, 1);
        let killed = match place.start(&setup) {
            None => true,
            Some(mut server) => {
                let _tracer = Tracer::attach(&server, call, point);
                let ended = scenario(&place.world, server.address, &mut uploads);
                let killed = server.ends_within(Duration::ZERO)
                    || ended.is_err() && server.ends_within(Duration::from_secs(1));
                if let (false, Err(end)) = (killed, ended) {
                    place.world.find(|it| it.stuck.push(format!("the scenario: {end:?}")));
                }
                server.kill();
                killed
            }
        };
        between(&place.world);
        place.recover(&mut uploads);
        place.end(&format!("{driver:?} {call} {point}"), findings);
        if !killed {
            return point - 1;
        }
    }
    points_max
}

/// The same for the start of a server that finds uploads of all kinds.
fn every_point_of_a_start(
    ground: &Ground,
    driver: Driver,
    call: &str,
    findings: &mut Findings,
) -> u64 {
    for point in 1.. {
        let place = Place::new(ground);
        let mut uploads = Vec::new();
        if let Some(mut server) = place.start(&Setup::new(driver, 2)) {
            if let Err(end) = half_a_scenario(&place.world, server.address, &mut uploads) {
                place.world.find(|it| it.stuck.push(format!("half a scenario: {end:?}")));
            }
            server.kill();
        }
        let mut traced = Setup::new(driver, 1);
        traced.within = ["strace", "-D", "-f", "-qq", "-o", "/dev/null"].map(str::to_owned).into();
        traced.within.extend(injection(call, point));
        let started = Server::start(&traced, &place.world.storage_dir, &place.world.log_path());
        let killed = match started {
            Ok(mut server) => server.ends_within(Duration::from_millis(20)),
            Err(_) => true,
        };
        place.recover(&mut uploads);
        place.end(&format!("start of {driver:?} {call} {point}"), findings);
        if !killed {
            return point - 1;
        }
    }
    unreachable!("no start has so many calls")
}

/// Everything that an upload can go through, once.
fn scenario(world: &World, address: SocketAddr, uploads: &mut Vec<Upload>) -> Result<(), End> {
    half_a_scenario(world, address, uploads)?;
    // Resumed, taken over, finished and removed.
    let mut session = Session::open(world, address, &mut uploads[0])?;
    session.step(world, &mut uploads[0])?;
    Session::open(world, address, &mut uploads[0])?.finish(world, address, &mut uploads[0])?;
    // Finished after `wait`; the file is the web app's.
    Session::open(world, address, &mut uploads[1])?.finish(world, address, &mut uploads[1])?;
    // Cancelled.
    Session::open(world, address, &mut uploads[2])?.cancel(world, address, &mut uploads[2])
}

/// Leaves one upload with two chunks, one with one, one with none.
fn half_a_scenario(
    world: &World,
    address: SocketAddr,
    uploads: &mut Vec<Upload>,
) -> Result<(), End> {
    let kinds = [
        (200_001, Answers::Done, true),
        (70_000, Answers::Wait, false),
        (100_000, Answers::Done, true),
    ];
    for (index, (length, answers, removed)) in kinds.into_iter().enumerate() {
        let content = Content::new(index as u64, length);
        let upload = Upload::issue(world, address, content, CHUNK_BYTES, removed, answers);
        uploads.push(upload.ok_or(End::Lost)?);
    }
    for (upload, chunks) in uploads.iter_mut().zip([2, 1, 0]) {
        let mut session = Session::open(world, address, upload)?;
        for _ in 0..chunks {
            session.step(world, upload)?;
            session.all_acknowledgements(world, upload)?;
        }
        session.reset();
    }
    Ok(())
}

/// A file system in memory that can be written directly, so that no point waits for a slow disk.
struct Ground {
    mount: Mount,
    _directories: [TempDir; 2],
}

impl Ground {
    fn new() -> Self {
        let (memory, disk) = (directory_in_memory(), directory_on_disk());
        let image = memory.path().join("image");
        let mount = Mount::create(Kind::Ext4, IMAGE_MIB, &image, &disk.path().join("mount"));
        Self { mount, _directories: [memory, disk] }
    }
}

/// A storage directory and all that belongs to it, for one point.
struct Place {
    world: Arc<World>,
    _directory: TempDir,
}

impl Place {
    fn new(ground: &Ground) -> Self {
        let directory = TempDir::new_in(&ground.mount.path).expect("make a storage directory");
        let world = World::new(directory.path(), &ground.mount.path, None);
        Self { world, _directory: directory }
    }

    fn start(&self, setup: &Setup) -> Option<Server> {
        match Server::start(setup, &self.world.storage_dir, &self.world.log_path()) {
            Ok(server) => Some(server),
            Err(error) => {
                self.world.find(|it| it.stuck.push(error));
                None
            }
        }
    }

    /// Starts a server that is not killed, checks every promise and brings everything to its end.
    fn recover(&self, uploads: &mut [Upload]) {
        let Some(server) = self.start(&Setup::new(Driver::Monoio, 2)) else { return };
        for upload in uploads {
            if !upload.is_over() {
                let opened = Session::open(&self.world, server.address, upload);
                let finished = opened.and_then(|it| it.finish(&self.world, server.address, upload));
                if let Err(end) = finished
                    && !upload.may_be_cancelled
                {
                    let what = format!("{} does not end: {end:?}", upload.id);
                    self.world.find(|it| it.stuck.push(what));
                    continue;
                }
            }
            if let Err(end) = upload.check_over(&self.world, server.address) {
                self.world.find(|it| it.stuck.push(format!("{}: {end:?}", upload.id)));
            }
        }
        self.world.take_files();
    }

    fn end(self, name: &str, findings: &mut Findings) {
        let mut found = self.world.findings();
        for what in found.lost.iter_mut().chain(&mut found.wrong).chain(&mut found.stuck) {
            what.insert_str(0, &format!("{name}: "));
        }
        findings.add(found);
    }
}

/// `strace` on a running server.
struct Tracer(Child);

impl Tracer {
    fn attach(server: &Server, call: &str, point: u64) -> Self {
        let mut child = Command::new("strace")
            .args(["-f", "-o", "/dev/null", "-p", &server.id().to_string()])
            .args(injection(call, point))
            .stderr(Stdio::piped())
            .stdin(Stdio::null())
            .spawn()
            .expect("strace; tests/run installs it");
        let mut line = String::new();
        let mut said = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let _ = said.read_line(&mut line);
        assert!(line.contains("attached"), "strace: {line}");
        std::thread::spawn(move || said.lines().for_each(drop));
        Self(child)
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The options that make `strace` kill at the n-th call.
fn injection(call: &str, point: u64) -> [String; 4] {
    let inject = format!("inject={call}:signal=KILL:when={point}");
    ["-e".to_owned(), format!("trace={call}"), "-e".to_owned(), inject]
}

const IMAGE_MIB: u64 = 128;
const CHUNK_BYTES: u64 = 65_536;

/// What changes something outside of the process, or takes something from there.
const CALLS: &[&str] = &[
    "io_uring_enter",
    "write",
    "pwrite64",
    "pwritev",
    "pwritev2",
    "fsync",
    "fdatasync",
    "fallocate",
    "ftruncate",
    "openat2",
    "renameat2",
    "unlinkat",
    "mkdirat",
    "flock",
    "fchmod",
    "fchown",
    "fchmodat",
    "fchownat",
    "recvfrom",
    "sendto",
    "sendmsg",
    "sendmmsg",
    "writev",
];

/// What leaves everything as it was: a crash there is one of those around it.
const SILENT_CALLS: &[&str] = &["accept4", "close", "epoll_wait", "pread64", "shutdown", "statx"];
