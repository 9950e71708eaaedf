//! One file: what the page cache holds of it, and what the medium does.

use std::ops::Range;

use crate::rng::Rng;

#[derive(Debug, Default)]
pub(super) struct Inode {
    /// What a read gives.
    pub(super) cached: Vec<u8>,
    /// What lies on the medium. A power cut leaves this, and chance adds what is only cached.
    pub(super) durable: Vec<u8>,
    /// Those of `cached`, by number.
    blocks: Vec<Block>,
    /// Writes below need no new space.
    pub(super) allocated: u64,
    length_at: u64,
    length_clean_at: u64,
}

/// When a block was written last, and which of its writes the kernel holds to be on the medium.
#[derive(Clone, Copy, Debug, Default)]
struct Block {
    written_at: u64,
    clean_at: u64,
}

/// What a sync has to bring to the medium, as it was when the sync began.
#[derive(Debug)]
pub(super) struct Dirty {
    length: usize,
    length_at: u64,
    blocks: Vec<DirtyBlock>,
}

#[derive(Debug)]
struct DirtyBlock {
    number: usize,
    written_at: u64,
    bytes: Vec<u8>,
}

impl Inode {
    /// Everything that can be read is on the medium, and nothing else.
    pub(super) fn is_durable(&self) -> bool {
        self.durable == self.cached
    }

    /// Whatever a power cut leaves has `bytes` at `offset`.
    pub(super) fn promises(&self, offset: usize, bytes: &[u8]) -> bool {
        let range = offset..offset + bytes.len();
        self.durable.get(range.clone()) == Some(bytes) && self.cached.get(range) == Some(bytes)
    }

    pub(super) fn resize(&mut self, now: u64, length: usize) {
        let before = self.cached.len();
        if length == before {
            return;
        }
        self.cached.resize(length, 0);
        self.blocks.resize(length.div_ceil(BLOCK), Block::default());
        // Where the medium still has what was cut off once, the zeros are news.
        let stale = before / BLOCK..self.durable.len().min(length).div_ceil(BLOCK);
        for block in self.blocks.get_mut(stale).unwrap_or_default() {
            block.written_at = now;
        }
        self.length_at = now;
    }

    /// Into the page cache.
    pub(super) fn put(&mut self, now: u64, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        self.resize(now, end.max(self.cached.len()));
        self.cached[offset..end].copy_from_slice(bytes);
        for block in &mut self.blocks[offset / BLOCK..end.div_ceil(BLOCK)] {
            block.written_at = now;
        }
    }

    /// Through it, onto the medium.
    pub(super) fn put_through(&mut self, now: u64, offset: usize, bytes: &[u8]) {
        self.put(now, offset, bytes);
        for number in offset / BLOCK..(offset + bytes.len()).div_ceil(BLOCK) {
            self.write_back(number);
        }
    }

    /// What a write leaves that has failed or was torn: of each block all, nothing or some sectors.
    pub(super) fn put_torn(&mut self, now: u64, offset: usize, bytes: &[u8], rng: &mut Rng) {
        for (index, block) in bytes.chunks(BLOCK).enumerate() {
            let start = offset + index * BLOCK;
            let is_overwritten = start + block.len() <= self.durable.len();
            match rng.below(if is_overwritten { 3 } else { 2 }) {
                0 => {}
                1 => self.put(now, start, block),
                _ => {
                    for (index, sector) in block.chunks(SECTOR).enumerate() {
                        if rng.chance(50) {
                            self.put(now, start + index * SECTOR, sector);
                        }
                    }
                }
            }
        }
    }

    /// What a sync that begins now has to write.
    pub(super) fn dirty(&self) -> Dirty {
        let blocks = self.dirty_numbers().map(|number| DirtyBlock {
            number,
            written_at: self.blocks[number].written_at,
            bytes: self.cached[self.range(number)].to_vec(),
        });
        Dirty { length: self.cached.len(), length_at: self.length_at, blocks: blocks.collect() }
    }

    /// The sync has ended well.
    pub(super) fn clean(&mut self, dirty: Dirty) {
        if dirty.length_at > self.length_clean_at {
            self.length_clean_at = dirty.length_at;
            let is_latest = dirty.length_at == self.length_at;
            let kept = if is_latest { 0 } else { self.durable.len() };
            self.durable.resize(dirty.length.max(kept), 0);
        }
        for it in dirty.blocks {
            if self.blocks.get(it.number).is_some_and(|block| block.clean_at < it.written_at) {
                self.blocks[it.number].clean_at = it.written_at;
                self.put_durable(it.number, &it.bytes);
            }
        }
    }

    /// The sync has failed: the kernel takes the blocks for clean, whether they were written or
    /// not, and may forget what it could not write. A later sync succeeds.
    pub(super) fn fail_sync(&mut self, dirty: Dirty, rng: &mut Rng) {
        for it in dirty.blocks {
            let Some(block) = self.blocks.get_mut(it.number) else { continue };
            block.clean_at = block.clean_at.max(it.written_at);
            match rng.below(3) {
                0 => self.put_durable(it.number, &it.bytes),
                1 => {}
                _ => self.forget(it.number),
            }
        }
    }

    /// The kernel writes something back on its own account.
    pub(super) fn write_back_some(&mut self, is_ordered: bool, rng: &mut Rng) {
        let durable_count = self.durable.len().div_ceil(BLOCK);
        let may = |it: &usize| !is_ordered || *it <= durable_count;
        let numbers: Vec<usize> = self.dirty_numbers().filter(may).collect();
        if !numbers.is_empty() {
            self.write_back(rng.pick(&numbers));
        }
    }

    /// The power is gone: what is only cached is there or not. Ordered: a file does not show a new
    /// length before the bytes below it.
    pub(super) fn power_cut(&mut self, is_ordered: bool, rng: &mut Rng) {
        let (before, after) = (self.durable.len(), self.cached.len());
        let length = match rng.below(if is_ordered { 2 } else { 3 }) {
            0 => before,
            1 => after,
            // As of a write before the last one, or of a part of it.
            _ => {
                let most = before.max(after);
                rng.within(before.min(after)..most + 1).next_multiple_of(BLOCK).min(most)
            }
        };
        let is_all_there = is_ordered && length > before;
        let mut left = std::mem::take(&mut self.durable);
        left.resize(length, 0);
        for number in self.dirty_numbers() {
            let range = self.range(number);
            let range = range.start.min(length)..range.end.min(length);
            let is_overwritten = range.end <= before;
            let fate = if is_all_there { 1 } else { rng.below(if is_overwritten { 3 } else { 2 }) };
            for start in range.clone().step_by(SECTOR) {
                let sector = start..(start + SECTOR).min(range.end);
                if fate == 1 || fate == 2 && rng.chance(50) {
                    left[sector.clone()].copy_from_slice(&self.cached[sector]);
                }
            }
        }
        *self = Self::of(left);
    }

    /// A file as a start of the machine finds it.
    fn of(bytes: Vec<u8>) -> Self {
        let blocks = vec![Block::default(); bytes.len().div_ceil(BLOCK)];
        let allocated = bytes.len() as u64;
        Self { cached: bytes.clone(), durable: bytes, blocks, allocated, ..Self::default() }
    }

    fn dirty_numbers(&self) -> impl Iterator<Item = usize> + '_ {
        let dirty = |it: &(usize, &Block)| it.1.clean_at < it.1.written_at;
        self.blocks.iter().enumerate().filter(dirty).map(|it| it.0)
    }

    fn write_back(&mut self, number: usize) {
        self.blocks[number].clean_at = self.blocks[number].written_at;
        let range = self.range(number);
        self.durable.resize(self.durable.len().max(range.end), 0);
        self.durable[range.clone()].copy_from_slice(&self.cached[range]);
    }

    fn put_durable(&mut self, number: usize, bytes: &[u8]) {
        let start = number * BLOCK;
        let end = start + bytes.len();
        self.durable.resize(self.durable.len().max(end), 0);
        self.durable[start..end].copy_from_slice(bytes);
    }

    /// The block is read from the medium again.
    fn forget(&mut self, number: usize) {
        for index in self.range(number) {
            self.cached[index] = self.durable.get(index).copied().unwrap_or(0);
        }
    }

    fn range(&self, number: usize) -> Range<usize> {
        number * BLOCK..((number + 1) * BLOCK).min(self.cached.len())
    }
}

const BLOCK: usize = engine::limits::BLOCK_BYTES as usize;
/// What a medium writes whole or not at all.
const SECTOR: usize = 512;
