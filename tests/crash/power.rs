//! Power cuts on real ext4 and XFS, with eight uploads under way.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

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

/// Power cuts and kills, of servers that sync and of servers that do not.
pub const MIXED: Part = Part {
    name: "power-mixed",
    run: |long, seed| mixed(if long { 200 } else { 30 }, seed, true),
    control: |seed| mixed(30, seed, false),
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

/// After a power cut of a server that does not sync, uploads may begin lower, but all tickets and
/// all files that were handed over are there, and no byte is wrong. After all else nothing is lost,
/// also of what an earlier server had acknowledged without a sync.
fn mixed(crashes: u64, seed: u64, boots: bool) -> Report {
    let mut findings = Findings::default();
    let mut random = Random(seed);
    let mut left = crashes;
    while left > 0 && (boots || findings.is_clean()) {
        let kind = if random.below(2) == 0 { Kind::Ext4 } else { Kind::Xfs };
        let mut scene = Scene::new(kind, random.below(1000));
        for _ in 0..left.min(CUTS_OF_ONE_IMAGE) {
            left -= 1;
            let (is_synced, is_cut) = (random.below(2) == 0, random.below(2) == 0);
            let durability = if is_synced { "synced" } else { "written" };
            let setup = Setup::random(&mut random).option("--durability", durability);
            let time = Duration::from_micros(random.below(RUN_US_MAX));
            if is_cut {
                scene.run_and_cut(&setup, time);
                // The machine has started anew, which a test cannot do: the file tells of another
                // start than this one.
                let note = scene.fleet.world.storage_dir.join("journal/boot");
                if boots && note.exists() {
                    std::fs::write(note, "the start before\n").expect("change the note");
                }
            } else {
                scene.fleet.run(&setup, time, |server| server.kill());
            }
            let lower = is_cut && !is_synced && boots;
            scene.fleet.world.may_be_lower.store(lower, Ordering::Relaxed);
        }
        findings.add(scene.end());
    }
    let boots = if boots { "" } else { ", a new start of the machine goes unnoticed" };
    let done = crashes - left;
    Report::new(format!("{done} power cuts and kills, synced or not{boots}"), findings)
}

fn cut(kind: Kind, count: u64, seed: u64, durability: &str) -> Findings {
    let mut scene = Scene::new(kind, seed);
    let mut random = Random(seed);
    for _ in 0..count {
        let setup = Setup::random(&mut random).option("--durability", durability);
        scene.run_and_cut(&setup, Duration::from_micros(random.below(RUN_US_MAX)));
    }
    scene.end()
}

/// A fleet on a file system whose power can be cut.
struct Scene {
    fleet: Fleet,
    mount: Mount,
    _directories: [TempDir; 2],
}

impl Scene {
    fn new(kind: Kind, seed: u64) -> Self {
        // An image in memory is a disk on which a synced write costs nothing; on the other one it
        // does.
        let is_quick = seed.is_multiple_of(2);
        let images = if is_quick { directory_in_memory() } else { directory_on_disk() };
        let scratch = directory_on_disk();
        let image = images.path().join("image");
        let mount = Mount::create(kind, IMAGE_MIB, &image, &scratch.path().join("mount"));
        let storage_dir = mount.path.join("storage");
        std::fs::create_dir(&storage_dir).expect("make the storage directory");
        let world = World::new(&storage_dir, scratch.path(), None);
        let mut fleet = Fleet::new(world, UPLOAD_COUNT, seed);
        fleet.plant_foreign_files();
        rustix::fs::sync();
        Self { fleet, mount, _directories: [images, scratch] }
    }

    fn run_and_cut(&mut self, setup: &Setup, time: Duration) {
        let world = Arc::clone(&self.fleet.world);
        let mut away = None;
        self.fleet.run(setup, time, |server| {
            // The web app looks at no file while there is none.
            away = Some(world.gate.write().unwrap_or_else(PoisonError::into_inner));
            // Without this, the server could see a write end well that races with the cut.
            server.signal(Signal::STOP);
            self.mount.cut_power();
            server.kill();
        });
        self.mount.remount();
    }

    fn end(mut self) -> Findings {
        self.fleet.finish(&Setup::new(Driver::Monoio, 2));
        self.fleet.world.findings()
    }
}

const UPLOAD_COUNT: u64 = 8;
const RUN_US_MAX: u64 = 200_000;
const IMAGE_MIB: u64 = 512;
const CUTS_OF_ONE_IMAGE: u64 = 10;
const CONTROL_CUTS: u64 = 4;
const CONTROL_CUTS_MAX: u64 = 40;
