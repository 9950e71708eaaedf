//! What an earlier run left behind: its journals are read, and those of the new run are begun.
//!
//! The earlier run's files stay as they are until the new run stands as a whole, so that a crash in
//! between changes nothing: the snapshots of all cores first, durably, then their headers.

use std::collections::{BTreeMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use engine::driver::StorageDir;
use engine::journal::{
    self, CommitSync, Damage, DamageReason, FILE_BYTES_MIN, FileName, JOURNAL_NAME, JournalFile,
    LogStart, NewFile, Side, file_bytes_wanted,
};
use engine::limits::BLOCK_BYTES;
use engine::op::{CoreId, OpenHow};
use engine::record::NewTicket;
use engine::store::{ARRIVED_NAME, FilePlace, PARTS_NAME, arrival_path};
use engine::ticket::TicketId;
use rustix::fs::{FallocateFlags, fallocate, syncfs};
use rustix::io::Errno;

use super::boot::{self, Boot};
use super::orphans::Orphans;
use super::storage::{StorageError, denied};
use crate::worker::RecoveredTicket;

/// What the cores of a new run begin with.
#[derive(Debug)]
pub(super) struct Recovered {
    /// Index: core.
    pub(super) cores: Vec<CoreStart>,
    pub(super) orphans: Orphans,
    /// What the runs before have counted; see [`engine::service`].
    pub(super) service_ms: u64,
}

#[derive(Debug)]
pub(super) struct CoreStart {
    pub(super) core: CoreId,
    pub(super) run: u64,
    pub(super) log_start: LogStart,
    pub(super) tickets: Vec<RecoveredTicket>,
}

/// The journals' directory, and the files in it that are open.
#[derive(Debug)]
struct Journals<'s> {
    storage: &'s StorageDir,
    /// Each is locked: nobody writes to it any more, not even a killed process.
    files: BTreeMap<FileName, File>,
}

/// Reads what is there, and makes it ready for so many cores. Files in `parts/` that no ticket
/// knows become orphans when they are older than `orphan_age`.
///
/// # Errors
/// The directory cannot be read or written, or there is no space for what must be kept.
pub(super) fn recover(
    storage: &Arc<StorageDir>,
    core_count: u16,
    sync: CommitSync,
    orphan_age: Duration,
) -> Result<Recovered, StorageError> {
    let started = Instant::now();
    let mut journals = Journals::open(storage)?;
    let contents = journals.read()?;
    let found: Vec<JournalFile<'_>> =
        contents.iter().map(|(name, bytes)| JournalFile { name: *name, bytes }).collect();
    let mut recovery = journal::recover(&found);
    if let Some(it) = recovery.damage.iter().find(|it| it.reason == DamageReason::OtherVersion) {
        return Err(StorageError::JournalOfOtherVersion(absolute(storage, it.file)));
    }
    if !recovery.damage.is_empty() {
        journals.keep_damaged(&recovery.damage, &contents, recovery.run_next);
    }
    let boot = Boot::new();
    if recovery.is_relaxed {
        let boot_path = storage.path().join(boot::path());
        if !boot.is_noted(storage).map_err(denied("read", &boot_path))? {
            tracing::warn!("the machine has started anew: unfinished uploads begin from 0");
            recovery.distrust_offsets();
        } else if sync != CommitSync::StatesOnly {
            // What was only written so far is as safe as this run's own acknowledgements.
            sync_files(storage)?;
        }
    }
    let (run, service_ms) = (recovery.run_next, recovery.service_ms);
    let sides: Vec<Side> = (0..core_count).map(|core| recovery.side_for(core)).collect();
    let is_damaged = !recovery.damage.is_empty();
    drop(contents);

    let parts = list(storage, PARTS_NAME)?;
    let places = Places::new(&parts, &list(storage, ARRIVED_NAME)?);
    let known: HashSet<TicketId> = recovery.tickets.iter().map(|it| it.new.id).collect();
    let mut tickets: Vec<Vec<RecoveredTicket>> = (0..core_count).map(|_| Vec::new()).collect();
    for record in recovery.tickets {
        let place = places.of(storage, &record.new);
        let owner = record.new.id.owner(core_count);
        tickets[usize::from(owner.0)].push(RecoveredTicket { record, place });
    }
    let beginnings = tickets.iter().zip(0..).map(|(tickets, core)| {
        NewFile::new(core, core_count, run, sync, service_ms, tickets.iter().map(|it| &it.record))
    });
    let starts = journals.begin(&beginnings.collect::<Vec<_>>(), &sides)?;
    journals.remove_surplus(core_count)?;
    if sync == CommitSync::StatesOnly {
        let boot_path = storage.path().join(boot::path());
        boot.note(storage).map_err(denied("write", &boot_path))?;
    }

    tracing::info!(
        run,
        tickets = known.len(),
        duration_ms = started.elapsed().as_millis() as u64,
        "the journal is read"
    );
    // What the journal has lost is no orphan.
    let orphans = if is_damaged { Vec::new() } else { parts };
    let orphans = Orphans::new(storage.clone(), orphans, &known, orphan_age);
    let cores = starts.into_iter().zip(tickets).zip(0..).map(|((log_start, tickets), core)| {
        let core = CoreId(core);
        CoreStart { core, run, log_start, tickets }
    });
    Ok(Recovered { cores: cores.collect(), orphans, service_ms })
}

/// Makes everything durable that is written.
fn sync_files(storage: &StorageDir) -> Result<(), StorageError> {
    let path = storage.path().join(PARTS_NAME);
    let synced = File::open(&path).and_then(|it| Ok(syncfs(it)?));
    synced.map_err(denied("sync", &path))
}

/// Where the files of tickets lie.
struct Places {
    parts: HashSet<TicketId>,
    arrived: HashSet<TicketId>,
}

impl Places {
    fn new(parts: &[OsString], arrived: &[OsString]) -> Self {
        let ids = |it: &[OsString]| it.iter().filter_map(|it| ticket_of(it)).collect();
        Self { parts: ids(parts), arrived: ids(arrived) }
    }

    fn of(&self, storage: &StorageDir, new: &NewTicket) -> FilePlace {
        // In a directory of its web app's, others make names, too: what is a part has not left.
        let has_arrived = if new.dest_dir.is_empty() {
            self.arrived.contains(&new.id)
        } else {
            let is_part = self.parts.contains(&new.id);
            !is_part && storage.has_file(&arrival_path(new)).unwrap_or(false)
        };
        if has_arrived {
            FilePlace::Arrived
        } else if self.parts.contains(&new.id) {
            FilePlace::Parts
        } else {
            FilePlace::Nowhere
        }
    }
}

/// The ticket that a file is named after. Other names are none of ours.
pub(super) fn ticket_of(name: &OsStr) -> Option<TicketId> {
    let name = name.to_str()?;
    TicketId::parse(name).filter(|it| it.to_string() == name)
}

fn list(storage: &StorageDir, name: &str) -> Result<Vec<OsString>, StorageError> {
    storage.files(name.as_ref()).map_err(denied("list", &storage.path().join(name)))
}

impl<'s> Journals<'s> {
    fn open(storage: &'s StorageDir) -> Result<Self, StorageError> {
        let mut journals = Self { storage, files: BTreeMap::new() };
        for name in list(storage, JOURNAL_NAME)? {
            if let Some(name) = name.to_str().and_then(FileName::parse) {
                let file = journals.open_locked(name)?;
                journals.files.insert(name, file);
            }
        }
        Ok(journals)
    }

    fn open_locked(&self, name: FileName) -> Result<File, StorageError> {
        let how = OpenHow { lock: true, ..OpenHow::default() };
        let give_up = Instant::now() + LAST_WRITES_PATIENCE;
        loop {
            match self.storage.open_file(&path_of(name), how) {
                Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < give_up => {
                    thread::sleep(LAST_WRITES_PAUSE);
                }
                Ok(fd) => return Ok(fd.into()),
                Err(error) => return Err(self.denied("lock", name)(error)),
            }
        }
    }

    fn read(&mut self) -> Result<Vec<(FileName, Vec<u8>)>, StorageError> {
        let mut contents = Vec::new();
        for (name, file) in &mut self.files {
            let mut bytes = Vec::new();
            let done = file.read_to_end(&mut bytes);
            done.map_err(denied("read", &absolute(self.storage, *name)))?;
            contents.push((*name, bytes));
        }
        Ok(contents)
    }

    /// Copies damaged files aside, for whoever wants to look into them. Where that cannot be done
    /// the start goes on: uploads matter more.
    fn keep_damaged(&self, damage: &[Damage], contents: &[(FileName, Vec<u8>)], run: u64) {
        let since_epoch = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let mut kept = Vec::new();
        let mut errors = Vec::new();
        for (name, bytes) in contents {
            if !damage.iter().any(|it| it.file.core == name.core) {
                continue;
            }
            let copy = format!("damaged-{run}-{name}-{}", since_epoch.as_secs());
            match self.copy(&copy, bytes) {
                Ok(()) => kept.push(copy),
                Err(error) => errors.push(error.to_string()),
            }
        }
        let places: Vec<String> = damage.iter().map(describe).collect();
        tracing::error!(
            damage = places.join("; "),
            kept = kept.join(", "),
            errors = errors.join("; "),
            dir = %self.storage.path().join(JOURNAL_NAME).display(),
            "the journal is damaged: tickets may be missing, and browsers may send again what was \
             acknowledged; nothing in parts/ is collected in this run"
        );
    }

    fn copy(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let how = OpenHow { create: true, ..OpenHow::default() };
        let file = File::from(self.storage.open_file(&Path::new(JOURNAL_NAME).join(name), how)?);
        file.write_all_at(bytes, 0)?;
        file.sync_all()
    }

    /// Writes the beginnings of all cores' journals: afterwards the new run counts.
    fn begin(
        &mut self,
        beginnings: &[NewFile],
        sides: &[Side],
    ) -> Result<Vec<LogStart>, StorageError> {
        // A start that was cut short may have left what was read in the page cache only. It must be
        // safe before what was valid before it is overwritten.
        for (name, file) in &self.files {
            file.sync_all().map_err(self.denied("sync", *name))?;
        }
        let mut starts = Vec::new();
        for ((new, side), core) in beginnings.iter().zip(sides).zip(0..) {
            let wanted = file_bytes_wanted(new.commits.len() as u64);
            let capacity_bytes = [Side::A, Side::B].map(|it| {
                let is_first = it == *side;
                let needed = if is_first { new.file_bytes_min() } else { FILE_BYTES_MIN };
                self.prepare(FileName { core, side: it }, needed, wanted.max(needed))
            });
            let [a, b] = capacity_bytes;
            starts.push(new.start(*side, [a?, b?]));
        }
        self.sync_directory()?;
        let firsts: Vec<FileName> =
            sides.iter().zip(0..).map(|(side, core)| FileName { core, side: *side }).collect();
        let files = || firsts.iter().zip(beginnings);
        for (name, new) in files() {
            self.write(*name, &new.commits, u64::from(BLOCK_BYTES))?;
        }
        for (name, new) in files() {
            self.write(*name, &new.header, 0)?;
        }
        Ok(starts)
    }

    /// Has a file of at least so many bytes, made if it is missing, with space allocated. Returns
    /// how many there are.
    fn prepare(&mut self, name: FileName, needed: u64, wanted: u64) -> Result<u64, StorageError> {
        if !self.files.contains_key(&name) {
            let how = OpenHow { create: true, lock: true, ..OpenHow::default() };
            let file = self.storage.open_file(&path_of(name), how);
            self.files.insert(name, file.map_err(self.denied("make", name))?.into());
        }
        allocate(&self.files[&name], needed, wanted)
            .map_err(self.denied("allocate space for", name))
    }

    /// Durably.
    fn write(&self, name: FileName, bytes: &[u8], offset_bytes: u64) -> Result<(), StorageError> {
        let file = &self.files[&name];
        let written = file.write_all_at(bytes, offset_bytes).and_then(|()| file.sync_all());
        written.map_err(self.denied("write", name))
    }

    /// An earlier run may have had more cores.
    fn remove_surplus(&mut self, core_count: u16) -> Result<(), StorageError> {
        let surplus: Vec<FileName> =
            self.files.keys().copied().filter(|it| it.core >= core_count).collect();
        for name in &surplus {
            self.storage.remove(&path_of(*name)).map_err(self.denied("remove", *name))?;
        }
        if surplus.is_empty() { Ok(()) } else { self.sync_directory() }
    }

    fn sync_directory(&self) -> Result<(), StorageError> {
        let path = self.storage.path().join(JOURNAL_NAME);
        self.storage.sync_directory(JOURNAL_NAME.as_ref()).map_err(denied("sync", &path))
    }

    fn denied(
        &self,
        what: &'static str,
        name: FileName,
    ) -> impl Fn(io::Error) -> StorageError + use<> {
        denied(what, &absolute(self.storage, name))
    }
}

fn describe(damage: &Damage) -> String {
    let Damage { file, offset_bytes, reason } = damage;
    let what = match reason {
        DamageReason::Header => "the header is broken",
        DamageReason::OtherVersion => "another version has written it",
        DamageReason::Missing => "no file of this core belongs to the last run",
        DamageReason::Snapshot => "a commit of the snapshot is broken",
        DamageReason::Log => "a commit is broken that others follow",
    };
    format!("{file} at byte {offset_bytes}: {what}")
}

/// Allocates all of the file, `wanted` bytes if there is space for that. What is there stays.
fn allocate(file: &File, needed: u64, wanted: u64) -> io::Result<u64> {
    let metadata = file.metadata()?;
    let length = metadata.len();
    let capacity = |bytes: u64| length.max(bytes).next_multiple_of(u64::from(BLOCK_BYTES));
    for capacity in [capacity(wanted), capacity(needed)] {
        match rustix::io::retry_on_intr(|| fallocate(file, FallocateFlags::empty(), 0, capacity)) {
            // Written once, blocks are overwritten without touching the file system's journal.
            Ok(()) | Err(Errno::OPNOTSUPP) => {
                append_zeros(file, length, capacity)?;
                return Ok(capacity);
            }
            Err(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // XFS wants space for it even where all of it is allocated already.
    let is_allocated = metadata.blocks() * STAT_BLOCK_BYTES >= length;
    if length >= needed && length.is_multiple_of(u64::from(BLOCK_BYTES)) && is_allocated {
        return Ok(length);
    }
    Err(Errno::NOSPC.into())
}

/// Durably, where there is anything to append.
fn append_zeros(file: &File, mut from: u64, to: u64) -> io::Result<()> {
    if from >= to {
        return Ok(());
    }
    let zeros = vec![0; ZEROS_BYTES as usize];
    while from < to {
        let count = (to - from).min(ZEROS_BYTES);
        file.write_all_at(&zeros[..count as usize], from)?;
        from += count;
    }
    file.sync_all()
}

fn path_of(name: FileName) -> PathBuf {
    Path::new(JOURNAL_NAME).join(name.to_string())
}

fn absolute(storage: &StorageDir, name: FileName) -> PathBuf {
    storage.path().join(path_of(name))
}

/// The kernel ends the writes of a killed process in milliseconds, unless the disk hangs.
const LAST_WRITES_PATIENCE: Duration = Duration::from_secs(30);
const LAST_WRITES_PAUSE: Duration = Duration::from_millis(10);
/// The unit of `st_blocks`, whatever the file system's is (stat(2)).
const STAT_BLOCK_BYTES: u64 = 512;
const ZEROS_BYTES: u64 = 1024 * 1024;

#[cfg(test)]
mod tests;
