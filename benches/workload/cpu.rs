//! What the server spends: CPU time of its processes and of the kernel's threads, and memory.

use std::collections::HashMap;
use std::fs;

use nix::time::ClockId;
use nix::unistd::Pid;

use crate::error::WorkloadError;
use crate::outcome::Cpu;

/// A process and its descendants, as they are when they are looked at.
#[derive(Debug)]
pub(crate) struct Meter {
    pid: u32,
    /// Descendants, as of the last time that they were looked for.
    family: Vec<u32>,
}

/// What had been spent at some moment, by process. Differences are made process by process, so
/// that one that ends meanwhile takes nothing away from the others.
#[derive(Debug)]
pub(crate) struct Spent {
    processes: HashMap<u32, u64>,
    kernel_threads: HashMap<u32, u64>,
}

impl Meter {
    pub(crate) fn new(pid: u32) -> Result<Self, WorkloadError> {
        let mut meter = Self { pid, family: Vec::new() };
        meter.spent()?;
        Ok(meter)
    }

    pub(crate) fn spent(&mut self) -> Result<Spent, WorkloadError> {
        // The root first, and at once: the search for the others takes milliseconds.
        let own = process_ns(self.pid).ok_or(WorkloadError::NoProcess { pid: self.pid })?;
        let all = processes();
        self.family = descendants(self.pid, &all);
        let others = self.family.iter().filter_map(|it| Some((*it, process_ns(*it)?)));
        let kernel_threads = all.iter().filter(|it| it.is_kernel_thread);
        Ok(Spent {
            processes: others.chain([(self.pid, own)]).collect(),
            kernel_threads: kernel_threads
                .filter_map(|it| Some((it.pid, kernel_thread_ns(it.pid)?)))
                .collect(),
        })
    }

    /// Resident bytes; without those of processes that are gone.
    pub(crate) fn rss_bytes(&self) -> u64 {
        self.family.iter().chain([&self.pid]).map(|it| rss_bytes(*it)).sum()
    }
}

impl Spent {
    pub(crate) fn since(&self, before: &Self) -> Cpu {
        let difference = |now: &HashMap<u32, u64>, before: &HashMap<u32, u64>| {
            now.iter().map(|(pid, ns)| ns.saturating_sub(*before.get(pid).unwrap_or(&0))).sum()
        };
        Cpu {
            process_ns: difference(&self.processes, &before.processes),
            kernel_threads_ns: difference(&self.kernel_threads, &before.kernel_threads),
        }
    }
}

/// Of all threads of a process, ended ones too, to the nanosecond.
fn process_ns(pid: u32) -> Option<u64> {
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid as i32)).ok()?;
    let time = clock.now().ok()?;
    Some(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

/// The first number of `schedstat`: nanoseconds on a CPU (sched-stats of the kernel's documents).
fn kernel_thread_ns(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).ok()?;
    text.split(' ').next()?.parse().ok()
}

fn rss_bytes(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|it| it.strip_prefix("VmRSS:"));
    let kib = line.and_then(|it| it.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[derive(Clone, Copy, Debug)]
struct Process {
    pid: u32,
    parent: u32,
    is_kernel_thread: bool,
}

/// What runs here (proc_pid_stat(5): the name stands in parentheses, and anything can be in it).
fn processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|it| it.file_name().to_str()?.parse::<u32>().ok());
    let processes = pids.filter_map(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        let parent = fields.nth(1)?.parse().ok()?;
        let flags: u64 = fields.nth(4)?.parse().ok()?;
        Some(Process { pid, parent, is_kernel_thread: flags & PF_KTHREAD != 0 })
    });
    processes.collect()
}

fn descendants(root: u32, processes: &[Process]) -> Vec<u32> {
    let mut found = vec![root];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        found.extend(processes.iter().filter(|it| it.parent == parent).map(|it| it.pid));
        next += 1;
    }
    found.split_off(1)
}

/// Of a process's flags (include/linux/sched.h).
const PF_KTHREAD: u64 = 0x0020_0000;

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn descendants_are_found_and_others_are_not() {
        let parents = [(2, 0), (3, 2), (10, 1), (11, 10), (12, 11), (13, 10), (14, 1)];
        let processes =
            parents.map(|(pid, parent)| Process { pid, parent, is_kernel_thread: false });
        let mut found = descendants(10, &processes);
        found.sort_unstable();
        assert_eq!(found, [11, 12, 13]);
        assert_eq!(descendants(14, &processes), [0; 0]);
    }

    #[test]
    fn differences_are_made_process_by_process() {
        let spent = |processes: &[(u32, u64)]| Spent {
            processes: processes.iter().copied().collect(),
            kernel_threads: HashMap::new(),
        };
        // 2 has ended, 3 is new.
        let cpu = spent(&[(1, 15), (3, 7)]).since(&spent(&[(1, 10), (2, 1000)]));
        assert_eq!(cpu, Cpu { process_ns: 12, kernel_threads_ns: 0 });
    }

    #[test]
    fn what_a_grandchild_spends_is_counted() {
        let script = "python3 -c 'while True: pass' & sleep 60";
        let mut shell = Command::new("sh").args(["-c", script]).spawn().unwrap();
        let mut meter = Meter::new(shell.id()).unwrap();
        let before = meter.spent().unwrap();
        while meter.spent().unwrap().since(&before).process_ns < 50_000_000 {
            std::thread::yield_now();
        }
        assert!(meter.rss_bytes() > rss_bytes(shell.id()));
        for pid in descendants(shell.id(), &processes()) {
            let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        let pid = shell.id();
        shell.wait().unwrap();
        assert_eq!(meter.spent().unwrap_err(), WorkloadError::NoProcess { pid });
    }
}
