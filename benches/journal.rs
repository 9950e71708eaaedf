//! What the journal costs a core: a commit for many uploads, and reading everything back at start.
//! The disk is not in it. The results are in `doc/benchmarks/`.

use std::hint::black_box;
use std::time::Instant;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use engine::buffer::{Memory, Slice};
use engine::journal::{
    CommitSync, FileName, Journal, JournalConfig, JournalEvent, JournalFile, NewFile, REGION_BYTES,
    Side, Source, recover,
};
use engine::op::{Completion, Op, Output};
use engine::record::{NewTicket, RecordState, TicketRecord};
use engine::ticket::TicketId;

criterion_group!(benches, commits, recovery);
criterion_main!(benches);

/// From noted offsets to a sealed commit, and from its completion to the reports.
fn commits(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("journal_commit");
    for count in [1, 64, 512] {
        group.throughput(Throughput::Elements(count as u64));
        let mut core = Core::new(count);
        group.bench_function(BenchmarkId::new("offsets", count), |bencher| {
            bencher.iter(|| assert_eq!(core.commit(), count));
        });
    }
    group.finish();
}

/// All that a start does with the bytes of the files.
fn recovery(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("journal_recovery");
    group.sample_size(10);
    for count in [10_000, 100_000] {
        group.throughput(Throughput::Elements(count));
        let tickets = tickets(count);
        let file = NewFile::new(0, 1, 1, CommitSync::Dsync, 0, &tickets);
        let bytes = [file.header, file.commits].concat();
        let files = [JournalFile { name: FileName { core: 0, side: Side::A }, bytes: &bytes }];
        group.bench_function(BenchmarkId::new("tickets", count), |bencher| {
            bencher.iter(|| {
                let recovery = recover(black_box(&files));
                assert_eq!(recovery.tickets.len() as u64, count);
                recovery
            });
        });
    }
    group.finish();
}

/// A journal with nothing below it: every write is whole at once.
struct Core {
    journal: Journal<()>,
    memory: Memory,
    tickets: Tickets,
    now: Instant,
}

/// Ids are their indices.
struct Tickets(Vec<TicketRecord>);

impl Source for Tickets {
    fn ticket(&self, id: TicketId) -> Option<TicketRecord> {
        self.0.get(id.0 as usize).cloned()
    }

    fn durable_bytes(&self, id: TicketId) -> Option<u64> {
        self.0.get(id.0 as usize).map(|it| it.committed_bytes)
    }

    fn service_ms(&self) -> u64 {
        0
    }
}

impl Core {
    fn new(count: usize) -> Self {
        let tickets = tickets(count as u64);
        let file = NewFile::new(0, 1, 1, CommitSync::Dsync, 0, &tickets);
        let config = JournalConfig {
            core: 0,
            core_count: 1,
            run: 1,
            sync: CommitSync::Dsync,
            region: Slice { start: 0, length: REGION_BYTES },
            start: file.start(Side::A, [FILE_BYTES; 2]),
        };
        let journal = Journal::new(config, &tickets);
        let memory = Memory::new(REGION_BYTES as usize).expect("memory is there");
        Self { journal, memory, tickets: Tickets(tickets), now: Instant::now() }
    }

    /// One turn. How many offsets were committed.
    fn commit(&mut self) -> usize {
        for ticket in &mut self.tickets.0 {
            ticket.committed_bytes += 1;
            self.journal.note_offset(ticket.new.id);
        }
        while let Some((token, op)) = self.journal.poll_op(&mut self.memory, &self.tickets) {
            let output = match op {
                Op::Write { bytes, .. } => Output::Bytes(black_box(bytes).length),
                _ => Output::Done,
            };
            self.journal.on_completion(self.now, Completion { token, result: Ok(output) });
        }
        let events = std::iter::from_fn(|| self.journal.poll_event());
        events.filter(|it| matches!(it, JournalEvent::Offset { .. })).count()
    }
}

/// As a web app makes them: about 200 bytes each.
fn tickets(count: u64) -> Vec<TicketRecord> {
    let ticket = |number: u64| {
        let url = "https://app.example.org/uploads/finished";
        let new = NewTicket {
            secret: "0123456789abcdef0123456789abcdef".into(),
            ..NewTicket::new(TicketId(u128::from(number)), url)
        };
        TicketRecord {
            state: RecordState::Receiving,
            filename_from_browser: "Holiday pictures of the whole family (2024).zip".into(),
            length_bytes: 50_000_000_000,
            committed_bytes: number,
            ..TicketRecord::new(new)
        }
    };
    (0..count).map(ticket).collect()
}

/// So that moves are as rare as in a busy server.
const FILE_BYTES: u64 = 64 << 20;
