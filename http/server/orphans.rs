//! Files in `parts/` that belong to no ticket. They are kept as long as an upload that nothing
//! happens to, then they are removed.

use std::collections::{HashSet, VecDeque};
use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use engine::driver::StorageDir;
use engine::store::PARTS_NAME;
use engine::ticket::TicketId;

use super::recovery::ticket_of;

/// What the earlier runs left. Nothing is added while the server runs: it removes its own files.
#[derive(Debug)]
pub(super) struct Orphans {
    storage: Arc<StorageDir>,
    /// Each with the time when it goes, the earliest first.
    waiting: VecDeque<(SystemTime, OsString)>,
}

impl Orphans {
    /// Of the files in `parts/`, those that are named after a ticket, but none of those that are
    /// known. Others are somebody else's.
    pub(super) fn new(
        storage: Arc<StorageDir>,
        parts: Vec<OsString>,
        known: &HashSet<TicketId>,
        age_max: Duration,
    ) -> Self {
        let is_orphan = |it: &OsString| ticket_of(it).is_some_and(|id| !known.contains(&id));
        let orphans = parts.into_iter().filter(is_orphan);
        let with_time = orphans.filter_map(|name| {
            let modified = storage.modified(&Path::new(PARTS_NAME).join(&name)).ok()?;
            Some((modified + age_max, name))
        });
        let mut waiting: Vec<_> = with_time.collect();
        waiting.sort();
        Self { storage, waiting: waiting.into() }
    }

    /// How long it may take until [`Orphans::collect`] is called.
    pub(super) fn patience(&self, now: SystemTime) -> Duration {
        let until = |at: SystemTime| at.duration_since(now).unwrap_or_default();
        // The clock may be set.
        self.waiting.front().map_or(PATIENCE_MAX, |(at, _)| until(*at).min(PATIENCE_MAX))
    }

    /// Removes those whose time has come.
    pub(super) fn collect(&mut self, now: SystemTime) {
        let mut count = 0;
        while self.waiting.front().is_some_and(|(at, _)| *at <= now) {
            let (_, name) = self.waiting.pop_front().expect("there is a front");
            match self.storage.remove(&Path::new(PARTS_NAME).join(&name)) {
                Ok(()) => count += 1,
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                // The next start tries again.
                Err(error) => {
                    tracing::warn!(name = %name.display(), %error, "cannot remove an orphan");
                }
            }
        }
        if count > 0 {
            tracing::info!(files = count, "removed parts that belong to no ticket");
        }
    }
}

const PATIENCE_MAX: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removes_what_is_old_and_unknown_and_ours() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join("parts")).unwrap();
        let storage = Arc::new(StorageDir::open(temp.path()).unwrap());
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let ids = [1, 2, 3].map(|it| TicketId(it << 96));
        let mut names = ids.map(|it| it.to_string()).to_vec();
        names
            .extend(["precious.txt".to_owned(), "AABBCCDD-0000-0000-0000-000000000000".to_owned()]);
        for (name, age_s) in names.iter().zip(0..) {
            let file = std::fs::File::create(temp.path().join("parts").join(name)).unwrap();
            file.set_modified(start - Duration::from_secs(age_s)).unwrap();
        }
        let parts = storage.files(PARTS_NAME.as_ref()).unwrap();
        let known = HashSet::from([ids[2]]);
        let day = Duration::from_secs(86_400);
        let mut orphans = Orphans::new(storage, parts, &known, day);
        let left = || {
            let there = |it: &&String| temp.path().join("parts").join(it).exists();
            names.iter().filter(there).cloned().collect::<Vec<_>>()
        };

        // The older one goes first, each at its time.
        let second = Duration::from_secs(1);
        assert_eq!(orphans.patience(start), PATIENCE_MAX);
        assert_eq!(orphans.patience(start + day - 3 * second), 2 * second);
        orphans.collect(start + day - 2 * second);
        assert_eq!(left(), names);
        orphans.collect(start + day - second);
        assert_eq!(left(), [&names[0], &names[2], &names[3], &names[4]].map(String::clone));
        assert_eq!(orphans.patience(start + day - second), second);
        orphans.collect(start + 100 * day);
        assert_eq!(left(), names[2..]);
        assert_eq!(orphans.patience(start + 101 * day), PATIENCE_MAX);
    }
}
