//! Power cuts on real ext4 and XFS, with eight uploads under way.

use std::sync::PoisonError;
use std::time::Duration;

use rustix::process::Signal;

use crate::content::Random;
use crate::fleet::Fleet;
use crate::mounts::{Kind, Mount};
use crate::part::{Part, Report, directory_in_memory, directory_on_disk};
use crate::server::{Driver, Setup};
use crate::world::{Findings, World};

pub const EXT4: Part = Part {
    name: "power-ext4",
    run: |long, seed| run(Kind::Ext4, if long { 300 } else { 60 }, seed),
    control: |seed| control(Kind::Ext4, seed),
};

pub const XFS: Part = Part {
    name: "power-xfs",
    run: |long, seed| run(Kind::Xfs, if long { 100 } else { 20 }, seed),
    control: |seed| control(Kind::Xfs, seed),
};

fn run(kind: Kind, cuts: u64, seed: u64) -> Report {
    let mut findings = Findings::default();
    for group in 0..cuts.div_ceil(CUTS_OF_ONE_IMAGE) {
        let count = CUTS_OF_ONE_IMAGE.min(cuts - group * CUTS_OF_ONE_IMAGE);
        findings.add(cut(kind, count, seed.wrapping_add(group), "synced"));
    }
    let kind = kind.name();
    Report::new(format!("{cuts} power cuts on {kind} with {UPLOAD_COUNT} uploads"), findings)
}

/// What is not synced is acknowledged all the same: until it is seen, but not for ever.
fn control(kind: Kind, seed: u64) -> Report {
    let mut findings = Findings::default();
    let mut cuts = 0;
    while findings.is_clean() && cuts < CONTROL_CUTS_MAX {
        findings.add(cut(kind, CONTROL_CUTS, seed.wrapping_add(cuts), "written"));
        cuts += CONTROL_CUTS;
    }
    let kind = kind.name();
    Report::new(format!("{cuts} power cuts on {kind}, not synced"), findings)
}

fn cut(kind: Kind, count: u64, seed: u64, durability: &str) -> Findings {
    // An image in memory is a disk on which a synced write costs nothing; on the other one it does.
    let images = if seed.is_multiple_of(2) { directory_in_memory() } else { directory_on_disk() };
    let scratch = directory_on_disk();
    let image = images.path().join("image");
    let mount = Mount::create(kind, IMAGE_MIB, &image, &scratch.path().join("mount"));
    let storage_dir = mount.path.join("storage");
    std::fs::create_dir(&storage_dir).expect("make the storage directory");
    let world = World::new(&storage_dir, scratch.path(), None);
    let mut fleet = Fleet::new(world, UPLOAD_COUNT, seed);
    fleet.plant_foreign_files();
    rustix::fs::sync();
    let mut random = Random(seed);
    for _ in 0..count {
        let setup = Setup::random(&mut random).option("--durability", durability);
        let time = Duration::from_micros(random.below(RUN_US_MAX));
        let world = std::sync::Arc::clone(&fleet.world);
        let mut away = None;
        fleet.run(&setup, time, |server| {
            // The web app looks at no file while there is none.
            away = Some(world.gate.write().unwrap_or_else(PoisonError::into_inner));
            // Without this, the server could see a write end well that races with the cut.
            server.signal(Signal::STOP);
            mount.cut_power();
            server.kill();
        });
        mount.remount();
        drop(away);
    }
    fleet.finish(&Setup::new(Driver::Monoio, 2).option("--durability", durability));
    fleet.world.findings()
}

const UPLOAD_COUNT: u64 = 8;
const RUN_US_MAX: u64 = 200_000;
const IMAGE_MIB: u64 = 512;
const CUTS_OF_ONE_IMAGE: u64 = 10;
const CONTROL_CUTS: u64 = 4;
const CONTROL_CUTS_MAX: u64 = 40;
