//! The files of a new run, before its cores start.

use super::format::{COMMIT_HEAD_BYTES, FileKey, Header, Side, blocks_bytes};
use super::{COMMIT_BYTES_MAX, CommitSync, FILE_BYTES_MIN, GENERATION_FIRST, LogStart};
use crate::limits::BLOCK_BYTES;
use crate::record::TicketRecord;

/// The bytes of a file that a new run begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewFile {
    /// For the first block. To be written and synced when the commits of all cores are.
    pub header: Vec<u8>,
    /// For what follows it. To be written and synced first.
    pub commits: Vec<u8>,
    sequence: u64,
    service_ms: u64,
}

impl NewFile {
    /// The beginning of a core's journal. `service_ms`: see [`crate::service`].
    pub fn new<'a>(
        core: u16,
        core_count: u16,
        run: u64,
        sync: CommitSync,
        service_ms: u64,
        tickets: impl IntoIterator<Item = &'a TicketRecord>,
    ) -> Self {
        let key = FileKey { run, core, generation: GENERATION_FIRST };
        let header = vec![0; BLOCK_BYTES as usize];
        let mut file = Self { header, commits: Vec::new(), sequence: 0, service_ms };
        let mut commit = vec![0; COMMIT_HEAD_BYTES];
        for ticket in tickets {
            if commit.len() + ticket.encoded_bytes() as usize > COMMIT_BYTES_MAX as usize {
                file.push(key, &mut commit);
            }
            ticket.encode(&mut commit);
        }
        if commit.len() > COMMIT_HEAD_BYTES {
            file.push(key, &mut commit);
        }
        let header = Header {
            key,
            core_count,
            is_relaxed: sync == CommitSync::StatesOnly,
            snapshot_end_bytes: file.end_bytes(),
            service_ms,
        };
        header.encode(&mut file.header);
        file
    }

    /// How large the file has to be, at least.
    pub fn file_bytes_min(&self) -> u64 {
        FILE_BYTES_MIN.max(self.end_bytes() + u64::from(COMMIT_BYTES_MAX))
    }

    /// Where the log goes on, in a file on this side.
    pub fn start(&self, side: Side, capacity_bytes: [u64; 2]) -> LogStart {
        LogStart { side, sequence: self.sequence, end_bytes: self.end_bytes(), capacity_bytes }
    }

    fn end_bytes(&self) -> u64 {
        u64::from(BLOCK_BYTES) + self.commits.len() as u64
    }

    fn push(&mut self, key: FileKey, commit: &mut Vec<u8>) {
        key.seal(self.sequence, self.service_ms, commit);
        self.sequence += 1;
        self.commits.extend_from_slice(commit);
        self.commits.resize(blocks_bytes(self.commits.len()) as usize, 0);
        commit.truncate(COMMIT_HEAD_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::ticket;
    use super::super::{FileName, JournalFile, recover};
    use super::*;

    #[test]
    fn takes_as_many_commits_as_it_needs() {
        for (count, commit_count) in [(0, 0), (1, 1), (210, 1), (230, 2), (2_000, 10)] {
            let tickets: Vec<_> = (0..count).map(|it| ticket(it, 500)).collect();
            let new = NewFile::new(0, 1, 1, CommitSync::Dsync, 77, &tickets);
            let start = new.start(Side::A, [1 << 21; 2]);
            assert_eq!(start.sequence, commit_count);
            assert_eq!(start.end_bytes, new.commits.len() as u64 + u64::from(BLOCK_BYTES));
            assert!(new.file_bytes_min() >= start.end_bytes + u64::from(COMMIT_BYTES_MAX));
            let bytes = [new.header, new.commits].concat();
            let name = FileName { core: 0, side: Side::A };
            let recovery = recover(&[JournalFile { name, bytes: &bytes }]);
            assert_eq!((recovery.tickets, recovery.damage), (tickets, vec![]));
            assert_eq!(recovery.service_ms, 77);
        }
    }
}
