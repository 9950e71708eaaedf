//! A thousand uploads at once, and ten thousand connections of which a hundred upload.

use super::{Case, Cores, Load, MIB, OURS, Section, Window};
use crate::results::{Depth, Results, Run, ScenarioName};
use crate::table::{Table, count, median, with_range};

pub(crate) fn cases(depth: Depth) -> Vec<Case> {
    let load = |clients, file_bytes, idle_clients| Load {
        idle_clients,
        ..Load::new(clients, file_bytes, Window::Announced)
    };
    let many =
        depth.pick(load(1000, 16 * MIB, 0), load(1000, 4 * MIB, 0), load(50, MIB / 2 + 5, 0));
    let (alone, among) = depth.pick(
        (load(100, 40 * MIB, 0), load(100, 40 * MIB, 9900)),
        (load(100, 10 * MIB, 0), load(100, 10 * MIB, 9900)),
        (load(10, MIB, 0), load(10, MIB, 190)),
    );
    let case = |variant, load| Case { cores: Cores::Two, ..Case::new(variant, OURS, load) };
    vec![case(UPLOADS, many), case(ALONE, alone), case(AMONG, among)]
}

pub(crate) fn section(results: &Results) -> Section {
    let mut table = Table::new(&[
        "load",
        "connections",
        "files",
        "Jain's fairness",
        "slowest / median client",
        "median client, MiB/s",
        "all, GiB/s",
        "CPU-s/GiB",
        "ack p99, ms",
    ]);
    let mut memory = Table::new(&[
        "load",
        "at start, MiB",
        "at the end, MiB",
        "of these in pools, MiB",
        "pools at most, MiB",
        "connected, B per connection",
        "at the end, beyond the pools, B per connection",
    ]);
    for variant in [UPLOADS, ALONE, AMONG] {
        let mut runs = results.runs(ScenarioName::Crowd, variant, OURS.name());
        let Some(run) = runs.next() else { continue };
        let figure = |figure| results.summary(ScenarioName::Crowd, variant, OURS.name(), figure);
        table.row([
            variant.to_owned(),
            count(run.connection_count.into()),
            run.files(),
            with_range(figure(|it| it.fairness)),
            median(figure(|it| it.client_bytes_per_s[0] / it.client_bytes_per_s[1])),
            median(figure(Run::client_rate_mib_per_s)),
            median(figure(Run::transfer_gib_per_s)),
            with_range(figure(Run::cpu_s_per_gib)),
            median(figure(Run::ack_p99_ms)),
        ]);
        memory.row([
            variant.to_owned(),
            median(figure(|it| mebibytes(it.memory.start.bytes))),
            median(figure(|it| mebibytes(it.memory.end.bytes))),
            median(figure(|it| mebibytes(it.memory.end.pools_bytes))),
            median(figure(|it| mebibytes(it.memory.pools_bytes_max))),
            with_range(figure(Run::bytes_connected)),
            with_range(figure(Run::bytes_beyond_pools)),
        ]);
    }
    let text = format!("{}\n{MEMORY_TEXT}\n\n{}", table.markdown(), memory.markdown());
    Section { markdown: text, plots: Vec::new() }
}

/// Leaves out connections for which a server with so many open files has no room: for each upload
/// it holds a socket and a file. One in a hundred stays active. How many remain, if any were left
/// out.
pub(crate) fn fit(cases: &mut [Case], open_files_max: u64) -> Option<usize> {
    let all = cases.iter().map(|it| it.load.clients + it.load.idle_clients).max()?;
    let connections_max = usize::try_from(open_files_max.saturating_sub(SPARE_FILES) / 2);
    let remaining = connections_max.unwrap_or(usize::MAX) / 100 * 100;
    if all <= remaining {
        return None;
    }
    for Case { variant, load, .. } in cases {
        if variant == ALONE || variant == AMONG {
            load.clients = (remaining / 100).max(1);
        }
        if variant == AMONG {
            load.idle_clients = remaining.saturating_sub(load.clients);
        }
    }
    Some(remaining)
}

fn mebibytes(length: u64) -> f64 {
    length as f64 / MIB as f64
}

pub(crate) const UPLOADS: &str = "1,000 uploads";
pub(crate) const ALONE: &str = "active ones alone";
pub(crate) const AMONG: &str = "active ones among idle connections";

/// Journals, pipes, callbacks, listeners.
const SPARE_FILES: u64 = 400;

const MEMORY_TEXT: &str = "Anonymous memory of the server. Pools (`--memory` and one receive buffer for \
each core) are told from the rest by their mappings, and what the server has before the first \
connection counts for none.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_connections_are_as_many_as_there_are_files_for() {
        let mut all = cases(Depth::Whole);
        let counts = |it: &Case| (it.load.clients, it.load.idle_clients);
        assert_eq!(fit(&mut all, 1 << 20), None);
        assert_eq!(all.iter().map(counts).collect::<Vec<_>>(), [(1000, 0), (100, 0), (100, 9900)]);
        assert_eq!(fit(&mut all, 20_000), Some(9800));
        assert_eq!(all.iter().map(counts).collect::<Vec<_>>(), [(1000, 0), (98, 0), (98, 9702)]);
    }
}
