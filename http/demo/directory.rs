//! Where the demo keeps what it was given: a directory, and names that are safe in it.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with};
use serde::Serialize;

/// The directory of files that were uploaded.
#[derive(Clone, Debug)]
pub(super) struct Directory {
    path: PathBuf,
}

/// One file of it, for the page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) length_bytes: u64,
    /// Since 1970.
    pub(super) modified_ms: u64,
}

impl Directory {
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&path)?;
        Ok(Self { path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Moves a file here, under a name like the one the browser gave, and says which. A file that is
    /// here already is never replaced.
    pub(super) fn take(&self, from: &Path, name_from_browser: &str) -> io::Result<String> {
        let wanted = safe_name(name_from_browser);
        for number in 1..NUMBERS_MAX {
            let name = if number == 1 { wanted.clone() } else { numbered(&wanted, number) };
            let to = self.path.join(&name);
            match renameat_with(CWD, from, CWD, &to, RenameFlags::NOREPLACE) {
                Ok(()) => return Ok(name),
                Err(rustix::io::Errno::EXIST) => {}
                // File systems without this flag have links.
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                    match fs::hard_link(from, &to) {
                        Ok(()) => return fs::remove_file(from).map(|()| name),
                        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                        Err(error) => return Err(error),
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// The newest files first, up to [`ENTRIES_MAX`].
    pub(super) fn list(&self) -> io::Result<Vec<Entry>> {
        let mut entries: Vec<Entry> =
            fs::read_dir(&self.path)?.filter_map(|it| entry(&it.ok()?)).collect();
        entries.sort_by(|a, b| (b.modified_ms, &a.name).cmp(&(a.modified_ms, &b.name)));
        entries.truncate(ENTRIES_MAX);
        Ok(entries)
    }

    /// Opens a file by its name, which comes from anybody.
    pub(super) fn read(&self, name: &str) -> io::Result<(File, u64)> {
        if Path::new(name).file_name() != Some(OsStr::new(name)) || name.contains('\0') {
            return Err(io::ErrorKind::NotFound.into());
        }
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(self.path.join(name))?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok((file, metadata.len()))
    }
}

fn entry(it: &fs::DirEntry) -> Option<Entry> {
    let metadata = it.metadata().ok().filter(fs::Metadata::is_file)?;
    let modified = metadata.modified().ok()?.duration_since(UNIX_EPOCH);
    Some(Entry {
        name: it.file_name().into_string().ok()?,
        length_bytes: metadata.len(),
        modified_ms: modified.unwrap_or(Duration::ZERO).as_millis() as u64,
    })
}

/// What a browser calls a file is only data: it may be a path, hold control characters or turn the
/// direction of writing. What is left is a plain, visible name, as much like it as possible.
fn safe_name(from_browser: &str) -> String {
    let last = from_browser.rsplit(['/', '\\']).next().unwrap_or_default();
    let shown: String = last.chars().filter(|it| !it.is_control() && !is_invisible(*it)).collect();
    let name = shown.trim().trim_start_matches('.').trim();
    if name.is_empty() { "file".to_owned() } else { shortened(name, NAME_BYTES_MAX) }
}

/// "photo.jpg" and 2 make "photo (2).jpg".
fn numbered(name: &str, number: u32) -> String {
    let (stem, extension) = split_extension(name);
    format!("{stem} ({number}){extension}")
}

/// Cuts the middle, between characters, so that the extension stays.
fn shortened(name: &str, bytes_max: usize) -> String {
    let (stem, extension) = split_extension(name);
    let stem_bytes_max = bytes_max - extension.len();
    if stem.len() <= stem_bytes_max {
        return name.to_owned();
    }
    let end = (0..=stem_bytes_max).rev().find(|it| stem.is_char_boundary(*it)).unwrap_or(0);
    format!("{}{extension}", &stem[..end])
}

fn split_extension(name: &str) -> (&str, &str) {
    match name.rfind('.') {
        Some(at) if at > 0 && name.len() - at <= EXTENSION_BYTES_MAX => name.split_at(at),
        _ => (name, ""),
    }
}

/// Marks that change the direction of writing, or take no room at all.
fn is_invisible(it: char) -> bool {
    matches!(it, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// File systems allow 255; this leaves room for a number.
const NAME_BYTES_MAX: usize = 200;
const EXTENSION_BYTES_MAX: usize = 20;
const ENTRIES_MAX: usize = 1000;
const NUMBERS_MAX: u32 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_and_as_given_where_possible() {
        let long = "ü".repeat(300);
        for (given, name) in [
            ("photo.jpg", "photo.jpg"),
            ("Übergröße 大 (1).tar.gz", "Übergröße 大 (1).tar.gz"),
            ("../../etc/passwd", "passwd"),
            ("C:\\Users\\ada\\x.txt", "x.txt"),
            ("..", "file"),
            (".", "file"),
            ("", "file"),
            ("a/", "file"),
            (".bashrc", "bashrc"),
            ("a\0b\n\u{1b}c", "abc"),
            ("  a  ", "a"),
            ("gpj\u{202e}exe.txt", "gpjexe.txt"),
            (&format!("{long}.jpeg"), &format!("{}.jpeg", "ü".repeat(97))),
            (&long, &"ü".repeat(100)),
        ] {
            assert_eq!(safe_name(given), name, "{given:?}");
        }
        assert_eq!(numbered("a.txt", 2), "a (2).txt");
        assert_eq!(numbered("README", 3), "README (3)");
    }

    #[test]
    fn nothing_is_replaced() {
        let temp = tempfile::tempdir().unwrap();
        let directory = Directory::open(temp.path().join("uploaded")).unwrap();
        for (content, name) in [("1", "a.txt"), ("2", "a (2).txt"), ("3", "a (3).txt")] {
            let from = temp.path().join("from");
            fs::write(&from, content).unwrap();
            assert_eq!(directory.take(&from, "x/a.txt").unwrap(), name);
            assert!(!from.exists());
            assert_eq!(fs::read_to_string(directory.path().join(name)).unwrap(), content);
        }
        assert_eq!(directory.list().unwrap().len(), 3);
        let error = directory.take(&temp.path().join("gone"), "x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn only_plain_files_of_the_directory_are_read() {
        let temp = tempfile::tempdir().unwrap();
        let directory = Directory::open(temp.path().join("uploaded")).unwrap();
        fs::write(temp.path().join("secret"), "s").unwrap();
        fs::write(directory.path().join("ok"), "12345").unwrap();
        fs::create_dir(directory.path().join("sub")).unwrap();
        std::os::unix::fs::symlink("../secret", directory.path().join("link")).unwrap();
        assert_eq!(directory.read("ok").unwrap().1, 5);
        for name in ["", ".", "..", "../secret", "/etc/passwd", "sub", "sub/x", "link", "no", "a\0"]
        {
            assert!(directory.read(name).is_err(), "{name:?}");
        }
        let names: Vec<String> = directory.list().unwrap().into_iter().map(|it| it.name).collect();
        assert_eq!(names, ["ok"]);
    }
}
