//! States in which a disk may be found after a power cut: everything up to a flush, and any of the
//! writes after it, also torn.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::browser::End;
use crate::content::Random;
use crate::disk::{Disk, Entry, Image};
use crate::fleet::Fleet;
use crate::mounts::{Kind, Mount};
use crate::part::{Part, Report, directory_in_memory, directory_on_disk};
use crate::server::{Driver, Server, Setup};
use crate::upload::{Session, Upload};
use crate::world::{Findings, Promise, World, lock};

pub const PART: Part = Part {
    name: "states",
    run: |long, seed| run(if long { 1000 } else { 200 }, STATES_OF_ONE_RUN, seed, "synced"),
    control: |seed| run(20, 20, seed, "written"),
};

/// A promise, and how many entries the disk's log had when it came.
struct Note {
    position: usize,
    id: String,
    promise: Promise,
}

/// What was recorded of one run of the server.
struct Recording {
    world: Arc<World>,
    before: Image,
    log: Vec<Entry>,
    notes: Vec<Note>,
    /// Every upload as it was in the end.
    uploads: BTreeMap<String, Upload>,
}

fn run(states: u64, states_of_one_run: u64, seed: u64, durability: &str) -> Report {
    let mut findings = Findings::default();
    let (mut entries, mut notes) = (0, 0);
    for (index, from) in (0..states).step_by(states_of_one_run as usize).enumerate() {
        let seed = seed.wrapping_add(index as u64);
        let directories = [directory_in_memory(), directory_on_disk()];
        let mount_point = directories[1].path().join("mount");
        let recording = record(&mount_point, directories[1].path(), seed, durability);
        entries += recording.log.len();
        notes += recording.notes.len();
        let count = states_of_one_run.min(states - from);
        check_states(&recording, directories[0].path(), &mount_point, count, seed, durability);
        findings.add(recording.world.findings());
    }
    let what = format!(
        "{states} states of a disk ({durability}), from {entries} writes and flushes with {notes} \
         promises"
    );
    Report::new(what, findings)
}

fn record(mount_point: &Path, scratch: &Path, seed: u64, durability: &str) -> Recording {
    let disk = Disk::new(&scratch.join("disk"), DISK_BYTES);
    Kind::Ext4.make(&disk.file);
    let _mount = Mount::new(&disk.file, mount_point);
    let storage_dir = mount_point.join("storage");
    std::fs::create_dir(&storage_dir).expect("make the storage directory");
    rustix::fs::sync();
    let before = disk.start_log();
    let notes = Arc::new(Mutex::new(Vec::new()));
    let (kept, position) = (Arc::clone(&notes), disk.log_position());
    let world = World::new(
        &storage_dir,
        scratch,
        Some(Box::new(move |id, promise| {
            // The promise came after these entries, perhaps before the last of them.
            let position = position();
            lock(&kept).push(Note { position, id: id.to_owned(), promise });
        })),
    );
    let mut random = Random(seed);
    let driver = Driver::ALL[(seed % 3) as usize];
    let setup = |cores| Setup::new(driver, cores).option("--durability", durability);
    let mut fleet = Fleet::new(Arc::clone(&world), UPLOAD_COUNT, seed);
    fleet.keep_all();
    // With a start among what is recorded.
    fleet.run(&setup(1 + random.below(2)), RUN, |server| server.kill());
    fleet.run(&setup(1 + random.below(2)), RUN, |server| server.kill());
    // A late call would meet the files of a state, or none.
    world.stop_app();
    let log = disk.take_log();
    let notes = std::mem::take(&mut *lock(&notes));
    Recording { world, before, log, notes, uploads: fleet.uploads() }
}

fn check_states(
    recording: &Recording,
    images: &Path,
    mount_point: &Path,
    count: u64,
    seed: u64,
    durability: &str,
) {
    let mut random = Random(seed);
    let mut points: Vec<usize> = (0..count)
        .map(|_| match random.below(2) {
            0 => recording.notes[random.below(recording.notes.len() as u64) as usize].position,
            _ => random.below(1 + recording.log.len() as u64) as usize,
        })
        .collect();
    points.sort_unstable();
    // Everything up to the last flush before the point, and what came after that.
    let mut durable = recording.before.clone();
    let (mut applied, mut flushed) = (0, 0);
    for point in points {
        let log = &recording.log;
        if let Some(flush) = log[flushed..point].iter().rposition(|it| matches!(it, Entry::Flush)) {
            flushed += flush + 1;
        }
        for entry in &log[applied..flushed] {
            if let Entry::Write { offset, bytes } = entry {
                durable.write(*offset, bytes);
            }
        }
        applied = flushed;
        let image = images.join("state");
        let file = durable.save(&image, DISK_BYTES).expect("save an image");
        apply_some(&file, &log[flushed..point], &mut random);
        drop(file);
        check_state(recording, point, &image, mount_point, &mut random, durability);
    }
}

/// Writes that no flush has followed yet: all, none or some of them; long ones perhaps in part.
fn apply_some(file: &std::fs::File, entries: &[Entry], random: &mut Random) {
    let mode = random.below(4);
    for entry in entries {
        let Entry::Write { offset, bytes } = entry else { continue };
        for (index, block) in bytes.chunks(BLOCK_BYTES).enumerate() {
            let is_applied = match mode {
                0 => true,
                1 => false,
                // Whole writes, or each block for itself.
                2 if index == 0 => random.below(2) == 0,
                2 => true,
                _ => random.below(2) == 0,
            };
            if mode == 2 && !is_applied {
                break;
            }
            if is_applied {
                let at = offset + (index * BLOCK_BYTES) as u64;
                file.write_all_at(block, at).expect("write to an image");
            }
        }
    }
}

/// Mounts a state, starts a server on it, and asks for everything that was promised by then.
fn check_state(
    recording: &Recording,
    point: usize,
    image: &Path,
    mount_point: &Path,
    random: &mut Random,
    durability: &str,
) {
    let world = &recording.world;
    let given: Vec<(&str, Promise)> = recording
        .notes
        .iter()
        .filter(|it| it.position <= point)
        .map(|it| (it.id.as_str(), it.promise))
        .collect();
    world.rewind(&given);
    let _mount = Mount::new(image, mount_point);
    let setup = Setup::random(random).option("--durability", durability);
    let missing = world.missing_files();
    let server = match Server::start(&setup, &world.storage_dir, &world.log_path()) {
        Ok(server) => server,
        Err(error) => return world.find(|it| it.stuck.push(error)),
    };
    for upload in recording.uploads.values() {
        let mut upload = upload.clone();
        let has = |promise| given.contains(&(upload.id.as_str(), promise));
        if !has(Promise::Issued) {
            continue;
        }
        upload.acknowledged = given
            .iter()
            .filter_map(|(id, promise)| match promise {
                Promise::Acknowledged(bytes) if *id == upload.id => Some(*bytes),
                _ => None,
            })
            .max()
            .unwrap_or(0);
        let (finished, cancelled) = (has(Promise::Finished), has(Promise::Cancelled));
        let asked = has(Promise::CancelAsked);
        upload.is_finished = finished;
        upload.is_cancelled = cancelled;
        upload.may_be_cancelled = asked;
        let ended = if upload.is_over() {
            upload.check_over(world, server.address)
        } else {
            Session::open(world, server.address, &mut upload).map(drop)
        };
        if let Err(end @ (End::Silent | End::Unexpected(_) | End::Lost | End::Closed(_))) = ended {
            world.find(|it| it.stuck.push(format!("{}: {end:?}", upload.id)));
        }
    }
    drop(server);
    for id in missing {
        world.find(|it| it.lost.push(format!("{id}: handed over, but not on the disk")));
    }
    world.take_files();
}

const DISK_BYTES: u64 = 256 * 1024 * 1024;
const BLOCK_BYTES: usize = 4096;
const UPLOAD_COUNT: u64 = 8;
const RUN: Duration = Duration::from_millis(200);
const STATES_OF_ONE_RUN: u64 = 50;
