//! Longer files, more connections, frames as browsers cut them: whether the cost per byte stays.

use super::{Case, GIB, Load, MIB, OURS, Section, TWO_OF_1_MIB, Window};
use crate::plot::{Chart, Group};
use crate::results::{Depth, Results, Run, ScenarioName};
use crate::stats::Series;
use crate::table::{Table, median, with_range};

pub(crate) fn cases(depth: Depth) -> Vec<Case> {
    let mut cases = Vec::new();
    for (index, name) in LENGTHS.into_iter().enumerate() {
        let length = depth.pick(
            [GIB, 5 * GIB, 20 * GIB],
            [GIB / 4, 5 * GIB / 4, 5 * GIB],
            [MIB / 4, 5 * MIB / 4, 5 * MIB],
        );
        let load = Load::new(1, length[index], TWO_OF_1_MIB);
        // The first round makes the files of the journal known, for which the shortest is enough.
        cases.push(Case { warms_up: index == 0, ..Case::new(name, OURS, load) });
    }
    let total_bytes = depth.pick(8 * GIB, 2 * GIB, 4 * MIB);
    for (index, name) in ACTIVE.into_iter().enumerate() {
        let clients = depth.pick([16, 100, 1000], [16, 100, 1000], [4, 8, 16])[index];
        let load = Load {
            in_flight_bytes_max: Some(IN_FLIGHT_BYTES_MAX),
            ..Load::new(clients, total_bytes / clients as u64, TWO_OF_1_MIB)
        };
        cases.push(Case::new(name, OURS, load));
    }
    for (index, name) in ACTIVE_SMALL.into_iter().enumerate() {
        let clients = depth.pick([16, 1000], [16, 1000], [4, 16])[index];
        let load = Load::new(clients, total_bytes / 4 / clients as u64, TWO_OF_16_KIB);
        cases.push(Case::new(name, OURS, load));
    }
    for (name, frame_bytes) in [(WHOLE_FRAMES, None), (CUT_FRAMES, Some(CHROMIUM_FRAME_BYTES))] {
        let load = Load { frame_bytes, ..Load::new(16, total_bytes / 32, TWO_OF_1_MIB) };
        cases.push(Case::new(name, OURS, load));
    }
    cases
}

pub(crate) fn section(results: &Results) -> Section {
    let mut section = Section::default();
    let parts: [(&str, &[&str]); 4] = [
        ("One upload, longer and longer", &LENGTHS),
        ("More uploads at once, 32 MiB in flight", &ACTIVE),
        ("More uploads at once, two small chunks each", &ACTIVE_SMALL),
        ("Frames of 131,000 bytes, as Chromium cuts them", &[WHOLE_FRAMES, CUT_FRAMES]),
    ];
    for (title, variants) in parts {
        let table = table(results, variants);
        if !table.is_empty() {
            section.markdown += &format!("### {title}\n\n{}\n", table.markdown());
        }
    }
    let all = parts.iter().flat_map(|it| it.1.iter());
    let groups = all.map(|variant| Group {
        name: (*variant).to_owned(),
        bars: vec![results.cpu(ScenarioName::Scale, variant, OURS.name()).summary()],
    });
    let chart = Chart {
        title: format!("{} on one core: CPU time per GiB", OURS.name()),
        unit: "CPU-s/GiB, median and range".to_owned(),
        series: vec![OURS.name().to_owned()],
        groups: groups.filter(|it| it.bars[0].is_some()).collect(),
    };
    section.plots.push(("scale.svg".to_owned(), chart.svg()));
    section
}

/// Without what each file costs once: ticket, file, hand-over. With many files these are short, and
/// it is the cost of a byte that must not grow with the number of connections.
pub(crate) fn transfer_cpu(results: &Results, variant: &str) -> Series {
    results.series(ScenarioName::Scale, variant, OURS.name(), Run::transfer_cpu_s_per_gib)
}

/// The first variant is what the others are compared with.
fn table(results: &Results, variants: &[&str]) -> Table {
    let mut table = Table::new(&[
        "load",
        "files",
        "CPU-s/GiB",
        "× first row",
        "while bytes move, CPU-s/GiB",
        "× first row",
        "GiB/s",
        "ack p50, ms",
        "p99",
        "before the first byte, CPU-ms per file",
        "after the last byte, CPU-ms per file",
    ]);
    let cpu = |variant| results.cpu(ScenarioName::Scale, variant, OURS.name());
    let moving = |variant| transfer_cpu(results, variant);
    for variant in variants {
        let mut runs = results.runs(ScenarioName::Scale, variant, OURS.name());
        let Some(run) = runs.next() else { continue };
        let figure = |figure| results.summary(ScenarioName::Scale, variant, OURS.name(), figure);
        table.row([
            (*variant).to_owned(),
            run.files(),
            with_range(cpu(variant).summary()),
            median(cpu(variant).ratio_to(&cpu(variants[0])).summary()),
            with_range(moving(variant).summary()),
            with_range(moving(variant).ratio_to(&moving(variants[0])).summary()),
            median(figure(Run::gib_per_s)),
            median(figure(Run::ack_p50_ms)),
            median(figure(Run::ack_p99_ms)),
            median(figure(Run::prepare_cpu_ms)),
            median(figure(Run::finish_cpu_ms)),
        ]);
    }
    table
}

pub(crate) const LENGTHS: [&str; 3] = ["one file", "5 times as long", "20 times as long"];
pub(crate) const ACTIVE: [&str; 3] = ["16 active", "100 active", "1,000 active"];
const ACTIVE_SMALL: [&str; 2] = ["16 active, 16 KiB chunks", "1,000 active, 16 KiB chunks"];
pub(crate) const WHOLE_FRAMES: &str = "whole frames";
pub(crate) const CUT_FRAMES: &str = "131,000 B frames";

/// Over all connections of a core.
const IN_FLIGHT_BYTES_MAX: u64 = 32 * MIB;
const TWO_OF_16_KIB: Window = Window::Fixed { chunk_bytes: 16 << 10, send_ahead: 2 };
const CHROMIUM_FRAME_BYTES: u32 = 131_000;
