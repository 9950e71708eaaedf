//! The Incoming!! server beside its peers and its floor.

mod probe;

use std::io;

use clap::{Parser, Subcommand};

fn main() -> io::Result<()> {
    match Command::parse().part {
        Part::Floor(floor) => floor.run(),
        Part::Ring(ring) => ring.run(),
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
    /// The floor: receive, unmask and discard, on the driver of the server
    Floor(probe::floor::Floor),
    /// The floor on the bare ring
    Ring(probe::ring::Ring),
}
