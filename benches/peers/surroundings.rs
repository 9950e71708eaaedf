//! The machine around a run: its page cache, its free space, its processors, its other work.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::fs::statvfs;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::results::Noise;
use crate::scenario::{Cores, PageCache};

/// Brings the page cache into a state, for a run that stores so many bytes below `directory`.
pub(crate) fn prepare_page_cache(
    state: PageCache,
    directory: &Path,
    length_bytes: u64,
) -> io::Result<()> {
    match state {
        PageCache::AsItIs => Ok(()),
        PageCache::Warm => warm(directory, length_bytes),
        PageCache::Fresh => {
            rustix::fs::sync();
            fs::write(DROP_CACHES, "3")?;
            // Free memory goes back to the host in the background, about two seconds later.
            thread::sleep(Duration::from_secs(3));
            Ok(())
        }
    }
}

/// Writes a file and removes it at once: its pages are free, and the host has backed them. Once
/// more, because not all free pages are taken in the order in which they were freed.
fn warm(directory: &Path, length_bytes: u64) -> io::Result<()> {
    let path = directory.join("scratch");
    let block = vec![0x5a; 1 << 20];
    for _ in 0..2 {
        let mut file = File::create(&path)?;
        for _ in 0..(length_bytes + length_bytes / 3).div_ceil(block.len() as u64) {
            file.write_all(&block)?;
        }
        drop(file);
        fs::remove_file(&path)?;
    }
    Ok(())
}

/// Whether the page cache can be emptied: for root only.
pub(crate) fn can_drop_caches() -> bool {
    File::options().write(true).open(DROP_CACHES).is_ok()
}

/// What may still be stored below `directory`.
pub(crate) fn free_bytes(directory: &Path) -> io::Result<u64> {
    let file_system = statvfs(directory)?;
    Ok(file_system.f_bavail * file_system.f_frsize)
}

/// The processors of the server.
pub(crate) fn server_cpus(cores: Cores) -> &'static [usize] {
    match cores {
        Cores::One => &[0],
        Cores::Two => &[0, 1],
    }
}

/// Lets the calling thread, and those that it starts from now on, run beside the server: on another
/// processor if the server has one, anywhere if it has two.
pub(crate) fn take_client_cpus(cores: Cores, cpu_count: usize) -> io::Result<()> {
    let mut cpus = CpuSet::new();
    match cores {
        Cores::One if cpu_count > 1 => cpus.set(1),
        _ => (0..cpu_count.min(CpuSet::MAX_CPU)).for_each(|it| cpus.set(it)),
    }
    Ok(sched_setaffinity(None, &cpus)?)
}

/// How many files this process, and what it starts, may have open: as many as can be had.
pub(crate) fn open_files_max() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    // More than the hard limit is for the privileged; the hard limit itself for all.
    let wanted = limit.maximum.map(|it| it.max(OPEN_FILES));
    for maximum in [wanted, limit.maximum] {
        if setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok() {
            break;
        }
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// How quiet the machine is, from one moment to another.
#[derive(Debug)]
pub(crate) struct NoiseMeter {
    load_average: f64,
    times: CpuTimes,
}

impl NoiseMeter {
    pub(crate) fn start() -> io::Result<Self> {
        let load = fs::read_to_string("/proc/loadavg")?;
        let load_average = load.split(' ').next().and_then(|it| it.parse().ok());
        Ok(Self { load_average: load_average.unwrap_or(0.0), times: CpuTimes::now()? })
    }

    pub(crate) fn stop(self) -> io::Result<Noise> {
        let times = CpuTimes::now()?;
        let total = times.total.saturating_sub(self.times.total).max(1);
        let steal = times.steal.saturating_sub(self.times.steal);
        Ok(Noise { load_average: self.load_average, steal_share: steal as f64 / total as f64 })
    }
}

/// Of all processors since the start of the machine, in ticks.
#[derive(Clone, Copy, PartialEq, Debug)]
struct CpuTimes {
    total: u64,
    steal: u64,
}

impl CpuTimes {
    fn now() -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string("/proc/stat")?))
    }

    /// proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal; what guests used stands
    /// in the first two already.
    fn parse(stat: &str) -> Self {
        let times = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
        let times: Vec<u64> = times.take(8).map(|it| it.parse().unwrap_or(0)).collect();
        Self { total: times.iter().sum(), steal: times.get(7).copied().unwrap_or(0) }
    }
}

/// For ten thousand connections.
const OPEN_FILES: u64 = 1 << 16;

const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steal_is_the_eighth_time() {
        let stat = "cpu  10 20 30 40 50 60 70 80 5 6\ncpu0 1 2 3 4 5 6 7 8 9 10\n";
        assert_eq!(CpuTimes::parse(stat), CpuTimes { total: 360, steal: 80 });
        assert_eq!(CpuTimes::parse(""), CpuTimes { total: 0, steal: 0 });
    }

    #[test]
    fn noise_is_a_share() {
        let meter = NoiseMeter::start().unwrap();
        let noise = meter.stop().unwrap();
        assert!((0.0..=1.0).contains(&noise.steal_share) && noise.load_average >= 0.0);
    }

    #[test]
    fn scratch_file_of_warming_does_not_stay() {
        let directory = tempfile::tempdir().unwrap();
        prepare_page_cache(PageCache::Warm, directory.path(), (1 << 20) + 1).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        assert!(free_bytes(directory.path()).unwrap() > 0);
    }
}
