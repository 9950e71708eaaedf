//! Files, with and without the page cache.

use std::os::unix::fs::MetadataExt;

use incoming_engine::buffer::Slice;
use incoming_engine::limits::{BLOCK_BYTES, LEASE_BYTES_MAX};
use incoming_engine::op::{Errno, FileId, Op, OpenHow, Output};
use tempfile::TempDir;

use crate::harness::{Cores, Variant, pattern};

crate::on_every_variant! {
    writes_directly_with_a_padded_tail
    writes_through_the_page_cache
    writes_many_at_once
    opens_only_what_it_should
    renames_without_replacing
    sets_mode_and_owner_and_removes
    reports_what_a_file_system_refuses
}

const FILE: FileId = FileId(3);

fn writes_directly_with_a_padded_tail(variant: Variant) {
    let directory = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut cores = Cores::start_in(directory.path(), variant, 1);
    let open = Op::Open {
        file: FILE,
        path: "direct".into(),
        how: OpenHow { create: true, direct: true, ..OpenHow::default() },
    };
    assert_eq!(
        cores.run(open),
        Ok(Output::Done),
        "needs a file system with direct I/O: set CARGO_TARGET_DIR to a directory on ext4, XFS or \
         btrfs"
    );
    let allocate = Op::Allocate { file: FILE, offset_bytes: 0, length_bytes: 4 * 1024 * 1024 };
    assert_eq!(cores.run(allocate), Ok(Output::Done));

    // A whole lease, then 5000 bytes in two blocks.
    let bytes = pattern(LEASE_BYTES_MAX as usize + 5000, 3);
    let [first, tail] = [
        Slice { start: 0, length: LEASE_BYTES_MAX },
        Slice { start: LEASE_BYTES_MAX, length: 2 * BLOCK_BYTES },
    ];
    cores.fill(Slice { start: 0, length: bytes.len() as u32 }, &bytes);
    let write = Op::Write { file: FILE, offset_bytes: 0, bytes: first };
    assert_eq!(cores.run(write), Ok(Output::Bytes(first.length)));
    let write = Op::Write { file: FILE, offset_bytes: first.length.into(), bytes: tail };
    assert_eq!(cores.run(write), Ok(Output::Bytes(tail.length)));
    assert_eq!(cores.run(Op::Sync { file: FILE }), Ok(Output::Done));
    let truncate = Op::Truncate { file: FILE, length_bytes: bytes.len() as u64 };
    assert_eq!(cores.run(truncate), Ok(Output::Done));
    assert_eq!(cores.run(Op::Sync { file: FILE }), Ok(Output::Done));

    // Read back to another place: the tail comes short, then the end.
    let back = Slice { start: 2 * LEASE_BYTES_MAX, length: 2 * BLOCK_BYTES };
    let read = Op::Read { file: FILE, offset_bytes: first.length.into(), bytes: back };
    assert_eq!(cores.run(read), Ok(Output::Bytes(5000)));
    assert_eq!(cores.show(back)[..5000], bytes[first.length as usize..]);
    let end = u64::from(first.length + 2 * BLOCK_BYTES);
    let read = Op::Read { file: FILE, offset_bytes: end, bytes: back };
    assert_eq!(cores.run(read), Ok(Output::Bytes(0)));

    let unaligned = Op::Write { file: FILE, offset_bytes: 5, bytes: tail };
    assert_eq!(cores.run(unaligned), Err(Errno::EINVAL));
    cores.start_op(0, Op::CloseFile { file: FILE });
    cores.stop();
    assert!(std::fs::read(directory.path().join("direct")).unwrap() == bytes);
}

fn writes_through_the_page_cache(variant: Variant) {
    for parent in [env!("CARGO_TARGET_TMPDIR"), "/dev/shm"] {
        let directory = TempDir::new_in(parent).unwrap();
        let mut cores = Cores::start_in(directory.path(), variant, 1);
        let open = Op::Open {
            file: FILE,
            path: "buffered".into(),
            how: OpenHow { create: true, direct: false, ..OpenHow::default() },
        };
        assert_eq!(cores.run(open), Ok(Output::Done));
        let bytes = pattern(100_001, 4);
        let slice = Slice { start: 77, length: bytes.len() as u32 };
        cores.fill(slice, &bytes);
        let write = Op::Write { file: FILE, offset_bytes: 3, bytes: slice };
        assert_eq!(cores.run(write), Ok(Output::Bytes(slice.length)));
        assert_eq!(cores.run(Op::Sync { file: FILE }), Ok(Output::Done));

        let back = Slice { start: 1_000_001, length: slice.length };
        let read = Op::Read { file: FILE, offset_bytes: 3, bytes: back };
        assert_eq!(cores.run(read), Ok(Output::Bytes(back.length)));
        assert!(cores.show(back) == bytes);
        assert_eq!(cores.run(Op::SyncDirectory { path: ".".into() }), Ok(Output::Done));
        cores.stop();
        assert!(std::fs::read(directory.path().join("buffered")).unwrap()[3..] == bytes);
    }
}

fn writes_many_at_once(variant: Variant) {
    let directory = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut cores = Cores::start_in(directory.path(), variant, 1);
    let bytes = pattern(4 * LEASE_BYTES_MAX as usize, 5);
    cores.fill(Slice { start: 0, length: bytes.len() as u32 }, &bytes);
    for index in 0..4 {
        let file = FileId(index);
        let open = Op::Open {
            file,
            path: index.to_string().into(),
            how: OpenHow { create: true, direct: true, ..OpenHow::default() },
        };
        assert_eq!(cores.run(open), Ok(Output::Done));
    }
    let writes: Vec<u32> = (0..16)
        .map(|it| {
            let (file, part) = (FileId(it % 4), it / 4);
            let bytes = Slice { start: part * LEASE_BYTES_MAX, length: LEASE_BYTES_MAX };
            cores.start_op(0, Op::Write { file, offset_bytes: bytes.start.into(), bytes })
        })
        .collect();
    for number in writes {
        assert_eq!(cores.wait(number), Ok(Output::Bytes(LEASE_BYTES_MAX)));
    }
    cores.stop();
    for index in 0..4 {
        assert!(std::fs::read(directory.path().join(index.to_string())).unwrap() == bytes);
    }
}

fn opens_only_what_it_should(variant: Variant) {
    let directory = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut cores = Cores::start_in(directory.path(), variant, 1);
    let open = |create| Op::Open {
        file: FILE,
        path: "it".into(),
        how: OpenHow { create, direct: false, ..OpenHow::default() },
    };
    assert_eq!(cores.run(open(false)), Err(Errno::ENOENT));
    assert_eq!(cores.run(open(true)), Ok(Output::Done));
    let metadata = std::fs::metadata(directory.path().join("it")).unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o600);
    cores.start_op(0, Op::CloseFile { file: FILE });
    assert_eq!(cores.run(open(true)), Err(Errno::EEXIST));
    assert_eq!(cores.run(open(false)), Ok(Output::Done));
}

fn renames_without_replacing(variant: Variant) {
    for parent in [env!("CARGO_TARGET_TMPDIR"), "/dev/shm"] {
        let directory = TempDir::new_in(parent).unwrap();
        let absolute = |name| directory.path().join(name);
        let mut cores = Cores::start_in(directory.path(), variant, 1);
        std::fs::create_dir(absolute("sub")).unwrap();
        std::fs::write(absolute("from"), "new").unwrap();
        std::fs::write(absolute("sub/to"), "old").unwrap();
        let rename = |from: &str, to: &str| Op::Rename { from: from.into(), to: to.into() };
        assert_eq!(cores.run(rename("from", "sub/to")), Err(Errno::EEXIST));
        assert_eq!(std::fs::read(absolute("sub/to")).unwrap(), b"old");
        assert_eq!(cores.run(rename("from", "sub/third")), Ok(Output::Done));
        assert_eq!(std::fs::read(absolute("sub/third")).unwrap(), b"new");
        assert_eq!(cores.run(rename("from", "sub/third")), Err(Errno::ENOENT));
    }
}

fn sets_mode_and_owner_and_removes(variant: Variant) {
    let directory = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = directory.path().join("it");
    std::fs::write(&path, "").unwrap();
    let mut cores = Cores::start_in(directory.path(), variant, 1);
    let own = std::fs::metadata(&path).unwrap();
    let (uid, gid) = (Some(own.uid()), Some(own.gid()));
    let set =
        |mode, group_gid, owner_uid| Op::SetOwner { path: "it".into(), mode, group_gid, owner_uid };
    for (mode, group_gid, owner_uid) in
        [(0o644, None, None), (0o770, gid, uid), (0o600, gid, None), (0o640, None, uid)]
    {
        assert_eq!(cores.run(set(mode, group_gid, owner_uid)), Ok(Output::Done));
        let now = std::fs::metadata(&path).unwrap();
        assert_eq!(now.mode() & 0o7777, mode);
        assert_eq!((Some(now.uid()), Some(now.gid())), (uid, gid));
    }
    let remove = || Op::Remove { path: "it".into() };
    assert_eq!(cores.run(remove()), Ok(Output::Done));
    assert_eq!(cores.run(remove()), Err(Errno::ENOENT));
    assert_eq!(cores.run(set(0o600, None, None)), Err(Errno::ENOENT));
}

fn reports_what_a_file_system_refuses(variant: Variant) {
    let mut cores = Cores::start_in("/dev".as_ref(), variant, 1);
    // A device that is always full.
    let open = Op::Open { file: FILE, path: "full".into(), how: OpenHow::default() };
    assert_eq!(cores.run(open), Ok(Output::Done));
    let write = Op::Write { file: FILE, offset_bytes: 0, bytes: Slice { start: 0, length: 10 } };
    assert_eq!(cores.run(write), Err(Errno::ENOSPC));
    let truncate = Op::Truncate { file: FILE, length_bytes: 1 };
    assert_eq!(cores.run(truncate), Err(Errno::EINVAL));
}
