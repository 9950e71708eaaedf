//! The seam between a core's logic and the kernel: what a machine asks for, and what comes back.
//!
//! A [`Machine`] is inert. A driver starts the [`Op`]s it gives and brings it [`Event`]s; a
//! simulator can do the same, which is how every promise of this server is tested by seed.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Instant;

use bytes::Bytes;

use crate::buffer::Slice;

/// One request to the kernel, or to another core. Plain data.
///
/// No op is ever dropped or cancelled: each one that has a completion gets exactly one. To end an
/// op that waits for a peer, shut its socket down.
#[derive(Debug)]
pub enum Op<M> {
    /// Take one connection from the core's listeners. Completes with [`Output::Accepted`]. One at a
    /// time; the only op that may still wait when the machine is stopped. After an error (`EMFILE`)
    /// the connection is still there, so ask again later, not at once.
    Accept,
    /// Take back an `Accept` that waits: connections stay where they are, for whoever accepts from
    /// the same socket. The `Accept` then has no completion, unless that is on its way. No completion
    /// of its own.
    CancelAccept,
    /// Wait until `socket` has bytes, has ended or has failed. Completes with [`Output::Done`].
    Readable { socket: SocketId },
    /// `socket` is readable only once it has so many bytes, or has ended or failed: who knows what
    /// is still to come is not woken for every segment of it (`SO_RCVLOWAT`, socket(7)). 1 at first.
    /// The kernel may ignore it. No completion.
    LowWater { socket: SocketId, bytes: u32 },
    /// Receive what is there, at most `length_bytes`, into [`Machine::receive_buffer`]. Never
    /// waits: nothing there is `EAGAIN`. Completes on the spot, before the next op is started, with
    /// [`Output::Received`]; 0 bytes is the end of the stream.
    Recv { socket: SocketId, length_bytes: u32 },
    /// Send `bytes`, or a part of them: completes with [`Output::Bytes`] (at least one).
    Send { socket: SocketId, bytes: Bytes },
    /// End one or both directions. A waiting `Readable` or `Send` then completes. No completion.
    Shutdown { socket: SocketId, how: Direction },
    /// Forget the socket. The machine has no op in flight on it. No completion.
    Close { socket: SocketId },
    /// Give the socket to another core, which gets [`Event::Arrived`] with `mail`. The machine has
    /// no op in flight on it and forgets it. No completion.
    Migrate { socket: SocketId, to: CoreId, mail: M },
    /// Send a message to another core or to the control thread. No completion.
    Post { to: Address, mail: M },

    /// Open a file under an id of the machine's choice. Completes with [`Output::Done`].
    ///
    /// Paths, here and below, are relative to the storage directory and never leave it; or they are
    /// absolute, and lie below one of the directories that the driver was told to allow.
    Open { file: FileId, path: PathBuf, how: OpenHow },
    /// Write `bytes` at `offset_bytes`, or a part of them: completes with [`Output::Bytes`]. The
    /// slice is not changed and not given back before the completion.
    Write { file: FileId, offset_bytes: u64, bytes: Slice },
    /// Read into `bytes`, or a part of it: completes with [`Output::Bytes`]; 0 is the end.
    Read { file: FileId, offset_bytes: u64, bytes: Slice },
    /// Make what was written durable (`fdatasync`). Completes with [`Output::Done`].
    Sync { file: FileId },
    /// Have space for `length_bytes` from `offset_bytes` on (`fallocate`, which also extends the
    /// file). Where the file system cannot: `EOPNOTSUPP`. Completes with [`Output::Done`].
    Allocate { file: FileId, offset_bytes: u64, length_bytes: u64 },
    /// Set the file's length. Completes with [`Output::Done`].
    Truncate { file: FileId, length_bytes: u64 },
    /// Forget the file. The machine has no op in flight on it. No completion.
    CloseFile { file: FileId },
    /// Set the mode and, if given, group and owner of a path. Where one of them may not be set, the
    /// others are, and it is the error. Completes with [`Output::Done`].
    SetOwner { path: PathBuf, mode: u32, group_gid: Option<u32>, owner_uid: Option<u32> },
    /// Rename within a file system, replacing nothing. Completes with [`Output::Done`].
    Rename { from: PathBuf, to: PathBuf },
    /// Remove a file. Completes with [`Output::Done`].
    Remove { path: PathBuf },
    /// Make names in a directory durable (`fsync` of the directory). Completes with
    /// [`Output::Done`].
    SyncDirectory { path: PathBuf },
    /// Whether files can be moved to a directory: it is there, it may be changed, and it is on the file
    /// system of the storage directory (`EXDEV` otherwise). Completes with [`Output::Done`].
    CheckDirectory { path: PathBuf },
    /// Look at the storage directory as a whole. Completes with [`Output::Storage`].
    CheckStorage,
}

/// How a file is opened, always for reading and writing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenHow {
    /// It is made new (mode 0600) and must not exist (`EEXIST`); otherwise it must (`ENOENT`).
    pub create: bool,
    /// Without the page cache (`O_DIRECT`): offsets, lengths and memory of reads and writes are
    /// multiples of [`crate::limits::BLOCK_BYTES`].
    pub direct: bool,
    /// A write completes when it is durable (`O_DSYNC`).
    pub dsync: bool,
    /// The file is locked for this process (`flock`, exclusive) until it is closed and its last
    /// write has ended. Where another process has it, also a killed one whose last writes still
    /// run, the open fails with `EAGAIN`; ask again later.
    pub lock: bool,
}

/// What [`Op::CheckStorage`] saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StorageState {
    /// What this process may still write, in bytes.
    pub free_bytes: u64,
    pub health: StorageHealth,
}

/// Whether the storage directory is still what it was at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageHealth {
    Good,
    /// Its file system was remounted read-only, by the operator or after an error.
    ReadOnly,
    /// Its path, or one of the directories in it, leads somewhere else or nowhere: it was removed,
    /// renamed, unmounted, or something was mounted over it.
    Gone,
}

/// What a driver tells its machine.
#[derive(Debug)]
pub enum Event<M> {
    /// An op ended.
    Completion(Completion),
    /// Another thread sent something.
    Mail(M),
    /// Another core gave this core a socket.
    Arrived { socket: SocketId, mail: M },
}

/// The end of an op.
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    pub token: Token,
    pub result: Result<Output, Errno>,
}

/// What a successful op gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    Done,
    Bytes(u32),
    /// `has_more`: as many bytes as asked for, and the next receive does not come back empty.
    Received {
        count: u32,
        has_more: bool,
    },
    Accepted {
        socket: SocketId,
        peer: SocketAddr,
    },
    Storage(StorageState),
}

impl Output {
    /// The count of an op that moves bytes; 0 for any other.
    pub fn bytes(self) -> u32 {
        match self {
            Self::Bytes(count) | Self::Received { count, .. } => count,
            Self::Done | Self::Accepted { .. } | Self::Storage(_) => 0,
        }
    }
}

/// Names who waits for a completion. Opaque to the driver; it carries a generation, so that a late
/// completion never meets a reused slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// For ops without a completion.
    None,
    Accept,
    Socket {
        slot: u32,
        generation: u32,
        what: SocketOp,
    },
    File {
        slot: u32,
        generation: u32,
        what: FileOp,
    },
    /// An op of the core's journal, which numbers them itself.
    Journal(u64),
    Storage,
    /// A look at a directory; who asks numbers them.
    Directory(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketOp {
    Readable,
    Recv,
    Send,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileOp {
    /// `write` numbers the writes of one upload.
    Write {
        write: u32,
    },
    ReadBack,
    /// A step of opening, finishing or removing; one at a time for each upload.
    Step,
    /// Space for further writes; beside the writes.
    Allocate,
    /// Makes writes durable that have ended; beside further ones.
    Sync,
}

/// A socket's slot in the driver. Chosen by the driver, free again after `Close` or `Migrate`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketId(pub u32);

/// A file's slot in the driver. Chosen by the machine, free again after `CloseFile`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub u32);

/// A core of this run, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CoreId(pub u16);

/// Who gets a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    Core(CoreId),
    Control,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Write,
    Both,
}

/// An error number of the kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    pub const EAGAIN: Self = Self(11);
    pub const EEXIST: Self = Self(17);
    pub const EINVAL: Self = Self(22);
    pub const EMFILE: Self = Self(24);
    pub const ENFILE: Self = Self(23);
    pub const ENOENT: Self = Self(2);
    pub const ENOSPC: Self = Self(28);
    pub const EDQUOT: Self = Self(122);
    pub const EIO: Self = Self(5);
    pub const EACCES: Self = Self(13);
    pub const ELOOP: Self = Self(40);
    pub const ENOTDIR: Self = Self(20);
    pub const EXDEV: Self = Self(18);
    pub const EOPNOTSUPP: Self = Self(95);

    /// Space or descriptors have run out, or another process has the file: it passes, and says
    /// nothing about the file.
    pub fn is_shortage(self) -> bool {
        let it = self;
        matches!(it, Self::ENOSPC | Self::EDQUOT | Self::EMFILE | Self::ENFILE | Self::EAGAIN)
    }
}

impl std::fmt::Debug for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

/// The logic of one core, as a driver sees it.
///
/// A driver's turn: `poll_op` until it is empty, then `poll_timeout`, then wait for a completion, a
/// message or the timeout, then bring everything that happened. It returns when the machine
/// [`is_stopped`](Machine::is_stopped).
pub trait Machine {
    /// What cores and the control thread say to each other.
    type Mail: Send + 'static;

    fn on_event(&mut self, now: Instant, event: Event<Self::Mail>);

    /// The time given by `poll_timeout` has come.
    fn on_timeout(&mut self, now: Instant);

    /// The next op to start.
    fn poll_op(&mut self) -> Option<(Token, Op<Self::Mail>)>;

    /// When to call `on_timeout`, unless something happens before.
    fn poll_timeout(&self) -> Option<Instant>;

    /// The core's one hot buffer, [`crate::limits::RECEIVE_BUFFER_BYTES`] long. Its content is
    /// looked at while the completion of a `Recv` is handled, and never later.
    fn receive_buffer(&mut self) -> &mut [u8];

    /// The memory that slices of reads and writes lie in.
    fn memory(&self) -> &crate::buffer::Memory;

    /// Nothing is left to do and no op is in flight, except for an `Accept`.
    fn is_stopped(&self) -> bool;
}
