//! What a core knows of its tickets: who asked for them, how far they are, what comes next.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::handover::Outcome;
use crate::op::Errno;
use crate::record::{RecordState, TicketRecord};
use crate::store::UploadKey;
use crate::ticket::TicketId;
use crate::timer::Timers;

/// The tickets of one core, by id.
#[derive(Debug, Default)]
pub struct Tickets {
    map: HashMap<TicketId, Ticket>,
    timers: Timers<TicketId>,
}

/// What a web app asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTicket {
    pub id: TicketId,
    /// Where the outcome is told.
    pub url: String,
    pub secret: String,
    /// The secret came under its oldest name, `signalFinishSecret`. Apps of that age do not repeat
    /// it when they finish an upload.
    pub finish_without_secret: bool,
    pub remove_when_finished: bool,
    pub owner_uid: Option<u32>,
}

/// One upload's life.
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
    /// Attempts to tell the web app, the one under way included.
    pub attempt: u32,
    /// The web app once answered `wait`.
    pub has_waited: bool,
    /// The journal has the record of a finished upload.
    pub is_recorded: bool,
    /// When storage failed this upload.
    failures: Vec<Instant>,
    /// When connections took this upload from others, within the last minute.
    take_overs: VecDeque<Instant>,
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
    /// The web app has the file.
    Finished,
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

/// Why a web app's request for a ticket is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TicketError {
    Unknown,
    WrongSecret,
    TooLateToCancel,
    NotHandingOver,
    /// The answer to the callback has not come yet.
    NotWaiting,
}

/// What storage trouble means for an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterFailure {
    /// The browser may come back and go on.
    TryAgain,
    GiveUp,
}

impl Tickets {
    pub fn len(&self) -> usize {
        self.map.len()
    }

    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    pub fn insert(&mut self, now: Instant, new: NewTicket, idle_timeout: Duration) {
        let id = new.id;
        self.insert_ticket(Ticket::new(new));
        self.set_deadline(id, Some(now + idle_timeout));
    }

    /// A ticket of an earlier run, as its journal has it. Who restores it sets its deadline and
    /// gives it its file, which lies at `path` if it has arrived.
    pub fn restore(&mut self, record: TicketRecord, path: PathBuf) -> &mut Ticket {
        let id = record.id;
        let new = NewTicket {
            id,
            url: record.url,
            secret: record.secret,
            finish_without_secret: record.finish_without_secret,
            remove_when_finished: record.remove_when_finished,
            owner_uid: record.owner_uid,
        };
        let is_recorded = record.state == RecordState::Finished;
        let telling = |outcome| State::Telling { outcome, phase: Telling::BackingOff };
        self.insert_ticket(Ticket {
            state: match record.state {
                RecordState::Issued => State::Issued,
                RecordState::Receiving => State::Receiving,
                RecordState::Arrived => telling(Outcome::Arrived { path }),
                RecordState::Cancelled { reason } => telling(Outcome::Cancelled { reason }),
                RecordState::Finished => State::Finished,
            },
            filename_from_browser: record.filename_from_browser,
            length_bytes: record.length_bytes,
            attempt: record.attempt,
            has_waited: record.has_waited,
            is_recorded,
            ..Ticket::new(new)
        });
        self.map.get_mut(&id).expect("just inserted")
    }

    fn insert_ticket(&mut self, ticket: Ticket) {
        let previous = self.map.insert(ticket.new.id, ticket);
        assert!(previous.is_none(), "ids are drawn from 122 random bits");
    }

    pub fn get(&self, id: TicketId) -> Option<&Ticket> {
        self.map.get(&id)
    }

    pub fn get_mut(&mut self, id: TicketId) -> Option<&mut Ticket> {
        self.map.get_mut(&id)
    }

    pub fn remove(&mut self, id: TicketId) -> Option<Ticket> {
        self.map.remove(&id)
    }

    /// When the ticket is to be looked at again.
    pub fn set_deadline(&mut self, id: TicketId, deadline: Option<Instant>) {
        let Some(ticket) = self.map.get_mut(&id) else { return };
        let earlier = ticket.deadline.is_none_or(|old| deadline.is_some_and(|new| new < old));
        let is_first = ticket.deadline.is_none();
        ticket.deadline = deadline;
        // A later deadline needs no new entry: the old one puts itself back when it fires.
        if let (Some(at), true) = (deadline, earlier || is_first) {
            self.timers.insert(at, id);
        }
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// The next ticket whose deadline has passed. Its deadline is then none.
    pub fn pop_due(&mut self, now: Instant) -> Option<TicketId> {
        while let Some(id) = self.timers.pop_due(now) {
            let Some(ticket) = self.map.get_mut(&id) else { continue };
            match ticket.deadline {
                Some(at) if at <= now => {
                    ticket.deadline = None;
                    return Some(id);
                }
                Some(at) => self.timers.insert(at, id),
                None => {}
            }
        }
        None
    }

    /// The web app wants the upload to end.
    pub fn check_cancel(&self, id: TicketId, secret: &str) -> Result<(), TicketError> {
        let ticket = self.map.get(&id).ok_or(TicketError::Unknown)?;
        if !is_same_secret(&ticket.new.secret, secret) {
            return Err(TicketError::WrongSecret);
        }
        match ticket.state {
            State::Issued | State::Receiving => Ok(()),
            State::Storing | State::Telling { .. } | State::Finished => {
                Err(TicketError::TooLateToCancel)
            }
        }
    }

    /// The web app has the file, after it had answered `wait`.
    pub fn check_finish(&self, id: TicketId, secret: Option<&str>) -> Result<(), TicketError> {
        let ticket = self.map.get(&id).ok_or(TicketError::Unknown)?;
        let is_allowed = match secret {
            None if ticket.new.finish_without_secret => true,
            secret => is_same_secret(&ticket.new.secret, secret.unwrap_or("")),
        };
        if !is_allowed {
            return Err(TicketError::WrongSecret);
        }
        match &ticket.state {
            State::Telling { outcome: Outcome::Arrived { .. }, phase } => match phase {
                // Asked again after its `wait` ran out, it may finish as before.
                Telling::Calling if ticket.has_waited => Ok(()),
                Telling::Calling => Err(TicketError::NotWaiting),
                // Also when the last attempt failed: it says it has the file, so it was told.
                Telling::Waiting | Telling::BackingOff => Ok(()),
            },
            _ => Err(TicketError::NotHandingOver),
        }
    }
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
            attempt: 0,
            has_waited: false,
            is_recorded: false,
            failures: Vec::new(),
            take_overs: VecDeque::new(),
        }
    }

    /// What a restarted server has to know. `committed_bytes`: how much of the file is durable.
    pub fn record(&self, committed_bytes: u64) -> TicketRecord {
        let state = match &self.state {
            State::Issued => RecordState::Issued,
            State::Receiving | State::Storing => RecordState::Receiving,
            State::Telling { outcome: Outcome::Arrived { .. }, .. } => RecordState::Arrived,
            State::Telling { outcome: Outcome::Cancelled { reason }, .. } => {
                RecordState::Cancelled { reason: reason.clone() }
            }
            State::Finished => RecordState::Finished,
        };
        TicketRecord {
            id: self.new.id,
            state,
            url: self.new.url.clone(),
            secret: self.new.secret.clone(),
            finish_without_secret: self.new.finish_without_secret,
            remove_when_finished: self.new.remove_when_finished,
            owner_uid: self.new.owner_uid,
            filename_from_browser: self.filename_from_browser.clone(),
            length_bytes: self.length_bytes,
            committed_bytes,
            attempt: self.attempt,
            has_waited: self.has_waited,
        }
    }

    /// A connection wants to take the upload from another one. False: that happens too often, as
    /// when two tabs of a browser fight for it.
    pub fn on_take_over(&mut self, now: Instant) -> bool {
        let is_recent = |it: &Instant| now.duration_since(*it) < TAKE_OVERS_WITHIN;
        while self.take_overs.front().is_some_and(|it| !is_recent(it)) {
            self.take_overs.pop_front();
        }
        let is_allowed = self.take_overs.len() < TAKE_OVERS_MAX;
        if is_allowed {
            self.take_overs.push_back(now);
        }
        is_allowed
    }

    /// The web app has the file. What nobody will ask for any more is forgotten at once: finished
    /// tickets are many, and browsers choose the names.
    pub fn on_finished(&mut self) {
        self.state = State::Finished;
        self.new.url = String::new();
        self.filename_from_browser = String::new();
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

/// Compares without telling by its time how much was right.
fn is_same_secret(expected: &str, given: &str) -> bool {
    let differing = expected.bytes().zip(given.bytes()).fold(0, |sum, (a, b)| sum | (a ^ b));
    expected.len() == given.len() && std::hint::black_box(differing) == 0
}

/// So often an upload may change its connection in this time while the older one is still there.
const TAKE_OVERS_MAX: usize = 20;
const TAKE_OVERS_WITHIN: Duration = Duration::from_secs(60);

/// This many storage failures within this time end an upload.
const FAILURES_MAX: usize = 3;
const FAILURES_WITHIN: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(60);

    fn id(number: u128) -> TicketId {
        TicketId(number)
    }

    fn new(number: u128, secret: &str) -> NewTicket {
        NewTicket {
            id: id(number),
            url: "http://127.0.0.1/".into(),
            secret: secret.into(),
            finish_without_secret: false,
            remove_when_finished: true,
            owner_uid: None,
        }
    }

    fn arrived(phase: Telling) -> State {
        State::Telling { outcome: Outcome::Arrived { path: "/f".into() }, phase }
    }

    fn cancelled(phase: Telling) -> State {
        State::Telling { outcome: Outcome::Cancelled { reason: "r".into() }, phase }
    }

    #[test]
    fn who_may_cancel_and_finish_when() {
        use TicketError::{NotHandingOver, NotWaiting, TooLateToCancel};
        let table = [
            (State::Issued, Ok(()), Err(NotHandingOver)),
            (State::Receiving, Ok(()), Err(NotHandingOver)),
            (State::Storing, Err(TooLateToCancel), Err(NotHandingOver)),
            (arrived(Telling::Calling), Err(TooLateToCancel), Err(NotWaiting)),
            (arrived(Telling::Waiting), Err(TooLateToCancel), Ok(())),
            (arrived(Telling::BackingOff), Err(TooLateToCancel), Ok(())),
            (cancelled(Telling::Calling), Err(TooLateToCancel), Err(NotHandingOver)),
            (State::Finished, Err(TooLateToCancel), Err(NotHandingOver)),
        ];
        for (state, cancel, finish) in table {
            let mut tickets = Tickets::default();
            tickets.insert(Instant::now(), new(1, "s"), IDLE);
            tickets.get_mut(id(1)).unwrap().state = state.clone();
            assert_eq!(tickets.check_cancel(id(1), "s"), cancel, "{state:?}");
            assert_eq!(tickets.check_finish(id(1), Some("s")), finish, "{state:?}");
            assert_eq!(tickets.check_cancel(id(1), "t"), Err(TicketError::WrongSecret));
            assert_eq!(tickets.check_cancel(id(1), ""), Err(TicketError::WrongSecret));
            assert_eq!(tickets.check_finish(id(1), None), Err(TicketError::WrongSecret));
            assert_eq!(tickets.check_cancel(id(2), "s"), Err(TicketError::Unknown));
            assert_eq!(tickets.check_finish(id(2), Some("s")), Err(TicketError::Unknown));
        }
    }

    #[test]
    fn who_has_waited_may_finish_while_it_is_asked_again() {
        let mut tickets = Tickets::default();
        tickets.insert(Instant::now(), new(1, "s"), IDLE);
        let ticket = tickets.get_mut(id(1)).unwrap();
        ticket.state = arrived(Telling::Calling);
        ticket.has_waited = true;
        assert_eq!(tickets.check_finish(id(1), Some("s")), Ok(()));
    }

    #[test]
    fn the_oldest_apps_finish_without_secret() {
        let mut tickets = Tickets::default();
        let ticket = NewTicket { finish_without_secret: true, ..new(1, "s") };
        tickets.insert(Instant::now(), ticket, IDLE);
        tickets.get_mut(id(1)).unwrap().state = arrived(Telling::Waiting);
        assert_eq!(tickets.check_finish(id(1), None), Ok(()));
        assert_eq!(tickets.check_finish(id(1), Some("t")), Err(TicketError::WrongSecret));
    }

    #[test]
    fn deadlines_move_both_ways() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let mut tickets = Tickets::default();
        tickets.insert(now, new(1, ""), IDLE);
        tickets.insert(now, new(2, ""), IDLE);
        tickets.set_deadline(id(1), Some(at(100)));
        tickets.set_deadline(id(2), Some(at(10)));
        assert_eq!(tickets.pop_due(at(9)), None);
        assert_eq!(tickets.pop_due(at(10)), Some(id(2)));
        assert_eq!(tickets.pop_due(at(60)), None);
        assert_eq!(tickets.poll_timeout(), Some(at(100)));
        assert_eq!(tickets.pop_due(at(100)), Some(id(1)));
        assert_eq!(tickets.pop_due(at(1000)), None);
    }

    #[test]
    fn a_finished_ticket_keeps_no_url_and_no_name() {
        let mut tickets = Tickets::default();
        let url = "http://app/".into();
        tickets.insert(Instant::now(), NewTicket { url, ..new(1, "s") }, IDLE);
        let ticket = tickets.get_mut(id(1)).unwrap();
        ticket.filename_from_browser = "n".repeat(16_000);
        ticket.on_finished();
        assert_eq!((ticket.filename_from_browser.capacity(), ticket.new.url.capacity()), (0, 0));
        assert_eq!(tickets.check_cancel(id(1), "s"), Err(TicketError::TooLateToCancel));
        assert_eq!(tickets.check_cancel(id(1), "t"), Err(TicketError::WrongSecret));
    }

    #[test]
    fn twenty_take_overs_a_minute() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let mut tickets = Tickets::default();
        tickets.insert(now, new(1, ""), IDLE);
        let ticket = tickets.get_mut(id(1)).unwrap();
        assert!((0..20).all(|it| ticket.on_take_over(at(it))));
        assert!(!ticket.on_take_over(at(59)));
        assert!(ticket.on_take_over(at(60)));
        assert!(!ticket.on_take_over(at(60)));
    }

    #[test]
    fn a_restored_ticket_is_what_it_was() {
        let now = Instant::now();
        let states = [
            State::Issued,
            State::Receiving,
            arrived(Telling::BackingOff),
            cancelled(Telling::BackingOff),
            State::Finished,
        ];
        for state in states {
            let mut before = Tickets::default();
            before.insert(now, NewTicket { owner_uid: Some(7), ..new(1, "s") }, IDLE);
            let ticket = before.get_mut(id(1)).unwrap();
            (ticket.state, ticket.length_bytes) = (state.clone(), 100);
            (ticket.attempt, ticket.has_waited) = (3, true);
            ticket.filename_from_browser = "n".into();
            let record = ticket.record(50);
            assert_eq!(record.committed_bytes, 50);
            let mut after = Tickets::default();
            let restored = after.restore(record.clone(), "/f".into());
            assert_eq!((&restored.state, &restored.new), (&state, &ticket.new));
            assert_eq!(restored.record(50), record);
        }
    }

    #[test]
    fn the_third_failure_within_ten_minutes_is_the_last() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let mut tickets = Tickets::default();
        tickets.insert(now, new(1, ""), IDLE);
        let ticket = tickets.get_mut(id(1)).unwrap();
        assert_eq!(ticket.on_failure(at(0), Errno::EIO), AfterFailure::TryAgain);
        assert_eq!(ticket.on_failure(at(10), Errno::EIO), AfterFailure::TryAgain);
        assert_eq!(ticket.on_failure(at(605), Errno::EIO), AfterFailure::TryAgain);
        for shortage in [Errno::ENOSPC, Errno::EDQUOT, Errno::EMFILE, Errno::ENFILE] {
            assert_eq!(ticket.on_failure(at(606), shortage), AfterFailure::TryAgain);
        }
        assert_eq!(ticket.on_failure(at(606), Errno::EIO), AfterFailure::GiveUp);
    }
}
