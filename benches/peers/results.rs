//! What a measurement leaves behind: everything the report is made of, as JSON.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::stats::{Series, Summary};
use crate::table;

/// A whole measurement.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Results {
    /// Changes when a field does.
    pub(crate) format: u32,
    /// The first moment, in seconds since 1970.
    pub(crate) began_unix_s: i64,
    pub(crate) duration_s: u64,
    pub(crate) depth: Depth,
    pub(crate) seed: u64,
    pub(crate) machine: Machine,
    pub(crate) servers: Vec<ServerState>,
    /// What was left out, with the reason, in sentences.
    pub(crate) left_out: Vec<String>,
    pub(crate) runs: Vec<Run>,
    pub(crate) idle: Vec<IdleRun>,
}

/// How much is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Depth {
    /// What the published figures come from.
    Whole,
    /// Fewer rounds and shorter files: a first impression.
    Quick,
    /// Tiny inputs, once: whether everything works.
    Check,
}

/// What is compared with what.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ScenarioName {
    /// This server beside probes that receive, unmask and discard.
    Floor,
    /// This server beside other upload servers.
    Peers,
    /// Longer files, more connections, frames as browsers cut them.
    Scale,
    /// A thousand uploads, ten thousand connections.
    Crowd,
    /// A server that nobody uses.
    Idle,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct ServerState {
    pub(crate) name: String,
    /// `None`: not installed.
    pub(crate) version: Option<String>,
}

/// One server with one load, once.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) scenario: ScenarioName,
    /// Which load or which surroundings, as the tables call it.
    pub(crate) variant: String,
    pub(crate) server: String,
    /// Round 0 warms up and does not count.
    pub(crate) round: u32,
    pub(crate) connection_count: u32,
    /// Of those who send.
    pub(crate) file_count: u32,
    pub(crate) payload_bytes: u64,
    /// Tickets, connections, handshakes, and the files made.
    pub(crate) prepare: Phase,
    /// From the first byte of the first file to the last acknowledgement.
    pub(crate) transfer: Phase,
    /// Until the last file is handed over, or its response is there.
    pub(crate) finish: Phase,
    /// Time from the first byte of a message to its acknowledgement; of a request, to its response.
    pub(crate) ack: AckLatency,
    pub(crate) memory: Memory,
    /// Jain's index over the bytes that each client had acknowledged when the first one was done.
    pub(crate) fairness: f64,
    /// Of the slowest, the middle and the fastest client.
    pub(crate) client_bytes_per_s: [f64; 3],
    /// The part of the transfer's time in which the client's thread ran: near 1, the client is
    /// what limits.
    pub(crate) client_busy: f64,
    /// Files whose contents were compared by hash.
    pub(crate) verified_count: u64,
    pub(crate) noise: Noise,
}

#[derive(Clone, Copy, PartialEq, Default, Debug, Serialize, Deserialize)]
pub(crate) struct Phase {
    pub(crate) wall_ns: u64,
    /// CPU time of the server's processes.
    pub(crate) process_ns: u64,
    /// CPU time of all threads of the kernel.
    pub(crate) kernel_threads_ns: u64,
}

#[derive(Clone, Copy, PartialEq, Default, Debug, Serialize, Deserialize)]
pub(crate) struct AckLatency {
    pub(crate) p50_us: u64,
    pub(crate) p99_us: u64,
    pub(crate) p999_us: u64,
    pub(crate) max_us: u64,
}

/// Memory of the server.
#[derive(Clone, Copy, PartialEq, Default, Debug, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// What its pools may take, by its configuration. Of other servers it means nothing.
    pub(crate) pools_bytes_max: u64,
    /// Before the first connection.
    pub(crate) start: Anonymous,
    /// When all are connected and nothing has been sent.
    pub(crate) connected: Anonymous,
    /// When the last byte has been acknowledged.
    pub(crate) end: Anonymous,
    /// The most that was resident, of all its processes, files and shared pages included.
    pub(crate) resident_bytes_max: u64,
}

/// Anonymous resident memory: what was allocated, without files and shared pages.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub(crate) struct Anonymous {
    pub(crate) bytes: u64,
    /// Of these, what is advised to be on huge pages: this server's pools, and nothing else of it.
    pub(crate) pools_bytes: u64,
}

/// What else the machine did meanwhile.
#[derive(Clone, Copy, PartialEq, Default, Debug, Serialize, Deserialize)]
pub(crate) struct Noise {
    /// Of the last minute, before the run.
    pub(crate) load_average: f64,
    /// The part of all CPU time that the hypervisor gave to others.
    pub(crate) steal_share: f64,
}

/// A server that nobody uses, watched.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct IdleRun {
    pub(crate) server: String,
    pub(crate) watched_s: f64,
    pub(crate) thread_count: usize,
    /// Turns on a processor that its threads got, without a tracer.
    pub(crate) context_switch_count: u64,
    /// System calls begun under the tracer: name and count.
    pub(crate) system_calls: Vec<(String, u64)>,
}

impl Results {
    /// Whether a scenario was measured.
    pub(crate) fn has(&self, scenario: ScenarioName) -> bool {
        match scenario {
            ScenarioName::Idle => !self.idle.is_empty(),
            _ => self.runs.iter().any(|it| it.scenario == scenario && it.round > 0),
        }
    }

    /// The runs that count, of one server with one load.
    pub(crate) fn runs<'a>(
        &'a self,
        scenario: ScenarioName,
        variant: &'a str,
        server: &'a str,
    ) -> impl Iterator<Item = &'a Run> {
        let counting = self.runs.iter().filter(|it| it.round > 0);
        counting.filter(move |it| {
            it.scenario == scenario && it.variant == variant && it.server == server
        })
    }

    /// One figure of these runs, round by round.
    pub(crate) fn series(
        &self,
        scenario: ScenarioName,
        variant: &str,
        server: &str,
        figure: fn(&Run) -> f64,
    ) -> Series {
        self.runs(scenario, variant, server).map(|it| (it.round, figure(it))).collect()
    }

    pub(crate) fn cpu(&self, scenario: ScenarioName, variant: &str, server: &str) -> Series {
        self.series(scenario, variant, server, Run::cpu_s_per_gib)
    }

    pub(crate) fn summary(
        &self,
        scenario: ScenarioName,
        variant: &str,
        server: &str,
        figure: fn(&Run) -> f64,
    ) -> Option<Summary> {
        self.series(scenario, variant, server, figure).summary()
    }
}

impl Run {
    /// CPU seconds of the server's processes and of the kernel's threads per GiB of payload, from
    /// the first byte until everything is handed over.
    pub(crate) fn cpu_s_per_gib(&self) -> f64 {
        (self.transfer.cpu_ns() + self.finish.cpu_ns()) as f64 / 1e9 / self.gibibytes()
    }

    /// The same while bytes move, without what each file costs once.
    pub(crate) fn transfer_cpu_s_per_gib(&self) -> f64 {
        self.transfer.cpu_ns() as f64 / 1e9 / self.gibibytes()
    }

    /// What each connection has cost before its first byte, ticket and file made, in CPU
    /// milliseconds.
    pub(crate) fn prepare_cpu_ms(&self) -> f64 {
        self.prepare.cpu_ns() as f64 / 1e6 / f64::from(self.connection_count)
    }

    /// What each file has cost after the last byte of all, in CPU milliseconds.
    pub(crate) fn finish_cpu_ms(&self) -> f64 {
        self.finish.cpu_ns() as f64 / 1e6 / f64::from(self.file_count)
    }

    pub(crate) fn gib_per_s(&self) -> f64 {
        let wall = Duration::from_nanos(self.transfer.wall_ns + self.finish.wall_ns);
        self.gibibytes() / wall.as_secs_f64()
    }

    /// While bytes move, without what comes after.
    pub(crate) fn transfer_gib_per_s(&self) -> f64 {
        self.gibibytes() / Duration::from_nanos(self.transfer.wall_ns).as_secs_f64()
    }

    pub(crate) fn client_rate_mib_per_s(&self) -> f64 {
        self.client_bytes_per_s[1] / f64::from(1 << 20)
    }

    pub(crate) fn resident_mib(&self) -> f64 {
        self.memory.resident_bytes_max as f64 / f64::from(1 << 20)
    }

    /// What each connection takes beyond the pools and beyond what the server has anyway.
    pub(crate) fn bytes_beyond_pools(&self) -> f64 {
        self.per_connection(self.memory.end)
    }

    /// The same of connections that have not sent anything.
    pub(crate) fn bytes_connected(&self) -> f64 {
        self.per_connection(self.memory.connected)
    }

    pub(crate) fn ack_p50_ms(&self) -> f64 {
        self.ack.p50_us as f64 / 1e3
    }

    pub(crate) fn ack_p99_ms(&self) -> f64 {
        self.ack.p99_us as f64 / 1e3
    }

    pub(crate) fn ack_p999_ms(&self) -> f64 {
        self.ack.p999_us as f64 / 1e3
    }

    fn per_connection(&self, then: Anonymous) -> f64 {
        let beyond = |it: Anonymous| it.bytes as f64 - it.pools_bytes as f64;
        (beyond(then) - beyond(self.memory.start)) / f64::from(self.connection_count)
    }

    /// "16 × 256 MiB".
    pub(crate) fn files(&self) -> String {
        let count = u64::from(self.file_count);
        format!("{} × {}", table::count(count), table::bytes(self.payload_bytes / count))
    }

    fn gibibytes(&self) -> f64 {
        self.payload_bytes as f64 / GIB
    }
}

impl Phase {
    pub(crate) fn cpu_ns(&self) -> u64 {
        self.process_ns + self.kernel_threads_ns
    }
}

impl IdleRun {
    /// How often it woke: the larger of both ways to count.
    pub(crate) fn wakeup_count(&self) -> u64 {
        let calls: u64 = self.system_calls.iter().map(|it| it.1).sum();
        calls.max(self.context_switch_count)
    }
}

impl ScenarioName {
    pub(crate) const ALL: [Self; 5] =
        [Self::Floor, Self::Peers, Self::Scale, Self::Crowd, Self::Idle];
}

/// Of the results this program writes and reads.
pub(crate) const FORMAT: u32 = 1;

const GIB: f64 = (1u64 << 30) as f64;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::machine::tests::machine;

    /// Nothing measured yet.
    pub(crate) fn results() -> Results {
        Results {
            format: FORMAT,
            began_unix_s: 1_795_219_200,
            duration_s: 1320,
            depth: Depth::Whole,
            seed: 1,
            machine: machine("Intel(R) Xeon(R) Processor", true),
            servers: Vec::new(),
            left_out: Vec::new(),
            runs: Vec::new(),
            idle: Vec::new(),
        }
    }

    /// One GiB in a second, with so much CPU time.
    pub(crate) fn run(
        scenario: ScenarioName,
        variant: &str,
        server: &str,
        round: u32,
        cpu_s: f64,
    ) -> Run {
        let transfer = Phase {
            wall_ns: 1_000_000_000,
            process_ns: (cpu_s * 0.75e9) as u64,
            kernel_threads_ns: (cpu_s * 0.25e9) as u64,
        };
        Run {
            scenario,
            variant: variant.to_owned(),
            server: server.to_owned(),
            round,
            connection_count: 16,
            file_count: 16,
            payload_bytes: 1 << 30,
            prepare: Phase::default(),
            transfer,
            finish: Phase::default(),
            ack: AckLatency::default(),
            memory: Memory::default(),
            fairness: 1.0,
            client_bytes_per_s: [1e9; 3],
            client_busy: 0.5,
            verified_count: 16,
            noise: Noise::default(),
        }
    }

    #[test]
    fn round_that_warms_up_does_not_count() {
        let mut results = results();
        for (round, cpu_s) in [(0, 9.0), (1, 0.5), (2, 0.25), (3, 1.0)] {
            results.runs.push(run(ScenarioName::Floor, "large", "a", round, cpu_s));
        }
        results.runs.push(run(ScenarioName::Floor, "large", "b", 1, 7.0));
        results.runs.push(run(ScenarioName::Floor, "small", "a", 1, 7.0));
        results.runs.push(run(ScenarioName::Peers, "large", "a", 1, 7.0));
        let summary = results.cpu(ScenarioName::Floor, "large", "a").summary().unwrap();
        assert_eq!((summary.median, summary.max, summary.count), (0.5, 1.0, 3));
    }

    #[test]
    fn cost_is_of_transfer_and_finish_and_of_process_and_kernel() {
        let mut run = run(ScenarioName::Floor, "large", "a", 1, 0.5);
        run.payload_bytes = 2 << 30;
        run.finish =
            Phase { wall_ns: 1_000_000_000, process_ns: 100_000_000, kernel_threads_ns: 1_000_000 };
        run.prepare = Phase { process_ns: 32_000_000, ..Phase::default() };
        assert_eq!(run.cpu_s_per_gib(), 0.601 / 2.0);
        assert_eq!((run.gib_per_s(), run.transfer_gib_per_s()), (1.0, 2.0));
        assert_eq!((run.prepare_cpu_ms(), run.finish_cpu_ms()), (2.0, 101.0 / 16.0));
        assert_eq!(run.transfer_cpu_s_per_gib(), 0.25);
    }

    #[test]
    fn memory_of_a_connection_is_what_is_beyond_the_pools() {
        let mut run = run(ScenarioName::Crowd, "many", "a", 1, 0.5);
        run.connection_count = 1000;
        let anonymous = |bytes, pools_bytes| Anonymous { bytes, pools_bytes };
        run.memory.start = anonymous(3_000_000, 500_000);
        run.memory.connected = anonymous(5_000_000, 500_000);
        run.memory.end = anonymous(24_000_000, 16_500_000);
        assert_eq!(run.files(), "16 × 64 MiB");
        assert_eq!((run.bytes_beyond_pools(), run.bytes_connected()), (5000.0, 2000.0));
    }

    #[test]
    fn figures_are_read_as_they_were_written() {
        let mut results = results();
        results.servers.push(ServerState { name: "a".to_owned(), version: None });
        results.runs.push(run(ScenarioName::Scale, "large", "a", 1, 0.5));
        results.idle.push(IdleRun {
            server: "a".to_owned(),
            watched_s: 10.0,
            thread_count: 3,
            context_switch_count: 0,
            system_calls: vec![("futex".to_owned(), 2)],
        });
        assert_eq!(results.idle[0].wakeup_count(), 2);
        let text = serde_json::to_string(&results).unwrap();
        assert_eq!(serde_json::from_str::<Results>(&text).unwrap(), results);
    }
}
