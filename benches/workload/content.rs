//! What is in the files: one block of bytes in memory, and for each message a key. What arrives is
//! the block's bytes XOR the key, so that every message of every file has other contents although
//! the same bytes are sent.

use std::sync::OnceLock;

/// The bytes that are sent, made once per process.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) bytes: Vec<u8>,
}

impl Block {
    pub(crate) fn shared() -> &'static Self {
        static BLOCK: OnceLock<Block> = OnceLock::new();
        BLOCK.get_or_init(|| {
            let words = 0..BLOCK_BYTES as u64 / 8;
            Block { bytes: words.flat_map(|it| mixed(it).to_le_bytes()).collect() }
        })
    }
}

/// What is in one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Content {
    pub(crate) seed: u64,
    pub(crate) file: u64,
    pub(crate) length_bytes: u64,
    pub(crate) shape: Shape,
}

/// How a file's bytes follow from the block's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Shape {
    /// In messages of so many bytes, each with a place in the block and a key of its own.
    Messages(u32),
    /// As the block has them, from a place that depends on the file, over and over: HTTP has no key.
    Plain,
}

/// A piece of the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) start: u64,
    pub(crate) length_bytes: u64,
    pub(crate) key: [u8; 4],
}

impl Content {
    /// The bytes from `offset` on that lie together in the block. The key counts from the piece's
    /// beginning. `None` at the end of the file.
    pub(crate) fn piece_at(&self, offset: u64) -> Option<Piece> {
        let left = self.length_bytes.checked_sub(offset).filter(|it| *it > 0)?;
        Some(match self.shape {
            Shape::Messages(message_bytes) => {
                let (number, within) =
                    (offset / u64::from(message_bytes), offset % u64::from(message_bytes));
                let mut key = self.key(number);
                key.rotate_left(within as usize % 4);
                let start = self.start(number, message_bytes) + within;
                Piece { start, length_bytes: left.min(u64::from(message_bytes) - within), key }
            }
            Shape::Plain => {
                let first = mixed(self.seed ^ mixed(self.file)) % BLOCK_BYTES as u64;
                let start = (first + offset) % BLOCK_BYTES as u64;
                Piece { start, length_bytes: left.min(BLOCK_BYTES as u64 - start), key: [0; 4] }
            }
        })
    }

    /// Fills the beginning of the buffer with the file's bytes from `offset` on. How many: all
    /// that fit, fewer at the end of the file.
    pub(crate) fn fill(&self, block: &Block, offset: u64, buffer: &mut [u8]) -> usize {
        let mut filled = 0;
        while let Some(piece) =
            self.piece_at(offset + filled as u64).filter(|_| filled < buffer.len())
        {
            let length = (piece.length_bytes as usize).min(buffer.len() - filled);
            let from = &block.bytes[piece.start as usize..][..length];
            let to = &mut buffer[filled..][..length];
            let mut key = [0; 16];
            key.as_chunks_mut::<4>().0.fill(piece.key);
            for (to, from) in to.chunks_mut(16).zip(from.chunks(16)) {
                for ((to, from), key) in to.iter_mut().zip(from).zip(key) {
                    *to = from ^ key;
                }
            }
            filled += length;
        }
        filled
    }

    fn key(&self, message: u64) -> [u8; 4] {
        let key = mixed(self.seed ^ mixed(self.file ^ mixed(message)));
        (key as u32).to_le_bytes()
    }

    /// Messages begin at pages of the block, each file at another one.
    fn start(&self, message: u64, message_bytes: u32) -> u64 {
        let slot_bytes = u64::from(message_bytes).next_multiple_of(PAGE_BYTES);
        let slot_count = BLOCK_BYTES as u64 / slot_bytes;
        (message + self.file) % slot_count * slot_bytes
    }
}

/// SplitMix64: neighbours come out unlike each other.
fn mixed(number: u64) -> u64 {
    let mut it = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    it = (it ^ (it >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    it = (it ^ (it >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    it ^ (it >> 31)
}

/// Larger than any cache that it could stay in.
pub(crate) const BLOCK_BYTES: usize = 64 << 20;
const PAGE_BYTES: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    /// Byte by byte, from the definition.
    fn naive(content: &Content, block: &Block) -> Vec<u8> {
        let byte = |offset: u64| match content.shape {
            Shape::Messages(message_bytes) => {
                let number = offset / u64::from(message_bytes);
                let within = offset % u64::from(message_bytes);
                let start = content.start(number, message_bytes);
                let key = content.key(number);
                block.bytes[(start + within) as usize] ^ key[within as usize % 4]
            }
            Shape::Plain => {
                let first = content.piece_at(0).unwrap().start;
                block.bytes[((first + offset) % BLOCK_BYTES as u64) as usize]
            }
        };
        (0..content.length_bytes).map(byte).collect()
    }

    #[test]
    fn what_is_filled_in_is_what_the_definition_says() {
        let block = Block::shared();
        for (message_bytes, length_bytes) in [(1000, 10_001), (4096, 4096), (4099, 20_000), (1, 9)]
        {
            let shape = Shape::Messages(message_bytes);
            let content = Content { seed: 3, file: 5, length_bytes, shape };
            let expected = naive(&content, block);
            for step in [1, 7, 1000, 4099, 50_000] {
                let mut found = vec![0; expected.len() + 3];
                let mut at = 0;
                while at < expected.len() {
                    let end = (at + step).min(found.len());
                    at += content.fill(block, at as u64, &mut found[at..end]);
                }
                assert!(found[..at] == expected, "{message_bytes} {step}");
            }
        }
    }

    #[test]
    fn plain_contents_go_round_the_end_of_the_block() {
        let block = Block::shared();
        let length_bytes = BLOCK_BYTES as u64 + 5000;
        let content = Content { seed: 3, file: 5, length_bytes, shape: Shape::Plain };
        let mut found = vec![0; length_bytes as usize];
        assert_eq!(content.fill(block, 0, &mut found), found.len());
        assert!(found == naive(&content, block));
    }

    #[test]
    fn messages_files_and_seeds_differ() {
        let block = Block::shared();
        let shape = Shape::Messages(4096);
        let mut seen = std::collections::HashSet::new();
        for (seed, file) in [(1, 0), (1, 1), (2, 0)] {
            let content = Content { seed, file, length_bytes: 8 * 4096, shape };
            let mut bytes = vec![0; 8 * 4096];
            content.fill(block, 0, &mut bytes);
            for message in bytes.chunks(4096) {
                assert!(seen.insert(message.to_vec()));
            }
        }
    }

    #[test]
    fn the_largest_messages_stay_within_the_block() {
        for message_bytes in [1, 4096, 4097, BLOCK_BYTES as u32 - 1, BLOCK_BYTES as u32] {
            let shape = Shape::Messages(message_bytes);
            let content = Content { seed: 1, file: 77, length_bytes: 1 << 40, shape };
            for message in [0, 1, 2, 1000] {
                let piece = content.piece_at(message * u64::from(message_bytes)).unwrap();
                assert!(piece.start + piece.length_bytes <= BLOCK_BYTES as u64);
            }
        }
    }
}
