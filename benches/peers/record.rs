//! From what a run has shown to what is kept of it.

use std::fs;

use workload::{Outcome, Progress, Step};

use crate::results::{AckLatency, Anonymous, Memory, Noise, Phase, Run, ScenarioName};
use crate::scenario::{Case, Cores};

/// Which run it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn<'a> {
    pub(crate) scenario: ScenarioName,
    pub(crate) case: &'a Case,
    pub(crate) round: u32,
}

/// Puts everything together.
pub(crate) fn record(turn: Turn<'_>, outcome: &Outcome, memory: Memory, noise: Noise) -> Run {
    let Turn { scenario, case, round } = turn;
    let rates = outcome.client_bytes_per_s;
    let ack = &outcome.ack_latency_us;
    Run {
        scenario,
        variant: case.variant.clone(),
        server: case.server.name().to_owned(),
        round,
        connection_count: (case.load.clients + case.load.idle_clients) as u32,
        file_count: case.load.clients as u32,
        payload_bytes: outcome.payload_bytes,
        prepare: phase(outcome.phases.prepare),
        transfer: phase(outcome.phases.transfer),
        finish: phase(outcome.phases.finish),
        ack: AckLatency {
            p50_us: ack.value_at_quantile(0.5),
            p99_us: ack.value_at_quantile(0.99),
            p999_us: ack.value_at_quantile(0.999),
            max_us: ack.max(),
        },
        memory,
        fairness: outcome.fairness,
        client_bytes_per_s: [rates.min, rates.median, rates.max],
        client_busy: outcome.client_busy,
        verified_count: outcome.verified_count as u64,
        noise,
    }
}

fn phase(phase: workload::Phase) -> Phase {
    let cpu = phase.cpu.unwrap_or_default();
    Phase {
        wall_ns: phase.wall.as_nanos() as u64,
        process_ns: cpu.process_ns,
        kernel_threads_ns: cpu.kernel_threads_ns,
    }
}

/// Looks at the memory of a server when a run comes to its next step.
#[derive(Debug)]
pub(crate) struct MemoryWatch {
    pid: u32,
    start: Anonymous,
    connected: Option<Anonymous>,
    end: Option<Anonymous>,
}

impl MemoryWatch {
    /// The server is ready, and nobody has connected.
    pub(crate) fn new(pid: u32) -> Self {
        Self { pid, start: anonymous(pid), connected: None, end: None }
    }

    /// Whether the transfer is about to begin: its clock does not run yet.
    pub(crate) fn look(&mut self, progress: &Progress) -> bool {
        let is_transfer = progress.step == Step::Transfer;
        let slot = match progress.step {
            Step::Prepare => return false,
            Step::Transfer => &mut self.connected,
            Step::Finish | Step::Verify => &mut self.end,
        };
        let begins = slot.is_none();
        if begins {
            *slot = Some(anonymous(self.pid));
        }
        begins && is_transfer
    }

    pub(crate) fn memory(&self, case: &Case, outcome: &Outcome) -> Memory {
        let cores = match case.cores {
            Cores::One => 1,
            Cores::Two => 2,
        };
        Memory {
            pools_bytes_max: cores * (STAGING_BYTES + ROUNDING_BYTES),
            start: self.start,
            connected: self.connected.unwrap_or_default(),
            end: self.end.unwrap_or_default(),
            resident_bytes_max: outcome.memory.map_or(0, |it| it.rss_bytes_max),
        }
    }
}

/// Nothing, when there is no such process.
fn anonymous(pid: u32) -> Anonymous {
    parse_smaps(&fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default())
}

/// Adds up the mappings of a process (proc_pid_smaps(5)); each ends with its flags, of which "hg"
/// is the advice to use huge pages.
fn parse_smaps(smaps: &str) -> Anonymous {
    let mut found = Anonymous::default();
    let mut mapping_bytes = 0;
    for line in smaps.lines() {
        if let Some(size) = line.strip_prefix("Anonymous:") {
            let kibibytes = size.trim().strip_suffix(" kB").and_then(|it| it.parse::<u64>().ok());
            mapping_bytes = kibibytes.unwrap_or(0) * 1024;
            found.bytes += mapping_bytes;
        }
        let flags = line.strip_prefix("VmFlags:").unwrap_or_default();
        if flags.split(' ').any(|it| it == "hg") {
            found.pools_bytes += mapping_bytes;
        }
    }
    found
}

/// The default of `--memory`, for each core.
const STAGING_BYTES: u64 = 64 << 20;
/// Beside it the journal's buffer, and one to receive into; each of both rounded up to a huge page.
const ROUNDING_BYTES: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn pools_are_the_mappings_with_advice() {
        let smaps = "\
7f00-7f10 rw-p 00000000 00:00 0 \nRss:   9000 kB\nAnonymous:   4096 kB\nVmFlags: rd wr mr hg \n\
7f20-7f30 r-xp 00000000 fe:00 1 /usr/bin/thg\nRss:  90 kB\nAnonymous:   8 kB\nVmFlags: rd ex \n";
        let found = parse_smaps(smaps);
        assert_eq!(found, Anonymous { bytes: 4104 << 10, pools_bytes: 4 << 20 });
        assert!(anonymous(std::process::id()).bytes > 0);
    }

    #[test]
    fn memory_is_looked_at_when_a_step_begins() {
        let mut watch = MemoryWatch::new(std::process::id());
        let mut look = |step| {
            let begins = watch.look(&Progress {
                step,
                elapsed: Duration::ZERO,
                ready_count: 0,
                done_count: 0,
                verified_count: 0,
                acked_bytes: 0,
                total_bytes: 0,
            });
            (begins, watch.connected.is_some(), watch.end.is_some())
        };
        assert_eq!(look(Step::Prepare), (false, false, false));
        assert_eq!(look(Step::Transfer), (true, true, false));
        assert_eq!(look(Step::Transfer), (false, true, false));
        assert_eq!(look(Step::Finish), (false, true, true));
    }
}
