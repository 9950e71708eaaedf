//! What this process may use of its machine: CPUs and open files.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The CPUs that this process may use, in order. Never empty: where the kernel does not say, it is
/// the first one.
pub(super) fn usable_cpus() -> Vec<usize> {
    let cpus: Vec<usize> = sched_getaffinity(None)
        .map(|set| (0..CpuSet::MAX_CPU).filter(|it| set.is_set(*it)).collect())
        .unwrap_or_default();
    if cpus.is_empty() { vec![0] } else { cpus }
}

/// Keeps the calling thread on one CPU.
pub(super) fn pin(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// Raises the limit of open files as far as this process may, and says what it is.
pub(super) fn raise_file_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let limit = if setrlimit(Resource::Nofile, raised).is_ok() { raised } else { limit };
    limit.current.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_to_a_cpu_that_may_be_used() {
        let cpus = usable_cpus();
        let last = *cpus.last().unwrap();
        let pinned = std::thread::spawn(move || {
            pin(last).unwrap();
            usable_cpus()
        });
        assert_eq!(pinned.join().unwrap(), [last]);
        assert_eq!(usable_cpus(), cpus);
    }

    #[test]
    fn raises_the_file_limit_to_what_is_allowed() {
        let maximum = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
        assert_eq!(raise_file_limit(), maximum);
    }
}
