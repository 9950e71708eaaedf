//! What is compared: for each scenario its cases, and the section of the report about it.

pub(crate) mod crowd;
pub(crate) mod floor;
pub(crate) mod idle;
pub(crate) mod peers;
pub(crate) mod scale;

use crate::results::{Depth, ScenarioName};
use crate::server::{Durability, Runtime, Server};

/// Cases that are run in turns, round by round.
#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) name: ScenarioName,
    /// That count. One before them warms up.
    pub(crate) round_count: u32,
    pub(crate) cases: Vec<Case>,
}

/// One server under one load.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// As tables call it. The same variant for all servers that are compared with each other.
    pub(crate) variant: String,
    pub(crate) server: Server,
    pub(crate) load: Load,
    pub(crate) page_cache: PageCache,
    /// The processors of the server.
    pub(crate) cores: Cores,
    /// Whether round 0 runs it too. What takes long and writes what others write need not.
    pub(crate) warms_up: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Load {
    pub(crate) clients: usize,
    pub(crate) idle_clients: usize,
    pub(crate) file_bytes: u64,
    pub(crate) window: Window,
    pub(crate) frame_bytes: Option<u32>,
    pub(crate) in_flight_bytes_max: Option<u64>,
}

/// What a client has under way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Window {
    /// So many messages of this length.
    Fixed { chunk_bytes: u32, send_ahead: u32 },
    /// What the server says, as with a browser.
    Announced,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageCache {
    /// Who stores past the page cache does not care.
    AsItIs,
    /// The memory that the page cache will take has just been used by it.
    Warm,
    /// The page cache is empty, and a virtual machine has given its memory back to the host.
    Fresh,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cores {
    /// The server has the first processor, the client another one.
    One,
    /// The server has the first two; the client runs where there is room.
    Two,
}

/// A section of the report.
#[derive(Debug, Default)]
pub(crate) struct Section {
    pub(crate) markdown: String,
    /// File name and SVG.
    pub(crate) plots: Vec<(String, String)>,
}

impl Scenario {
    /// What `depth` asks for.
    pub(crate) fn new(name: ScenarioName, depth: Depth) -> Self {
        let (rounds, cases) = match name {
            ScenarioName::Floor => (7, floor::cases(depth)),
            ScenarioName::Peers => (5, peers::cases(depth)),
            ScenarioName::Scale => (5, scale::cases(depth)),
            ScenarioName::Crowd => (5, crowd::cases(depth)),
            // Nothing is uploaded.
            ScenarioName::Idle => (0, Vec::new()),
        };
        Self { name, round_count: depth.pick(rounds, rounds.min(3), rounds.min(1)), cases }
    }
}

impl Case {
    /// One core, the page cache as it is.
    fn new(variant: &str, server: Server, load: Load) -> Self {
        Self {
            variant: variant.to_owned(),
            server,
            load,
            page_cache: PageCache::AsItIs,
            cores: Cores::One,
            warms_up: true,
        }
    }
}

impl Load {
    fn new(clients: usize, file_bytes: u64, window: Window) -> Self {
        Self {
            clients,
            idle_clients: 0,
            file_bytes,
            window,
            frame_bytes: None,
            in_flight_bytes_max: None,
        }
    }

    pub(crate) fn total_bytes(&self) -> u64 {
        self.clients as u64 * self.file_bytes
    }
}

impl Depth {
    fn pick<T>(self, whole: T, quick: T, check: T) -> T {
        match self {
            Self::Whole => whole,
            Self::Quick => quick,
            Self::Check => check,
        }
    }
}

/// This server with its defaults.
pub(crate) const OURS: Server =
    Server::Ours { runtime: Runtime::Monoio, durability: Durability::Synced };

/// Two messages of 1 MiB: what the goals speak of.
const TWO_OF_1_MIB: Window = Window::Fixed { chunk_bytes: 1 << 20, send_ahead: 2 };

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_has_medians_of_enough_rounds() {
        for name in ScenarioName::ALL {
            let scenario = Scenario::new(name, Depth::Whole);
            if name == ScenarioName::Idle {
                continue;
            }
            let least = if name == ScenarioName::Floor { 7 } else { 5 };
            assert!(scenario.round_count >= least && !scenario.cases.is_empty(), "{name:?}");
            assert_eq!(Scenario::new(name, Depth::Check).round_count, 1);
        }
    }

    #[test]
    fn check_is_small_and_has_every_server() {
        let scenarios = ScenarioName::ALL.map(|it| Scenario::new(it, Depth::Check));
        let cases: Vec<&Case> = scenarios.iter().flat_map(|it| &it.cases).collect();
        assert!(cases.iter().all(|it| it.load.total_bytes() <= 64 << 20), "{cases:?}");
        for server in Server::all() {
            assert!(cases.iter().any(|it| it.server == server), "{server:?} is never run");
        }
    }

    #[test]
    fn case_stands_once_in_its_scenario() {
        for name in ScenarioName::ALL {
            let cases = Scenario::new(name, Depth::Whole).cases;
            for (index, case) in cases.iter().enumerate() {
                let twin = |it: &Case| it.variant == case.variant && it.server == case.server;
                assert!(!cases[..index].iter().any(twin), "{case:?} stands twice");
            }
        }
    }
}
