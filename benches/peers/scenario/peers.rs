//! This server beside others that take uploads.

use super::{Case, Load, MIB, OURS, PageCache, Section, TWO_OF_1_MIB};
use crate::plot::{Chart, Group};
use crate::results::{Depth, Results, Run, ScenarioName};
use crate::server::{Durability, Runtime, Server};
use crate::table::{Table, median, with_range};

pub(crate) fn cases(depth: Depth) -> Vec<Case> {
    let variants: &[_] = match depth {
        Depth::Whole => &[(WARM, PageCache::Warm), (FRESH, PageCache::Fresh)],
        // Emptying the page cache takes seconds each time, and changes no byte.
        Depth::Quick | Depth::Check => &[(WARM, PageCache::Warm)],
    };
    let mut cases = Vec::new();
    for &(variant, page_cache) in variants {
        for server in SERVERS {
            let file_bytes = if is_slow(server) {
                depth.pick(32 * MIB, 8 * MIB, MIB + 5)
            } else {
                depth.pick(64 * MIB, 32 * MIB, MIB + 5)
            };
            let load = Load::new(depth.pick(16, 16, 4), file_bytes, TWO_OF_1_MIB);
            // An empty page cache cannot be warmed up.
            let warms_up = page_cache == PageCache::Warm;
            cases.push(Case { page_cache, warms_up, ..Case::new(variant, server, load) });
        }
    }
    cases
}

/// So slow that half of the bytes tell as much.
fn is_slow(server: Server) -> bool {
    matches!(server, Server::NodeWs | Server::TusNode | Server::Copyparty | Server::Rustus)
}

pub(crate) fn section(results: &Results) -> Section {
    let mut table = Table::new(&[
        "server",
        "files",
        "warm, CPU-s/GiB",
        "× ours",
        "fresh, CPU-s/GiB",
        "× ours",
        "warm, GiB/s",
        "memory, MiB",
    ]);
    let of = |variant, server: Server| results.cpu(ScenarioName::Peers, variant, server.name());
    let mut groups = Vec::new();
    for server in SERVERS {
        let [warm, fresh] = [WARM, FRESH].map(|variant| of(variant, server));
        if warm.is_empty() && fresh.is_empty() {
            continue;
        }
        let figure = |figure| results.summary(ScenarioName::Peers, WARM, server.name(), figure);
        let mut runs = [WARM, FRESH]
            .into_iter()
            .flat_map(|variant| results.runs(ScenarioName::Peers, variant, server.name()));
        table.row([
            server.name().to_owned(),
            runs.next().map_or(String::new(), Run::files),
            with_range(warm.summary()),
            median(warm.ratio_to(&of(WARM, OURS)).summary()),
            with_range(fresh.summary()),
            median(fresh.ratio_to(&of(FRESH, OURS)).summary()),
            median(figure(Run::gib_per_s)),
            median(figure(Run::resident_mib)),
        ]);
        let bars = vec![warm.summary(), fresh.summary()];
        groups.push(Group { name: server.name().to_owned(), bars });
    }
    let chart = Chart {
        title: "Upload servers on one core: CPU time per GiB".to_owned(),
        unit: "CPU-s/GiB, median and range".to_owned(),
        series: [WARM, FRESH].map(str::to_owned).into(),
        groups,
    };
    Section { markdown: table.markdown(), plots: vec![("peers.svg".to_owned(), chart.svg())] }
}

pub(crate) const WARM: &str = "warm page cache";
pub(crate) const FRESH: &str = "fresh page cache";

pub(crate) const WRITTEN: Server =
    Server::Ours { runtime: Runtime::Monoio, durability: Durability::Written };

const SERVERS: [Server; 9] = [
    OURS,
    WRITTEN,
    Server::Naive,
    Server::Nginx256k,
    Server::NginxDefault,
    Server::NodeWs,
    Server::TusNode,
    Server::Copyparty,
    Server::Rustus,
];
