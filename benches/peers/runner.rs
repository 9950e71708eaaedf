//! Runs the cases of a scenario in turns.

use std::error::Error;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::syncfs;
use workload::{Progress, Verify, Workload, WorkloadError};

use crate::record::{MemoryWatch, Turn, record};
use crate::results::{Depth, Results, Run, ScenarioName};
use crate::scenario::{Case, Scenario, Window, idle};
use crate::server::{Running, Server, ServerError, Setup};
use crate::surroundings::{
    NoiseMeter, free_bytes, prepare_page_cache, server_cpus, take_client_cpus,
};

/// Runs cases and collects what they give.
#[derive(Debug)]
pub(crate) struct Runner {
    /// Everything that is stored lies below it.
    pub(crate) directory: PathBuf,
    pub(crate) results: Results,
    /// Instead of each scenario's own number.
    pub(crate) round_count: Option<u32>,
    /// Servers that are installed.
    pub(crate) installed: Vec<Server>,
}

impl Runner {
    /// All rounds of a scenario. In each one the cases come in another order, so that what changes
    /// on the machine meanwhile, or what one leaves behind for the next, hits none more than others.
    pub(crate) fn run(&mut self, scenario: &Scenario) -> Result<(), RunError> {
        self.check_space(scenario)?;
        let round_count = self.round_count.unwrap_or(scenario.round_count);
        let mut cases: Vec<&Case> =
            scenario.cases.iter().filter(|it| self.installed.contains(&it.server)).collect();
        let mut shuffle = Shuffle(self.results.seed ^ scenario.name as u64);
        // A check looks whether everything works, which needs no warming up.
        let first = if self.results.depth == Depth::Check { 1 } else { 0 };
        for round in first..=round_count {
            shuffle.shuffle(&mut cases);
            for case in cases.clone() {
                if round == 0 && !case.warms_up {
                    continue;
                }
                eprint!(
                    "{:?} {round}/{round_count} {}, {}: ",
                    scenario.name,
                    case.server.name(),
                    case.variant
                );
                match self.run_case(scenario, case, round) {
                    Ok(run) => {
                        eprintln!(
                            "{:.3} CPU-s/GiB, {:.2} GiB/s",
                            run.cpu_s_per_gib(),
                            run.gib_per_s()
                        );
                        self.results.runs.push(run);
                    }
                    Err(error) if self.goes_on_without(case.server, &error) => {
                        eprintln!("{error}");
                        self.results.left_out.push(format!("{:?}: {error}.", scenario.name));
                        cases.retain(|it| it.server != case.server);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Watches servers that nobody uses.
    pub(crate) fn watch_idle(&mut self) -> Result<(), RunError> {
        for server in idle::servers() {
            let directory = self.fresh_directory()?;
            let setup = Setup {
                directory: &directory,
                cpus: &[0, 1],
                memory_bytes: None,
                connections_max: None,
            };
            let running = server.start(&setup).map_err(RunError::Server)?;
            let time = idle::watch_time(self.results.depth);
            let run = idle::watch(server, running.pid(), time, &directory.join("strace.log"))
                .map_err(RunError::machine("watch an idle server"))?;
            running.stop().map_err(RunError::Server)?;
            eprintln!("Idle {}: {} wake-ups", run.server, run.wakeup_count());
            self.results.idle.push(run);
        }
        Ok(())
    }

    fn run_case(&self, scenario: &Scenario, case: &Case, round: u32) -> Result<Run, RunError> {
        let directory = self.fresh_directory()?;
        let setup = Setup {
            directory: &directory,
            cpus: server_cpus(case.cores),
            memory_bytes: None,
            connections_max: None,
        };
        let running = case.server.start(&setup).map_err(RunError::Server)?;
        take_client_cpus(case.cores, self.results.machine.cpu_count)
            .map_err(RunError::machine("choose the client's processor"))?;
        prepare_page_cache(case.page_cache, &directory, case.load.total_bytes())
            .map_err(RunError::machine("prepare the page cache"))?;
        let meter = NoiseMeter::start().map_err(RunError::machine("read /proc"))?;
        let workload = workload_of(case, &running, self.results.seed);
        let mut watch = MemoryWatch::new(running.pid());
        let failed = |error| RunError::Workload {
            server: case.server,
            variant: case.variant.clone(),
            error,
        };
        let mut on_progress = |progress: &Progress| {
            // Thousands of files have just been made, which the disk must not be busy with when it
            // is about connections. The clock does not run yet.
            if watch.look(progress) && scenario.name == ScenarioName::Crowd {
                let _ = sync_file_system(&directory);
            }
        };
        let outcome = workload::run(&workload, &mut on_progress).map_err(failed)?;
        let noise = meter.stop().map_err(RunError::machine("read /proc"))?;
        running.stop().map_err(RunError::Server)?;
        fs::remove_dir_all(&directory).map_err(RunError::machine("remove what was stored"))?;
        if case.server.stores() && outcome.verified_count != case.load.clients {
            return Err(RunError::Unverified {
                server: case.server,
                variant: case.variant.clone(),
            });
        }
        let memory = watch.memory(case, &outcome);
        Ok(record(Turn { scenario: scenario.name, case, round }, &outcome, memory, noise))
    }

    /// Where the next run stores, empty.
    fn fresh_directory(&self) -> Result<PathBuf, RunError> {
        let directory = self.directory.join(RUN_DIRECTORY);
        remove_run_directory(&self.directory)
            .map_err(RunError::machine("remove what was stored"))?;
        fs::create_dir_all(&directory).map_err(RunError::machine("create a directory"))?;
        // What the last run has removed, the file system's journal has to forget: not during the
        // next one.
        sync_file_system(&directory).map_err(RunError::machine("sync the file system"))?;
        Ok(directory)
    }

    fn check_space(&self, scenario: &Scenario) -> Result<(), RunError> {
        // What is uploaded, scratch files, and what journals and idle uploads take.
        let needed = scenario.cases.iter().map(|it| it.load.total_bytes()).max().unwrap_or(0);
        let scratch = needed.min(SCRATCH_BYTES_MAX);
        let needed_bytes = needed + scratch + SPARE_BYTES;
        let free_bytes =
            free_bytes(&self.directory).map_err(RunError::machine("ask for free space"))?;
        if free_bytes >= needed_bytes {
            return Ok(());
        }
        let directory = self.directory.clone();
        Err(RunError::Space { directory, needed_bytes, free_bytes })
    }

    /// A peer that gives up is no reason to throw everything away; one that stores wrong bytes is,
    /// and whatever this server does wrong.
    fn goes_on_without(&self, server: Server, error: &RunError) -> bool {
        let is_peer = !matches!(server, Server::Ours { .. } | Server::Floor { .. } | Server::Ring);
        let is_wrong = matches!(
            error,
            RunError::Workload { error: WorkloadError::Corrupt(_), .. }
                | RunError::Unverified { .. }
                | RunError::Machine { .. }
        );
        is_peer && !is_wrong && self.results.depth != Depth::Check
    }
}

/// The one that a directory lies on.
fn sync_file_system(directory: &Path) -> io::Result<()> {
    Ok(syncfs(File::open(directory)?)?)
}

/// Removes what a run has stored, or one that was interrupted.
pub(crate) fn remove_run_directory(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory.join(RUN_DIRECTORY)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn workload_of(case: &Case, running: &Running, seed: u64) -> Workload {
    let load = case.load;
    let mut workload = Workload {
        protocol: case.server.protocol(),
        clients: load.clients,
        idle_clients: load.idle_clients,
        file_bytes: load.file_bytes,
        frame_bytes: load.frame_bytes,
        in_flight_bytes_max: load.in_flight_bytes_max,
        seed,
        verify: if case.server.stores() { Verify::Hash } else { Verify::Off },
        stored_in: case.server.stores().then(|| running.stored().to_owned()),
        server_process: Some(running.pid()),
        ..Workload::new(running.address())
    };
    match load.window {
        Window::Fixed { chunk_bytes, send_ahead } => {
            workload.chunk_bytes = chunk_bytes;
            workload.send_ahead = send_ahead;
        }
        Window::Announced => workload.announced = true,
    }
    workload
}

/// Why a measurement ended early.
#[derive(Debug)]
pub(crate) enum RunError {
    Server(ServerError),
    Workload {
        server: Server,
        variant: String,
        error: WorkloadError,
    },
    /// Files that should have been compared were not.
    Unverified {
        server: Server,
        variant: String,
    },
    Space {
        directory: PathBuf,
        needed_bytes: u64,
        free_bytes: u64,
    },
    Machine {
        what: &'static str,
        error: io::Error,
    },
}

impl RunError {
    /// For `map_err`: what was being done.
    pub(crate) fn machine(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |error| Self::Machine { what, error }
    }
}

impl fmt::Display for RunError {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(error) => error.fmt(to),
            Self::Workload { server, variant, error } => {
                write!(to, "{}, {variant}: {error}", server.name())
            }
            Self::Unverified { server, variant } => {
                write!(to, "{}, {variant}: not every file was verified", server.name())
            }
            Self::Space { directory, needed_bytes, free_bytes } => write!(
                to,
                "{} has {:.1} GiB free, and {:.1} GiB are needed. Name another place with \
                 --directory, or measure less with --quick",
                directory.display(),
                *free_bytes as f64 / GIB,
                *needed_bytes as f64 / GIB,
            ),
            Self::Machine { what, error } => write!(to, "cannot {what}: {error}"),
        }
    }
}

impl Error for RunError {}

/// Puts cases into another order each time, the same ones for the same seed (SplitMix64).
#[derive(Debug)]
struct Shuffle(u64);

impl Shuffle {
    /// Fisher and Yates. The remainder prefers small numbers by less than one in 2^50.
    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = (self.next() % (last as u64 + 1)) as usize;
            items.swap(last, other);
        }
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

const RUN_DIRECTORY: &str = "run";
const SCRATCH_BYTES_MAX: u64 = 2 << 30;
const SPARE_BYTES: u64 = 1 << 30;
const GIB: f64 = (1u64 << 30) as f64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_differ_and_lose_nothing() {
        let mut shuffle = Shuffle(1);
        let mut items: Vec<u32> = (0..14).collect();
        let mut orders = Vec::new();
        for _ in 0..8 {
            shuffle.shuffle(&mut items);
            assert!(!orders.contains(&items));
            orders.push(items.clone());
            let mut sorted = items.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..14).collect::<Vec<_>>());
        }
        let mut again: Vec<u32> = (0..14).collect();
        Shuffle(1).shuffle(&mut again);
        assert_eq!(again, orders[0], "a seed gives one order");
    }

    /// Each of two cases is the first one about as often.
    #[test]
    fn order_prefers_none() {
        let mut shuffle = Shuffle(7);
        let first = (0..1000).filter(|_| {
            let mut pair = [0, 1];
            shuffle.shuffle(&mut pair);
            pair[0] == 0
        });
        assert!((400..600).contains(&first.count()));
    }

    #[test]
    fn too_little_space_says_what_to_do() {
        let directory = PathBuf::from("/data");
        let error = RunError::Space { directory, needed_bytes: 22 << 30, free_bytes: 3 << 29 };
        let text = error.to_string();
        assert!(
            text.contains("1.5 GiB free, and 22.0 GiB") && text.contains("--directory"),
            "{text}"
        );
    }

    #[test]
    fn interrupted_run_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        remove_run_directory(directory.path()).unwrap();
        fs::create_dir_all(directory.path().join(RUN_DIRECTORY).join("parts")).unwrap();
        remove_run_directory(directory.path()).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
