//! The offsets of one upload: what has come, what is stored how safely, what the client was told.

use std::collections::VecDeque;

/// Pure: no clock, no file, no socket.
///
/// Invariant: `acked <= committed <= durable <= written <= received <= length`.
///
/// `durable` is as safe as the server was configured: on the medium, or in the kernel's hands.
/// `committed` is what the journal says, as safely. A restarted server goes on from there, so no
/// acknowledgement goes beyond it.
#[derive(Debug)]
pub struct Upload {
    length: u64,
    received: u64,
    written: u64,
    durable: u64,
    committed: u64,
    acked: u64,
    /// Writes that were started, in the order of their offsets. A later one may end first.
    pending: VecDeque<Pending>,
    write_next: u32,
}

#[derive(Debug)]
struct Pending {
    write: u32,
    end: u64,
    is_done: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendError {
    /// More bytes than the client declared.
    PastLength,
}

impl Upload {
    pub fn new(length: u64) -> Self {
        Self::restored(length, 0)
    }

    /// As the journal of an earlier run has it.
    pub fn restored(length: u64, committed: u64) -> Self {
        assert!(committed <= length, "no more than declared");
        Self {
            length,
            received: committed,
            written: committed,
            durable: committed,
            committed,
            acked: committed,
            pending: VecDeque::new(),
            write_next: 0,
        }
    }

    /// Accepts `count` bytes at the end of what has been received.
    pub fn on_received(&mut self, count: u64) -> Result<(), AppendError> {
        if count > self.length - self.received {
            return Err(AppendError::PastLength);
        }
        self.received += count;
        self.check();
        Ok(())
    }

    /// A write of everything up to `end` was given to the kernel. Returns its number.
    pub fn on_write_started(&mut self, end: u64) -> u32 {
        assert!(end <= self.received);
        assert!(self.pending.back().is_none_or(|it| it.end <= end), "writes start in order");
        let write = self.write_next;
        self.write_next = self.write_next.wrapping_add(1);
        self.pending.push_back(Pending { write, end, is_done: false });
        write
    }

    /// The write ended well. True if `written` grew.
    pub fn on_written(&mut self, write: u32) -> bool {
        let pending = self.pending.iter_mut().find(|it| it.write == write);
        let pending = pending.expect("a completion names a write in flight");
        assert!(!pending.is_done);
        pending.is_done = true;
        let before = self.written;
        while self.pending.front().is_some_and(|it| it.is_done) {
            let end = self.pending.pop_front().expect("there is a front").end;
            self.written = self.written.max(end);
        }
        self.check();
        self.written > before
    }

    /// Everything below `offset` is as safe as configured. True if `durable` grew.
    pub fn on_durable(&mut self, offset: u64) -> bool {
        let before = self.durable;
        self.durable = self.durable.max(offset);
        self.check();
        self.durable > before
    }

    /// The journal's record that everything below `offset` is durable is durable itself.
    pub fn on_committed(&mut self, offset: u64) {
        self.committed = self.committed.max(offset);
        self.check();
    }

    /// The client was told that it may forget everything below `offset`.
    pub fn on_acked(&mut self, offset: u64) {
        self.acked = self.acked.max(offset);
        self.check();
    }

    /// Forgets what is not durable. Its client sends it again.
    pub fn roll_back(&mut self) {
        self.received = self.durable;
        self.written = self.durable;
        self.pending.clear();
        self.check();
    }

    /// Forgets everything, also what was acknowledged: the disk has lost some of it. The client
    /// sends it all again.
    pub fn start_over(&mut self) {
        (self.acked, self.committed, self.durable) = (0, 0, 0);
        self.roll_back();
    }

    /// Another length, while nothing has been received.
    pub fn set_length(&mut self, length: u64) {
        assert_eq!(self.received, 0);
        self.length = length;
    }

    pub fn length(&self) -> u64 {
        self.length
    }

    pub fn received(&self) -> u64 {
        self.received
    }

    pub fn written(&self) -> u64 {
        self.written
    }

    pub fn durable(&self) -> u64 {
        self.durable
    }

    pub fn committed(&self) -> u64 {
        self.committed
    }

    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// Bytes that are still to come.
    pub fn remaining(&self) -> u64 {
        self.length - self.received
    }

    /// Nothing is left to receive, to write or to record.
    pub fn is_complete(&self) -> bool {
        self.committed == self.length
    }

    fn check(&self) {
        assert!(self.acked <= self.committed, "acknowledged bytes are recorded");
        assert!(self.committed <= self.durable, "recorded bytes are durable");
        assert!(self.durable <= self.written, "durable bytes are written");
        assert!(self.written <= self.received, "written bytes were received");
        assert!(self.received <= self.length, "no more than declared");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_is_a_prefix() {
        let mut upload = Upload::new(300);
        upload.on_received(300).unwrap();
        let writes: Vec<u32> = [100, 200, 300].map(|it| upload.on_write_started(it)).into();
        assert!(!upload.on_written(writes[1]));
        assert_eq!(upload.written(), 0);
        assert!(upload.on_written(writes[0]));
        assert_eq!(upload.written(), 200);
        assert!(upload.on_written(writes[2]));
        assert_eq!(upload.written(), 300);
    }

    #[test]
    fn nothing_is_acknowledged_before_it_is_recorded() {
        let mut upload = Upload::new(300);
        upload.on_received(300).unwrap();
        let write = upload.on_write_started(300);
        upload.on_written(write);
        assert!(upload.on_durable(200));
        assert!(!upload.on_durable(200));
        upload.on_committed(200);
        upload.on_acked(200);
        assert!(!upload.is_complete());
        upload.on_durable(300);
        upload.on_committed(300);
        assert!(upload.is_complete());
    }

    #[test]
    fn goes_on_where_an_earlier_run_was() {
        let mut upload = Upload::restored(300, 120);
        assert_eq!((upload.received(), upload.acked(), upload.remaining()), (120, 120, 180));
        upload.on_received(180).unwrap();
        let write = upload.on_write_started(300);
        assert!(upload.on_written(write));
    }

    #[test]
    fn refuses_more_than_declared() {
        let mut upload = Upload::new(10);
        upload.on_received(10).unwrap();
        upload.on_received(0).unwrap();
        assert_eq!(upload.on_received(1), Err(AppendError::PastLength));
        assert_eq!(Upload::new(0).on_received(u64::MAX), Err(AppendError::PastLength));
    }

    #[test]
    fn rolls_back_to_what_is_durable() {
        let mut upload = Upload::new(300);
        upload.on_received(250).unwrap();
        let writes = [100, 200, 250].map(|it| upload.on_write_started(it));
        upload.on_written(writes[0]);
        upload.on_durable(100);
        upload.on_written(writes[1]);
        upload.roll_back();
        assert_eq!((upload.received(), upload.written(), upload.durable()), (100, 100, 100));
    }

    #[test]
    fn starts_over_when_the_disk_lost_bytes() {
        let mut upload = Upload::new(300);
        upload.on_received(300).unwrap();
        let write = upload.on_write_started(300);
        upload.on_written(write);
        upload.on_durable(300);
        upload.on_committed(300);
        upload.on_acked(300);
        upload.start_over();
        assert_eq!((upload.received(), upload.written(), upload.acked()), (0, 0, 0));
        assert_eq!((upload.durable(), upload.committed()), (0, 0));
    }

    #[test]
    #[should_panic(expected = "acknowledged bytes are recorded")]
    fn an_early_ack_is_our_bug() {
        let mut upload = Upload::new(300);
        upload.on_received(10).unwrap();
        let write = upload.on_write_started(10);
        upload.on_written(write);
        upload.on_durable(10);
        upload.on_acked(10);
    }
}
