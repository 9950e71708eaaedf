//! One upload's life.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::handover::Outcome;
use crate::op::Errno;
use crate::record::{NewTicket, RecordState, Stand, TellingRecord, TicketRecord};
use crate::store::UploadKey;

/// See the module.
#[derive(Debug)]
pub struct Ticket {
    pub new: NewTicket,
    pub state: State,
    /// The file's name as the first browser gave it. Only data: it may hold anything.
    pub filename_from_browser: String,
    /// Of the file, as the browser declared it.
    pub length_bytes: u64,
    /// Its file, once a browser has come and until the file is given away or removed.
    pub upload: Option<UploadKey>,
    /// The connection that this upload belongs to now.
    pub client: Option<ClientKey>,
    /// When the state's own time is up: idle, next attempt, waiting for `finish_upload`.
    pub deadline: Option<Instant>,
    /// When something last happened to it: service time, in milliseconds.
    pub active_at_ms: u64,
    /// The tries to tell the web app.
    pub telling: TellingRecord,
    /// The journal has the record of an upload that is over.
    pub is_recorded: bool,
    /// When storage failed this upload.
    failures: Vec<Instant>,
    /// When connections took this upload from others, within the last minute.
    take_overs: Vec<Instant>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// No browser has come yet.
    Issued,
    /// A browser has come. It may be away again.
    Receiving,
    /// Everything is here and is being made durable.
    Storing,
    /// The web app is being told.
    Telling { outcome: Outcome, phase: Telling },
    /// The web app could not be told. Everything is kept, until somebody asks for another try.
    Failed { outcome: Outcome },
    /// The web app has the file. Remembered for those who come late, as is the next one.
    Finished,
    /// The upload was cancelled, and the web app knows.
    Cancelled { reason: String },
}

/// Where telling the web app stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telling {
    /// A request is under way.
    Calling,
    /// It said `wait`: it will call `finish_upload`.
    Waiting,
    /// It could not be told. Again at the deadline.
    BackingOff,
}

/// Names a connection of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientKey {
    pub slot: u32,
    pub generation: u32,
}

/// What storage trouble means for an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterFailure {
    /// The browser may come back and go on.
    TryAgain,
    GiveUp,
}

impl Ticket {
    /// One that no browser has come for.
    pub fn new(new: NewTicket) -> Self {
        Self {
            new,
            state: State::Issued,
            filename_from_browser: String::new(),
            length_bytes: 0,
            upload: None,
            client: None,
            deadline: None,
            active_at_ms: 0,
            telling: TellingRecord::default(),
            is_recorded: false,
            failures: Vec::new(),
            take_overs: Vec::new(),
        }
    }

    /// A ticket of an earlier run, as its journal has it. Its file lies at `path` if it has
    /// arrived.
    pub(super) fn restore(record: TicketRecord, path: PathBuf) -> Self {
        let over = |stand, outcome| match stand {
            Stand::Telling => State::Telling { outcome, phase: Telling::BackingOff },
            Stand::Waiting => State::Telling { outcome, phase: Telling::Waiting },
            Stand::Failed => State::Failed { outcome },
            Stand::Told => match outcome {
                Outcome::Arrived { .. } => State::Finished,
                Outcome::Cancelled { reason } => State::Cancelled { reason },
            },
        };
        let state = match record.state {
            RecordState::Issued => State::Issued,
            RecordState::Receiving => State::Receiving,
            RecordState::Arrived { stand } => over(stand, Outcome::Arrived { path }),
            RecordState::Cancelled { stand, reason } => over(stand, Outcome::Cancelled { reason }),
        };
        Self {
            is_recorded: state.is_over(),
            state,
            filename_from_browser: record.filename_from_browser,
            length_bytes: record.length_bytes,
            active_at_ms: record.active_at_ms,
            telling: record.telling,
            ..Self::new(record.new)
        }
    }

    /// What a restarted server has to know. `committed_bytes`: how much of the file is durable.
    pub fn record(&self, committed_bytes: u64) -> TicketRecord {
        TicketRecord {
            new: self.new.clone(),
            state: self.state.record(),
            filename_from_browser: self.filename_from_browser.clone(),
            length_bytes: self.length_bytes,
            committed_bytes,
            active_at_ms: self.active_at_ms,
            telling: self.telling.clone(),
        }
    }

    /// A connection wants to take the upload from another one. False: that happens too often, as
    /// when two tabs of a browser fight for it.
    pub fn on_take_over(&mut self, now: Instant) -> bool {
        self.take_overs.retain(|it| now.duration_since(*it) < TAKE_OVERS_WITHIN);
        let is_allowed = self.take_overs.len() < TAKE_OVERS_MAX;
        if is_allowed {
            self.take_overs.push(now);
        }
        is_allowed
    }

    /// The web app knows what became of the upload. What nobody will ask for any more is forgotten
    /// at once: such tickets are many, and browsers choose the names.
    pub fn on_over(&mut self, over: State) {
        assert!(over.is_over());
        self.state = over;
        self.telling = TellingRecord::default();
        self.filename_from_browser = String::new();
        let new = &mut self.new;
        // A file that is still to be removed has to be found, also after a restart.
        if self.state == State::Finished && !new.remove_when_finished {
            new.dest_dir = String::new();
        }
        for text in [&mut new.url, &mut new.metadata, &mut new.signing_secret] {
            *text = String::new();
        }
    }

    /// Storage failed this upload once more. A shortage is not the upload's failure.
    pub fn on_failure(&mut self, now: Instant, errno: Errno) -> AfterFailure {
        if errno.is_shortage() {
            return AfterFailure::TryAgain;
        }
        self.failures.retain(|it| now.duration_since(*it) < FAILURES_WITHIN);
        self.failures.push(now);
        if self.failures.len() >= FAILURES_MAX {
            AfterFailure::GiveUp
        } else {
            AfterFailure::TryAgain
        }
    }
}

impl State {
    /// Nothing happens to the upload any more; it is only remembered.
    pub fn is_over(&self) -> bool {
        matches!(self, Self::Finished | Self::Cancelled { .. })
    }

    fn record(&self) -> RecordState {
        let (outcome, stand) = match self {
            Self::Issued => return RecordState::Issued,
            Self::Receiving | Self::Storing => return RecordState::Receiving,
            Self::Finished => return RecordState::Arrived { stand: Stand::Told },
            Self::Cancelled { reason } => {
                return RecordState::Cancelled { stand: Stand::Told, reason: reason.clone() };
            }
            Self::Telling { outcome, phase: Telling::Waiting } => (outcome, Stand::Waiting),
            Self::Telling { outcome, .. } => (outcome, Stand::Telling),
            Self::Failed { outcome } => (outcome, Stand::Failed),
        };
        match outcome {
            Outcome::Arrived { .. } => RecordState::Arrived { stand },
            Outcome::Cancelled { reason } => {
                RecordState::Cancelled { stand, reason: reason.clone() }
            }
        }
    }
}

/// So often an upload may change its connection in this time while the older one is still there.
const TAKE_OVERS_MAX: usize = 20;
const TAKE_OVERS_WITHIN: Duration = Duration::from_secs(60);

/// This many storage failures within this time end an upload.
const FAILURES_MAX: usize = 3;
const FAILURES_WITHIN: Duration = Duration::from_secs(600);
