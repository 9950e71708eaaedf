//! A disk in memory that notes every write and flush, and that can fail or be slow on demand: one
//! file in a FUSE file system, for a loop device.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation,
    INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyWrite, Request, WriteFlags,
};

use crate::world::lock;

/// A running disk. Dropped, it is gone.
#[derive(Debug)]
pub struct Disk {
    /// The file that is the disk.
    pub file: PathBuf,
    shared: Arc<Shared>,
    _session: BackgroundSession,
}

#[derive(Debug, Default)]
struct Shared {
    platter: Mutex<Platter>,
    /// Writes and flushes fail with `EIO`.
    fails: AtomicBool,
    /// What a write or a flush takes.
    delay_us: AtomicU64,
}

#[derive(Debug, Default)]
struct Platter {
    image: Image,
    log: Option<Vec<Entry>>,
}

/// What came to the disk, in its order.
#[derive(Clone, Debug)]
pub enum Entry {
    Write {
        offset: u64,
        bytes: Vec<u8>,
    },
    /// Everything before it is durable.
    Flush,
}

impl Disk {
    /// A disk of zeroes in a directory, which is created.
    pub fn new(directory: &Path, length_bytes: u64) -> Self {
        fs::create_dir_all(directory).expect("make a mount point");
        let shared = Arc::new(Shared::default());
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("incoming-crash".to_owned())];
        let served = Served { shared: Arc::clone(&shared), length_bytes };
        let session = fuser::spawn_mount(served, directory, &config)
            .unwrap_or_else(|error| panic!("mount by /dev/fuse: {error} (modprobe fuse)"));
        Self { file: directory.join(FILE_NAME), shared, _session: session }
    }

    /// From here on the log is written. Returns what is on the disk now.
    pub fn start_log(&self) -> Image {
        let mut platter = lock(&self.shared.platter);
        platter.log = Some(Vec::new());
        platter.image.clone()
    }

    pub fn take_log(&self) -> Vec<Entry> {
        lock(&self.shared.platter).log.take().unwrap_or_default()
    }

    pub fn set_failing(&self, fails: bool) {
        self.shared.fails.store(fails, Ordering::SeqCst);
    }

    pub fn set_delay(&self, delay: Duration) {
        self.shared.delay_us.store(delay.as_micros() as u64, Ordering::SeqCst);
    }

    /// Tells how many entries the log has at the moment.
    pub fn log_position(&self) -> impl Fn() -> usize + Send + Sync + 'static {
        let shared = Arc::clone(&self.shared);
        move || lock(&shared.platter).log.as_ref().map_or(0, Vec::len)
    }
}

/// What is on a disk: the parts of it that were ever written.
#[derive(Clone, Debug, Default)]
pub struct Image(BTreeMap<u64, Vec<u8>>);

impl Image {
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let within = (at % GRAIN_BYTES) as usize;
            let step = (bytes.len() - done).min(GRAIN_BYTES as usize - within);
            let grain = self.0.entry(at / GRAIN_BYTES);
            let grain = grain.or_insert_with(|| vec![0; GRAIN_BYTES as usize]);
            grain[within..within + step].copy_from_slice(&bytes[done..done + step]);
            done += step;
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) {
        let mut done = 0;
        while done < out.len() {
            let at = offset + done as u64;
            let within = (at % GRAIN_BYTES) as usize;
            let step = (out.len() - done).min(GRAIN_BYTES as usize - within);
            let target = &mut out[done..done + step];
            match self.0.get(&(at / GRAIN_BYTES)) {
                Some(grain) => target.copy_from_slice(&grain[within..within + step]),
                None => target.fill(0),
            }
            done += step;
        }
    }

    /// Makes a sparse file of it.
    pub fn save(&self, path: &Path, length_bytes: u64) -> io::Result<fs::File> {
        let file = fs::File::create(path)?;
        file.set_len(length_bytes)?;
        for (index, grain) in &self.0 {
            file.write_all_at(grain, index * GRAIN_BYTES)?;
        }
        Ok(file)
    }
}

/// The file system that the kernel sees.
struct Served {
    shared: Arc<Shared>,
    length_bytes: u64,
}

impl Served {
    fn attributes(&self, node: INodeNo) -> Option<FileAttr> {
        let (kind, size) = match u64::from(node) {
            DIRECTORY_NODE => (FileType::Directory, 0),
            FILE_NODE => (FileType::RegularFile, self.length_bytes),
            _ => return None,
        };
        Some(FileAttr {
            ino: node,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm: 0o700,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            flags: 0,
            blksize: 4096,
        })
    }

    /// Whether the op goes well, after the time it takes.
    fn goes_well(&self) -> bool {
        let delay = self.shared.delay_us.load(Ordering::SeqCst);
        if delay > 0 {
            thread::sleep(Duration::from_micros(delay));
        }
        !self.shared.fails.load(Ordering::SeqCst)
    }
}

impl Filesystem for Served {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attributes(INodeNo(FILE_NODE)).filter(|_| name == FILE_NAME) {
            Some(it) => reply.entry(&VALID, &it, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(node) {
            Some(it) => reply.attr(&VALID, &it),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let length = self.length_bytes.saturating_sub(offset).min(u64::from(size));
        let mut bytes = vec![0; length as usize];
        lock(&self.shared.platter).image.read(offset, &mut bytes);
        reply.data(&bytes);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if !self.goes_well() {
            return reply.error(Errno::EIO);
        }
        let mut platter = lock(&self.shared.platter);
        platter.image.write(offset, data);
        if let Some(log) = &mut platter.log {
            log.push(Entry::Write { offset, bytes: data.to_vec() });
        }
        drop(platter);
        reply.written(data.len() as u32);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        if !self.goes_well() {
            return reply.error(Errno::EIO);
        }
        if let Some(log) = &mut lock(&self.shared.platter).log {
            log.push(Entry::Flush);
        }
        reply.ok();
    }
}

const FILE_NAME: &str = "disk";
const DIRECTORY_NODE: u64 = 1;
const FILE_NODE: u64 = 2;
/// How long the kernel may believe the attributes, which never change.
const VALID: Duration = Duration::from_secs(3600);
const GRAIN_BYTES: u64 = 64 * 1024;
