//! Starts on what is there: nothing, an earlier run, too many cores, broken files.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};

use engine::op::CoreId;
use engine::record::{NewTicket, RecordState, TicketRecord};
use rustix::fs::{FlockOperation, flock};

use super::*;

/// A storage directory, and what is in its journal.
struct Place {
    temp: tempfile::TempDir,
    storage: Arc<StorageDir>,
}

impl Place {
    fn new(parent: &str) -> Self {
        let temp = tempfile::tempdir_in(parent).unwrap();
        let mut storage = StorageDir::open(temp.path()).unwrap();
        for name in [PARTS_NAME, ARRIVED_NAME, JOURNAL_NAME] {
            storage.make_dir(name.as_ref(), 0o700).unwrap();
        }
        Self { temp, storage: Arc::new(storage) }
    }

    fn recover(&self, core_count: u16) -> Recovered {
        recover(&self.storage, core_count, CommitSync::Fdatasync, DAY).unwrap()
    }

    fn journal(&self) -> PathBuf {
        self.temp.path().join(JOURNAL_NAME)
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.journal())
            .unwrap()
            .map(|it| it.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn touch(&self, dir: &str, name: &str) {
        fs::write(self.temp.path().join(dir).join(name), "").unwrap();
    }

    /// Starts a run with these tickets, as if cores had recorded them.
    fn begin(&self, core_count: u16, tickets: &[TicketRecord]) {
        let mut journals = Journals::open(&self.storage).unwrap();
        let contents = journals.read().unwrap();
        let found: Vec<_> =
            contents.iter().map(|(name, bytes)| JournalFile { name: *name, bytes }).collect();
        let recovery = journal::recover(&found);
        let new: Vec<NewFile> = (0..core_count)
            .map(|core| {
                let own = tickets.iter().filter(|it| it.new.id.owner(core_count) == CoreId(core));
                NewFile::new(core, core_count, recovery.run_next, CommitSync::Dsync, 0, own)
            })
            .collect();
        let sides: Vec<Side> = (0..core_count).map(|it| recovery.side_for(it)).collect();
        journals.begin(&new, &sides).unwrap();
        journals.remove_surplus(core_count).unwrap();
    }
}

fn ticket(number: u128) -> TicketRecord {
    let id = TicketId(number << 96 | number);
    let new = NewTicket { secret: "secret".to_owned(), ..NewTicket::new(id, "http://127.0.0.1/") };
    TicketRecord {
        state: RecordState::Receiving,
        filename_from_browser: "name".to_owned(),
        length_bytes: 1 << 40,
        committed_bytes: 12_345,
        ..TicketRecord::new(new)
    }
}

fn records(recovered: &Recovered) -> Vec<TicketRecord> {
    let mut records: Vec<_> =
        recovered.cores.iter().flat_map(|it| &it.tickets).map(|it| it.record.clone()).collect();
    records.sort_by_key(|it| it.new.id);
    records
}

#[test]
fn begins_with_nothing() {
    // tmpfs too, which has no direct writes.
    for parent in [env!("CARGO_MANIFEST_DIR").to_owned() + "/target", "/dev/shm".to_owned()] {
        let place = Place::new(&parent);
        let first = place.recover(2);
        assert_eq!((first.cores[1].run, first.cores.len()), (1, 2));
        assert_eq!(place.names(), ["0.a", "0.b", "1.a", "1.b"]);
        for name in place.names() {
            let metadata = fs::metadata(place.journal().join(&name)).unwrap();
            assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
            assert_eq!(metadata.len(), first.cores[0].log_start.capacity_bytes[0]);
        }
        assert_eq!(first.cores[0].log_start.side, Side::A);
        // Each run leaves the files of the one before alone.
        let second = place.recover(2);
        assert_eq!((second.cores[1].run, second.cores[1].log_start.side), (2, Side::B));
        let third = place.recover(2);
        assert_eq!((third.cores[1].run, third.cores[1].log_start.side), (3, Side::A));
    }
}

#[test]
fn every_ticket_comes_to_its_core_whatever_their_number() {
    let place = Place::new("/dev/shm");
    let tickets: Vec<_> = (1..=50).map(ticket).collect();
    place.begin(3, &tickets);
    place.touch(PARTS_NAME, &tickets[0].new.id.to_string());
    place.touch(ARRIVED_NAME, &tickets[1].new.id.to_string());
    // A crash between rename and sync of a directory can leave both names.
    place.touch(PARTS_NAME, &tickets[2].new.id.to_string());
    place.touch(ARRIVED_NAME, &tickets[2].new.id.to_string());
    for core_count in [3, 1, 5, 2, 2, 4] {
        let recovered = place.recover(core_count);
        assert_eq!(records(&recovered), tickets);
        for (core, start) in recovered.cores.iter().enumerate() {
            let core = CoreId(core as u16);
            assert!(start.tickets.iter().all(|it| it.record.new.id.owner(core_count) == core));
            for it in &start.tickets {
                let expected =
                    match tickets.iter().position(|other| other.new.id == it.record.new.id) {
                        Some(0) => FilePlace::Parts,
                        Some(1 | 2) => FilePlace::Arrived,
                        _ => FilePlace::Nowhere,
                    };
                assert_eq!(it.place, expected);
            }
        }
        // Surplus files are gone.
        assert_eq!(place.names().len(), 2 * usize::from(core_count));
    }
}

#[test]
fn a_start_that_was_cut_short_changes_nothing() {
    let place = Place::new("/dev/shm");
    let tickets: Vec<_> = (1..=20).map(ticket).collect();
    place.begin(2, &tickets);
    // The next start, with more cores: its commits are written, but only some of its headers.
    for header_count in 0..3 {
        let mut journals = Journals::open(&place.storage).unwrap();
        let contents = journals.read().unwrap();
        let found: Vec<_> =
            contents.iter().map(|(name, bytes)| JournalFile { name: *name, bytes }).collect();
        let recovery = journal::recover(&found);
        assert_eq!(recovery.tickets, tickets);
        let none: [&TicketRecord; 0] = [];
        for core in 0..3 {
            let new = NewFile::new(core, 3, recovery.run_next, CommitSync::Dsync, 0, none);
            let name = FileName { core, side: recovery.side_for(core) };
            journals.prepare(name, new.file_bytes_min(), new.file_bytes_min()).unwrap();
            journals.write(name, &new.commits, u64::from(BLOCK_BYTES)).unwrap();
            if core < header_count {
                journals.write(name, &new.header, 0).unwrap();
            }
        }
    }
    assert_eq!(records(&place.recover(2)), tickets);
}

#[test]
fn damaged_files_are_kept_and_the_server_starts() {
    let place = Place::new("/dev/shm");
    let tickets: Vec<_> = (1..=20).map(ticket).collect();
    place.begin(1, &tickets);
    let unknown = TicketId(77 << 96).to_string();
    place.touch(PARTS_NAME, &unknown);
    let path = place.journal().join("0.a");
    let file = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 5000).unwrap();
    file.write_all_at(&[!byte[0]], 5000).unwrap();
    let damaged = fs::read(&path).unwrap();

    let recovered = place.recover(1);
    assert!(records(&recovered).len() < tickets.len());
    let copies: Vec<_> =
        place.names().into_iter().filter(|it| it.starts_with("damaged-2-0.a-")).collect();
    assert_eq!(copies.len(), 1, "{:?}", place.names());
    assert!(fs::read(place.journal().join(&copies[0])).unwrap() == damaged);
    let mut orphans = recovered.orphans;
    orphans.collect(SystemTime::now() + 2 * DAY);
    let orphan = place.temp.path().join(PARTS_NAME).join(&unknown);
    assert!(orphan.exists(), "what the journal has lost is no orphan");
    // The next one is sound, and the copy is left alone.
    let mut orphans = place.recover(1).orphans;
    orphans.collect(SystemTime::now() + 2 * DAY);
    assert!(!orphan.exists());
    assert!(place.journal().join(&copies[0]).exists());
}

#[test]
fn everything_else_in_the_directory_is_left_alone() {
    let place = Place::new("/dev/shm");
    for name in ["0.c", "notes.txt", "00.a", "a.0"] {
        place.touch(JOURNAL_NAME, name);
    }
    for dir in [PARTS_NAME, ARRIVED_NAME] {
        place.touch(dir, "precious.txt");
        place.touch(dir, &TicketId(5 << 96).to_string());
    }
    let recovered = place.recover(1);
    assert_eq!(place.names(), ["0.a", "0.b", "0.c", "00.a", "a.0", "notes.txt"]);
    // Only what lies in parts can be an orphan, and only if it is named as we do.
    let mut orphans = recovered.orphans;
    orphans.collect(SystemTime::now() + 2 * DAY);
    let left = |dir| fs::read_dir(place.temp.path().join(dir)).unwrap().count();
    assert_eq!((left(PARTS_NAME), left(ARRIVED_NAME)), (1, 2));
}

#[test]
fn waits_until_the_last_write_of_a_killed_process_has_ended() {
    let place = Place::new("/dev/shm");
    let tickets = [ticket(1)];
    place.begin(1, &tickets);
    // The kernel holds the file for the write, and with it the lock.
    let held = fs::File::open(place.journal().join("0.a")).unwrap();
    flock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
    let storage = place.storage.clone();
    let starting = thread::spawn(move || recover(&storage, 1, CommitSync::Dsync, DAY));
    thread::sleep(3 * LAST_WRITES_PAUSE);
    assert!(!starting.is_finished());
    drop(held);
    assert_eq!(records(&starting.join().unwrap().unwrap()), tickets);
}

#[test]
fn space_is_allocated_and_what_is_there_stays() {
    let temp = tempfile::tempdir_in("/dev/shm").unwrap();
    let file = fs::File::create_new(temp.path().join("file")).unwrap();
    file.write_all_at(b"here", 0).unwrap();
    assert_eq!(allocate(&file, 4096, 10_000).unwrap(), 12_288);
    // It never gets smaller.
    assert_eq!(allocate(&file, 4096, 4096).unwrap(), 12_288);
    append_zeros(&file, 12_288, 3 << 20).unwrap();
    let bytes = fs::read(temp.path().join("file")).unwrap();
    assert_eq!((bytes.len(), &bytes[..4]), (3 << 20, &b"here"[..]));
    assert!(bytes[4..].iter().all(|it| *it == 0));
    // As much as there is, if that is enough; nowhere is so much.
    let all = u64::MAX >> 2;
    assert!(allocate(&file, 4 << 20, all).is_ok_and(|it| it == 4 << 20));
    assert!(allocate(&file, all, all).is_err());
}

const DAY: Duration = Duration::from_secs(86_400);

#[test]
fn offsets_that_were_not_synced_do_not_outlive_the_machine() {
    let place = Place::new("/dev/shm");
    let committed = |sync| {
        let recovered = recover(&place.storage, 2, sync, DAY).unwrap();
        records(&recovered)[0].committed_bytes
    };
    place.begin(2, &[ticket(1)]);
    assert_eq!(committed(CommitSync::StatesOnly), 12_345, "the run before had synced");
    assert_eq!(committed(CommitSync::StatesOnly), 12_345, "the machine is still up");
    fs::write(place.journal().join("boot"), "an earlier start\n").unwrap();
    assert_eq!(committed(CommitSync::StatesOnly), 0);

    place.begin(2, &[ticket(1)]);
    assert_eq!(committed(CommitSync::StatesOnly), 12_345);
    assert_eq!(committed(CommitSync::Fdatasync), 12_345, "it is synced now");
    fs::write(place.journal().join("boot"), "an earlier start\n").unwrap();
    assert_eq!(committed(CommitSync::StatesOnly), 12_345);
}
