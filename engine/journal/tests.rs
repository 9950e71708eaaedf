use std::collections::BTreeMap;

use super::*;
use crate::buffer::Slice;
use crate::record::{NewTicket, RecordState};

/// A journal whose ops are looked at one by one.
struct Bench {
    journal: Journal<()>,
    memory: Memory,
    tickets: Tickets,
    now: Instant,
}

#[derive(Default)]
struct Tickets(BTreeMap<TicketId, TicketRecord>);

impl Source for Tickets {
    fn ticket(&self, id: TicketId) -> Option<TicketRecord> {
        self.0.get(&id).cloned()
    }

    fn service_ms(&self) -> u64 {
        0
    }
}

impl Bench {
    fn new(sync: CommitSync) -> Self {
        let mut bench = Self::closed(sync);
        for token in bench.turn().iter().map(|it| it.0) {
            bench.end(token, Ok(Output::Done));
        }
        bench
    }

    fn closed(sync: CommitSync) -> Self {
        let file = NewFile::new(0, 1, 1, sync, 0, []);
        let config = JournalConfig {
            core: 0,
            core_count: 1,
            run: 1,
            sync,
            region: Slice { start: 0, length: REGION_BYTES },
            start: file.start(Side::A, [FILE_BYTES_MIN; 2]),
        };
        let journal = Journal::new(config, &[]);
        let memory = Memory::new(REGION_BYTES as usize).unwrap();
        Self { journal, memory, tickets: Tickets::default(), now: Instant::now() }
    }

    fn turn(&mut self) -> Vec<(Token, Op<()>)> {
        let poll = || self.journal.poll_op(&mut self.memory, &self.tickets);
        std::iter::from_fn(poll).collect()
    }

    /// The one op of this turn.
    fn op(&mut self) -> (Token, Op<()>) {
        let mut ops = self.turn();
        assert_eq!(ops.len(), 1, "{ops:?}");
        ops.remove(0)
    }

    fn end(&mut self, token: Token, result: Result<Output, Errno>) {
        self.journal.on_completion(self.now, Completion { token, result });
    }

    /// Ends a write as a whole.
    fn end_write(&mut self, (token, op): (Token, Op<()>)) {
        let Op::Write { bytes, .. } = op else { panic!("{op:?}") };
        self.end(token, Ok(Output::Bytes(bytes.length)));
    }

    fn events(&mut self) -> Vec<JournalEvent> {
        std::iter::from_fn(|| self.journal.poll_event()).collect()
    }

    fn note(&mut self, number: u128, filename_bytes: usize) -> Position {
        let ticket = ticket(number, filename_bytes);
        let position = self.journal.note_ticket(&ticket);
        self.tickets.0.insert(ticket.new.id, ticket);
        position
    }

    fn note_offset(&mut self, number: u128, committed_bytes: u64) {
        let id = TicketId(number);
        self.tickets.0.get_mut(&id).unwrap().committed_bytes = committed_bytes;
        self.journal.note_offset(id);
    }

    /// Completes everything until nothing more is asked for; `answer` may refuse an op.
    fn run(&mut self, answer: impl Fn(&Op<()>) -> Option<Errno>) {
        loop {
            let ops = self.turn();
            if ops.is_empty() {
                return;
            }
            for (token, op) in ops {
                let done = match &op {
                    Op::Write { bytes, .. } => Output::Bytes(bytes.length),
                    _ => Output::Done,
                };
                self.end(token, answer(&op).map_or(Ok(done), Err));
            }
        }
    }
}

pub(super) fn ticket(number: u128, filename_bytes: usize) -> TicketRecord {
    TicketRecord {
        state: RecordState::Receiving,
        filename_from_browser: "n".repeat(filename_bytes),
        length_bytes: 1 << 40,
        ..TicketRecord::new(NewTicket::new(TicketId(number), ""))
    }
}

fn offset(number: u128, committed_bytes: u64) -> JournalEvent {
    JournalEvent::Offset { id: TicketId(number), committed_bytes }
}

fn committed(position: Position) -> JournalEvent {
    JournalEvent::Committed { position }
}

#[test]
fn opens_what_the_server_made_once_it_is_free() {
    let mut bench = Bench::closed(CommitSync::Dsync);
    let [a, b] = bench.turn().try_into().unwrap();
    for ((_, op), name) in [(&a, "journal/0.a"), (&b, "journal/0.b")] {
        let Op::Open { path, how, .. } = op else { panic!("{op:?}") };
        assert_eq!(path, &PathBuf::from(name));
        assert_eq!(how, &OpenHow { create: false, direct: true, dsync: true, lock: true });
    }
    bench.end(a.0, Err(Errno::EAGAIN));
    bench.end(b.0, Ok(Output::Done));
    assert!(bench.turn().is_empty());
    bench.now = bench.journal.poll_timeout().unwrap();
    bench.journal.on_timeout(bench.now);
    let (token, op) = bench.op();
    assert!(matches!(op, Op::Open { file: FileId(0), .. }));
    bench.end(token, Ok(Output::Done));
    assert_eq!(bench.journal.poll_timeout(), None);
    bench.note(1, 0);
    assert!(matches!(bench.op().1, Op::Write { .. }));
}

#[test]
fn what_cannot_be_opened_is_a_failure() {
    for order in [[0, 1], [1, 0]] {
        let mut bench = Bench::closed(CommitSync::Dsync);
        let tokens: Vec<Token> = bench.turn().iter().map(|it| it.0).collect();
        bench.end(tokens[order[0]], Err(Errno::EIO));
        bench.end(tokens[order[1]], Ok(Output::Done));
        assert_eq!(bench.events(), [JournalEvent::Failed { errno: Errno::EIO }]);
        assert!(bench.turn().is_empty());
    }
}

#[test]
fn one_write_says_it_all() {
    let mut bench = Bench::new(CommitSync::Dsync);
    assert!(bench.turn().is_empty() && bench.journal.is_quiet());
    bench.note(1, 0);
    let last = bench.note(2, 0);
    for bytes in 1..100 {
        bench.note_offset(1, bytes);
        bench.note_offset(2, bytes * 2);
    }
    let write = bench.op();
    let Op::Write { file, offset_bytes, bytes } = &write.1 else { panic!() };
    assert_eq!((file.0, *offset_bytes, bytes.length), (0, 4096, 4096));
    assert!(!bench.journal.is_quiet());
    assert_eq!(bench.events(), []);
    bench.end_write(write);
    assert_eq!(bench.events(), [committed(last), offset(1, 99), offset(2, 198)]);
    assert!(bench.journal.is_quiet());
}

#[test]
fn two_are_in_flight_and_are_reported_in_order() {
    let mut bench = Bench::new(CommitSync::Dsync);
    let positions: Vec<_> = (1..=3).map(|it| (bench.note(it, 0), bench.turn())).collect();
    let [(first, a), (second, b), (third, c)] = positions.try_into().unwrap();
    assert!(c.is_empty(), "a third waits");
    bench.end_write(b.into_iter().next().unwrap());
    assert_eq!(bench.events(), []);
    assert!(bench.turn().is_empty(), "the second counts until the first has ended");
    bench.end_write(a.into_iter().next().unwrap());
    assert_eq!(bench.events(), [committed(first), committed(second)]);
    let write = bench.op();
    bench.end_write(write);
    assert_eq!(bench.events(), [committed(third)]);
}

#[test]
fn a_short_write_goes_on_at_a_block() {
    let mut bench = Bench::new(CommitSync::Dsync);
    let position = bench.note(1, 10_000);
    let (token, op) = bench.op();
    let Op::Write { bytes: all, .. } = op else { panic!() };
    assert_eq!(all.length, 12_288);
    bench.end(token, Ok(Output::Bytes(5000)));
    let write = bench.op();
    let Op::Write { offset_bytes, bytes, .. } = &write.1 else { panic!() };
    assert_eq!((*offset_bytes, bytes.start, bytes.length), (8192, all.start + 4096, 8192));
    bench.end_write(write);
    assert_eq!(bench.events(), [committed(position)]);
}

#[test]
fn one_sync_serves_what_is_written() {
    let mut bench = Bench::new(CommitSync::Fdatasync);
    let first = bench.note(1, 0);
    let a = bench.op();
    let second = bench.note(2, 0);
    let b = bench.op();
    bench.end_write(b);
    assert!(bench.turn().is_empty(), "a commit after a gap is worth nothing");
    bench.end_write(a);
    let (token, op) = bench.op();
    assert!(matches!(op, Op::Sync { file: FileId(0) }));
    assert_eq!(bench.events(), []);
    bench.end(token, Ok(Output::Done));
    assert_eq!(bench.events(), [committed(first), committed(second)]);
    assert!(bench.turn().is_empty() && bench.journal.is_quiet());
}

#[test]
fn offsets_alone_are_not_synced_when_written_is_enough() {
    let mut bench = Bench::new(CommitSync::StatesOnly);
    let position = bench.note(1, 0);
    let write = bench.op();
    bench.end_write(write);
    let (token, op) = bench.op();
    assert!(matches!(op, Op::Sync { .. }));
    bench.end(token, Ok(Output::Done));
    assert_eq!(bench.events(), [committed(position)]);
    bench.note_offset(1, 5);
    let write = bench.op();
    bench.end_write(write);
    assert_eq!(bench.events(), [offset(1, 5)]);
    assert!(bench.turn().is_empty());
}

#[test]
fn a_full_file_is_left_for_the_other() {
    let mut bench = Bench::new(CommitSync::Dsync);
    for round in 0..30 {
        let position = bench.note(1, 60_000 + round);
        bench.note_offset(1, round as u64 + 1);
        bench.run(|_| None);
        let events = bench.events();
        assert_eq!(events.first(), Some(&committed(position)), "round {round}");
        assert_eq!(events.last(), Some(&offset(1, round as u64 + 1)));
        assert!(bench.journal.is_quiet());
    }
    assert!(bench.journal.log.generation >= 1);
}

#[test]
fn a_failing_file_is_left_and_two_failures_are_the_end() {
    let mut bench = Bench::new(CommitSync::Fdatasync);
    let on_a = |op: &Op<()>| {
        let is_hit = matches!(op, Op::Write { file: FileId(0), .. });
        is_hit.then_some(Errno::EIO)
    };
    let first = bench.note(1, 0);
    bench.note_offset(1, 7);
    bench.run(on_a);
    assert_eq!(bench.events(), [committed(first), offset(1, 7)]);
    assert_eq!(bench.journal.log.side, Side::B);
    bench.note(1, 1);
    bench.run(|op| matches!(op, Op::Sync { .. }).then_some(Errno::EIO));
    assert_eq!(bench.events(), [JournalEvent::Failed { errno: Errno::EIO }]);
    bench.note(1, 2);
    assert!(bench.turn().is_empty() && bench.journal.is_quiet());
}

#[test]
fn without_space_it_tries_again_and_reports_nothing() {
    let mut bench = Bench::new(CommitSync::Dsync);
    let position = bench.note(1, 0);
    for _ in 0..5 {
        bench.run(|op| matches!(op, Op::Write { .. }).then_some(Errno::ENOSPC));
        assert_eq!(bench.events(), []);
        assert!(!bench.journal.is_quiet());
        let at = bench.journal.poll_timeout().unwrap();
        assert_eq!(at, bench.now + Duration::from_secs(1));
        bench.journal.on_timeout(at - Duration::from_millis(1));
        assert!(bench.turn().is_empty());
        bench.now = at;
        bench.journal.on_timeout(at);
    }
    bench.run(|_| None);
    assert_eq!(bench.events(), [committed(position)]);
    assert_eq!(bench.journal.poll_timeout(), None);
    // What a move that failed left behind is not taken for a part of this one.
    assert_eq!(bench.journal.log.generation, 6);
}

#[test]
fn files_grow_and_when_they_cannot_new_tickets_are_refused() {
    let mut bench = Bench::new(CommitSync::Dsync);
    let record_bytes = ticket(0, 60_000).encoded_bytes();
    let refuse = |op: &Op<()>| matches!(op, Op::Allocate { .. }).then_some(Errno::ENOSPC);
    let mut count = 0;
    while bench.journal.has_room_for(bench.now, record_bytes) {
        count += 1;
        assert!(count < 40, "the files hold no more");
        bench.note(count, 60_000);
        bench.run(refuse);
        for round in 0..20 {
            bench.note(count, 60_000 - round);
            bench.run(refuse);
        }
    }
    assert!(count > 5);
    assert!(bench.journal.is_quiet(), "what is there can be written");
    bench.now += GROW_PAUSE;
    assert!(!bench.journal.has_room_for(bench.now, record_bytes));
    bench.run(refuse);
    assert!(!bench.journal.has_room_for(bench.now, record_bytes));
    assert!(bench.turn().is_empty(), "it was tried just now");
    // Space is back, and nothing else happens.
    bench.now += GROW_PAUSE;
    assert!(!bench.journal.has_room_for(bench.now, record_bytes));
    bench.run(|_| None);
    assert!(bench.journal.has_room_for(bench.now, record_bytes));
    assert!(bench.journal.capacity_bytes.iter().all(|it| *it > FILE_BYTES_MIN));
}

/// Without a word from outside, a file grows before it becomes too small.
#[test]
fn files_grow_with_their_tickets() {
    let mut bench = Bench::new(CommitSync::Dsync);
    for round in 0..300 {
        bench.note(round % 10, 50_000);
        bench.run(|_| None);
    }
    assert!(bench.journal.capacity_bytes.iter().all(|it| *it > FILE_BYTES_MIN));
    assert!(bench.journal.log.generation < 20, "{:?}", bench.journal.log);
}

/// Tickets may grow after they were let in: a snapshot that does not fit is not begun beyond the end.
#[test]
fn a_snapshot_larger_than_its_file_waits_for_space() {
    let mut bench = Bench::new(CommitSync::Dsync);
    let refuse = |op: &Op<()>| match op {
        Op::Allocate { .. } => Some(Errno::ENOSPC),
        Op::Write { offset_bytes, bytes, .. } => {
            assert!(offset_bytes + u64::from(bytes.length) <= FILE_BYTES_MIN);
            None
        }
        _ => None,
    };
    let positions: Vec<_> = (1..=30).map(|it| bench.note(it, 60_000)).collect();
    bench.run(refuse);
    let before = bench.events();
    assert!(!before.contains(&committed(positions[29])) && !bench.journal.is_quiet());
    bench.now = bench.journal.poll_timeout().unwrap();
    bench.journal.on_timeout(bench.now);
    bench.run(|_| None);
    assert_eq!(bench.events(), [committed(positions[29])]);
    assert!(bench.journal.is_quiet());
}

#[test]
fn room_has_an_end() {
    let mut bench = Bench::new(CommitSync::Dsync);
    assert!(bench.journal.has_room_for(bench.now, RECORD_BYTES_MAX));
    assert!(!bench.journal.has_room_for(bench.now, RECORD_BYTES_MAX + 1));
    bench.note(1, 1000);
    bench.note(1, 10);
    assert_eq!(bench.journal.live_bytes(), u64::from(ticket(1, 10).encoded_bytes()));
    bench.journal.live_bytes = JOURNAL_LIVE_BYTES_MAX - 100;
    assert!(
        bench.journal.has_room_for(bench.now, 100) && !bench.journal.has_room_for(bench.now, 101)
    );
    bench.journal.live_bytes = u64::from(ticket(1, 10).encoded_bytes());
    bench.journal.note_removed(TicketId(1));
    assert_eq!(bench.journal.live_bytes(), 0);
}

/// A state that was noted before an offset was written must not take that offset back.
#[test]
fn a_state_says_the_offset_of_when_it_is_written() {
    let mut bench = Bench::new(CommitSync::Dsync);
    for number in 1..=4 {
        bench.note(number, 60_000);
    }
    bench.note_offset(4, 5);
    let [first, second] = bench.turn().try_into().unwrap();
    let records = |bench: &Bench, op: &Op<()>| {
        let Op::Write { bytes, .. } = op else { panic!() };
        let key = FileKey { run: 1, core: 0, generation: 0 };
        let commit = key.commit(bench.memory.bytes(*bytes), &(0..=1)).unwrap();
        commit.records().unwrap()
    };
    assert_eq!(records(&bench, &first.1).len(), 2, "no offset while states wait");
    let [Record::Ticket(_), Record::Ticket(last), Record::Offset { committed_bytes, .. }] =
        &records(&bench, &second.1)[..]
    else {
        panic!();
    };
    assert_eq!((last.committed_bytes, *committed_bytes), (5, 5));
}
