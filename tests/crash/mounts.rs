//! File systems of our own, on image files, that can lose power.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use crate::server::PATIENCE;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ext4,
    Xfs,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }

    /// Makes an empty file system on a file or a device.
    pub fn make(self, image: &Path) {
        match self {
            Self::Ext4 => {
                // Nothing is left for the kernel to initialise in the background.
                let options = ["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"];
                must(Command::new("mkfs.ext4").args(options).arg(image));
            }
            Self::Xfs => {
                must(Command::new("mkfs.xfs").args(["-q", "-f"]).arg(image));
            }
        }
    }
}

/// A file system on an image file. Dropped, it is unmounted.
#[derive(Debug)]
pub struct Mount {
    /// A file, or a block device.
    source: PathBuf,
    pub path: PathBuf,
}

impl Mount {
    /// Mounts an image, which replays the file system's own journal.
    pub fn new(source: &Path, path: &Path) -> Self {
        fs::create_dir_all(path).expect("make a mount point");
        let mount = Self { source: source.to_owned(), path: path.to_owned() };
        mount.mount();
        mount
    }

    /// Makes a sparse image of that size with a new file system, and mounts it.
    pub fn create(kind: Kind, size_mib: u64, image: &Path, path: &Path) -> Self {
        let file = fs::File::create(image).expect("make an image");
        file.set_len(size_mib * 1024 * 1024).expect("make an image");
        kind.make(image);
        Self::new(image, path)
    }

    /// From here on nothing reaches the image any more, as when the power is gone: what lies in the
    /// caches, and the file system's own journal, is not written.
    pub fn cut_power(&self) {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/crash/shutdown.py");
        must(Command::new("python3").args(["-S", script]).arg(&self.path));
    }

    /// Takes the file system away and brings it back from what is on the image.
    pub fn remount(&self) {
        self.unmount();
        self.mount();
    }

    /// Has an ext4 notice an error of its own.
    pub fn fail_with_error(&self) {
        let device = must(Command::new("findmnt").args(["-n", "-o", "SOURCE"]).arg(&self.path));
        let device = String::from_utf8_lossy(&device.stdout).trim().replace("/dev/", "");
        fs::write(format!("/sys/fs/ext4/{device}/trigger_fs_error"), "a test")
            .expect("trigger an error of the file system");
    }

    /// Takes an ext4 away, checks it and brings it back.
    pub fn repair(&self) {
        self.unmount();
        // 1: errors were corrected.
        let status = Command::new("fsck.ext4").args(["-p", "-f"]).arg(&self.source).output();
        let code = status.expect("fsck.ext4").status.code();
        assert!(matches!(code, Some(0 | 1)), "fsck.ext4: {code:?}");
        self.mount();
    }

    /// Brings the file system, which is away, back from what is on the image.
    pub fn mount(&self) {
        self.wait_without_loop_device();
        // A device is mounted as it is; for a file, mount makes a loop device that goes by itself.
        let is_file = self.source.is_file();
        let options: &[&str] = if is_file { &["-o", "loop"] } else { &[] };
        must(Command::new("mount").args(options).args([&self.source, &self.path]));
        assert!(!is_file || self.has_loop_device(), "{:?} has no loop device", self.source);
    }

    /// A killed process holds the file system until its last requests have ended.
    fn unmount(&self) {
        retry(|| Command::new("umount").arg(&self.path).output());
        self.wait_without_loop_device();
    }

    /// A loop device that still exists would give the dead file system back.
    fn wait_without_loop_device(&self) {
        let deadline = Instant::now() + PATIENCE;
        while self.source.is_file() && self.has_loop_device() {
            assert!(Instant::now() < deadline, "the loop device of {:?} stays", self.source);
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn has_loop_device(&self) -> bool {
        let Ok(devices) = fs::read_dir("/sys/block") else { return false };
        devices.filter_map(Result::ok).any(|device| {
            let backing = fs::read_to_string(device.path().join("loop/backing_file"));
            backing.is_ok_and(|it| Path::new(it.trim_end()) == self.source)
        })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = Command::new("umount").arg("--lazy").arg(&self.path).output();
        } else {
            self.unmount();
        }
    }
}

/// Runs a command that must succeed.
pub fn must(command: &mut Command) -> Output {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}; tests/run installs what is needed"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}: {said}", output.status);
    output
}

fn retry(mut attempt: impl FnMut() -> std::io::Result<Output>) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let output = attempt().expect("umount");
        if output.status.success() {
            return;
        }
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(Instant::now() < deadline, "{said}");
        thread::sleep(Duration::from_millis(3));
    }
}
