//! Directories: which names there are, and which of them a power cut leaves.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::rng::Rng;

#[derive(Debug, Default)]
pub(super) struct Names {
    map: BTreeMap<PathBuf, usize>,
    /// By number of the inode: what its name was, from then on. One name at a time.
    history: Vec<Vec<Name>>,
    /// In order: whatever happened to names until then is on the medium.
    committed_at: u64,
}

#[derive(Debug)]
struct Name {
    at: u64,
    /// `None`: removed, or not made yet.
    path: Option<PathBuf>,
    /// The directories that changed and were not synced since.
    unsynced: Vec<PathBuf>,
}

impl Names {
    pub(super) fn get(&self, path: &Path) -> Option<usize> {
        self.map.get(path).copied()
    }

    /// What stands in a directory, in order.
    pub(super) fn list(&self, directory: &Path) -> impl Iterator<Item = &Path> {
        let names = self.map.keys().map(PathBuf::as_path);
        names.filter(move |it| it.parent() == Some(directory))
    }

    pub(super) fn path_of(&self, inode: usize) -> Option<&Path> {
        self.history[inode].last().and_then(|it| it.path.as_deref())
    }

    /// Inodes are numbered in the order in which they are made.
    pub(super) fn create(&mut self, now: u64, path: PathBuf) -> usize {
        let inode = self.history.len();
        let first = Name { at: 0, path: None, unsynced: Vec::new() };
        self.history.push(vec![first]);
        self.change(now, inode, Some(path));
        inode
    }

    pub(super) fn rename(&mut self, now: u64, from: &Path, to: PathBuf) {
        let inode = self.map.remove(from).expect("renamed once");
        self.change(now, inode, Some(to));
    }

    /// False: there is no such name.
    pub(super) fn remove(&mut self, now: u64, path: &Path) -> bool {
        let Some(inode) = self.map.remove(path) else { return false };
        self.change(now, inode, None);
        true
    }

    /// The directory was synced by a call that began then.
    pub(super) fn sync(&mut self, directory: &Path, begun_at: u64) {
        self.committed_at = self.committed_at.max(begun_at);
        let names = self.history.iter_mut().flatten().filter(|it| it.at <= begun_at);
        for name in names {
            name.unsynced.retain(|it| it != directory);
        }
    }

    /// No power cut changes what this file is called.
    pub(super) fn is_durable(&self, inode: usize) -> bool {
        self.safe_index(inode) + 1 == self.history[inode].len()
    }

    /// It has a name after every power cut.
    pub(super) fn survives(&self, inode: usize) -> bool {
        self.history[inode][self.safe_index(inode)..].iter().all(|it| it.path.is_some())
    }

    /// The power is gone. What was not synced may have happened: in the order of time, or (as POSIX
    /// allows) for each file on its own.
    pub(super) fn power_cut(&mut self, now: u64, is_ordered: bool, rng: &mut Rng) {
        let cut_at = rng.within(self.committed_at as usize..now as usize + 1) as u64;
        self.map.clear();
        for inode in 0..self.history.len() {
            let safe = self.safe_index(inode);
            let names = &mut self.history[inode];
            let kept = if is_ordered {
                names.iter().rposition(|it| it.at <= cut_at).expect("the first").max(safe)
            } else {
                rng.within(safe..names.len())
            };
            let path = names.swap_remove(kept).path;
            self.map.extend(path.clone().map(|it| (it, inode)));
            *names = vec![Name { at: 0, path, unsynced: Vec::new() }];
        }
        self.committed_at = now;
    }

    fn change(&mut self, now: u64, inode: usize, path: Option<PathBuf>) {
        let names = &mut self.history[inode];
        let old = names.last().and_then(|it| it.path.clone());
        let parents = [old, path.clone()].into_iter().flatten();
        let unsynced = parents.map(|it| it.parent().expect("in a directory").to_owned()).collect();
        names.push(Name { at: now, path: path.clone(), unsynced });
        if let Some(path) = path {
            let replaced = self.map.insert(path, inode);
            assert_eq!(replaced, None, "nothing is replaced");
        }
    }

    /// The last change that no power cut undoes.
    fn safe_index(&self, inode: usize) -> usize {
        let safe = self.history[inode].iter().rposition(|it| it.unsynced.is_empty());
        safe.expect("the first is safe")
    }
}
