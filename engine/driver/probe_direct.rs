//! Whether a directory's files can be written without the page cache.
//!
//! The file system is asked, not tried: some (tmpfs) accept `O_DIRECT` and buffer all the same.
//! Only where it says nothing, which kernels before 6.1 never do and some file systems still do
//! not, an aligned write decides, on file systems that are known to mean it.

use std::fmt;
use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, OFlags, StatFs, StatxFlags, fcntl_getfl, fcntl_setfl, fstatfs, statx};

use super::directory::StorageDir;
use crate::buffer::{Memory, Slice};
use crate::limits::BLOCK_BYTES;
use crate::op::OpenHow;

/// How files of a directory are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirectSupport {
    /// With `O_DIRECT`, in blocks of [`BLOCK_BYTES`].
    Direct,
    /// Through the page cache: slower, and for this reason.
    Buffered(WhyBuffered),
}

/// Why a directory's files are not written directly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhyBuffered {
    /// The file system says that it has no direct I/O.
    Refused,
    /// It wants larger blocks than ours.
    BlocksTooLarge { alignment_bytes: u32 },
    /// It says nothing, and its kind (`f_type` of `statfs`) is not one of those that are tried.
    KindUnknown { kind: u64 },
    /// It says nothing, and an aligned write failed.
    TrialFailed { errno: i32 },
}

/// Asks the file system of `storage`, with a file that is made in `directory` and removed.
///
/// # Errors
/// The file could not be made: the directory is not there or not writable, or the disk is full.
pub fn probe_direct(storage: &StorageDir, directory: &Path) -> io::Result<DirectSupport> {
    let file = storage.probe_file(directory, OpenHow::default())?;
    let asked = statx(&file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
    // Without statx (kernels before 4.11, old sandboxes) nothing is said either.
    if let Ok(it) = asked
        && StatxFlags::from_bits_retain(it.stx_mask).contains(StatxFlags::DIOALIGN)
    {
        return Ok(judge(it.stx_dio_offset_align, it.stx_dio_mem_align));
    }
    let kind = kind_of(&fstatfs(&file)?);
    if !KINDS_TRIED.contains(&kind) {
        return Ok(DirectSupport::Buffered(WhyBuffered::KindUnknown { kind }));
    }
    let block = Slice { start: 0, length: BLOCK_BYTES };
    let memory = Memory::new(BLOCK_BYTES as usize)?;
    let written = fcntl_getfl(&file)
        .and_then(|flags| fcntl_setfl(&file, flags | OFlags::DIRECT))
        .and_then(|()| rustix::io::pwrite(&file, memory.bytes(block), 0));
    Ok(match written {
        Ok(_) => DirectSupport::Direct,
        Err(error) => {
            DirectSupport::Buffered(WhyBuffered::TrialFailed { errno: error.raw_os_error() })
        }
    })
}

/// Both are 0 where a file has no direct I/O (statx(2)).
fn judge(offset_alignment_bytes: u32, memory_alignment_bytes: u32) -> DirectSupport {
    match offset_alignment_bytes.max(memory_alignment_bytes) {
        _ if offset_alignment_bytes == 0 => DirectSupport::Buffered(WhyBuffered::Refused),
        alignment_bytes if alignment_bytes > BLOCK_BYTES => {
            DirectSupport::Buffered(WhyBuffered::BlocksTooLarge { alignment_bytes })
        }
        _ => DirectSupport::Direct,
    }
}

fn kind_of(statfs: &StatFs) -> u64 {
    // Numbers of 32 bits, in a field that is signed on some architectures.
    u64::from(statfs.f_type as u32)
}

impl WhyBuffered {
    /// There is no medium below: tmpfs or ramfs.
    pub fn is_memory(self) -> bool {
        matches!(self, Self::KindUnknown { kind } if KINDS_IN_MEMORY.contains(&kind))
    }
}

impl fmt::Display for WhyBuffered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("the file system has no direct I/O"),
            Self::BlocksTooLarge { alignment_bytes } => {
                write!(f, "the file system wants direct I/O in blocks of {alignment_bytes} bytes")
            }
            Self::KindUnknown { kind } => {
                write!(f, "the file system (type {kind:#x}) does not say that it has direct I/O")
            }
            Self::TrialFailed { errno } => {
                let error = io::Error::from_raw_os_error(*errno);
                write!(f, "a direct write failed: {error}")
            }
        }
    }
}

/// `f_type` of tmpfs and ramfs (linux/magic.h).
const KINDS_IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// `f_type` of ext4, XFS, btrfs and f2fs (linux/magic.h).
const KINDS_TRIED: [u64; 4] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn judges_what_the_file_system_says() {
        assert_eq!(judge(512, 4), DirectSupport::Direct);
        assert_eq!(judge(4096, 512), DirectSupport::Direct);
        assert_eq!(judge(0, 0), DirectSupport::Buffered(WhyBuffered::Refused));
        for (offset, memory) in [(8192, 512), (512, 8192)] {
            let why = WhyBuffered::BlocksTooLarge { alignment_bytes: 8192 };
            assert_eq!(judge(offset, memory), DirectSupport::Buffered(why));
        }
    }

    #[test]
    fn buffers_in_memory_and_leaves_nothing_behind() {
        let directory = tempfile::TempDir::new_in("/dev/shm").unwrap();
        let kind = 0x0102_1994;
        let why = WhyBuffered::KindUnknown { kind };
        assert!(why.is_memory());
        let tmpfs = DirectSupport::Buffered(why);
        std::fs::write(directory.path().join(".probe"), "by a killed process").unwrap();
        let storage = StorageDir::open(directory.path()).unwrap();
        assert_eq!(probe_direct(&storage, ".".as_ref()).unwrap(), tmpfs);
        assert_eq!(directory.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn needs_a_directory() {
        let storage = StorageDir::open("/".as_ref()).unwrap();
        let error = probe_direct(&storage, "nonexistent".as_ref()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
