//! `kill -9` at random moments, with eight uploads under way.

use std::time::Duration;

use crate::content::Random;
use crate::fleet::Fleet;
use crate::part::{Part, Report};
use crate::server::{Driver, Setup};
use crate::world::{Findings, World};

pub const PART: Part = Part { name: "kills", run, control };

fn run(long: bool, seed: u64) -> Report {
    let cycles = if long { 2000 } else { 200 };
    let findings = cycle(cycles, seed, |_| {});
    Report::new(format!("{cycles} kills with {UPLOAD_COUNT} uploads"), findings)
}

/// A storage directory that loses its journal with the server, as if nothing had been recorded.
fn control(seed: u64) -> Report {
    let findings = cycle(4, seed, |world| {
        let _ = std::fs::remove_dir_all(world.storage_dir.join("journal"));
    });
    Report::new("4 kills, the journal is removed after each".to_owned(), findings)
}

fn cycle(cycles: u64, seed: u64, between: impl Fn(&World)) -> Findings {
    let storage = crate::part::directory_on_disk();
    let scratch = crate::part::directory_on_disk();
    let world = World::new(storage.path(), scratch.path(), None);
    let mut fleet = Fleet::new(world, UPLOAD_COUNT, seed);
    fleet.plant_foreign_files();
    let mut random = Random(seed);
    for _ in 0..cycles {
        // That the server is killed costs no acknowledged byte, synced or not.
        let durability = if random.below(4) == 0 { "written" } else { "synced" };
        let setup = Setup::random(&mut random).option("--durability", durability);
        let time = Duration::from_micros(random.below(RUN_US_MAX));
        fleet.run(&setup, time, |server| server.kill());
        between(&fleet.world);
    }
    fleet.finish(&Setup::new(Driver::Monoio, 2));
    fleet.world.findings()
}

const UPLOAD_COUNT: u64 = 8;
const RUN_US_MAX: u64 = 120_000;
