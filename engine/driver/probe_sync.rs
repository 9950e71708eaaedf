//! What durable writes cost on a directory's disk.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate};

use super::directory::StorageDir;
use super::helper::retry;
use crate::buffer::{Memory, Slice};
use crate::durability::SyncMethod;
use crate::limits::LEASE_BYTES_MAX;
use crate::op::OpenHow;

/// The cheaper way to durable bytes, and what was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyncProbe {
    pub method: SyncMethod,
    /// Median duration of a write of [`LEASE_BYTES_MAX`] into allocated space.
    pub plain_us: u64,
    /// The same with `O_DSYNC`.
    pub dsync_us: u64,
}

/// Measures with files that are made in `directory` and removed. Takes as long as a few megabytes
/// do. For directories with direct writes only: through the page cache, `O_DSYNC` makes every write
/// wait, so there is nothing to measure.
///
/// # Errors
/// The files cannot be made or written, or the disk is full.
pub fn probe_dsync(storage: &StorageDir, directory: &Path) -> io::Result<SyncProbe> {
    let how = OpenHow { direct: true, ..OpenHow::default() };
    let plain = storage.probe_file(directory, how)?;
    let dsync = storage.probe_file(directory, OpenHow { dsync: true, ..how })?;
    for file in [&plain, &dsync] {
        let length_bytes = u64::from(LEASE_BYTES_MAX) * WRITE_COUNT as u64;
        match retry(|| fallocate(file, FallocateFlags::empty(), 0, length_bytes)) {
            // Uploads go on without as well.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let memory = Memory::new(LEASE_BYTES_MAX as usize)?;
    let bytes = memory.bytes(Slice { start: 0, length: LEASE_BYTES_MAX });
    let (mut plain_us, mut dsync_us) = ([0; WRITE_COUNT], [0; WRITE_COUNT]);
    // In turns, so that other load on the disk meets both.
    for index in 0..WRITE_COUNT {
        let offset_bytes = u64::from(LEASE_BYTES_MAX) * index as u64;
        plain_us[index] = write(&plain, bytes, offset_bytes)?;
        dsync_us[index] = write(&dsync, bytes, offset_bytes)?;
    }
    Ok(judge(median(plain_us), median(dsync_us)))
}

fn write(file: impl AsFd, bytes: &[u8], offset_bytes: u64) -> io::Result<u64> {
    let started = Instant::now();
    let mut done = 0;
    while done < bytes.len() {
        let rest = &bytes[done..];
        match retry(|| rustix::io::pwrite(&file, rest, offset_bytes + done as u64))? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            count => done += count,
        }
    }
    Ok(u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX))
}

fn judge(plain_us: u64, dsync_us: u64) -> SyncProbe {
    let extra = Duration::from_micros(dsync_us.saturating_sub(plain_us));
    let method = if extra < DSYNC_EXTRA_MAX { SyncMethod::Dsync } else { SyncMethod::Fdatasync };
    SyncProbe { method, plain_us, dsync_us }
}

fn median(mut values: [u64; WRITE_COUNT]) -> u64 {
    values.sort_unstable();
    values[WRITE_COUNT / 2]
}

/// More than noise means that a durable write is work, for the disk or for the file system; then one
/// sync for many writes costs less (`doc/decisions/0009-durable-acks.md`).
const DSYNC_EXTRA_MAX: Duration = Duration::from_micros(50);
const WRITE_COUNT: usize = 7;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_noise_decides() {
        for (plain_us, dsync_us, method) in [
            (300, 300, SyncMethod::Dsync),
            (300, 349, SyncMethod::Dsync),
            (300, 350, SyncMethod::Fdatasync),
            (500, 20_000, SyncMethod::Fdatasync),
            // Noise.
            (500, 400, SyncMethod::Dsync),
        ] {
            assert_eq!(judge(plain_us, dsync_us), SyncProbe { method, plain_us, dsync_us });
        }
        assert_eq!(median([9, 1, 8, 2, 7, 3, 6]), 6);
    }

    #[test]
    fn refuses_what_has_no_direct_writes_and_leaves_nothing_behind() {
        let temp = tempfile::tempdir_in("/dev/shm").unwrap();
        let storage = StorageDir::open(temp.path()).unwrap();
        // tmpfs takes O_DIRECT or not, depending on the kernel; either way nothing stays.
        let _ = probe_dsync(&storage, ".".as_ref());
        assert_eq!(temp.path().read_dir().unwrap().count(), 0);
        assert!(probe_dsync(&storage, "nonexistent".as_ref()).is_err());
    }
}
