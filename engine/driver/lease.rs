//! Bytes of a core's memory while the kernel has them.

use std::ptr::NonNull;

use crate::buffer::{Memory, Slice};

/// A slice that is leased to one read or write: an address for the ring or for another thread.
///
/// The memory outlives it because a driver never leaves its loop while an op is in flight, not even
/// by a panic. Leases do not overlap, and the machine neither changes nor looks at a leased slice
/// before the completion.
#[derive(Debug)]
pub(super) struct Lease {
    address: NonNull<u8>,
    length: usize,
}

// SAFETY: the memory belongs to no thread, and until the completion this lease is the only user.
unsafe impl Send for Lease {}

impl Lease {
    pub(super) fn new(memory: &Memory, slice: Slice) -> Self {
        Self { address: memory.address(slice), length: slice.length as usize }
    }

    pub(super) fn address(&self) -> *mut u8 {
        self.address.as_ptr()
    }

    /// As an op of the ring has it. A slice is at most 4 GiB - 1 long.
    pub(super) fn length(&self) -> u32 {
        self.length as u32
    }

    /// For a write.
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: in bounds (`Memory::address` checks) and initialised; nobody changes it now.
        unsafe { std::slice::from_raw_parts(self.address(), self.length) }
    }

    /// For a read.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: in bounds and initialised; nobody else uses it now.
        unsafe { std::slice::from_raw_parts_mut(self.address(), self.length) }
    }
}

// SAFETY: the address is stable, and the bytes are initialised.
unsafe impl monoio::buf::IoBuf for Lease {
    fn read_ptr(&self) -> *const u8 {
        self.address()
    }

    fn bytes_init(&self) -> usize {
        self.length
    }
}

// SAFETY: the address is stable, and `length` bytes may be written there.
unsafe impl monoio::buf::IoBufMut for Lease {
    fn write_ptr(&mut self) -> *mut u8 {
        self.address()
    }

    fn bytes_total(&mut self) -> usize {
        self.length
    }

    unsafe fn set_init(&mut self, _length: usize) {}
}
