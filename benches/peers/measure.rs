//! `peers measure`: everything in one run.

use std::error::Error;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process;
use std::thread;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use clap::Args;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::machine::Machine;
use crate::results::{Depth, FORMAT, Results, ScenarioName, ServerState};
use crate::runner::{Runner, remove_run_directory};
use crate::scenario::{Case, PageCache, Scenario, crowd};
use crate::server::{self, Server};
use crate::surroundings::{can_drop_caches, open_files_max};
use crate::table;

/// Measures everything in one run, in turns, and writes the figures
#[derive(Debug, Args)]
pub(crate) struct Measure {
    /// Fewer rounds and shorter files: a first impression in five minutes
    #[arg(long)]
    quick: bool,
    /// Tiny inputs, every server once: whether everything works
    #[arg(long, conflicts_with = "quick")]
    check: bool,
    /// Only this scenario; may be given several times
    #[arg(long, value_name = "SCENARIO")]
    only: Vec<ScenarioName>,
    /// Where servers store; about 25 GiB [default: peers/ in the build directory]
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Rounds that count, instead of each scenario's own number
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Of the orders and the contents
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// The figures, as JSON
    #[arg(long, value_name = "FILE.json")]
    out: PathBuf,
}

impl Measure {
    pub(crate) fn run(self) -> Result<(), Box<dyn Error>> {
        let began = Instant::now();
        let directory = self.directory()?;
        stop_at_signals(directory.clone())?;
        let mut runner = self.runner(directory)?;
        let outcome = self.run_scenarios(&mut runner, began);
        remove_run_directory(&runner.directory)?;
        outcome?;
        eprintln!("measured in {} s: {}", began.elapsed().as_secs(), self.out.display());
        Ok(())
    }

    /// What has been measured is written after each scenario, so that an error later does not lose
    /// it.
    fn run_scenarios(&self, runner: &mut Runner, began: Instant) -> Result<(), Box<dyn Error>> {
        for name in ScenarioName::ALL {
            if !self.only.is_empty() && !self.only.contains(&name) {
                continue;
            }
            if name == ScenarioName::Idle {
                runner.watch_idle()?;
            } else {
                let scenario = self.scenario(name, &mut runner.results);
                runner.run(&scenario)?;
            }
            runner.results.duration_s = began.elapsed().as_secs();
            fs::write(&self.out, serde_json::to_string(&runner.results)? + "\n")?;
        }
        Ok(())
    }

    /// Without what this machine cannot do.
    fn scenario(&self, name: ScenarioName, results: &mut Results) -> Scenario {
        let mut scenario = Scenario::new(name, self.depth());
        let open_files = open_files_max();
        if let Some(remaining) = crowd::fit(&mut scenario.cases, open_files) {
            results.left_out.push(format!(
                "Connections beyond {}: a process may have {} open files here (`ulimit -Hn`), and \
                 a server needs two for each upload.",
                table::count(remaining as u64),
                table::count(open_files),
            ));
        }
        let is_fresh = |it: &Case| it.page_cache == PageCache::Fresh;
        if scenario.cases.iter().any(is_fresh) && !can_drop_caches() {
            scenario.cases.retain(|it| !is_fresh(it));
            results.left_out.push("Fresh page cache: only root can empty it.".to_owned());
        }
        scenario
    }

    fn runner(&self, directory: PathBuf) -> Result<Runner, Box<dyn Error>> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let mut results = Results {
            format: FORMAT,
            began_unix_s: now.as_secs().cast_signed(),
            duration_s: 0,
            depth: self.depth(),
            seed: self.seed,
            machine: Machine::detect(&directory)?,
            servers: Vec::new(),
            left_out: Vec::new(),
            runs: Vec::new(),
            idle: Vec::new(),
        };
        let mut installed = Vec::new();
        for server in Server::all() {
            let version = server.version();
            match &version {
                Ok(_) => installed.push(server),
                // rustus takes minutes to build; a check goes without it.
                Err(error) if self.check && server != Server::Rustus => {
                    return Err(error.to_string().into());
                }
                Err(error) => {
                    eprintln!("{error}");
                    results.left_out.push(format!("{error}."));
                }
            }
            let name = server.name().to_owned();
            results.servers.push(ServerState { name, version: version.ok() });
        }
        Ok(Runner { directory, results, round_count: self.rounds, installed })
    }

    fn depth(&self) -> Depth {
        match (self.quick, self.check) {
            (_, true) => Depth::Check,
            (true, _) => Depth::Quick,
            _ => Depth::Whole,
        }
    }

    /// Created, absolute.
    fn directory(&self) -> io::Result<PathBuf> {
        let directory = match &self.directory {
            Some(directory) => directory.clone(),
            None => build_directory()?.join("peers"),
        };
        fs::create_dir_all(&directory)?;
        fs::canonicalize(directory)
    }
}

/// `target`, above `target/release/peers`.
fn build_directory() -> io::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let directory = program.parent().and_then(Path::parent).map(Path::to_owned);
    directory.ok_or_else(|| io::Error::other("this program stands in no directory"))
}

/// On Ctrl-C no server stays behind, and no file.
fn stop_at_signals(directory: PathBuf) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            server::stop_all();
            // The other thread may be writing there until this program ends.
            let _ = (0..3).find(|_| remove_run_directory(&directory).is_ok());
            process::exit(128 + signal);
        }
    });
    Ok(())
}
