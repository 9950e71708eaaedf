//! The Incoming!! server beside its peers and its floor.

mod goals;
mod machine;
mod measure;
mod naive;
mod plot;
mod probe;
mod record;
mod report;
mod results;
mod runner;
mod scenario;
mod server;
mod stats;
mod surroundings;
mod table;

use std::error::Error;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

fn main() -> ExitCode {
    match run(Command::parse().part) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peers: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(part: Part) -> Result<(), Box<dyn Error>> {
    match part {
        Part::Measure(measure) => measure.run(),
        Part::Report(report) => report.run(),
        Part::Floor(floor) => Ok(floor.run()?),
        Part::Ring(ring) => Ok(ring.run()?),
        Part::Naive(naive) => Ok(naive.run()?),
    }
}

#[derive(Parser)]
#[command(name = "peers", about = "The Incoming!! server beside its peers and its floor")]
struct Command {
    #[command(subcommand)]
    part: Part,
}

#[derive(Subcommand)]
enum Part {
    Measure(measure::Measure),
    Report(report::Report),
    /// The floor: receive, unmask and discard, on the driver of the server
    Floor(probe::floor::Floor),
    /// The floor on the bare ring
    Ring(probe::ring::Ring),
    /// The stack of tokio, tokio-tungstenite and tokio::fs
    Naive(naive::Naive),
}
