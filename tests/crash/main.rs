//! Crashes of the whole server, on real disks and real file systems: the real binary, killed and
//! cut off in every way, with a record outside of it of what it has promised.
//!
//! Each part has a control: the same harness over something that is wrong on purpose. A control
//! that finds nothing fails the run, because then the part proves nothing.
//!
//! `cargo test --test crash [-- PART...]`, as root. `INCOMING_TEST_LONG=1` is the long form,
//! `INCOMING_TEST_SEED` repeats a run, `INCOMING_TEST_VERBOSE=1` shows what the controls
//! found, `INCOMING_BINARY` tests another server.
#![forbid(unsafe_code)]
#![expect(
    unreachable_pub,
    reason = "a test binary has no public interface; `pub` marks modules' own"
)]

#[allow(dead_code, reason = "shared with the integration tests, which use all of it")]
#[path = "../it/backend.rs"]
mod backend;
mod browser;
#[allow(dead_code, reason = "shared with the integration tests, which use all of it")]
#[path = "../it/content.rs"]
mod content;
mod disk;
mod faults;
mod fleet;
#[allow(dead_code, reason = "shared with the integration tests, which use all of it")]
#[path = "../it/http.rs"]
mod http;
mod kills;
mod mounts;
mod part;
mod points;
mod power;
mod server;
mod states;
mod upload;
mod world;

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::thread;
use std::time::{Instant, SystemTime};

use crate::mounts::must;
use crate::part::{Part, Report};
use crate::server::BINARY_VARIABLE;
use crate::world::lock;

fn main() -> ExitCode {
    if !rustix::process::geteuid().is_root() {
        eprintln!("the crash tests mount file systems: sudo -E env \"PATH=$PATH\" tests/run crash");
        return ExitCode::FAILURE;
    }
    if std::env::var_os(INSIDE_VARIABLE).is_none() {
        return go_inside();
    }
    // The one outside may be read-only.
    must(Command::new("mount").args(["-o", "remount,bind,rw", "/sys"]));
    let wanted: Vec<String> = std::env::args().skip(1).filter(|it| !it.starts_with('-')).collect();
    let parts: Vec<&Part> = PARTS
        .iter()
        .filter(|it| wanted.is_empty() || wanted.iter().any(|w| w == it.name))
        .collect();
    if parts.is_empty() {
        let names: Vec<&str> = PARTS.iter().map(|it| it.name).collect();
        eprintln!("there is no part {wanted:?}; there are {names:?}");
        return ExitCode::FAILURE;
    }
    let long = std::env::var_os("INCOMING_TEST_LONG").is_some();
    let seed = match std::env::var("INCOMING_TEST_SEED") {
        Ok(text) => text.parse().expect("INCOMING_TEST_SEED is a number"),
        Err(_) => SystemTime::UNIX_EPOCH.elapsed().map_or(0, |it| it.as_secs()),
    };
    println!("crash tests, INCOMING_TEST_SEED={seed}");
    let failed = Mutex::new(Vec::new());
    let next = Mutex::new(parts.into_iter());
    thread::scope(|scope| {
        for _ in 0..AT_THE_SAME_TIME {
            scope.spawn(|| {
                loop {
                    let Some(part) = lock(&next).next() else { break };
                    if !run(part, long, seed) {
                        lock(&failed).push(part.name);
                    }
                }
            });
        }
    });
    let failed = lock(&failed);
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("FAILED: {failed:?}; again: INCOMING_TEST_SEED={seed}");
    ExitCode::FAILURE
}

fn run(part: &Part, long: bool, seed: u64) -> bool {
    // Another binary is wrong already: to see it caught is all that is asked.
    let has_control = std::env::var_os(BINARY_VARIABLE).is_none();
    // What is wrong does not show each time.
    let caught = !has_control
        || (seed..seed + CONTROLS_MAX).any(|seed| {
            let started = Instant::now();
            let report = (part.control)(seed);
            print(part.name, "control", started, &report);
            if std::env::var_os("INCOMING_TEST_VERBOSE").is_some() {
                print!("{}", report.findings.examples());
            }
            !report.findings.is_clean()
        });
    if !caught {
        println!("{}: the control found nothing", part.name);
    }
    let started = Instant::now();
    let report = (part.run)(long, seed);
    print(part.name, "run", started, &report);
    print!("{}", report.findings.examples());
    caught && report.findings.is_clean()
}

/// Tries of a control until it has to have found something.
const CONTROLS_MAX: u64 = 5;

fn print(name: &str, kind: &str, started: Instant, report: &Report) {
    let seconds = started.elapsed().as_secs_f64();
    println!("{name} {kind}: {}: {} ({seconds:.0} s)", report.what, report.findings.figures());
}

/// Runs this again where mounts and processes are its own, and go away with it.
fn go_inside() -> ExitCode {
    let this = std::env::current_exe().expect("the path of this program");
    // mkfs and fsck are not in every user's PATH.
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let error = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(this)
        .args(std::env::args_os().skip(1))
        .env(INSIDE_VARIABLE, "yes")
        .env("PATH", path)
        .exec();
    eprintln!("unshare: {error} (apt-get install util-linux)");
    ExitCode::FAILURE
}

/// The longest ones first.
const PARTS: &[Part] = &[
    kills::PART,
    points::MONOIO,
    points::TOKIO_URING,
    states::PART,
    power::EXT4,
    faults::PART,
    power::XFS,
    power::MIXED,
];
const AT_THE_SAME_TIME: usize = 2;
const INSIDE_VARIABLE: &str = "INCOMING_CRASH_INSIDE";
