use std::time::Duration;

use super::*;
use crate::op::Errno;
use crate::record::{RecordState, Stand};

fn id(number: u128) -> TicketId {
    TicketId(number)
}

fn new(number: u128, secret: &str) -> NewTicket {
    NewTicket { secret: secret.into(), ..NewTicket::new(id(number), "http://127.0.0.1/") }
}

fn with(new: NewTicket, state: State) -> Tickets {
    let mut tickets = Tickets::default();
    tickets.insert(Ticket::new(new)).state = state;
    tickets
}

fn arrived(phase: Telling) -> State {
    State::Telling { outcome: Outcome::Arrived { path: "/f".into() }, phase }
}

fn cancelled(phase: Telling) -> State {
    State::Telling { outcome: Outcome::Cancelled { reason: "r".into() }, phase }
}

#[test]
fn who_may_cancel_finish_and_retry_when() {
    use Standing::{Done, ToDo};
    use TicketError::{NotHandingOver, NotWaiting, NothingToRetry, TooLateToCancel, Unknown};
    let failed = |state| match state {
        State::Telling { outcome, .. } => State::Failed { outcome },
        _ => unreachable!(),
    };
    let gone = State::Cancelled { reason: "r".into() };
    let (no_retry, late) = (Err(NothingToRetry), Err(TooLateToCancel));
    let table = [
        (State::Issued, Ok(ToDo), Err(NotHandingOver), no_retry),
        (State::Receiving, Ok(ToDo), Err(NotHandingOver), no_retry),
        (State::Storing, late, Err(NotHandingOver), no_retry),
        (arrived(Telling::Calling), late, Err(NotWaiting), no_retry),
        (arrived(Telling::Waiting), late, Ok(ToDo), no_retry),
        (arrived(Telling::BackingOff), late, Ok(ToDo), Ok(())),
        (failed(arrived(Telling::Calling)), Ok(ToDo), Ok(ToDo), Ok(())),
        (cancelled(Telling::Calling), late, Err(NotHandingOver), no_retry),
        (cancelled(Telling::BackingOff), late, Err(NotHandingOver), Ok(())),
        (failed(cancelled(Telling::Calling)), Ok(ToDo), Err(NotHandingOver), Ok(())),
        (State::Finished, late, Ok(Done), no_retry),
        (gone, Ok(Done), Err(NotHandingOver), no_retry),
    ];
    for (state, cancel, finish, retry) in table {
        let tickets = with(new(1, "s"), state.clone());
        assert_eq!(tickets.check_cancel(id(1), "s"), cancel, "{state:?}");
        assert_eq!(tickets.check_finish(id(1), Some("s")), finish, "{state:?}");
        assert_eq!(tickets.check_retry(id(1), "s"), retry, "{state:?}");
        for wrong in ["t", "", "ss"] {
            assert_eq!(tickets.check_cancel(id(1), wrong), Err(TicketError::WrongSecret));
            assert_eq!(tickets.check_finish(id(1), Some(wrong)), Err(TicketError::WrongSecret));
            assert_eq!(tickets.check_retry(id(1), wrong), Err(TicketError::WrongSecret));
        }
        assert_eq!(tickets.check_finish(id(1), None), Err(TicketError::WrongSecret));
        assert_eq!(tickets.check_cancel(id(2), "s"), Err(Unknown));
        assert_eq!(tickets.check_finish(id(2), Some("s")), Err(Unknown));
        assert_eq!(tickets.check_retry(id(2), "s"), Err(Unknown));
    }
}

#[test]
fn who_has_waited_may_finish_while_it_is_asked_again() {
    let mut tickets = with(new(1, "s"), arrived(Telling::Calling));
    tickets.get_mut(id(1)).unwrap().telling.has_waited = true;
    assert_eq!(tickets.check_finish(id(1), Some("s")), Ok(Standing::ToDo));
}

#[test]
fn the_oldest_apps_finish_without_secret() {
    let ticket = NewTicket { finish_without_secret: true, ..new(1, "s") };
    let tickets = with(ticket, arrived(Telling::Waiting));
    assert_eq!(tickets.check_finish(id(1), None), Ok(Standing::ToDo));
    assert_eq!(tickets.check_finish(id(1), Some("t")), Err(TicketError::WrongSecret));
}

#[test]
fn deadlines_move_both_ways() {
    let now = Instant::now();
    let at = |seconds| now + Duration::from_secs(seconds);
    let mut tickets = Tickets::default();
    for number in [1, 2] {
        tickets.insert(Ticket::new(new(number, "")));
        tickets.set_deadline(id(number), Some(at(60)));
    }
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
fn what_is_over_keeps_no_url_and_no_name() {
    for over in [State::Finished, State::Cancelled { reason: "r".into() }] {
        let mut tickets = with(new(1, "s"), State::Receiving);
        let ticket = tickets.get_mut(id(1)).unwrap();
        ticket.filename_from_browser = "n".repeat(16_000);
        ticket.new.metadata = "m".repeat(4_000);
        ticket.telling.last_error = "e".into();
        ticket.on_over(over);
        let new = &ticket.new;
        let texts = [&ticket.filename_from_browser, &new.url, &new.metadata];
        assert!(texts.iter().all(|it| it.capacity() == 0));
        assert_eq!(ticket.telling, Default::default());
        assert_eq!(tickets.check_cancel(id(1), "t"), Err(TicketError::WrongSecret));
    }
}

#[test]
fn twenty_take_overs_a_minute() {
    let now = Instant::now();
    let at = |seconds| now + Duration::from_secs(seconds);
    let mut ticket = Ticket::new(new(1, ""));
    assert!((0..20).all(|it| ticket.on_take_over(at(it))));
    assert!(!ticket.on_take_over(at(59)));
    assert!(ticket.on_take_over(at(60)));
    assert!(!ticket.on_take_over(at(60)));
}

#[test]
fn a_restored_ticket_is_what_it_was() {
    let reason = || "r".to_owned();
    let (file, nothing) = (Outcome::Arrived { path: "/f".into() }, cancelled(Telling::Waiting));
    let arrived_as = |stand| RecordState::Arrived { stand };
    let table = [
        (State::Issued, RecordState::Issued),
        (State::Receiving, RecordState::Receiving),
        (arrived(Telling::BackingOff), arrived_as(Stand::Telling)),
        (arrived(Telling::Waiting), arrived_as(Stand::Waiting)),
        (State::Failed { outcome: file }, arrived_as(Stand::Failed)),
        (State::Finished, arrived_as(Stand::Told)),
        (nothing, RecordState::Cancelled { stand: Stand::Waiting, reason: reason() }),
        (
            State::Cancelled { reason: reason() },
            RecordState::Cancelled { stand: Stand::Told, reason: reason() },
        ),
    ];
    for (state, recorded) in table {
        let mut ticket = Ticket::new(NewTicket { owner_uid: Some(7), ..new(1, "s") });
        (ticket.state, ticket.length_bytes, ticket.active_at_ms) = (state.clone(), 100, 77);
        (ticket.telling.attempt, ticket.telling.has_waited) = (3, true);
        ticket.filename_from_browser = "n".into();
        let record = ticket.record(50);
        assert_eq!((&record.state, record.committed_bytes), (&recorded, 50));
        let mut after = Tickets::default();
        let restored = after.restore(record.clone(), "/f".into());
        assert_eq!((&restored.state, &restored.new), (&state, &ticket.new));
        assert_eq!(restored.is_recorded, state.is_over());
        assert_eq!(restored.record(50), record);
    }
}

/// What is in the middle of something begins that step again.
#[test]
fn what_was_under_way_is_begun_again() {
    for (state, restored) in [
        (State::Storing, State::Receiving),
        (arrived(Telling::Calling), arrived(Telling::BackingOff)),
    ] {
        let mut ticket = Ticket::new(new(1, "s"));
        ticket.state = state;
        assert_eq!(Tickets::default().restore(ticket.record(0), "/f".into()).state, restored);
    }
}

#[test]
fn the_third_failure_within_ten_minutes_is_the_last() {
    let now = Instant::now();
    let at = |seconds| now + Duration::from_secs(seconds);
    let mut ticket = Ticket::new(new(1, ""));
    assert_eq!(ticket.on_failure(at(0), Errno::EIO), AfterFailure::TryAgain);
    assert_eq!(ticket.on_failure(at(10), Errno::EIO), AfterFailure::TryAgain);
    assert_eq!(ticket.on_failure(at(605), Errno::EIO), AfterFailure::TryAgain);
    for shortage in [Errno::ENOSPC, Errno::EDQUOT, Errno::EMFILE, Errno::ENFILE] {
        assert_eq!(ticket.on_failure(at(606), shortage), AfterFailure::TryAgain);
    }
    assert_eq!(ticket.on_failure(at(606), Errno::EIO), AfterFailure::GiveUp);
}
