//! What is known of one upload, and so what a client may and may not be told.

use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Instant;

use engine::ticket::TicketId;

use crate::disk::Disk;
use crate::rng::Rng;

#[derive(Clone, Debug)]
pub(crate) struct Upload {
    pub(crate) bytes: &'static [u8],
    /// Once the web app has it.
    pub(crate) ticket: Option<TicketId>,
    pub(crate) is_removed_when_finished: bool,
    /// Its file is to arrive where its web app wants it.
    pub(crate) has_dest_dir: bool,
    pub(crate) plan: Plan,
    /// The largest message that its browser sends.
    pub(crate) chunk_bytes_max: usize,
    /// Acknowledged bytes survive a power cut.
    pub(crate) is_synced: bool,
    /// Bytes that the browser was told to forget.
    pub(crate) acked: usize,
    pub(crate) ack_count: usize,
    /// Bytes that any connection has sent.
    pub(crate) sent: usize,
    /// Its first connection may send bytes before it is told where to begin: there is no other.
    pub(crate) may_pipeline: bool,
    pub(crate) was_cancelled_by_browser: bool,
    /// The web app wants to cancel it. The answer may still be on its way.
    pub(crate) was_cancel_asked: bool,
    /// And the server has agreed.
    pub(crate) was_cancelled_by_app: bool,
    /// The web app was told of an end without a file, and why.
    pub(crate) cancel_told: Option<String>,
    pub(crate) has_arrived: bool,
    /// The web app has taken the file, or has said so.
    pub(crate) is_handed_over: bool,
    /// And has moved it to a place of its own.
    pub(crate) is_taken_away: bool,
    /// And the server has said that it knows.
    pub(crate) is_finish_known: bool,
    /// The running server was told so.
    pub(crate) is_done_heard: bool,
    /// The server ended while it was told something: it may not know.
    pub(crate) was_cut_off: bool,
    /// When its web app asks for a ticket again, or its browser comes back.
    pub(crate) back_at: Option<Instant>,
    /// The web app has taken the file, and its answer was lost.
    pub(crate) was_unheard: bool,
    /// The web app will ask to finish it.
    pub(crate) is_waiting: bool,
    /// Tickets are short-lived in this run.
    pub(crate) may_time_out: bool,
    /// Answers of the web app that are not what they should be.
    pub(crate) failed_answers_left: u32,
    /// Until then it does not answer at all.
    pub(crate) app_dead_until: Option<Instant>,
    /// Of the last callback.
    pub(crate) attempt: u32,
    /// Callbacks, all in all.
    pub(crate) call_count: u32,
    /// The server has little patience with web apps.
    pub(crate) may_be_given_up: bool,
    /// What the browser knows in the end.
    pub(crate) end: Option<End>,
}

/// What is to happen on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    Finish,
    /// Once it has sent so many bytes.
    CancelByBrowser(usize),
    CancelByApp(usize),
    /// Its last message is longer than the file.
    SendTooMuch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    AllDone,
    Cancelled,
    /// `MsgError` with this code.
    Refused(u64),
}

impl Upload {
    pub(crate) fn new(rng: &mut Rng, length_max: usize) -> Self {
        let length = if rng.chance(8) { 0 } else { rng.below(length_max + 1) };
        let start = rng.below(FILES.len() - length);
        let at = rng.below(length + 1);
        let plan = match rng.below(10) {
            0 if length > 0 => Plan::CancelByBrowser(at.min(length - 1)),
            1 => Plan::CancelByApp(at),
            2 if length > 0 && rng.chance(50) => Plan::SendTooMuch,
            _ => Plan::Finish,
        };
        Self {
            bytes: &FILES[start..start + length],
            ticket: None,
            is_removed_when_finished: rng.chance(50),
            has_dest_dir: rng.chance(30),
            plan,
            chunk_bytes_max: (length / rng.within(1..30)).clamp(100, 1 << 20),
            is_synced: false,
            acked: 0,
            ack_count: 0,
            sent: 0,
            may_pipeline: false,
            was_cancelled_by_browser: false,
            was_cancel_asked: false,
            was_cancelled_by_app: false,
            cancel_told: None,
            has_arrived: false,
            is_handed_over: false,
            is_taken_away: false,
            is_finish_known: false,
            is_done_heard: false,
            was_cut_off: false,
            back_at: None,
            was_unheard: false,
            is_waiting: false,
            may_time_out: false,
            failed_answers_left: rng.pick(&[0, 1, 2, 6]),
            app_dead_until: None,
            attempt: 0,
            call_count: 0,
            may_be_given_up: false,
            end: None,
        }
    }

    /// As ops name it.
    pub(crate) fn part_path(&self) -> PathBuf {
        PathBuf::from("parts").join(self.ticket.unwrap().to_string())
    }

    pub(crate) fn arrived_path(&self) -> PathBuf {
        let directory = if self.has_dest_dir { DEST_DIR } else { "arrived" };
        PathBuf::from(directory).join(self.ticket.unwrap().to_string())
    }

    /// What lies on the disk, as long as it has to.
    pub(crate) fn data<'a>(&self, disk: &'a Disk) -> Option<&'a [u8]> {
        disk.data(&self.part_path()).or_else(|| disk.data(&self.arrived_path()))
    }

    pub(crate) fn on_error(&mut self, code: u64, disk: &Disk) {
        let is_right = match code {
            // It comes back.
            NO_ROOM => return assert!(disk.has_failed()),
            STORAGE_FAILED => disk.has_failed(),
            // One that sent too much may not have heard so.
            TICKET_UNKNOWN | UPLOAD_OVER => {
                self.is_cancelled() || self.may_time_out || self.plan == Plan::SendTooMuch
            }
            FILE_LONGER_THAN_DECLARED => self.plan == Plan::SendTooMuch,
            CANCELLED_BY_BACKEND => self.was_cancel_asked,
            HANDOVER_FAILED => self.has_arrived && self.may_be_given_up,
            _ => false,
        };
        assert!(is_right, "MsgError {code} for {:?}, {:?}", self.ticket, self.plan);
        self.end = Some(End::Refused(code));
    }

    /// The web app has nothing to wait for any more.
    pub(crate) fn is_app_content(&self) -> bool {
        self.is_handed_over || !self.has_arrived
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.was_cancel_asked || self.cancel_told.is_some() || self.was_cancelled_by_browser
    }
}

/// Every file is a piece of this.
static FILES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut rng = Rng::new(1);
    (0..1 << 19).flat_map(|_| rng.next().to_le_bytes()).collect()
});

pub(crate) const DEST_ROOT: &str = "/app";
pub(crate) const DEST_DIR: &str = "/app/files";
pub(crate) const STORAGE_DIR: &str = "/storage";

const FILE_LONGER_THAN_DECLARED: u64 = 105;
const STORAGE_FAILED: u64 = 200;
const NO_ROOM: u64 = 201;
const TICKET_UNKNOWN: u64 = 300;
const UPLOAD_OVER: u64 = 301;
const CANCELLED_BY_BACKEND: u64 = 302;
pub(crate) const HANDOVER_FAILED: u64 = 400;
