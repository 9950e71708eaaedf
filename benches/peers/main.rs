//! The Incoming!! server beside its peers and its floor.

mod naive;
mod probe;
#[expect(dead_code, unused_imports, reason = "what measures is the next to come")]
mod server;

use std::io;

use clap::{Parser, Subcommand};

fn main() -> io::Result<()> {
    match Command::parse().part {
        Part::Floor(floor) => floor.run(),
        Part::Ring(ring) => ring.run(),
        Part::Naive(naive) => naive.run(),
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
    /// The stack of tokio, tokio-tungstenite and tokio::fs
    Naive(naive::Naive),
}
