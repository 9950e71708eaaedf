//! The storage directory: nothing leads out of it, files are locked, and its end is noticed.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use incoming_engine::buffer::Slice;
use incoming_engine::driver::{Backend, Runtime};
use incoming_engine::limits::LEASE_BYTES_MAX;
use incoming_engine::op::{Errno, FileId, Op, OpenHow, Output, StorageHealth};
use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

use crate::harness::{Cores, Mail, Variant};

crate::on_every_variant! {
    follows_no_symbolic_link
    opens_with_the_flags_that_were_asked_for
    a_locked_file_is_refused_until_it_is_let_go
    a_closed_file_can_be_locked_again_at_once
    tells_whether_the_directory_is_in_its_place
}

fn follows_no_symbolic_link(variant: Variant) {
    let directory = directory();
    let root = directory.path().join("root");
    let outside = directory.path().join("outside");
    fs::create_dir_all(root.join("parts")).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "precious").unwrap();
    fs::write(root.join("parts/own"), "own").unwrap();
    symlink(outside.join("file"), root.join("parts/link")).unwrap();
    symlink(outside.join("new"), root.join("parts/dangling")).unwrap();
    symlink(&outside, root.join("arrived")).unwrap();
    let before = fs::metadata(outside.join("file")).unwrap();
    let mut cores = Cores::start_in(&root, variant, 1);

    for path in ["parts/link", "parts/dangling", "arrived/file", "../outside/file"] {
        assert!(cores.run(open(path, OpenHow::default())).is_err(), "{path}");
    }
    let absolute = outside.join("file");
    for path in ["parts/dangling", "arrived/new", "../outside/new", absolute.to_str().unwrap()] {
        let how = OpenHow { create: true, ..OpenHow::default() };
        assert!(cores.run(open(path, how)).is_err(), "{path}");
    }
    for (from, to) in [
        ("parts/own", "arrived/own"),
        ("parts/own", "../outside/own"),
        ("parts/own", "parts/link"),
        ("arrived/file", "parts/file"),
        ("../outside/file", "parts/file"),
    ] {
        let rename = Op::Rename { from: from.into(), to: to.into() };
        assert!(cores.run(rename).is_err(), "{from} to {to}");
    }
    for path in ["parts/link", "arrived/file", "../outside/file"] {
        let set = Op::SetOwner { path: path.into(), mode: 0o777, group_gid: None, owner_uid: None };
        assert!(cores.run(set).is_err(), "{path}");
    }
    for path in ["arrived", "..", "../outside", "/"] {
        assert!(cores.run(Op::SyncDirectory { path: path.into() }).is_err(), "{path}");
    }
    for path in ["arrived/file", "../outside/file"] {
        assert!(cores.run(Op::Remove { path: path.into() }).is_err(), "{path}");
    }
    // The link itself is removed, not what it leads to.
    assert_eq!(cores.run(Op::Remove { path: "parts/link".into() }), Ok(Output::Done));
    assert!(fs::symlink_metadata(root.join("parts/link")).is_err());
    cores.stop();

    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    let after = fs::metadata(outside.join("file")).unwrap();
    assert_eq!((before.mode(), before.ino()), (after.mode(), after.ino()));
    assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "precious");
    assert_eq!(fs::read_to_string(root.join("parts/own")).unwrap(), "own");
}

fn opens_with_the_flags_that_were_asked_for(variant: Variant) {
    let directory = directory();
    let mut cores = Cores::start_in(directory.path(), variant, 1);
    for (name, direct, dsync) in [
        ("both", true, true),
        ("direct", true, false),
        ("dsync", false, true),
        ("no", false, false),
    ] {
        let how = OpenHow { create: true, direct, dsync, lock: false };
        assert_eq!(cores.run(open(name, how)), Ok(Output::Done));
        let flags = flags_of(&directory.path().join(name));
        assert_eq!((flags & O_DIRECT != 0, flags & O_DSYNC != 0), (direct, dsync), "{name}");
        // And it works.
        let bytes = Slice { start: 0, length: LEASE_BYTES_MAX };
        let write = Op::Write { file: FILE, offset_bytes: 0, bytes };
        assert_eq!(cores.run(write), Ok(Output::Bytes(bytes.length)));
        let read = Op::Read { file: FILE, offset_bytes: 0, bytes };
        assert_eq!(cores.run(read), Ok(Output::Bytes(bytes.length)));
        assert_eq!(cores.run(Op::Sync { file: FILE }), Ok(Output::Done));
        cores.start_op(0, Op::CloseFile { file: FILE });
    }
}

fn a_locked_file_is_refused_until_it_is_let_go(variant: Variant) {
    let directory = directory();
    let path = directory.path().join("file");
    fs::write(&path, "").unwrap();
    let mut cores = Cores::start_in(directory.path(), variant, 1);
    // Another open file description, as another process has it.
    let other = fs::File::open(&path).unwrap();
    flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap();
    assert_eq!(cores.run(open("file", LOCK)), Err(Errno::EAGAIN));
    // Not opened: the id is free, and who does not ask for the lock gets the file.
    assert_eq!(cores.run(open("file", OpenHow::default())), Ok(Output::Done));
    cores.start_op(0, Op::CloseFile { file: FILE });
    drop(other);

    assert_eq!(cores.run(open("file", LOCK)), Ok(Output::Done));
    let other = fs::File::open(&path).unwrap();
    let lock = || flock(&other, FlockOperation::NonBlockingLockExclusive);
    assert_eq!(lock(), Err(rustix::io::Errno::WOULDBLOCK));
    // Calls with a descriptor of their own do not give it back.
    let allocate = Op::Allocate { file: FILE, offset_bytes: 0, length_bytes: 4096 };
    assert_eq!(cores.run(allocate), Ok(Output::Done));
    assert_eq!(cores.run(Op::Truncate { file: FILE, length_bytes: 1 }), Ok(Output::Done));
    assert_eq!(lock(), Err(rustix::io::Errno::WOULDBLOCK));
    cores.start_op(0, Op::CloseFile { file: FILE });
    // What is asked after it is answered after it.
    cores.show(Slice { start: 0, length: 0 });
    lock().unwrap();
}

fn a_closed_file_can_be_locked_again_at_once(variant: Variant) {
    let directory = directory();
    fs::write(directory.path().join("file"), "").unwrap();
    let mut cores = Cores::start_in(directory.path(), variant, 1);
    let how = OpenHow { direct: true, ..LOCK };
    assert_eq!(cores.run(open("file", how)), Ok(Output::Done));
    for _ in 0..200 {
        let bytes = Slice { start: 0, length: 4096 };
        let write = Op::Write { file: FILE, offset_bytes: 0, bytes };
        assert_eq!(cores.run(write), Ok(Output::Bytes(4096)));
        // Both in one turn of the loop.
        cores.start_op(0, Op::CloseFile { file: FILE });
        assert_eq!(cores.run(open("file", how)), Ok(Output::Done));
    }
}

fn tells_whether_the_directory_is_in_its_place(variant: Variant) {
    let directory = directory();
    let root = directory.path().join("root");
    fs::create_dir_all(&root).unwrap();
    let mut cores = Cores::start_watching(&root, &["parts", "arrived"], variant);
    let free_bytes = match cores.run(Op::CheckStorage) {
        Ok(Output::Storage(it)) => {
            assert_eq!(it.health, StorageHealth::Good);
            it.free_bytes
        }
        result => panic!("{result:?}"),
    };
    let statvfs = rustix::fs::statvfs(&root).unwrap();
    let expected = statvfs.f_bavail * statvfs.f_frsize;
    // Others use the disk too.
    assert!(free_bytes.abs_diff(expected) < 4 << 30, "{free_bytes} {expected}");

    let elsewhere = directory.path().join("elsewhere");
    for path in [root.clone(), root.join("parts"), root.join("arrived")] {
        fs::rename(&path, &elsewhere).unwrap();
        assert_eq!(health(&mut cores), StorageHealth::Gone, "{} renamed", path.display());
        fs::create_dir_all(&path).unwrap();
        assert_eq!(health(&mut cores), StorageHealth::Gone, "{} swapped", path.display());
        fs::remove_dir(&path).unwrap();
        symlink(&elsewhere, &path).unwrap();
        // The way to the directory may be a link; what is in it may not.
        let expected = if path == root { StorageHealth::Good } else { StorageHealth::Gone };
        assert_eq!(health(&mut cores), expected, "{} linked", path.display());
        fs::remove_file(&path).unwrap();
        fs::rename(&elsewhere, &path).unwrap();
        assert_eq!(health(&mut cores), StorageHealth::Good, "{} back", path.display());
    }
    fs::remove_dir_all(&root).unwrap();
    assert_eq!(health(&mut cores), StorageHealth::Gone);
    // Nothing is made in a directory that is removed.
    let how = OpenHow { create: true, ..OpenHow::default() };
    assert_eq!(cores.run(open("file", how)), Err(Errno::ENOENT));
}

/// A lock of a process that is killed is free when the last of its writes has ended.
#[test]
fn a_killed_process_keeps_its_lock_until_its_last_write() {
    for (name, variant) in VARIANTS {
        let directory = directory();
        let mut child = start_child(name, directory.path());
        let mut cores = Cores::start_in(directory.path(), variant, 1);
        assert_eq!(cores.run(open("file", LOCK)), Err(Errno::EAGAIN), "{name}");
        child.kill().unwrap();
        while cores.run(open("file", LOCK)) == Err(Errno::EAGAIN) {}
        let path = directory.path().join("file");
        let content = fs::read(&path).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert!(content == fs::read(&path).unwrap(), "{name}: written to behind the lock");
        child.wait().unwrap();
    }
}

/// What the test above starts: writes all the time, into a file that it has locked.
#[test]
fn child_that_writes_until_it_is_killed() {
    let Some((name, dir)) = std::env::var(CHILD)
        .ok()
        .and_then(|it| it.split_once(' ').map(|(name, dir)| (name.to_owned(), PathBuf::from(dir))))
    else {
        return;
    };
    let (_, variant) = VARIANTS.into_iter().find(|(it, _)| *it == name).unwrap();
    let mut cores = Cores::start_in(&dir, variant, 1);
    let how = OpenHow { create: true, direct: true, dsync: true, lock: true };
    assert_eq!(cores.run(open("file", how)), Ok(Output::Done));
    println!("\nCHILD READY");
    for round in 0_u8.. {
        cores.fill(WHOLE, &vec![round; WHOLE.length as usize]);
        let writes: Vec<u32> = (0..8)
            .map(|index| {
                let bytes = Slice { start: index * LEASE_BYTES_MAX, length: LEASE_BYTES_MAX };
                let write = Op::Write { file: FILE, offset_bytes: bytes.start.into(), bytes };
                cores.start_op(0, write)
            })
            .collect();
        for it in writes {
            cores.wait(it).unwrap();
        }
    }
}

fn start_child(name: &str, dir: &Path) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "storage::child_that_writes_until_it_is_killed", "--nocapture"])
        .env(CHILD, format!("{name} {}", dir.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|it| it.unwrap() == "CHILD READY"));
    child
}

/// Mounts are made in a mount namespace of their own, so that nothing of it stays.
#[test]
fn mounts_are_noticed() {
    if let Some(dir) = std::env::var_os(MOUNTS) {
        return within_mounts(&PathBuf::from(dir));
    }
    within_mount_namespace("storage::mounts_are_noticed");
}

fn within_mounts(dir: &Path) {
    let root = dir.join("root");
    fs::create_dir(&root).unwrap();
    let mount = |arguments: &[&str]| {
        let status = Command::new(arguments[0]).args(&arguments[1..]).arg(&root).status().unwrap();
        assert!(status.success(), "{arguments:?}");
    };
    mount(&["mount", "-t", "tmpfs", "-o", "size=8M", "tmpfs"]);
    let mut cores = Cores::start_watching(&root, &["parts"], VARIANTS[0].1);
    match cores.run(Op::CheckStorage) {
        Ok(Output::Storage(it)) => assert!(it.free_bytes <= 8 << 20, "{it:?}"),
        result => panic!("{result:?}"),
    }
    mount(&["mount", "-o", "remount,ro"]);
    assert_eq!(health(&mut cores), StorageHealth::ReadOnly);
    let how = OpenHow { create: true, ..OpenHow::default() };
    assert_eq!(cores.run(open("parts/file", how)), Err(EROFS));
    mount(&["mount", "-o", "remount,rw"]);
    assert_eq!(health(&mut cores), StorageHealth::Good);
    // Something else lies over it.
    mount(&["mount", "-t", "tmpfs", "tmpfs"]);
    assert_eq!(health(&mut cores), StorageHealth::Gone);
    mount(&["umount"]);
    assert_eq!(health(&mut cores), StorageHealth::Good);
    // It is unmounted while files in it are open: what is written still goes there, and not into
    // the directory below.
    mount(&["umount", "--lazy"]);
    assert_eq!(health(&mut cores), StorageHealth::Gone);
    assert_eq!(cores.run(open("parts/file", how)), Ok(Output::Done));
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
}

/// After an error ext4 refuses every change, but the mount does not say so.
#[test]
fn a_file_system_that_has_given_up_is_noticed() {
    if let Some(dir) = std::env::var_os(MOUNTS) {
        return within_ext4(&PathBuf::from(dir));
    }
    within_mount_namespace("storage::a_file_system_that_has_given_up_is_noticed");
}

fn within_ext4(dir: &Path) {
    let [root, image] = ["root", "image"].map(|it| dir.join(it));
    fs::create_dir(&root).unwrap();
    fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let run = |program: &str, arguments: &[&str], path: &Path| {
        let output = Command::new(program).args(arguments).arg(path).output();
        let output = output.expect("mkfs.ext4 of e2fsprogs, mount and findmnt of util-linux");
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    run("mkfs.ext4", &["-q"], &image);
    let options = ["-o", "loop,errors=remount-ro", image.to_str().unwrap()];
    run("mount", &options, &root);
    let mut cores = Cores::start_watching(&root, &["parts"], VARIANTS[0].1);
    assert_eq!(health(&mut cores), StorageHealth::Good);
    // Containers have it read-only.
    run("mount", &["-o", "remount,bind,rw"], Path::new("/sys"));
    let device = run("findmnt", &["-no", "SOURCE"], &root);
    let name = Path::new(&device).file_name().unwrap().to_str().unwrap();
    fs::write(format!("/sys/fs/ext4/{name}/trigger_fs_error"), "on purpose").unwrap();
    let how = OpenHow { create: true, ..OpenHow::default() };
    assert_eq!(cores.run(open("parts/file", how)), Err(EROFS));
    assert_eq!(health(&mut cores), StorageHealth::ReadOnly);
    cores.stop();
    run("umount", &[], &root);
}

/// Runs a test once more, where its mounts are its own.
fn within_mount_namespace(test: &str) {
    assert!(rustix::process::geteuid().is_root(), "run this as root: it mounts file systems");
    let directory = directory();
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(MOUNTS, directory.path())
        .output()
        .expect("unshare, of util-linux");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn directory() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn open(path: &str, how: OpenHow) -> Op<Mail> {
    Op::Open { file: FILE, path: path.into(), how }
}

fn health(cores: &mut Cores) -> StorageHealth {
    match cores.run(Op::CheckStorage) {
        Ok(Output::Storage(it)) => it.health,
        result => panic!("{result:?}"),
    }
}

/// The flags of this process's one descriptor for the file, as the kernel tells them.
fn flags_of(path: &Path) -> u32 {
    let path = path.canonicalize().unwrap();
    for entry in fs::read_dir("/proc/self/fd").unwrap().filter_map(Result::ok) {
        if fs::read_link(entry.path()).is_ok_and(|it| it == path) {
            let number = entry.file_name();
            let info = fs::read_to_string(Path::new("/proc/self/fdinfo").join(number)).unwrap();
            let line = info.lines().find_map(|it| it.strip_prefix("flags:")).unwrap();
            return u32::from_str_radix(line.trim(), 8).unwrap();
        }
    }
    panic!("{} is not open", path.display());
}

const FILE: FileId = FileId(2);
const LOCK: OpenHow = OpenHow { create: false, direct: false, dsync: false, lock: true };
const WHOLE: Slice = Slice { start: 0, length: 8 * LEASE_BYTES_MAX };
const VARIANTS: [(&str, Variant); 3] = [
    ("monoio", (Runtime::Monoio, Backend::IoUring)),
    ("epoll", (Runtime::Monoio, Backend::Epoll)),
    ("tokio-uring", (Runtime::TokioUring, Backend::IoUring)),
];
const O_DIRECT: u32 = rustix::fs::OFlags::DIRECT.bits();
const O_DSYNC: u32 = rustix::fs::OFlags::DSYNC.bits();
const EROFS: Errno = Errno(30);
/// Names to a child what it is to do.
const CHILD: &str = "INCOMING_TEST_STORAGE_CHILD";
const MOUNTS: &str = "INCOMING_TEST_STORAGE_MOUNTS";
