//! A server that nobody uses: no connection, no ticket. It should not wake.
//!
//! A tracer that comes and goes interrupts the calls in which a server waits, and these are begun
//! again; counted as `strace -c` counts, each thread would have woken. So here every call is
//! written down with the time when it began, and those count that began well after the tracer had
//! come and before it went. And without any tracer, the kernel counts how often it has put the
//! threads onto a processor: a thread that is never run does not wake.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Section;
use crate::results::{Depth, IdleRun, Results};
use crate::server::{Durability, Runtime, Server};
use crate::table::{Table, left_aligned};

pub(crate) fn servers() -> [Server; 2] {
    [Runtime::Monoio, Runtime::TokioUring]
        .map(|runtime| Server::Ours { runtime, durability: Durability::Synced })
}

/// How long each of the two ways looks.
pub(crate) fn watch_time(depth: Depth) -> Duration {
    depth.pick(Duration::from_secs(10), Duration::from_secs(10), Duration::from_secs(2))
}

/// Looks at a process, first without a tracer, then with one. `log` is written.
pub(crate) fn watch(server: Server, pid: u32, time: Duration, log: &Path) -> io::Result<IdleRun> {
    settle(pid)?;
    let before = context_switches(pid)?;
    thread::sleep(time);
    let after = context_switches(pid)?;
    Ok(IdleRun {
        server: server.name().to_owned(),
        watched_s: time.as_secs_f64(),
        thread_count: after.len(),
        context_switch_count: switches_between(&before, &after),
        system_calls: trace(pid, time, log)?,
    })
}

/// Waits until nothing has happened for a while: what a server does at its start is over then, and
/// so are the time-outs of the connection that has seen whether it answers.
fn settle(pid: u32) -> io::Result<()> {
    let mut before = context_switches(pid)?;
    for _ in 0..SETTLE_COUNT_MAX {
        thread::sleep(QUIET_TIME);
        let after = context_switches(pid)?;
        if switches_between(&before, &after) == 0 {
            break;
        }
        before = after;
    }
    Ok(())
}

/// Of each thread of a process: how often it has left a processor (proc_pid_status(5)).
fn context_switches(pid: u32) -> io::Result<BTreeMap<OsString, u64>> {
    let mut counts = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?;
        let status = fs::read_to_string(task.path().join("status"))?;
        let lines = status.lines().filter(|it| it.contains("_ctxt_switches:"));
        let values = lines.filter_map(|it| it.rsplit('\t').next()?.parse::<u64>().ok());
        counts.insert(task.file_name(), values.sum());
    }
    Ok(counts)
}

/// A thread that has begun or ended meanwhile has run as well.
fn switches_between(before: &BTreeMap<OsString, u64>, after: &BTreeMap<OsString, u64>) -> u64 {
    let ended = before.keys().filter(|it| !after.contains_key(*it)).count() as u64;
    let of_thread = |(thread, count): (&OsString, &u64)| match before.get(thread) {
        Some(before) => count - before,
        None => (*count).max(1),
    };
    ended + after.iter().map(of_thread).sum::<u64>()
}

fn trace(pid: u32, time: Duration, log: &Path) -> io::Result<Vec<(String, u64)>> {
    let child = Command::new("strace")
        .args(["-f", "-ttt", "-o"])
        .arg(log)
        .args(["-p", &pid.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut tracer = Tracer(child.map_err(|error| {
        io::Error::new(error.kind(), "strace cannot be run: apt-get install strace")
    })?);
    thread::sleep(ATTACH_TIME);
    if let Some(status) = tracer.0.try_wait()? {
        let why = "strace may not look at the server: run as root, or as the server's user with \
                   kernel.yama.ptrace_scope=0";
        return Err(io::Error::other(format!("{why} ({status})")));
    }
    let from = unix_time();
    thread::sleep(time);
    let to = unix_time();
    drop(tracer);
    Ok(calls_between(&fs::read_to_string(log)?, from, to))
}

/// Ends strace, which then leaves the server alone.
struct Tracer(Child);

impl Drop for Tracer {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.0.id().cast_signed()) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        }
        let _ = self.0.wait();
    }
}

fn unix_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Which calls began between two moments, in a log of `strace -f -ttt`: "PID TIME NAME(...". Most
/// frequent first.
fn calls_between(log: &str, from: f64, to: f64) -> Vec<(String, u64)> {
    let mut calls: Vec<(String, u64)> = Vec::new();
    for line in log.lines() {
        let mut words = line.split_whitespace().skip(1);
        let Some(time) = words.next().and_then(|it| it.parse::<f64>().ok()) else { continue };
        let Some(call) = words.next().filter(|_| (from..to).contains(&time)) else { continue };
        // Signals and ends of processes ("---", "+++") wake it as well.
        let name = call.split('(').next().unwrap_or(call);
        match calls.iter_mut().find(|it| it.0 == name) {
            Some(found) => found.1 += 1,
            None => calls.push((name.to_owned(), 1)),
        }
    }
    calls.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    calls
}

pub(crate) fn section(results: &Results) -> Section {
    let mut table = Table::new(&["server", "threads", "context switches", "system calls"]);
    for run in &results.idle {
        let calls = run.system_calls.iter().map(|it| format!("{} {}", it.1, it.0));
        let calls: Vec<String> = calls.collect();
        table.row([
            run.server.clone(),
            run.thread_count.to_string(),
            format!("{} in {} s", run.context_switch_count, run.watched_s),
            match calls.is_empty() {
                true => format!("0 in {} s", run.watched_s),
                false => format!("{} in {} s", calls.join(", "), run.watched_s),
            },
        ]);
    }
    let markdown = if table.is_empty() {
        String::new()
    } else {
        format!("{IDLE_TEXT}\n\n{}", left_aligned(&table))
    };
    Section { markdown, plots: Vec::new() }
}

/// Longer than the pauses between a server's time-outs of a connection that is over.
const QUIET_TIME: Duration = Duration::from_secs(4);
const SETTLE_COUNT_MAX: u32 = 8;
const ATTACH_TIME: Duration = Duration::from_secs(1);

const IDLE_TEXT: &str = "Context switches are counted by the kernel, without a tracer. System calls \
are those that began while `strace -f` looked, from a second after it had come until it went: its \
coming and going itself interrupts the calls in which a server waits.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_calls_that_began_while_it_was_quiet_count() {
        let log = "\
7 100.000100 io_uring_enter(5, 0, 1, IORING_ENTER_GETEVENTS, NULL, 8 <unfinished ...>
8 100.000200 restart_syscall(<... resuming interrupted read ...> <unfinished ...>
7 101.500000 <... io_uring_enter resumed>) = 1
7 101.600000 write(4, \"x\", 1)           = 1
8 103.000000 write(4, \"x\", 1)           = 1
8 103.200000 futex(0x7f, FUTEX_WAIT <unfinished ...>
7 111.700000 write(4, \"x\", 1)           = 1
";
        let calls = calls_between(log, 101.0, 111.0);
        let names: Vec<(&str, u64)> = calls.iter().map(|it| (it.0.as_str(), it.1)).collect();
        assert_eq!(names, [("write", 2), ("<...", 1), ("futex", 1)]);
        assert!(calls_between(log, 104.0, 111.0).is_empty());
    }

    #[test]
    fn context_switches_show_who_wakes() {
        let switches = |script: &str| {
            let mut child = Command::new("sh").args(["-c", script]).spawn().unwrap();
            thread::sleep(Duration::from_millis(300));
            let before = context_switches(child.id()).unwrap();
            thread::sleep(Duration::from_millis(300));
            let after = context_switches(child.id()).unwrap();
            child.kill().unwrap();
            child.wait().unwrap();
            assert_eq!(after.len(), 1);
            switches_between(&before, &after)
        };
        assert_eq!(switches("exec sleep 60"), 0);
        assert!(switches("while :; do sleep 0.01; done") > 0);
    }

    #[test]
    fn thread_that_comes_or_goes_has_run() {
        let counts = |counts: &[(&str, u64)]| -> BTreeMap<OsString, u64> {
            counts.iter().map(|it| (it.0.into(), it.1)).collect()
        };
        let before = counts(&[("7", 10), ("8", 4)]);
        assert_eq!(switches_between(&before, &before), 0);
        assert_eq!(switches_between(&before, &counts(&[("7", 12)])), 3);
        assert_eq!(switches_between(&before, &counts(&[("7", 10), ("8", 4), ("9", 0)])), 1);
    }
}
