//! The bytes of a journal file. Described in `doc/storage.md`.

use std::fmt;
use std::ops::RangeInclusive;

use crate::limits::BLOCK_BYTES;
use crate::record::Record;

/// Whose commits a file holds. It is part of every checksum, so that what an earlier use of the
/// file left behind is not taken for something new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileKey {
    /// One start of the server.
    pub run: u64,
    pub core: u16,
    /// How often the core's journal has moved to another file in this run.
    pub generation: u64,
}

/// The first block of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub key: FileKey,
    /// How many cores this run has: so many journals belong together.
    pub core_count: u16,
    /// Commits of offsets alone are not synced: after a power cut, any of them may be missing.
    pub is_relaxed: bool,
    /// Where the commits of the snapshot end. They were durable before the header was written.
    pub snapshot_end_bytes: u64,
    /// Service time when the file was begun (see [`crate::service`]).
    pub service_ms: u64,
}

/// Why a file has no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderError {
    Broken,
    /// It is whole, and of another format.
    OtherVersion,
}

/// One of a core's two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    A,
    B,
}

/// The name of a file in the directory [`JOURNAL_NAME`]: `0.a`, `0.b`, `1.a` and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileName {
    pub core: u16,
    pub side: Side,
}

/// A commit that is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Commit<'a> {
    pub(super) sequence: u64,
    /// Service time when it was built (see [`crate::service`]).
    pub(super) service_ms: u64,
    pub(super) records: &'a [u8],
}

impl Header {
    /// Fills the first block of a file.
    pub(super) fn encode(&self, block: &mut [u8]) {
        assert_eq!(block.len(), BLOCK_BYTES as usize);
        block.fill(0);
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, MAGIC);
        put(12, &VERSION.to_le_bytes());
        put(16, &self.key.run.to_le_bytes());
        put(24, &self.key.core.to_le_bytes());
        put(26, &self.core_count.to_le_bytes());
        put(28, &if self.is_relaxed { FLAG_RELAXED } else { 0 }.to_le_bytes());
        put(32, &self.key.generation.to_le_bytes());
        put(40, &self.snapshot_end_bytes.to_le_bytes());
        put(48, &self.service_ms.to_le_bytes());
        let checksum = crc32c::crc32c(&block[12..HEADER_BYTES]);
        block[8..12].copy_from_slice(&checksum.to_le_bytes());
    }

    /// Reads the beginning of a file.
    pub(super) fn decode(file: &[u8]) -> Result<Self, HeaderError> {
        let header = file.first_chunk::<HEADER_BYTES>().ok_or(HeaderError::Broken)?;
        let checksum = crc32c::crc32c(&header[12..]);
        if !header.starts_with(MAGIC) || u32::from_le_bytes(field(header, 8)) != checksum {
            return Err(HeaderError::Broken);
        }
        if u32::from_le_bytes(field(header, 12)) != VERSION {
            return Err(HeaderError::OtherVersion);
        }
        let flags = u32::from_le_bytes(field(header, 28));
        let it = Self {
            key: FileKey {
                run: u64::from_le_bytes(field(header, 16)),
                core: u16::from_le_bytes(field(header, 24)),
                generation: u64::from_le_bytes(field(header, 32)),
            },
            core_count: u16::from_le_bytes(field(header, 26)),
            is_relaxed: flags == FLAG_RELAXED,
            snapshot_end_bytes: u64::from_le_bytes(field(header, 40)),
            service_ms: u64::from_le_bytes(field(header, 48)),
        };
        let is_valid = flags & !FLAG_RELAXED == 0
            && it.key.core < it.core_count
            && it.snapshot_end_bytes >= u64::from(BLOCK_BYTES)
            && it.snapshot_end_bytes.is_multiple_of(u64::from(BLOCK_BYTES));
        if is_valid { Ok(it) } else { Err(HeaderError::Broken) }
    }
}

impl FileKey {
    /// Completes a commit whose records stand from [`COMMIT_HEAD_BYTES`] to the end of `commit`.
    pub(super) fn seal(&self, sequence: u64, service_ms: u64, commit: &mut [u8]) {
        let length = u32::try_from(commit.len() - COMMIT_HEAD_BYTES).expect("commits are bounded");
        commit[4..8].copy_from_slice(&length.to_le_bytes());
        commit[8..16].copy_from_slice(&sequence.to_le_bytes());
        commit[16..24].copy_from_slice(&service_ms.to_le_bytes());
        let checksum = self.checksum(&commit[4..]);
        commit[..4].copy_from_slice(&checksum.to_le_bytes());
    }

    /// The commit at the beginning of `bytes`, if there is one with such a sequence.
    pub(super) fn commit<'a>(
        &self,
        bytes: &'a [u8],
        sequences: &RangeInclusive<u64>,
    ) -> Option<Commit<'a>> {
        let head = bytes.first_chunk::<COMMIT_HEAD_BYTES>()?;
        let length = u32::from_le_bytes(field(head, 4)) as usize;
        let sequence = u64::from_le_bytes(field(head, 8));
        let service_ms = u64::from_le_bytes(field(head, 16));
        let is_bounded = length <= COMMIT_BYTES_MAX as usize - COMMIT_HEAD_BYTES;
        if length == 0 || !is_bounded || !sequences.contains(&sequence) {
            return None;
        }
        let commit = bytes.get(..COMMIT_HEAD_BYTES + length)?;
        let is_whole = u32::from_le_bytes(field(head, 0)) == self.checksum(&commit[4..]);
        is_whole.then_some(Commit { sequence, service_ms, records: &commit[COMMIT_HEAD_BYTES..] })
    }

    fn checksum(&self, bytes: &[u8]) -> u32 {
        let mut key = [0; 18];
        key[..8].copy_from_slice(&self.run.to_le_bytes());
        key[8..10].copy_from_slice(&self.core.to_le_bytes());
        key[10..].copy_from_slice(&self.generation.to_le_bytes());
        crc32c::crc32c_append(crc32c::crc32c(&key), bytes)
    }
}

impl<'a> Commit<'a> {
    /// Its records; `None` if one of them is none. Then the whole commit is none.
    pub(super) fn records(&self) -> Option<Vec<Record>> {
        let mut rest = self.records;
        let mut records = Vec::new();
        while !rest.is_empty() {
            records.push(Record::decode(&mut rest).ok()?);
        }
        Some(records)
    }

    /// How much of the file it takes: whole blocks.
    pub(super) fn blocks_bytes(&self) -> u64 {
        blocks_bytes(COMMIT_HEAD_BYTES + self.records.len())
    }
}

impl Side {
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

impl FileName {
    /// Reads a name as [`fmt::Display`] writes it, and no other.
    pub fn parse(text: &str) -> Option<Self> {
        let (core, side) = text.split_once('.')?;
        let side = match side {
            "a" => Side::A,
            "b" => Side::B,
            _ => return None,
        };
        let name = Self { core: core.parse().ok()?, side };
        (name.to_string() == text).then_some(name)
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = match self.side {
            Side::A => 'a',
            Side::B => 'b',
        };
        write!(f, "{}.{side}", self.core)
    }
}

/// Rounds up to whole blocks.
pub(super) fn blocks_bytes(bytes: usize) -> u64 {
    (bytes as u64).next_multiple_of(u64::from(BLOCK_BYTES))
}

/// A number's bytes within a head of fixed length.
fn field<const N: usize>(head: &[u8], at: usize) -> [u8; N] {
    *head[at..].first_chunk().expect("within the head")
}

/// The journals lie in this directory of the storage directory.
pub const JOURNAL_NAME: &str = "journal";

/// The largest commit, its head included: one buffer.
pub const COMMIT_BYTES_MAX: u32 = 128 * 1024;

/// What stands in a commit before its records.
pub(super) const COMMIT_HEAD_BYTES: usize = 24;

/// What counts of the first block.
pub(super) const HEADER_BYTES: usize = 64;

const MAGIC: &[u8; 8] = b"INCOMJNL";
const VERSION: u32 = 2;
const FLAG_RELAXED: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: FileKey = FileKey { run: 0x0102, core: 3, generation: 0x0405 };
    const HEADER: Header = Header {
        key: KEY,
        core_count: 4,
        is_relaxed: true,
        snapshot_end_bytes: 8192,
        service_ms: 0x0607,
    };

    const BROKEN: Result<Header, HeaderError> = Err(HeaderError::Broken);
    const ANY: RangeInclusive<u64> = 0..=u64::MAX;

    /// Bit by bit, from the polynomial.
    fn naive_crc32c(bytes: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for byte in bytes {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
            }
        }
        !crc
    }

    fn header_block() -> Vec<u8> {
        let mut block = vec![0xff; BLOCK_BYTES as usize];
        HEADER.encode(&mut block);
        block
    }

    fn commit() -> Vec<u8> {
        let mut commit = vec![0xff; COMMIT_HEAD_BYTES];
        commit.extend_from_slice(b"records");
        KEY.seal(6, 0x0809, &mut commit);
        commit
    }

    #[test]
    fn every_byte_of_a_header_has_its_place() {
        let block = header_block();
        let mut expected = b"INCOMJNL----".to_vec();
        expected.extend([2, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 4, 0, 1, 0, 0, 0]);
        expected.extend([5, 4, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0]);
        expected.extend([7, 6, 0, 0, 0, 0, 0, 0]);
        expected.resize(BLOCK_BYTES as usize, 0);
        let checksum = naive_crc32c(&expected[12..64]);
        expected[8..12].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(block, expected);
        assert_eq!(Header::decode(&block), Ok(HEADER));
    }

    #[test]
    fn every_byte_of_a_commit_has_its_place() {
        let mut expected = vec![7, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 9, 8, 0, 0, 0, 0, 0, 0];
        expected.extend_from_slice(b"records");
        let mut summed = vec![2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 5, 4, 0, 0, 0, 0, 0, 0];
        summed.extend_from_slice(&expected);
        expected.splice(0..0, naive_crc32c(&summed).to_le_bytes());
        assert_eq!(commit(), expected);
        let found = KEY.commit(&expected, &(6..=6)).unwrap();
        let expected_commit = Commit { sequence: 6, service_ms: 0x0809, records: b"records" };
        assert_eq!(found, expected_commit);
        assert_eq!(KEY.commit(&expected, &(7..=9)), None);
    }

    #[test]
    fn no_changed_bit_and_no_cut_goes_unnoticed() {
        let block = header_block();
        for bit in 0..HEADER_BYTES * 8 {
            let mut flipped = block.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(&flipped), BROKEN, "bit {bit}");
        }
        let commit = commit();
        for bit in 0..commit.len() * 8 {
            let mut flipped = commit.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(KEY.commit(&flipped, &ANY), None, "bit {bit}");
        }
        for end in 0..commit.len() {
            assert_eq!(KEY.commit(&commit[..end], &ANY), None, "cut at {end}");
        }
        for end in 0..HEADER_BYTES {
            assert_eq!(Header::decode(&block[..end]), BROKEN, "cut at {end}");
        }
    }

    #[test]
    fn another_use_of_the_file_is_no_commit() {
        for key in [
            FileKey { run: 0, ..KEY },
            FileKey { core: 0, ..KEY },
            FileKey { generation: 0, ..KEY },
        ] {
            assert_eq!(key.commit(&commit(), &ANY), None);
        }
    }

    #[test]
    fn refuses_headers_that_say_what_cannot_be() {
        for header in [
            Header { core_count: 3, ..HEADER },
            Header { snapshot_end_bytes: 0, ..HEADER },
            Header { snapshot_end_bytes: 8193, ..HEADER },
        ] {
            let mut block = header_block();
            header.encode(&mut block);
            assert_eq!(Header::decode(&block), BROKEN, "{header:?}");
        }
    }

    #[test]
    fn another_version_is_not_damage() {
        let mut block = header_block();
        block[12] = 1;
        let checksum = naive_crc32c(&block[12..64]);
        block[8..12].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(Header::decode(&block), Err(HeaderError::OtherVersion));
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        let name = FileName { core: 12, side: Side::B };
        assert_eq!(name.to_string(), "12.b");
        assert_eq!(FileName::parse("12.b"), Some(name));
        for text in ["", "12", "12.c", "012.b", "+1.a", "65536.a", ".a", "1.a ", "1.aa"] {
            assert_eq!(FileName::parse(text), None, "{text}");
        }
    }
}
