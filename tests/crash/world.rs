//! What is known outside of the server: the web app, the promises it was given, what was found.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::backend::{Answer, Backend, Call};
use crate::browser::post;
use crate::content::{Content, sha256_of_file};

/// What the server has promised about one upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    Issued,
    /// So many bytes are acknowledged.
    Acknowledged(u64),
    /// The web app was told that the file is there.
    Told,
    /// The web app has answered `done`, or has called `finish_upload`: the file may go.
    Done,
    /// The browser was told that the web app has the file.
    Finished,
    /// Somebody has asked to cancel it.
    CancelAsked,
    /// The web app was told that it is cancelled, or whoever asked was.
    Cancelled,
}

/// One run of a harness: everything that outlives the server.
pub struct World {
    pub storage_dir: PathBuf,
    /// Where logs go: never on the file system under test.
    pub scratch: PathBuf,
    backend: Mutex<Option<Backend>>,
    records: Mutex<BTreeMap<String, Record>>,
    findings: Mutex<Findings>,
    /// Closed (locked for writing) while the file system under the storage directory is away.
    pub gate: RwLock<()>,
    /// The web app does not answer for the moment.
    is_app_down: AtomicBool,
    /// The storage directory is not where it was: what lies in it cannot be looked at.
    pub is_away: AtomicBool,
    /// The last power cut hit a server that had promised nothing but the states of its tickets: the
    /// next one may go on lower than what was acknowledged, but never with other bytes.
    pub may_be_lower: AtomicBool,
    /// The web app does one thing at a time.
    desk: Mutex<()>,
    /// Called at every promise with the ticket's id.
    watcher: Option<Watcher>,
}

pub type Watcher = Box<dyn Fn(&str, Promise) + Send + Sync>;

/// What the web app knows about a ticket.
#[derive(Clone, Debug)]
struct Record {
    content: Content,
    is_removed_by_server: bool,
    answers: Answers,
    calls: u32,
    is_done: bool,
    is_waiting: bool,
    /// `finish_upload` was called; its answer may have been lost.
    may_be_finished: bool,
    is_cancelled: bool,
    /// A handed-over file that is still the web app's to take.
    kept: Option<PathBuf>,
}

/// How the web app answers the callbacks of a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    Done,
    /// `wait`, then `finish_upload`.
    Wait,
    /// 503 at first.
    FailFirst,
}

/// What was counted and what was wrong.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    pub acknowledged_bytes: u64,
    pub handed_over: u64,
    pub cancelled: u64,
    pub taken_over: u64,
    /// Promised and gone: bytes, tickets, files, cancellations.
    pub lost: Vec<String>,
    /// Bytes that are not those which were sent.
    pub wrong: Vec<String>,
    /// The server does not do what it should: it does not start, answer or go on.
    pub stuck: Vec<String>,
}

impl World {
    pub fn new(storage_dir: &Path, scratch: &Path, watcher: Option<Watcher>) -> Arc<Self> {
        let world = Arc::new(Self {
            storage_dir: storage_dir.to_owned(),
            scratch: scratch.to_owned(),
            backend: Mutex::default(),
            records: Mutex::default(),
            findings: Mutex::default(),
            gate: RwLock::default(),
            is_app_down: AtomicBool::default(),
            desk: Mutex::default(),
            is_away: AtomicBool::default(),
            may_be_lower: AtomicBool::default(),
            watcher,
        });
        let seen = Arc::downgrade(&world);
        let backend = Backend::scripted(move |call| match seen.upgrade() {
            Some(world) => world.on_call(call),
            None => Answer::Raw(""),
        });
        *lock(&world.backend) = Some(backend);
        world
    }

    pub fn callback_url(&self) -> String {
        lock(&self.backend).as_ref().expect("a web app").url()
    }

    pub fn log_path(&self) -> PathBuf {
        self.scratch.join("server.log")
    }

    pub fn issued(&self, id: &str, content: Content, removed_by_server: bool, answers: Answers) {
        let record = Record {
            content,
            is_removed_by_server: removed_by_server,
            answers,
            calls: 0,
            is_done: false,
            is_waiting: false,
            may_be_finished: false,
            is_cancelled: false,
            kept: None,
        };
        lock(&self.records).insert(id.to_owned(), record);
        self.promised(id, Promise::Issued);
    }

    /// From here on the web app answers nobody, and looks at no file.
    pub fn stop_app(&self) {
        self.is_app_down.store(true, Ordering::Relaxed);
        drop(lock(&self.desk));
    }

    pub fn promised(&self, id: &str, promise: Promise) {
        if let Some(watcher) = &self.watcher {
            watcher(id, promise);
        }
    }

    pub fn find(&self, what: impl FnOnce(&mut Findings)) {
        what(&mut lock(&self.findings));
    }

    pub fn findings(&self) -> Findings {
        lock(&self.findings).clone()
    }

    /// The web app has allowed to remove the file, even if it does not know that it was heard.
    fn may_be_gone(&self, id: &str) -> bool {
        lock(&self.records).get(id).is_some_and(|it| it.is_done || it.may_be_finished)
    }

    /// The web app has been told that the upload is cancelled.
    pub fn is_cancelled(&self, id: &str) -> bool {
        lock(&self.records).get(id).is_some_and(|it| it.is_cancelled)
    }

    /// The web app has answered `wait` and should call `finish_upload`.
    pub fn is_waiting(&self, id: &str) -> bool {
        lock(&self.records).get(id).is_some_and(|it| it.is_waiting && !it.is_done)
    }

    /// Checks the files that were handed over, as they must have outlived everything since, and
    /// takes them away.
    pub fn take_files(&self) {
        let _alone = lock(&self.desk);
        let kept: Vec<(String, PathBuf, Content)> = lock(&self.records)
            .iter_mut()
            .filter_map(|(id, it)| Some((id.clone(), it.kept.take()?, it.content)))
            .collect();
        for (id, path, content) in kept {
            self.check_file(&id, &path, content);
            let _ = fs::remove_file(path);
        }
    }

    /// The uploads whose files the web app may take, but which are not there.
    pub fn missing_files(&self) -> Vec<String> {
        let records = lock(&self.records);
        let missing =
            records.iter().filter(|(_, it)| it.kept.as_ref().is_some_and(|it| !it.exists()));
        missing.map(|(id, _)| id.clone()).collect()
    }

    /// Goes back to what the web app knew when only these promises had been given.
    pub fn rewind(&self, promises: &[(&str, Promise)]) {
        for (id, record) in lock(&self.records).iter_mut() {
            let has = |promise| promises.contains(&(id.as_str(), promise));
            record.calls = 0;
            record.is_done = has(Promise::Done);
            record.is_waiting = false;
            record.may_be_finished = false;
            record.is_cancelled = has(Promise::Cancelled);
            record.kept = None;
            if has(Promise::Told) && !record.is_removed_by_server {
                record.kept = Some(self.storage_dir.join("arrived").join(id));
            }
        }
    }

    /// Checks that the storage directory holds the first bytes of an upload.
    pub fn check_prefix(&self, id: &str, content: Content, length_bytes: u64) {
        if length_bytes == 0 || self.is_away.load(Ordering::Relaxed) {
            return;
        }
        let places = ["parts", "arrived", "parts"].map(|it| self.storage_dir.join(it).join(id));
        let Some(mut file) = places.iter().find_map(|it| File::open(it).ok()) else {
            // Taken or removed after the hand-over: its bytes were checked there.
            if !self.may_be_gone(id) {
                self.find(|it| {
                    it.lost.push(format!("{id}: no file, but {length_bytes} bytes promised"));
                });
            }
            return;
        };
        match first_difference(&mut file, content, length_bytes) {
            Ok(None) => {}
            Ok(Some(offset)) => self.find(|it| {
                let all = content.length_bytes;
                it.wrong.push(format!("{id}: byte {offset} of {length_bytes}, {all} in all"));
            }),
            Err(error) => self.find(|it| it.lost.push(format!("{id}: {error}"))),
        }
    }

    fn check_file(&self, id: &str, path: &Path, content: Content) {
        let hash = File::open(path).map(|_| sha256_of_file(path));
        match hash {
            Ok(hash) if hash == content.sha256() => {}
            Ok(_) => self.find(|it| it.wrong.push(format!("{id}: the file handed over"))),
            Err(error) => self.find(|it| it.lost.push(format!("{id}: handed over: {error}"))),
        }
    }

    fn on_call(&self, call: &Call) -> Answer {
        let id = call.field("id");
        let _open = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        // A call of a killed server may be read after one of the next server.
        let _alone = lock(&self.desk);
        if self.is_app_down.load(Ordering::Relaxed) {
            return Answer::Status(503, "down");
        }
        let Some(record) = lock(&self.records).get(id).cloned() else {
            // A ticket whose answer never came.
            return Answer::Done;
        };
        if call.field("cancelled") == "yes" {
            if record.is_done {
                self.find(|it| it.lost.push(format!("{id}: cancelled after it was done")));
            }
            self.change(id, |it| it.is_cancelled = true);
            self.promised(id, Promise::Cancelled);
            return Answer::Done;
        }
        self.promised(id, Promise::Told);
        let path = call.path();
        // Done before, which the server did not hear: the file may be gone since.
        if !record.is_done && !record.may_be_finished {
            self.check_file(id, &path, record.content);
        }
        self.change(id, |it| it.calls += 1);
        match record.answers {
            Answers::FailFirst if record.calls == 0 && !record.is_done => {
                return Answer::Status(503, "later");
            }
            Answers::Wait if !record.is_done => {
                self.change(id, |it| it.is_waiting = true);
                return Answer::Wait;
            }
            _ => {}
        }
        self.promised(id, Promise::Done);
        if !record.is_done {
            self.find(|it| it.handed_over += 1);
            self.change(id, |it| {
                it.is_done = true;
                it.kept = (!it.is_removed_by_server).then_some(path);
            });
        }
        Answer::Done
    }

    /// What the web app does after `wait`, in its own time.
    pub fn finish_if_asked(&self, id: &str, address: SocketAddr) {
        if !self.is_waiting(id) {
            return;
        }
        self.promised(id, Promise::Done);
        self.change(id, |it| it.may_be_finished = true);
        if let Some((200, _)) = post(address, "finish_upload", &[("id", id)]) {
            self.finished(id);
        }
    }

    /// The server says that the upload is finished. Returns whether the web app knows why.
    pub fn finished(&self, id: &str) -> bool {
        let record = lock(&self.records).get(id).cloned();
        let Some(record) = record.filter(|it| it.is_done || it.may_be_finished) else {
            return false;
        };
        if !record.is_done {
            self.find(|it| it.handed_over += 1);
            let path = self.storage_dir.join("arrived").join(id);
            self.change(id, |it| {
                it.is_done = true;
                it.kept = (!it.is_removed_by_server).then_some(path);
            });
        }
        true
    }

    fn change(&self, id: &str, how: impl FnOnce(&mut Record)) {
        if let Some(record) = lock(&self.records).get_mut(id) {
            how(record);
        }
    }
}

impl Findings {
    pub fn is_clean(&self) -> bool {
        self.lost.is_empty() && self.wrong.is_empty() && self.stuck.is_empty()
    }

    pub fn add(&mut self, more: Self) {
        self.acknowledged_bytes += more.acknowledged_bytes;
        self.handed_over += more.handed_over;
        self.cancelled += more.cancelled;
        self.taken_over += more.taken_over;
        self.lost.extend(more.lost);
        self.wrong.extend(more.wrong);
        self.stuck.extend(more.stuck);
    }

    /// The figures in words.
    pub fn figures(&self) -> String {
        format!(
            "{} bytes acknowledged, {} files handed over, {} cancelled, {} take-overs; \
             {} lost, {} wrong, {} stuck",
            self.acknowledged_bytes,
            self.handed_over,
            self.cancelled,
            self.taken_over,
            self.lost.len(),
            self.wrong.len(),
            self.stuck.len()
        )
    }

    /// The first findings of each kind, a line each.
    pub fn examples(&self) -> String {
        let mut out = String::new();
        let kinds = [("lost", &self.lost), ("wrong", &self.wrong), ("stuck", &self.stuck)];
        for (kind, found) in kinds {
            for what in found.iter().take(EXAMPLE_COUNT_MAX) {
                let _ = writeln!(out, "  {kind}: {what}");
            }
        }
        out
    }
}

/// Where a file first differs from its source below `length_bytes`, or ends too early.
pub fn first_difference(
    file: &mut File,
    content: Content,
    length_bytes: u64,
) -> io::Result<Option<u64>> {
    let mut stored = vec![0; STEP_BYTES];
    let mut offset = 0;
    while offset < length_bytes {
        let step = (length_bytes - offset).min(STEP_BYTES as u64) as usize;
        let expected = content.piece(offset, step as u64);
        let mut filled = 0;
        while filled < step {
            match file.read(&mut stored[filled..step])? {
                0 => return Ok(Some(offset + filled as u64)),
                length => filled += length,
            }
        }
        if stored[..step] != expected[..] {
            let differs = stored.iter().zip(&expected).position(|(a, b)| a != b);
            return Ok(differs.map(|it| offset + it as u64));
        }
        offset += step as u64;
    }
    Ok(None)
}

pub fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const STEP_BYTES: usize = 256 * 1024;
const EXAMPLE_COUNT_MAX: usize = 10;
