//! What the server has said, and whether its disk would still say so after the worst.

use std::path::Path;

use engine::journal::Recovery;
use engine::record::{RecordState, Stand, TicketRecord};
use engine::ticket::TicketId;

use crate::disk::Disk;
use crate::start::recovered;
use crate::upload::{End, Plan, Upload};

impl Upload {
    /// The browser may forget everything below `end`.
    pub(crate) fn on_acked(&mut self, end: usize, disk: &Disk) {
        assert!(end <= self.sent, "only what was sent is acknowledged");
        let is_over = self.is_handed_over || self.is_waiting || self.is_cancelled();
        let from = self.acked.min(end) & !0xfff;
        match self.data(disk) {
            _ if self.may_have_lost(disk) => {}
            None => assert!(is_over, "acknowledged bytes are on the disk"),
            Some(data) => {
                assert!(data.len() >= end || is_over, "acknowledged bytes are on the disk");
                let end = end.min(data.len());
                assert!(data[from..end] == self.bytes[from..end], "acknowledged bytes are right");
            }
        }
        self.ack_count += 1;
        // Not each time, because it takes time.
        let is_looked_up = self.ack_count % LOOK_UP_EVERY == 1;
        if end > 0 && is_looked_up && !is_over && !self.may_have_lost(disk) {
            self.check_committed(end, disk);
        }
        if self.is_synced && !is_over {
            self.check_durable(from, end, disk);
        }
        self.acked = self.acked.max(end);
    }

    /// The browser is told to go on at `position`. When it connected, everything below `acked` was
    /// acknowledged.
    pub(crate) fn on_confirmed(&mut self, position: usize, acked: usize, disk: &Disk) {
        assert!(position <= self.sent, "nobody has sent so much");
        let has_lost = self.may_have_lost(disk);
        if position < acked {
            assert!(has_lost, "acknowledged bytes are asked for again");
            self.acked = position;
        }
        if let Some(data) = self.data(disk)
            && !has_lost
        {
            assert!(data[..position] == self.bytes[..position], "it goes on after what is there");
        }
        let is_over = self.is_handed_over || self.is_waiting || self.is_cancelled();
        if !is_over && !has_lost && position > 0 {
            self.check_committed(position, disk);
            if self.is_synced {
                self.check_durable(0, position, disk);
            }
        }
    }

    /// The web app has a ticket.
    pub(crate) fn check_known(&self, disk: &Disk) {
        let is_there = self.record(&recovered(disk, Disk::durable)).is_some();
        assert!(is_there || self.may_time_out, "a ticket that was given out is recorded");
    }

    /// The web app is told that it may have the file.
    pub(crate) fn check_arrived(&self, disk: &Disk) {
        let recovery = recovered(disk, Disk::durable);
        let state = self.record(&recovery).map(|it| &it.state);
        let is_right =
            matches!(state, Some(RecordState::Arrived { stand }) if *stand != Stand::Told);
        assert!(is_right, "what is handed over is recorded so: {state:?}");
    }

    /// Somebody is told that the web app has the file.
    pub(crate) fn check_finished(&self, disk: &Disk) {
        let recovery = recovered(disk, Disk::durable);
        let state = self.record(&recovery).map(|it| &it.state);
        let is_right = matches!(state, Some(&FINISHED));
        assert!(
            is_right || state.is_none() && self.may_time_out,
            "finished is recorded: {state:?}"
        );
    }

    /// Somebody is told that the upload is cancelled.
    pub(crate) fn check_cancelled(&self, disk: &Disk) {
        let recovery = recovered(disk, Disk::durable);
        let state = self.record(&recovery).map(|it| &it.state);
        let is_right = matches!(state, None | Some(RecordState::Cancelled { .. }));
        assert!(is_right, "cancelled is recorded: {state:?}");
    }

    /// The server has started, and this is what it knows.
    pub(crate) fn check_recovered(&mut self, recovery: &Recovery, disk: &Disk) {
        let record = self.record(recovery);
        let is_over = self.is_cancelled() || self.may_time_out || self.plan == Plan::SendTooMuch;
        let Some(record) = record else {
            let is_failed = disk.has_failed();
            assert!(is_over || is_failed || self.end.is_some(), "a ticket was forgotten: {self:?}");
            return;
        };
        let is_live = matches!(record.state, RecordState::Issued | RecordState::Receiving);
        let is_ended = self.was_cancelled_by_app
            || self.is_finish_known
            || matches!(self.end, Some(End::AllDone | End::Cancelled));
        assert!(!(is_live && is_ended), "what was over goes on: {record:?}");
        let is_taken_back = self.is_finish_known && record.state != FINISHED;
        assert!(!is_taken_back, "a file is handed over again: {record:?}");
        if is_live && !self.may_have_lost(disk) {
            let committed = record.committed_bytes as usize;
            let data = self.data(disk).unwrap_or_default();
            let (there, synced) = (data.len(), self.is_synced);
            assert!(
                data.get(..committed) == Some(&self.bytes[..committed]),
                "it lost bytes: {record:?}, {there} there, {synced}"
            );
            if committed < self.acked {
                let may_be_gone = self.record_may_be_gone(disk);
                assert!(may_be_gone, "acknowledged bytes are forgotten: {record:?}");
                self.acked = committed;
            }
        }
    }

    /// The power was cut: nothing is left of what was said without a sync.
    pub(crate) fn on_power_cut(&mut self) {
        if !self.is_synced {
            self.acked = 0;
        }
    }

    fn check_committed(&self, end: usize, disk: &Disk) {
        let recovery = if self.is_synced {
            recovered(disk, Disk::durable)
        } else {
            recovered(disk, Disk::data)
        };
        let record = self.record(&recovery);
        let is_right = match record.map(|it| &it.state) {
            None => self.may_time_out,
            Some(RecordState::Issued) => false,
            Some(RecordState::Receiving) => {
                record.unwrap().committed_bytes >= end as u64 || self.record_may_be_gone(disk)
            }
            // Meanwhile.
            Some(RecordState::Cancelled { .. } | RecordState::Arrived { .. }) => true,
        };
        assert!(is_right, "{end} is acknowledged and not recorded: {record:?}");
    }

    fn check_durable(&self, from: usize, end: usize, disk: &Disk) {
        let paths = [self.part_path(), self.arrived_path()];
        let bytes = &self.bytes[from..end];
        let is_safe = paths.iter().any(|it| disk.promises(it, from, bytes));
        let is_given_up = || {
            let recovery = recovered(disk, Disk::durable);
            let state = self.record(&recovery).map(|it| &it.state);
            matches!(state, Some(RecordState::Cancelled { .. }))
                || state.is_none() && self.may_time_out
        };
        assert!(is_safe || is_given_up(), "{from} to {end} is acknowledged and may be lost");
    }

    /// Without syncs, a failed one of its file takes bytes that were acknowledged.
    fn may_have_lost(&self, disk: &Disk) -> bool {
        let name = self.ticket.expect("a ticket").to_string();
        !self.is_synced && disk.has_lost(&name)
    }

    /// What the journal never synced goes with a sync that fails, until the journal has moved.
    fn record_may_be_gone(&self, disk: &Disk) -> bool {
        !self.is_synced && disk.has_failed()
    }

    pub(crate) fn record<'a>(&self, recovery: &'a Recovery) -> Option<&'a TicketRecord> {
        recovery.tickets.iter().find(|it| Some(it.new.id) == self.ticket)
    }
}

/// A file is about to be removed: nobody needs it any more, and that is recorded.
pub(crate) fn check_removal(path: &Path, disk: &Disk) {
    let name = path.file_name().and_then(|it| it.to_str()).expect("a name");
    let Some(id) = TicketId::parse(name) else { return };
    let recovery = recovered(disk, Disk::durable);
    let state = recovery.tickets.iter().find(|it| it.new.id == id).map(|it| &it.state);
    let is_needed = match state {
        None | Some(&FINISHED | RecordState::Cancelled { .. }) => false,
        // The server ended before it recorded that a browser has come, however far a small file has
        // got meanwhile. Nothing was acknowledged, and what the browser said of it is not known.
        Some(RecordState::Issued) => false,
        Some(RecordState::Receiving | RecordState::Arrived { .. }) => true,
    };
    assert!(!is_needed, "{path:?} is removed in state {state:?}");
}

const FINISHED: RecordState = RecordState::Arrived { stand: Stand::Told };

const LOOK_UP_EVERY: usize = 8;
