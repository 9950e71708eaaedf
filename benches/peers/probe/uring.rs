//! The bare ring: polls, and receives into a ring of buffers. The only unsafe lines of this package.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU16, Ordering};

use engine::buffer::{Memory, Slice};
use io_uring::types::{BufRingEntry, Fd};
use io_uring::{IoUring, cqueue, opcode, squeue};

/// A ring that one thread uses.
pub(super) struct Uring {
    /// Dropped before the buffers, which the kernel writes to as long as it lives.
    ring: IoUring,
    buffers: Option<Buffers>,
}

/// What the ring tells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Done {
    pub(super) user_data: u64,
    /// A count, or an error number.
    pub(super) result: Result<u32, i32>,
    /// What was received lies here; to be given back.
    pub(super) buffer: Option<u16>,
    /// The request goes on.
    pub(super) has_more: bool,
}

impl Uring {
    pub(super) fn new() -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(4 * ENTRY_COUNT).setup_single_issuer().setup_defer_taskrun();
        Ok(Self { ring: builder.build(ENTRY_COUNT)?, buffers: None })
    }

    /// Completes once, when `socket` has bytes or has ended.
    pub(super) fn poll(&mut self, socket: RawFd, user_data: u64) -> io::Result<()> {
        self.push(&opcode::PollAdd::new(Fd(socket), POLLIN).build().user_data(user_data))
    }

    /// Completes for every run of bytes, each in a buffer of the ring, until one completion has no
    /// more.
    pub(super) fn receive_multishot(&mut self, socket: RawFd, user_data: u64) -> io::Result<()> {
        let receive = opcode::RecvMulti::new(Fd(socket), BUFFER_GROUP);
        self.push(&receive.build().user_data(user_data))
    }

    /// Submits, waits for at least one completion and takes what is there.
    pub(super) fn wait(&mut self, batch: &mut Vec<Done>) -> io::Result<()> {
        match self.ring.submit_and_wait(1) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        batch.extend(self.ring.completion().map(|it| Done {
            user_data: it.user_data(),
            result: u32::try_from(it.result()).map_err(|_| -it.result()),
            buffer: cqueue::buffer_select(it.flags()),
            has_more: cqueue::more(it.flags()),
        }));
        Ok(())
    }

    pub(super) fn register_buffers(&mut self) -> io::Result<()> {
        let buffers = self.buffers.insert(Buffers::new()?);
        let address = buffers.entries().addr() as u64;
        // SAFETY: page-aligned room for so many entries; it lives until the ring is gone.
        unsafe { self.ring.submitter().register_buf_ring(address, BUFFER_COUNT, BUFFER_GROUP)? };
        (0..BUFFER_COUNT).for_each(|it| buffers.add(it));
        Ok(())
    }

    /// A buffer that a completion named.
    pub(super) fn buffer(&mut self, buffer: u16) -> &mut [u8] {
        self.buffers.as_mut().expect("registered").memory.bytes_mut(place(buffer))
    }

    /// The kernel may receive into it again.
    pub(super) fn give_back(&mut self, buffer: u16) {
        self.buffers.as_mut().expect("registered").add(buffer);
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: the entries made here name no memory; the buffers that the kernel chooses for
        // them live until the ring is gone.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            self.ring.submit()?;
        }
        Ok(())
    }
}

/// The ring's entries on the first page, then the buffers, on huge pages.
struct Buffers {
    memory: Memory,
    tail: u16,
}

impl Buffers {
    fn new() -> io::Result<Self> {
        Ok(Self { memory: Memory::new(place(BUFFER_COUNT).start as usize)?, tail: 0 })
    }

    fn entries(&self) -> *mut BufRingEntry {
        self.memory.address(Slice { start: 0, length: ENTRIES_BYTES }).as_ptr().cast()
    }

    /// Gives a buffer to the kernel, which has every one at most once.
    fn add(&mut self, buffer: u16) {
        let address = self.memory.address(place(buffer)).as_ptr().addr() as u64;
        let entries = self.entries();
        // SAFETY: the index is within the entries; the kernel reads no entry beyond the tail, and
        // the tail, which lies in the first entry, is not touched by the three setters.
        unsafe {
            let entry = &mut *entries.add(usize::from(self.tail % BUFFER_COUNT));
            entry.set_addr(address);
            entry.set_len(BUFFER_BYTES);
            entry.set_bid(buffer);
        }
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: `entries` is the beginning of the ring, aligned and initialised. Only this thread
        // writes the tail; the kernel reads it, as it does an atomic.
        unsafe { AtomicU16::from_ptr(BufRingEntry::tail(entries).cast_mut()) }
            .store(self.tail, Ordering::Release);
    }
}

/// Where a buffer lies.
fn place(buffer: u16) -> Slice {
    Slice { start: ENTRIES_BYTES + u32::from(buffer) * BUFFER_BYTES, length: BUFFER_BYTES }
}

const ENTRY_COUNT: u32 = 1024;
const ENTRIES_BYTES: u32 = 4096;
const BUFFER_GROUP: u16 = 0;
/// A power of two.
const BUFFER_COUNT: u16 = 8;
/// Measured: 4 buffers of 256 KiB cost the same, 16 of 64 KiB 40 % more, 32 of 32 KiB 70 % more.
const BUFFER_BYTES: u32 = 128 * 1024;
const POLLIN: u32 = 1;
