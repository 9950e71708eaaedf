//! Are the files right? Each is read, past the page cache where that is possible, and its SHA-256
//! compared with that of what was sent.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::thread;

use rustix::fs::OFlags;
use sha2::{Digest, Sha256};

use crate::content::{Block, Content};
use crate::error::{Mismatch, WorkloadError};

/// A file that has arrived.
#[derive(Clone, Debug)]
pub(crate) struct Arrived {
    pub(crate) client: usize,
    pub(crate) path: PathBuf,
    pub(crate) content: Content,
}

/// Compares all files, on two threads. `on_progress` hears how many are right so far.
pub(crate) fn verify(
    files: &[Arrived],
    block: &Block,
    on_progress: &mut dyn FnMut(usize),
) -> Result<usize, WorkloadError> {
    let next = AtomicUsize::new(0);
    let found: Vec<OnceLock<io::Result<Hash>>> = files.iter().map(|_| OnceLock::new()).collect();
    let (done, is_done) = std::sync::mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..THREADS {
            let done = done.clone();
            let (next, found) = (&next, &found);
            scope.spawn(move || {
                // What was sent and what has arrived of a file are two jobs, so that a single
                // large file keeps two threads busy as well.
                let mut buffer = Buffer::new();
                loop {
                    let job = next.fetch_add(1, Ordering::Relaxed);
                    let Some(file) = files.get(job / 2) else { break };
                    if job % 2 == 0 {
                        expected(&file.content, block, buffer.aligned());
                    } else {
                        let _ = found[job / 2].set(hash_of(&file.path, buffer.aligned()));
                        let _ = done.send(());
                    }
                }
            });
        }
        drop(done);
        for (count, ()) in is_done.iter().enumerate() {
            on_progress(count + 1);
        }
    });
    let mut buffer = Buffer::new();
    for (file, found) in files.iter().zip(found) {
        let unreadable = |error: io::Error| WorkloadError::Unreadable {
            path: file.path.clone(),
            error: error.kind(),
        };
        let found = found.into_inner().expect("every job is done").map_err(unreadable)?;
        if found != expected(&file.content, block, buffer.aligned()) {
            return Err(WorkloadError::Corrupt(first_difference(file, block).map_err(unreadable)?));
        }
    }
    Ok(files.len())
}

type Hash = [u8; 32];

/// Of what was sent: computed once.
fn expected(content: &Content, block: &Block, buffer: &mut [u8]) -> Hash {
    static KNOWN: Mutex<Option<HashMap<Content, Hash>>> = Mutex::new(None);
    let known = |insert: Option<Hash>| -> Option<Hash> {
        let mut known = KNOWN.lock().expect("nothing panics while it is locked");
        let known = known.get_or_insert_default();
        known.extend(insert.map(|it| (*content, it)));
        known.get(content).copied()
    };
    if let Some(hash) = known(None) {
        return hash;
    }
    let mut hasher = Sha256::new();
    let mut offset = 0;
    loop {
        let length = content.fill(block, offset, buffer);
        if length == 0 {
            break;
        }
        hasher.update(&buffer[..length]);
        offset += length as u64;
    }
    let hash = hasher.finalize().into();
    known(Some(hash));
    hash
}

fn hash_of(path: &Path, buffer: &mut [u8]) -> io::Result<Hash> {
    let file = open(path, buffer)?;
    let mut hasher = Sha256::new();
    let mut offset = 0;
    loop {
        let length = file.read_at(buffer, offset)?;
        hasher.update(&buffer[..length]);
        offset += length as u64;
        // A direct read ends short at the end of the file only, and there its offset is odd.
        if length < buffer.len() && offset >= file.metadata()?.len() {
            return Ok(hasher.finalize().into());
        }
    }
}

/// For direct reads, where the file system lets itself be read so.
fn open(path: &Path, buffer: &mut [u8]) -> io::Result<File> {
    let flags = OFlags::DIRECT.bits() as i32;
    match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) if file.read_at(buffer, 0).is_ok() => Ok(file),
        _ => File::open(path),
    }
}

fn first_difference(file: &Arrived, block: &Block) -> io::Result<Mismatch> {
    let length_bytes = fs::metadata(&file.path)?.len();
    let common_bytes = length_bytes.min(file.content.length_bytes);
    let (mut sent, mut arrived) = (vec![0; BUFFER_BYTES], vec![0; BUFFER_BYTES]);
    let from = File::open(&file.path)?;
    let mut offset = 0;
    while offset < common_bytes {
        let length = BUFFER_BYTES.min((common_bytes - offset) as usize);
        file.content.fill(block, offset, &mut sent[..length]);
        from.read_exact_at(&mut arrived[..length], offset)?;
        let pairs = sent[..length].iter().zip(&arrived[..length]);
        if let Some(at) = pairs.clone().position(|(sent, arrived)| sent != arrived) {
            offset += at as u64;
            break;
        }
        offset += length as u64;
    }
    Ok(Mismatch {
        client: file.client,
        path: file.path.clone(),
        offset,
        length_bytes,
        expected_length_bytes: file.content.length_bytes,
    })
}

/// Direct reads want memory that begins at a block.
struct Buffer(Vec<u8>);

impl Buffer {
    fn new() -> Self {
        Self(vec![0; BUFFER_BYTES + ALIGNMENT])
    }

    fn aligned(&mut self) -> &mut [u8] {
        let start = self.0.as_ptr().align_offset(ALIGNMENT);
        &mut self.0[start..][..BUFFER_BYTES]
    }
}

const THREADS: usize = 2;
const BUFFER_BYTES: usize = 1 << 20;
const ALIGNMENT: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::Shape;

    fn arrived(directory: &Path, client: usize, length_bytes: u64) -> Arrived {
        let shape = Shape::Messages(100_000);
        let content = Content { seed: 9, file: client as u64, length_bytes, shape };
        let mut bytes = vec![0; length_bytes as usize];
        content.fill(Block::shared(), 0, &mut bytes);
        let path = directory.join(client.to_string());
        fs::write(&path, bytes).unwrap();
        Arrived { client, path, content }
    }

    fn verify_all(files: &[Arrived]) -> Result<usize, WorkloadError> {
        verify(files, Block::shared(), &mut |_| {})
    }

    #[test]
    fn right_files_are_found_right_and_one_wrong_byte_is_found() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let lengths = [1, 4096, 100_000, (1 << 20) - 1, 1 << 20, (3 << 20) + 4097];
        let files: Vec<Arrived> = (0..lengths.len())
            .map(|client| arrived(directory.path(), client, lengths[client]))
            .collect();
        let mut counts = Vec::new();
        let verified = verify(&files, Block::shared(), &mut |count| counts.push(count)).unwrap();
        assert_eq!(verified, files.len());
        assert_eq!(counts, [1, 2, 3, 4, 5, 6]);
        for offset in [0, (1 << 20) - 1, 1 << 20, (3 << 20) + 4096] {
            let file = &files[5];
            let right = fs::read(&file.path).unwrap();
            let mut wrong = right.clone();
            wrong[offset] ^= 1;
            fs::write(&file.path, wrong).unwrap();
            let expected = Mismatch {
                client: 5,
                path: file.path.clone(),
                offset: offset as u64,
                length_bytes: lengths[5],
                expected_length_bytes: lengths[5],
            };
            assert_eq!(verify_all(&files), Err(WorkloadError::Corrupt(expected)));
            fs::write(&file.path, right).unwrap();
        }
    }

    #[test]
    fn short_long_and_missing_files_are_found() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let files = [arrived(directory.path(), 0, 8192)];
        let right = fs::read(&files[0].path).unwrap();
        for length in [0, 4096, 8191, 8193, 12288] {
            let mut other = right.clone();
            other.resize(length, 0);
            fs::write(&files[0].path, other).unwrap();
            let Err(WorkloadError::Corrupt(found)) = verify_all(&files) else {
                panic!("{length} B are not 8192 B")
            };
            assert_eq!(found.offset, length.min(8192) as u64);
            assert_eq!(found.length_bytes, length as u64);
        }
        fs::remove_file(&files[0].path).unwrap();
        let unreadable = WorkloadError::Unreadable {
            path: files[0].path.clone(),
            error: io::ErrorKind::NotFound,
        };
        assert_eq!(verify_all(&files), Err(unreadable));
    }
}
