//! No path leads out of the directory, with and without openat2.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

fn names(storage: &StorageDir, path: &str) -> Vec<OsString> {
    let mut names = storage.files(path.as_ref()).unwrap();
    names.sort();
    names
}

#[test]
fn both_ways_of_opening_agree() {
    let temp = tempfile::tempdir().unwrap();
    let outside = temp.path().join("outside");
    let root = temp.path().join("root");
    fs::create_dir_all(root.join("sub/deep")).unwrap();
    fs::create_dir(&outside).unwrap();
    for path in ["file", "sub/file", "sub/deep/file", "../outside/file"] {
        fs::write(root.join(path), "").unwrap();
    }
    symlink(outside.join("file"), root.join("link")).unwrap();
    symlink("file", root.join("link-within")).unwrap();
    symlink(&outside, root.join("dir-link")).unwrap();
    symlink("sub", root.join("dir-link-within")).unwrap();
    let storage = StorageDir::open(&root).unwrap();
    let absolute = root.join("file");
    for (path, is_allowed) in [
        ("file", true),
        ("./file", true),
        ("sub/file", true),
        ("sub/deep/file", true),
        (absolute.to_str().unwrap(), false),
        ("../outside/file", false),
        ("sub/../file/../../outside/file", false),
        ("link", false),
        ("link-within", false),
        ("dir-link/file", false),
        ("dir-link-within/file", false),
        ("nothing", false),
        ("file/below", false),
        ("", false),
    ] {
        let path = Path::new(path);
        for result in [
            storage.resolve(path, OFlags::RDWR, Mode::empty()),
            storage.resolve_stepwise(path, OFlags::RDWR, Mode::empty()),
        ] {
            assert_eq!(result.is_ok(), is_allowed, "{}: {result:?}", path.display());
        }
    }
    // Nothing is made through a link either.
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
    for path in ["link", "dir-link/new", "../outside/new"] {
        for result in [
            storage.resolve(path.as_ref(), flags, Mode::RUSR),
            storage.resolve_stepwise(path.as_ref(), flags, Mode::RUSR),
        ] {
            assert!(result.is_err(), "{path}");
        }
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
}

#[test]
fn makes_directories_with_their_mode_and_keeps_those_that_are_there() {
    let temp = tempfile::tempdir().unwrap();
    let mut storage = StorageDir::open(temp.path()).unwrap();
    let mode = |name| fs::metadata(temp.path().join(name)).unwrap().permissions().mode() & 0o7777;
    for _ in 0..2 {
        storage.make_dir("it".as_ref(), 0o2775).unwrap();
        assert_eq!(mode("it"), 0o2775);
    }
    fs::set_permissions(temp.path().join("it"), fs::Permissions::from_mode(0o700)).unwrap();
    storage.make_dir("it".as_ref(), 0o2775).unwrap();
    assert_eq!(mode("it"), 0o700);
    fs::write(temp.path().join("file"), "").unwrap();
    symlink("it", temp.path().join("link")).unwrap();
    for name in ["file", "link"] {
        let error = storage.make_dir(name.as_ref(), 0o700).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotADirectory, "{name}");
    }
}

#[test]
fn lists_regular_files_only() {
    let temp = tempfile::tempdir().unwrap();
    for name in ["a", "b", "link's target"] {
        fs::write(temp.path().join(name), "").unwrap();
    }
    fs::create_dir(temp.path().join("dir")).unwrap();
    symlink("a", temp.path().join("link")).unwrap();
    let storage = StorageDir::open(temp.path()).unwrap();
    assert_eq!(names(&storage, "."), ["a", "b", "link's target"]);
    assert!(names(&storage, "dir").is_empty());
    assert!(storage.files("link".as_ref()).is_err());
    let modified = storage.modified("a".as_ref()).unwrap();
    assert!(modified.elapsed().unwrap() < Duration::from_secs(3600));
    assert!(storage.modified("nothing".as_ref()).is_err());
}

#[test]
fn the_directory_itself_may_be_reached_through_a_link() {
    let temp = tempfile::tempdir().unwrap();
    let link = temp.path().join("link");
    fs::create_dir(temp.path().join("real")).unwrap();
    symlink("real", &link).unwrap();
    let mut storage = StorageDir::open(&link).unwrap();
    storage.make_dir("parts".as_ref(), 0o700).unwrap();
    assert_eq!(storage.state().health, StorageHealth::Good);
    // The link leads elsewhere now.
    fs::create_dir_all(temp.path().join("other/parts")).unwrap();
    fs::remove_file(&link).unwrap();
    symlink("other", &link).unwrap();
    assert_eq!(storage.state().health, StorageHealth::Gone);
}

#[test]
fn absolute_paths_lead_below_the_roots_and_nowhere_else() {
    let temp = tempfile::tempdir().unwrap();
    let at = |path: &str| temp.path().join(path);
    for path in ["storage/parts", "app/files/deep", "app2", "other"] {
        fs::create_dir_all(at(path)).unwrap();
    }
    for path in ["app/files/file", "app/file", "app2/file", "other/file"] {
        fs::write(at(path), "").unwrap();
    }
    symlink(at("other"), at("app/files/link")).unwrap();
    symlink(at("app"), at("way")).unwrap();
    let mut storage = StorageDir::open(&at("storage")).unwrap();
    assert!(storage.has_file(&at("app/file")).is_err(), "nothing is allowed yet");
    storage.allow(&at("app"));
    // The way to a root is the operator's.
    storage.allow(&at("way/files"));
    for (path, is_allowed) in [
        ("app/file", true),
        ("app/files/file", true),
        ("way/files/file", true),
        ("way/file", false),
        ("app2/file", false),
        ("other/file", false),
        ("app/../other/file", false),
        ("app/files/link/file", false),
    ] {
        let path = at(path);
        for result in [
            storage.resolve(&path, OFlags::RDWR, Mode::empty()),
            storage.resolve_stepwise(&path, OFlags::RDWR, Mode::empty()),
        ] {
            assert_eq!(result.is_ok(), is_allowed, "{}: {result:?}", path.display());
        }
        assert_eq!(storage.has_file(&path).is_ok(), is_allowed);
    }

    // In, and never over something.
    let from = Path::new("parts/it");
    fs::write(at("storage/parts/it"), "it").unwrap();
    for taken in ["app/file", "app/files/link"] {
        let error = storage.rename(from, &at(taken)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    }
    assert!(storage.rename(from, &at("app/files/link/it")).is_err());
    assert!(storage.rename(from, &at("other/it")).is_err());
    storage.rename(from, &at("app/files/deep/it")).unwrap();
    storage.sync_directory(&at("app/files/deep")).unwrap();
    assert_eq!(fs::read(at("app/files/deep/it")).unwrap(), b"it");
    assert!(storage.has_file(&at("app/files/deep/it")).unwrap());
    storage.remove(&at("app/files/deep/it")).unwrap();

    // A root that is gone, and one that is there again.
    storage.check_directory(&at("app/files")).unwrap();
    fs::rename(at("app"), at("away")).unwrap();
    let error = storage.check_directory(&at("app/files")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    fs::create_dir_all(at("app/files")).unwrap();
    storage.check_directory(&at("app/files")).unwrap();
    fs::write(at("app/no directory"), "").unwrap();
    let error = storage.check_directory(&at("app/no directory")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotADirectory);
    storage.allow(Path::new("/proc"));
    let error = storage.check_directory(Path::new("/proc/sys")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CrossesDevices);
}
