//! What the tickets were at any time, so that what a journal says of them can be judged.

use std::collections::BTreeMap;

use engine::journal::{JournalEvent, Position, Recovery, Source};
use engine::record::{NewTicket, RecordState, Stand, TicketRecord};
use engine::ticket::TicketId;

use crate::rng::Rng;

/// All tickets there ever were in this run.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) tickets: BTreeMap<TicketId, History>,
    /// By core: what was reported.
    pub(crate) committed: BTreeMap<u16, Position>,
    pub(crate) core_count: u16,
    has_failed: bool,
}

/// One ticket's life.
#[derive(Debug)]
pub(crate) struct History {
    live: Option<TicketRecord>,
    /// What its owner may still say of it after its removal.
    lingering: Option<TicketRecord>,
    notes: Vec<Note>,
    /// The offsets it has had. No two are the same.
    offsets: Vec<u64>,
    /// The last offset that was reported, by its index.
    reported: usize,
    /// The last one that was noted.
    noted: usize,
}

#[derive(Debug)]
struct Note {
    position: Position,
    record: Option<TicketRecord>,
    /// The offset then.
    offset: usize,
}

/// What must have survived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Promise {
    Everything,
    /// Offsets only as far as a state says them.
    States,
}

impl World {
    /// A new run, which knows what was recovered.
    pub(crate) fn new(core_count: u16, recovered: &[TicketRecord]) -> Self {
        let history = |it: &TicketRecord| History {
            live: Some(it.clone()),
            lingering: None,
            notes: vec![Note { position: Position(0), record: Some(it.clone()), offset: 0 }],
            offsets: vec![it.committed_bytes],
            reported: 0,
            noted: 0,
        };
        Self {
            tickets: recovered.iter().map(|it| (it.new.id, history(it))).collect(),
            committed: (0..core_count).map(|it| (it, Position(0))).collect(),
            core_count,
            has_failed: false,
        }
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.has_failed
    }

    pub(crate) fn core_of(&self, id: TicketId) -> u16 {
        id.owner(self.core_count).0
    }

    /// A ticket that is there.
    pub(crate) fn pick(&self, rng: &mut Rng) -> Option<TicketId> {
        let ids: Vec<_> = self.tickets.iter().filter(|it| it.1.live.is_some()).collect();
        (!ids.is_empty()).then(|| *ids[rng.below(ids.len())].0)
    }

    pub(crate) fn new_ticket(&mut self, rng: &mut Rng, text_bytes: usize) -> TicketRecord {
        let id = TicketId(u128::from(rng.next()) << 64 | u128::from(rng.next()));
        let new = NewTicket {
            secret: "secret".into(),
            finish_without_secret: rng.chance(50),
            remove_when_finished: rng.chance(50),
            owner_uid: rng.chance(50).then_some(7),
            ..NewTicket::new(id, "http://app/")
        };
        let record = TicketRecord {
            filename_from_browser: "n".repeat(rng.below(text_bytes)),
            length_bytes: rng.next(),
            ..TicketRecord::new(new)
        };
        let live = Some(record.clone());
        let history = History {
            live,
            lingering: None,
            notes: Vec::new(),
            offsets: vec![0],
            reported: 0,
            noted: 0,
        };
        self.tickets.insert(id, history);
        record
    }

    /// Another state, unlike any before. What it says of the offset may be out of date.
    pub(crate) fn change(&mut self, rng: &mut Rng, id: TicketId) -> TicketRecord {
        let record = self.tickets.get_mut(&id).unwrap().live.as_mut().unwrap();
        record.telling.attempt += 1;
        record.state = match rng.below(4) {
            0 => RecordState::Receiving,
            1 => RecordState::Arrived { stand: Stand::Telling },
            2 => {
                let reason = "r".repeat(rng.below(20));
                RecordState::Cancelled { stand: Stand::Telling, reason }
            }
            _ => RecordState::Arrived { stand: Stand::Told },
        };
        let record = record.clone();
        let committed_bytes = self.tickets[&id].offsets[self.tickets[&id].reported];
        TicketRecord { committed_bytes, ..record }
    }

    /// Another offset, mostly a higher one.
    pub(crate) fn advance(&mut self, rng: &mut Rng, id: TicketId) {
        let it = self.tickets.get_mut(&id).unwrap();
        let record = it.live.as_mut().unwrap();
        let bytes = record.committed_bytes;
        let next = if rng.chance(90) { bytes + 1 + rng.next() % 1000 } else { rng.next() % 1000 };
        if !it.offsets.contains(&next) {
            record.committed_bytes = next;
            it.offsets.push(next);
        }
    }

    /// The owner forgets it now, or later.
    pub(crate) fn remove(&mut self, rng: &mut Rng, id: TicketId) {
        let it = self.tickets.get_mut(&id).unwrap();
        let live = it.live.take();
        it.lingering = live.filter(|_| rng.chance(50));
    }

    pub(crate) fn on_noted(&mut self, id: TicketId, position: Position) {
        let it = self.tickets.get_mut(&id).unwrap();
        let offset = it.offsets.len() - 1;
        it.notes.push(Note { position, record: it.live.clone(), offset });
    }

    pub(crate) fn on_offset_noted(&mut self, id: TicketId) {
        let it = self.tickets.get_mut(&id).unwrap();
        it.noted = it.offsets.len() - 1;
    }

    pub(crate) fn on_event(&mut self, core: u16, event: JournalEvent) {
        match event {
            JournalEvent::Committed { position } => {
                let before = self.committed.insert(core, position).unwrap();
                assert!(position > before, "reported in order");
            }
            JournalEvent::Offset { id, committed_bytes } => {
                assert_eq!(self.core_of(id), core);
                let it = self.tickets.get_mut(&id).unwrap();
                let index = it.offsets.iter().position(|it| *it == committed_bytes);
                let index = index.expect("only an offset that it had");
                assert!(index >= it.reported, "offsets are reported in order");
                it.reported = index;
            }
            JournalEvent::Failed { .. } => self.has_failed = true,
        }
    }

    /// Nothing noted is left unreported.
    pub(crate) fn assert_all_reported(&self) {
        for (id, it) in &self.tickets {
            let committed = self.committed[&self.core_of(*id)];
            assert!(it.notes.iter().all(|it| it.position <= committed));
            assert!(it.live.is_none() || it.reported >= it.noted, "an offset was forgotten");
        }
    }

    /// What was recovered from damaged files was noted once.
    pub(crate) fn check_possible(&self, recovery: &Recovery) {
        for found in &recovery.tickets {
            let history = &self.tickets[&found.new.id];
            assert!(history.notes.iter().any(|it| it.is(found)), "never noted: {found:?}");
            let offset_max = history.offsets.iter().max();
            assert!(offset_max.is_some_and(|it| found.committed_bytes <= *it), "{found:?}");
        }
    }

    /// What was recovered is what was promised, and nothing that never was.
    pub(crate) fn check(&self, recovery: &Recovery, promise: Promise) {
        assert_eq!(recovery.damage, [], "a crash damages nothing");
        let found: BTreeMap<_, _> = recovery.tickets.iter().map(|it| (it.new.id, it)).collect();
        assert_eq!(found.len(), recovery.tickets.len());
        assert!(found.keys().all(|it| self.tickets.contains_key(it)), "a ticket from nowhere");
        for (id, history) in &self.tickets {
            history.check(self.committed[&self.core_of(*id)], found.get(id).copied(), promise);
        }
    }
}

impl History {
    fn said(&self) -> Option<&TicketRecord> {
        self.live.as_ref().or(self.lingering.as_ref())
    }

    fn check(&self, committed: Position, found: Option<&TicketRecord>, promise: Promise) {
        let last = self.notes.iter().rposition(|it| it.position <= committed);
        let candidates = &self.notes[last.unwrap_or(0)..];
        let Some(found) = found else {
            let may_be_gone = last.is_none() || candidates.iter().any(|it| it.record.is_none());
            return assert!(may_be_gone, "a committed ticket is gone: {self:?}");
        };
        assert!(
            candidates.iter().any(|it| it.is(found)),
            "not a state since {committed:?}: {found:?} {self:?}"
        );
        let offset = self.offsets.iter().position(|it| *it == found.committed_bytes);
        let offset = offset.expect("only an offset that it had");
        if self.live.is_none() {
            // Nobody could be asked for the offset any more.
            return;
        }
        let by_state = last.map_or(0, |it| self.notes[it].offset);
        assert!(offset >= by_state, "an earlier offset than the state said");
        if promise == Promise::Everything {
            assert!(offset >= self.reported, "an earlier offset than was reported");
        }
    }
}

impl Note {
    fn is(&self, found: &TicketRecord) -> bool {
        // What comes with offsets, too.
        let TicketRecord { committed_bytes, active_at_ms, .. } = *found;
        let record = self.record.clone();
        record.is_some_and(|it| TicketRecord { committed_bytes, active_at_ms, ..it } == *found)
    }
}

impl Source for World {
    fn ticket(&self, id: TicketId) -> Option<TicketRecord> {
        self.tickets.get(&id)?.said().cloned()
    }

    fn durable_bytes(&self, id: TicketId) -> Option<u64> {
        self.tickets.get(&id)?.said().map(|it| it.committed_bytes)
    }

    fn service_ms(&self) -> u64 {
        SERVICE_MS
    }
}

/// Time stands still here.
const SERVICE_MS: u64 = 1_000;
