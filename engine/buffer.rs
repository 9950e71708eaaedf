//! Fixed memory, allocated once, addressed by [`Slice`]s.
//!
//! A slice is an address, not a borrow: who may use it is decided by leases, so that a write can be
//! with the kernel while its neighbours are filled.
#![allow(unsafe_code)]

use std::io;
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// A run of bytes in a core's [`Memory`]. Copying a `Slice` copies an address, never the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// From the beginning of the memory.
    pub start: u32,
    pub length: u32,
}

/// One mapping: 2 MiB aligned, on huge pages where the kernel has them, touched only when used.
///
/// Slices that are leased at the same time do not overlap, and whoever leases one to the kernel
/// leaves it alone until the completion. The borrows given out here are short: they end before the
/// next op is started.
#[derive(Debug)]
pub struct Memory {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to this value alone and to no thread.
unsafe impl Send for Memory {}

impl Memory {
    /// Maps `length_bytes`, zeroed, and uses none of it yet. At most 4 GiB, because slices have
    /// 32-bit addresses.
    ///
    /// # Errors
    /// `InvalidInput` for 0 or too many bytes; otherwise what `mmap` says (`ENOMEM`).
    pub fn new(length_bytes: usize) -> io::Result<Self> {
        if length_bytes == 0 || u64::try_from(length_bytes).is_ok_and(|it| it > LENGTH_BYTES_MAX) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let length = length_bytes.next_multiple_of(HUGE_PAGE_BYTES);
        let mapped_length = length + HUGE_PAGE_BYTES;
        // SAFETY: a new mapping at an address of the kernel's choice; nothing else uses it.
        let mapped = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                mapped_length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )?
        };
        let head = mapped.align_offset(HUGE_PAGE_BYTES);
        let tail = mapped_length - head - length;
        // SAFETY: `head + length + tail` is the mapping just made. Its ends are given back, of which
        // no address is known to anybody; advice changes no byte.
        let base = unsafe {
            let base = mapped.byte_add(head);
            if head > 0 {
                munmap(mapped, head)?;
            }
            if tail > 0 {
                munmap(base.byte_add(length), tail)?;
            }
            // Only faster: a kernel without huge pages serves as well.
            let _ = madvise(base, length, Advice::LinuxHugepage);
            base
        };
        let base = NonNull::new(base.cast()).expect("mmap gives no null pointer");
        Ok(Self { base, length })
    }

    /// How many bytes there are: what was asked for, rounded up to whole huge pages.
    pub fn length_bytes(&self) -> usize {
        self.length
    }

    /// Where `slice` begins. For drivers: the kernel reads from it or writes to it while the slice
    /// is leased to the op.
    ///
    /// # Panics
    /// If the slice does not lie in this memory; so do all functions here.
    pub fn address(&self, slice: Slice) -> NonNull<u8> {
        let (start, length) = (slice.start as usize, slice.length as usize);
        assert!(start <= self.length && length <= self.length - start, "{slice:?} out of memory");
        // SAFETY: within the mapping, or one past its end for an empty slice.
        unsafe { self.base.add(start) }
    }

    /// The bytes of `slice`, which nobody changes now: the kernel may read them as well.
    pub fn bytes(&self, slice: Slice) -> &[u8] {
        // SAFETY: in bounds (`address` checks), initialised (anonymous memory is zeroed). Nobody
        // writes: safe code would need `&mut self`, and the kernel writes only to slices leased to
        // a read, which their owner does not look at before the completion.
        unsafe { std::slice::from_raw_parts(self.address(slice).as_ptr(), slice.length as usize) }
    }

    /// The bytes of `slice`, to be changed: it is leased to the caller, not to the kernel.
    pub fn bytes_mut(&mut self, slice: Slice) -> &mut [u8] {
        // SAFETY: in bounds and initialised as above; `&mut self` keeps out other borrows. The
        // kernel may be using other leases, which do not overlap with this one.
        unsafe {
            std::slice::from_raw_parts_mut(self.address(slice).as_ptr(), slice.length as usize)
        }
    }

    /// Copies `from` over `to`, of the same length. They may overlap.
    pub fn copy(&mut self, from: Slice, to: Slice) {
        assert_eq!(from.length, to.length);
        let (source, target) = (self.address(from), self.address(to));
        // SAFETY: both in bounds. Nobody changes `from` and nobody else uses `to`, as for `bytes`
        // and `bytes_mut`; no reference is made, so an overlap is fine.
        unsafe { source.copy_to(target, from.length as usize) };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping made by `new`. A machine is dropped when no op is in flight any more
        // (`Machine::is_stopped`), so the kernel uses none of it.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.length) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}

const HUGE_PAGE_BYTES: usize = 2 * 1024 * 1024;

const LENGTH_BYTES_MAX: u64 = 1 << 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_aligned_zeroed_and_whole() {
        let mut memory = Memory::new(3 * 1024 * 1024).unwrap();
        assert_eq!(memory.length_bytes(), 2 * HUGE_PAGE_BYTES);
        let all = Slice { start: 0, length: 4 * 1024 * 1024 };
        assert_eq!(memory.address(all).as_ptr() as usize % HUGE_PAGE_BYTES, 0);
        assert!(memory.bytes(all).iter().all(|it| *it == 0));

        let end = Slice { start: all.length - 3, length: 3 };
        memory.bytes_mut(end).copy_from_slice(b"end");
        assert_eq!(&memory.bytes(all)[end.start as usize..], b"end");
    }

    #[test]
    fn copies_also_what_overlaps() {
        let mut memory = Memory::new(1).unwrap();
        memory.bytes_mut(Slice { start: 0, length: 6 }).copy_from_slice(b"abcdef");
        memory.copy(Slice { start: 0, length: 4 }, Slice { start: 2, length: 4 });
        assert_eq!(memory.bytes(Slice { start: 0, length: 6 }), b"ababcd");
    }

    #[test]
    fn refuses_what_slices_cannot_address() {
        for length_bytes in [0, (1 << 32) + 1, usize::MAX] {
            let refused = Memory::new(length_bytes).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    #[should_panic = "out of memory"]
    fn never_reaches_beyond_its_end() {
        let memory = Memory::new(1).unwrap();
        memory.bytes(Slice { start: u32::MAX, length: u32::MAX });
    }
}
