//! This server beside probes that receive, unmask and discard: how far from the least there is.

use super::{Case, Load, MIB, Section, TWO_OF_1_MIB, Window};
use crate::plot::{Chart, Group};
use crate::results::{Depth, Results, Run, ScenarioName};
use crate::server::{Durability, Runtime, Server};
use crate::table::{Table, median, with_range};

pub(crate) fn cases(depth: Depth) -> Vec<Case> {
    let clients = depth.pick(16, 16, 4);
    // The goals speak of the first; the others stand beside it.
    let large = Load::new(clients, depth.pick(256 * MIB, 64 * MIB, MIB + 5), TWO_OF_1_MIB);
    let original = Load::new(clients, depth.pick(64 * MIB, 32 * MIB, MIB + 5), FOUR_OF_512_KIB);
    let more = Load { window: FOUR_OF_1_MIB, ..original };
    let cases = [(LARGE, large), (MORE, more), (ORIGINAL, original)].into_iter().flat_map(
        |(variant, load)| servers().into_iter().map(move |server| Case::new(variant, server, load)),
    );
    cases.collect()
}

fn servers() -> Vec<Server> {
    let runtimes = [Runtime::Monoio, Runtime::TokioUring];
    let mut servers = vec![Server::Ring];
    for runtime in runtimes {
        servers.push(Server::Floor { runtime });
        servers.push(Server::Ours { runtime, durability: Durability::Written });
        servers.push(Server::Ours { runtime, durability: Durability::Synced });
    }
    servers
}

/// The probe on the same driver.
pub(crate) fn floor_of(server: Server) -> Option<Server> {
    match server {
        Server::Ours { runtime, .. } => Some(Server::Floor { runtime }),
        _ => None,
    }
}

pub(crate) fn section(results: &Results) -> Section {
    let mut section = Section::default();
    for variant in VARIANTS {
        let table = table(results, variant);
        if !table.is_empty() {
            let mut runs = results.runs.iter();
            let run = runs.find(|it| it.scenario == ScenarioName::Floor && it.variant == variant);
            let files = run.map_or(String::new(), Run::files);
            let table = table.markdown();
            section.markdown += &format!("### {variant}\n\nFiles: {files}\n\n{table}\n");
        }
    }
    let group = |variant, server: Server| {
        results.cpu(ScenarioName::Floor, variant, server.name()).summary()
    };
    let groups = servers().into_iter().map(|server| Group {
        name: server.name().to_owned(),
        bars: VARIANTS.map(|variant| group(variant, server)).into(),
    });
    let chart = Chart {
        title: "16 connections on one core: CPU time per GiB".to_owned(),
        unit: "CPU-s/GiB, median and range".to_owned(),
        series: VARIANTS.map(str::to_owned).into(),
        groups: groups.collect(),
    };
    section.plots.push(("floor.svg".to_owned(), chart.svg()));
    section
}

fn table(results: &Results, variant: &str) -> Table {
    let mut table = Table::new(&[
        "server",
        "CPU-s/GiB",
        "× its floor",
        "× bare ring",
        "GiB/s",
        "ack p50, ms",
        "p99",
        "p99.9",
        "client busy, %",
    ]);
    let of = |server: Server| results.cpu(ScenarioName::Floor, variant, server.name());
    for server in servers() {
        let cpu = of(server);
        if cpu.is_empty() {
            continue;
        }
        let figure = |figure| results.summary(ScenarioName::Floor, variant, server.name(), figure);
        let to_floor = floor_of(server).and_then(|it| cpu.ratio_to(&of(it)).summary());
        table.row([
            server.name().to_owned(),
            with_range(cpu.summary()),
            with_range(to_floor),
            median(cpu.ratio_to(&of(Server::Ring)).summary()),
            median(figure(Run::gib_per_s)),
            median(figure(Run::ack_p50_ms)),
            median(figure(Run::ack_p99_ms)),
            median(figure(Run::ack_p999_ms)),
            median(figure(|it| it.client_busy * 100.0)),
        ]);
    }
    table
}

/// What the goals speak of: 32 MiB in flight.
pub(crate) const LARGE: &str = "1 MiB chunks, 2 ahead";
/// 64 MiB in flight: a sync is shared by what a window holds.
const MORE: &str = "1 MiB chunks, 4 ahead";
/// What browsers of the original protocol send.
pub(crate) const ORIGINAL: &str = "512 KiB chunks, 4 ahead";

const VARIANTS: [&str; 3] = [LARGE, MORE, ORIGINAL];

const FOUR_OF_1_MIB: Window = Window::Fixed { chunk_bytes: 1 << 20, send_ahead: 4 };
const FOUR_OF_512_KIB: Window = Window::Fixed { chunk_bytes: 512 << 10, send_ahead: 4 };
