//! What test files hold: pseudo-random bytes that can be made anew at any offset, so that a file of
//! any size is sent and checked without ever being held whole.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

/// A file's content: a function of its seed.
#[derive(Clone, Copy, Debug)]
pub struct Content {
    pub seed: u64,
    pub length_bytes: u64,
}

impl Content {
    pub fn new(seed: u64, length_bytes: u64) -> Self {
        Self { seed, length_bytes }
    }

    /// The bytes at `offset`, at most `bytes_max` and at most up to the end.
    pub fn piece(&self, offset: u64, bytes_max: u64) -> Vec<u8> {
        let length = bytes_max.min(self.length_bytes - offset);
        let mut out = vec![0; length as usize];
        self.fill(offset, &mut out);
        out
    }

    /// Panics with the first differing offset unless the file at `path` holds exactly this.
    pub fn assert_file(&self, path: &Path) {
        let file =
            File::open(path).unwrap_or_else(|error| panic!("open {}: {error}", path.display()));
        let length = file.metadata().expect("metadata").len();
        assert_eq!(length, self.length_bytes, "length of {}", path.display());
        self.assert_begins(path, length);
    }

    /// Panics with the first differing offset unless the file at `path` begins with so many bytes of
    /// this.
    pub fn assert_begins(&self, path: &Path, length_bytes: u64) {
        let mut file =
            File::open(path).unwrap_or_else(|error| panic!("open {}: {error}", path.display()));
        let mut stored = vec![0; STEP_BYTES];
        let mut expected = vec![0; STEP_BYTES];
        let mut offset = 0;
        while offset < length_bytes {
            let step = (length_bytes - offset).min(STEP_BYTES as u64) as usize;
            file.read_exact(&mut stored[..step]).expect("read the stored file");
            self.fill(offset, &mut expected[..step]);
            if stored[..step] != expected[..step] {
                let differs = stored.iter().zip(&expected).position(|(a, b)| a != b).unwrap();
                panic!("{} differs at offset {}", path.display(), offset + differs as u64);
            }
            offset += step as u64;
        }
    }

    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        let mut offset = 0;
        while offset < self.length_bytes {
            let piece = self.piece(offset, STEP_BYTES as u64);
            hash.update(&piece);
            offset += piece.len() as u64;
        }
        hex(&hash.finalize())
    }

    fn fill(&self, offset: u64, out: &mut [u8]) {
        let head = (((8 - offset % 8) % 8) as usize).min(out.len());
        let (head, rest) = out.split_at_mut(head);
        if !head.is_empty() {
            let from = (offset % 8) as usize;
            head.copy_from_slice(&self.word(offset / 8)[from..from + head.len()]);
        }
        let mut index = offset.div_ceil(8);
        let mut words = rest.chunks_exact_mut(8);
        for word in &mut words {
            word.copy_from_slice(&self.word(index));
            index += 1;
        }
        let tail = words.into_remainder();
        tail.copy_from_slice(&self.word(index)[..tail.len()]);
    }

    fn word(&self, index: u64) -> [u8; 8] {
        mix(self.seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes()
    }
}

/// SHA-256 of a file, by an implementation that is not ours.
pub fn sha256_of_file(path: &Path) -> String {
    let mut hash = Sha256::new();
    let mut file = File::open(path).expect("open the stored file");
    let mut buffer = vec![0; STEP_BYTES];
    loop {
        match file.read(&mut buffer).expect("read the stored file") {
            0 => return hex(&hash.finalize()),
            length => hash.update(&buffer[..length]),
        }
    }
}

/// A small deterministic generator for offsets and sizes.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// A number below `limit`, which is above 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0) % limit
    }
}

/// The finaliser of SplitMix64: every input bit changes every output bit.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|it| format!("{it:02x}")).collect()
}

const STEP_BYTES: usize = 1024 * 1024;

#[test]
fn content_is_the_same_at_every_offset() {
    let content = Content::new(7, 100);
    let whole = content.piece(0, 100);
    for offset in 0..100 {
        for length in [1, 2, 7, 8, 9, 30, 100] {
            let expected = &whole[offset..whole.len().min(offset + length)];
            assert_eq!(content.piece(offset as u64, length as u64), expected);
        }
    }
    assert_ne!(whole, Content::new(8, 100).piece(0, 100));
}
