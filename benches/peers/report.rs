//! `peers report`: the page about a measurement.

use std::error::Error;
use std::fs;
use std::path::PathBuf;

use clap::Args;
use time::OffsetDateTime;

use crate::goals;
use crate::results::{Depth, FORMAT, Results, ScenarioName};
use crate::scenario::{Section, crowd, floor, idle, peers, scale};
use crate::stats::Summary;
use crate::table::{Table, bytes, left_aligned, number};

/// Makes the page about a measurement: tables, plots, and which goals are met
#[derive(Debug, Args)]
pub(crate) struct Report {
    /// What `peers measure` has written
    results: PathBuf,
    /// Write README.md, plots and the figures to DIR/PROCESSOR/DATE/ instead of showing the page
    #[arg(long, value_name = "DIR")]
    doc: Option<PathBuf>,
}

impl Report {
    pub(crate) fn run(self) -> Result<(), Box<dyn Error>> {
        let text = fs::read_to_string(&self.results)
            .map_err(|error| format!("{}: {error}", self.results.display()))?;
        let results: Results = serde_json::from_str(&text)
            .map_err(|error| format!("{}: {error}", self.results.display()))?;
        if results.format != FORMAT {
            let format = results.format;
            return Err(format!("figures of format {format}; this program reads {FORMAT}").into());
        }
        let page = Page::of(&results);
        let Some(doc) = self.doc else {
            println!("{}", page.markdown);
            return Ok(());
        };
        let directory = doc.join(results.machine.kind()).join(date(&results));
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("README.md"), page.markdown)?;
        for (name, svg) in page.plots {
            fs::write(directory.join(name), svg)?;
        }
        fs::write(directory.join("results.json"), text)?;
        println!("{}", directory.join("README.md").display());
        Ok(())
    }
}

/// The whole page.
#[derive(Debug)]
struct Page {
    markdown: String,
    /// File name and SVG.
    plots: Vec<(String, String)>,
}

impl Page {
    fn of(results: &Results) -> Self {
        let mut page = Self { markdown: head(results), plots: Vec::new() };
        for (name, title, text) in SECTIONS {
            if !results.has(name) {
                continue;
            }
            let section = match name {
                ScenarioName::Floor => floor::section(results),
                ScenarioName::Peers => peers::section(results),
                ScenarioName::Scale => scale::section(results),
                ScenarioName::Crowd => crowd::section(results),
                ScenarioName::Idle => idle::section(results),
            };
            page.add(title, text, section);
        }
        page.markdown += &tail(results);
        page
    }

    fn add(&mut self, title: &str, text: &str, section: Section) {
        self.markdown += &format!("## {title}\n\n{text}\n\n");
        for (name, svg) in section.plots {
            self.markdown += &format!("![{title}]({name})\n\n");
            self.plots.push((name, svg));
        }
        self.markdown += section.markdown.trim_end();
        self.markdown += "\n\n";
    }
}

fn head(results: &Results) -> String {
    let machine = &results.machine;
    let depth = match results.depth {
        Depth::Whole => "",
        Depth::Quick => " This was the quick form: a first impression, not figures to quote.",
        Depth::Check => " This was a check with tiny inputs: the figures mean nothing.",
    };
    let duration = match results.duration_s {
        seconds @ ..120 => format!("{seconds} seconds"),
        seconds => format!("{} minutes", seconds.div_ceil(60)),
    };
    format!(
        "# {}, {} {}, {}\n\nMade by `benches/peers/run` in {}.{depth} [What each part is, \
         and what to know about it](../../README.md#the-server-beside-its-peers).\n\n\
         Numbers are medians over the rounds, with the smallest and the largest in parentheses; \
         a ratio is the median of the ratios within each round.\n\n## Goals\n\n{}\n",
        machine.cpu,
        machine.cpu_count,
        if machine.is_virtual { "virtual processors" } else { "processors" },
        date(results),
        duration,
        goals::table(&goals::goals(results)),
    )
}

fn tail(results: &Results) -> String {
    let mut text = format!("## Machine\n\n{}\n", machine_table(results));
    let mut servers = Table::new(&["server", "version"]);
    for server in &results.servers {
        let version = server.version.clone().unwrap_or_else(|| "not installed".to_owned());
        servers.row([server.name.clone(), version]);
    }
    text += &format!("## Servers\n\n{}\n", left_aligned(&servers));
    if !results.left_out.is_empty() {
        text += "Left out:\n\n";
        for reason in &results.left_out {
            text += &format!("- {reason}\n");
        }
        text.push('\n');
    }
    text + "Back to [benchmarks](../../README.md)\n"
}

fn machine_table(results: &Results) -> String {
    let machine = &results.machine;
    let mut table = Table::new(&["", ""]);
    let mut row = |name: &str, value: String| table.row([name.to_owned(), value]);
    row("processor", format!("{}, {} cores", machine.cpu, machine.cpu_count));
    row("instructions", machine.vector_instructions.join(", "));
    row("second-level cache", machine.second_level_cache.clone().unwrap_or_default());
    row("memory", bytes(machine.memory_bytes >> 30 << 30));
    row("virtual machine", if machine.is_virtual { "yes" } else { "no" }.to_owned());
    row("Linux", machine.kernel.clone());
    row("file system", machine.file_system.clone());
    row("disk", machine.disk.clone());
    let noise = |figure: fn(&crate::results::Noise) -> f64| {
        Summary::of(results.runs.iter().map(|it| figure(&it.noise)))
    };
    if let (Some(load), Some(steal)) =
        (noise(|it| it.load_average), noise(|it| it.steal_share * 100.0))
    {
        let load = format!("{}, at most {}", number(load.median), number(load.max));
        row("load average before a run", load);
        let steal = format!("{} %, at most {} %", number(steal.median), number(steal.max));
        row("processor time that the host gave to others", steal);
    }
    left_aligned(&table)
}

/// Of the first moment, UTC: "2026-11-21".
fn date(results: &Results) -> String {
    let moment = OffsetDateTime::from_unix_timestamp(results.began_unix_s);
    moment.map_or_else(|_| "unknown".to_owned(), |it| it.date().to_string())
}

const SECTIONS: [(ScenarioName, &str, &str); 5] = [
    (
        ScenarioName::Floor,
        "Against the floor",
        "16 connections, server on one core. The floors receive, unmask and discard: on the \
         server's own drivers, and on a bare ring.",
    ),
    (
        ScenarioName::Peers,
        "Beside other upload servers",
        "16 connections, server on one core, messages of 1 MiB where there are messages. `ours` \
         here also counts what makes files durable; the others sync nothing.",
    ),
    (
        ScenarioName::Scale,
        "Longer files, more connections, other frames",
        "The server with its defaults on one core, messages of 1 MiB, two ahead.",
    ),
    (
        ScenarioName::Crowd,
        "Crowds",
        "The server on two cores, which it shares with the client; chunks as the server announces \
         them.",
    ),
    (ScenarioName::Idle, "Idle", "No connection, no ticket."),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goals::tests::good_results;
    use crate::results::ServerState;

    #[test]
    fn page_has_every_section_and_every_plot_that_it_shows() {
        let mut results = good_results();
        results.servers.push(ServerState { name: "naive".to_owned(), version: None });
        results.left_out.push("rustus is not installed.".to_owned());
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("results.json");
        fs::write(&path, serde_json::to_string(&results).unwrap()).unwrap();
        let doc = directory.path().join("doc");
        Report { results: path.clone(), doc: Some(doc.clone()) }.run().unwrap();

        let made = doc.join("intel-xeon-2vcpu/2026-11-21");
        let page = fs::read_to_string(made.join("README.md")).unwrap();
        for (_, title, _) in SECTIONS {
            assert!(page.contains(&format!("\n## {title}\n")), "{title} is missing");
        }
        for text in ["# Intel(R) Xeon(R) Processor, 2 virtual processors, 2026-11-21", "22 minutes"]
        {
            assert!(page.contains(text), "{text} is missing");
        }
        assert!(page.contains("| naive | not installed |") && page.contains("- rustus is not"));
        let plots: Vec<&str> = page
            .split("](")
            .filter_map(|it| it.split_once(')'))
            .map(|it| it.0)
            .filter(|it| it.ends_with(".svg"))
            .collect();
        assert_eq!(plots, ["floor.svg", "peers.svg", "scale.svg"]);
        for plot in plots {
            assert!(fs::read_to_string(made.join(plot)).unwrap().starts_with("<svg "));
        }
        assert_eq!(fs::read(made.join("results.json")).unwrap(), fs::read(path).unwrap());
    }

    #[test]
    fn page_of_one_scenario_has_no_others() {
        let mut results = good_results();
        results.runs.retain(|it| it.scenario == ScenarioName::Peers);
        results.idle.clear();
        let page = Page::of(&results);
        assert_eq!(page.plots.len(), 1);
        assert!(page.markdown.contains("## Beside other") && !page.markdown.contains("## Idle"));
        assert_eq!(page.markdown, Page::of(&results).markdown, "the same figures, the same page");
    }

    #[test]
    fn figures_of_another_format_are_refused() {
        let mut results = good_results();
        results.format = FORMAT + 1;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("results.json");
        fs::write(&path, serde_json::to_string(&results).unwrap()).unwrap();
        let error = Report { results: path, doc: None }.run().unwrap_err();
        assert!(error.to_string().contains("format 2"), "{error}");
        let missing = Report { results: directory.path().join("no.json"), doc: None };
        assert!(missing.run().unwrap_err().to_string().contains("no.json"));
    }
}
