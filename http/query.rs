//! What is asked about uploads, and what is answered: one page of a list, sorted by id.
//!
//! Every core answers for its own tickets with at most a page; whoever asked joins the pages.

use std::collections::BinaryHeap;
use std::fmt;

use engine::handover::Outcome;
use engine::op::CoreId;
use engine::ticket::TicketId;
use engine::tickets::{State, Telling, TicketError};
use serde::{Serialize, Serializer};

use crate::codec::response::Response;
use crate::mail::ReplyTo;

/// Which uploads are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Only this one.
    pub only: Option<TicketId>,
    /// Only those that this backend key has asked for.
    pub key: Option<String>,
    pub states: StateSet,
    /// Only those with a larger id: where the page before has ended.
    pub after: Option<TicketId>,
    /// At most so many; 1 to [`LIMIT_MAX`].
    pub limit: usize,
}

/// Who has asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// A web app, at a core.
    Client(ReplyTo),
    /// An operator, at the control thread, which gives numbers to what it asks.
    Control(u64),
}

/// A part of the list. Sorted by id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Page {
    pub uploads: Vec<UploadStatus>,
    /// The last id of this page, if there are more: the next page begins `after` it.
    #[serde(serialize_with = "text_or_null")]
    pub next: Option<TicketId>,
    /// Of all that the asker may see, whatever the page.
    pub totals: Totals,
    /// For operators.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cores: Vec<CoreSummary>,
}

/// Uploads by state; index: as in [`UploadState::ALL`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals([u32; 8]);

/// What one core has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CoreSummary {
    pub core: u16,
    /// Tickets, those that are over and remembered included.
    pub uploads: u32,
    pub connections: u32,
}

/// One upload. Times are service time: they stand still while no server runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UploadStatus {
    #[serde(serialize_with = "text")]
    pub id: TicketId,
    #[serde(serialize_with = "text")]
    pub state: UploadState,
    /// As the browser declared it; 0 before one has come.
    pub length_bytes: u64,
    pub received_bytes: u64,
    /// Of these, what survives whatever may come.
    pub committed_bytes: u64,
    /// Over the last seconds.
    pub rate_bytes_per_s: u64,
    /// A browser is there.
    pub connected: bool,
    /// Tries to tell the web app, the one under way included.
    pub attempts: u32,
    /// Of these, how many it answered with something else than expected.
    pub refusals: u32,
    pub last_error: Option<String>,
    pub next_attempt_in_ms: Option<u64>,
    /// Since something last happened to it.
    pub idle_ms: u64,
    /// Until it is cancelled if it is not whole by then.
    pub expires_in_ms: Option<u64>,
    pub cancel_reason: Option<String>,
    pub filename_from_browser: String,
    pub metadata: String,
    pub remove_when_finished: bool,
    /// The name of the backend key that asked for it.
    pub key: Option<String>,
}

/// How far an upload is, as the world sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UploadState {
    /// No browser has come yet.
    Issued,
    Receiving,
    /// Whole, and being made durable.
    Storing,
    /// The web app is told that it is there, or will be again.
    HandingOver,
    /// The web app has answered `wait`.
    Waiting,
    /// The web app could not be told. Everything is kept.
    Failed,
    Finished,
    Cancelled,
}

/// Some of the states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateSet(u8);

/// An operator wants web apps to be told again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Of this upload.
    One(TicketId),
    /// Of some that have failed, with ids after this one.
    Failed { after: Option<TicketId> },
}

/// What became of a [`Retry`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retried {
    pub count: u32,
    /// There are more, after this one.
    pub next: Option<TicketId>,
}

/// Why there is nothing to retry.
pub type RetryResult = Result<Retried, TicketError>;

impl Query {
    /// Everything, from the beginning.
    pub fn new() -> Self {
        Self { only: None, key: None, states: StateSet::ALL, after: None, limit: LIMIT_DEFAULT }
    }

    /// From the parameters `state` (names with commas between), `after` and `limit`.
    ///
    /// # Errors
    /// A sentence that names the parameter.
    pub fn parse<'p>(parameter: impl Fn(&str) -> Option<&'p str>) -> Result<Self, String> {
        let mut query = Self::new();
        if let Some(text) = parameter("state") {
            query.states = StateSet::parse(text)
                .ok_or_else(|| format!("state invalid: none of {}: {text:?}", all_names()))?;
        }
        if let Some(text) = parameter("after") {
            let id = TicketId::parse(text);
            query.after = Some(
                id.ok_or_else(|| format!("after invalid: not the id of an upload: {text:?}"))?,
            );
        }
        if let Some(text) = parameter("limit") {
            let limit = text.parse().ok().filter(|it| (1..=LIMIT_MAX).contains(it));
            query.limit = limit.ok_or_else(|| {
                format!("limit invalid: not a number from 1 to {LIMIT_MAX}: {text:?}")
            })?;
        }
        Ok(query)
    }
}

impl Default for Query {
    fn default() -> Self {
        Self::new()
    }
}

impl Page {
    /// One page of those that the cores gave, each of which holds the first `limit` of its core.
    pub fn join(pages: Vec<Self>, limit: usize) -> Self {
        let mut joined = Self::default();
        let mut has_more = false;
        for page in pages {
            has_more |= page.next.is_some();
            joined.uploads.extend(page.uploads);
            joined.totals.add_all(&page.totals);
            joined.cores.extend(page.cores);
        }
        joined.uploads.sort_unstable_by_key(|it| it.id);
        joined.cores.sort_unstable_by_key(|it| it.core);
        has_more |= joined.uploads.len() > limit;
        joined.uploads.truncate(limit);
        joined.next = joined.uploads.last().map(|it| it.id).filter(|_| has_more);
        joined
    }
}

/// The `limit` smallest of the ids, sorted, and whether there are more. One pass, whose memory is
/// that of the result.
pub fn smallest(ids: impl Iterator<Item = TicketId>, limit: usize) -> (Vec<TicketId>, bool) {
    let mut heap = BinaryHeap::with_capacity(limit + 2);
    for id in ids {
        if heap.len() > limit && heap.peek().is_some_and(|it| *it <= id) {
            continue;
        }
        heap.push(id);
        if heap.len() > limit + 1 {
            heap.pop();
        }
    }
    let has_more = heap.len() > limit;
    if has_more {
        heap.pop();
    }
    (heap.into_sorted_vec(), has_more)
}

/// An answer that no cache keeps.
pub fn json_response(status: u16, body: &impl Serialize) -> Response {
    let body = serde_json::to_vec(body).expect("plain data");
    Response::with_type(status, "application/json", body).with_header("Cache-Control", "no-store")
}

/// A refusal of a question.
pub fn json_error(status: u16, why: &str) -> Response {
    json_response(status, &serde_json::json!({ "error": why }))
}

impl Totals {
    pub fn add(&mut self, state: UploadState) {
        self.0[state as usize] += 1;
    }

    pub fn of(&self, state: UploadState) -> u32 {
        self.0[state as usize]
    }

    fn add_all(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }
}

impl CoreSummary {
    pub fn new(core: CoreId, uploads: usize, connections: usize) -> Self {
        Self { core: core.0, uploads: uploads as u32, connections: connections as u32 }
    }
}

impl UploadState {
    pub const ALL: [Self; 8] = [
        Self::Issued,
        Self::Receiving,
        Self::Storing,
        Self::HandingOver,
        Self::Waiting,
        Self::Failed,
        Self::Finished,
        Self::Cancelled,
    ];

    /// A cancellation that the web app does not know of yet is one already, unless telling it has
    /// failed.
    pub fn of(state: &State) -> Self {
        match state {
            State::Issued => Self::Issued,
            State::Receiving => Self::Receiving,
            State::Storing => Self::Storing,
            State::Telling { outcome: Outcome::Cancelled { .. }, .. } => Self::Cancelled,
            State::Telling { phase: Telling::Waiting, .. } => Self::Waiting,
            State::Telling { .. } => Self::HandingOver,
            State::Failed { .. } => Self::Failed,
            State::Finished => Self::Finished,
            State::Cancelled { .. } => Self::Cancelled,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Issued => "issued",
            Self::Receiving => "receiving",
            Self::Storing => "storing",
            Self::HandingOver => "handing_over",
            Self::Waiting => "waiting",
            Self::Failed => "failed",
            Self::Finished => "finished",
            Self::Cancelled => "cancelled",
        }
    }
}

impl StateSet {
    pub const ALL: Self = Self(u8::MAX);

    /// Names with commas between.
    pub fn parse(text: &str) -> Option<Self> {
        let states = text
            .split(',')
            .map(|name| UploadState::ALL.into_iter().find(|it| it.name() == name.trim()));
        states.sum::<Option<Self>>()
    }

    pub fn has(self, state: UploadState) -> bool {
        self.0 & (1 << state as u8) != 0
    }
}

impl std::iter::Sum<UploadState> for StateSet {
    fn sum<I: Iterator<Item = UploadState>>(states: I) -> Self {
        Self(states.fold(0, |bits, it| bits | 1 << it as u8))
    }
}

impl fmt::Display for UploadState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Totals {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(UploadState::ALL.iter().map(|it| (it.name(), self.of(*it))))
    }
}

fn all_names() -> String {
    UploadState::ALL.map(UploadState::name).join(", ")
}

fn text<S: Serializer>(it: &impl fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(it)
}

fn text_or_null<S: Serializer>(
    it: &Option<impl fmt::Display>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match it {
        Some(it) => serializer.collect_str(it),
        None => serializer.serialize_none(),
    }
}

pub const LIMIT_MAX: usize = 1000;
const LIMIT_DEFAULT: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    /// Ids in no order.
    fn ids(count: u128) -> impl Iterator<Item = TicketId> {
        (0..count)
            .map(|it| TicketId((it + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)))
    }

    fn page_of(ids: impl Iterator<Item = TicketId>, limit: usize) -> Page {
        let (ids, has_more) = smallest(ids, limit);
        let next = ids.last().copied().filter(|_| has_more);
        let uploads = ids.into_iter().map(|id| UploadStatus {
            id,
            state: UploadState::Issued,
            length_bytes: 0,
            received_bytes: 0,
            committed_bytes: 0,
            rate_bytes_per_s: 0,
            connected: false,
            attempts: 0,
            refusals: 0,
            last_error: None,
            next_attempt_in_ms: None,
            idle_ms: 0,
            expires_in_ms: None,
            cancel_reason: None,
            filename_from_browser: String::new(),
            metadata: String::new(),
            remove_when_finished: true,
            key: None,
        });
        Page { uploads: uploads.collect(), next, ..Page::default() }
    }

    #[test]
    fn the_smallest_are_those_that_sorting_finds() {
        for count in [0, 1, 2, 7, 8, 9, 100] {
            for limit in [1, 2, 7, 8, 9, 1000] {
                let mut sorted: Vec<_> = ids(count).collect();
                sorted.sort_unstable();
                let has_more = sorted.len() > limit;
                sorted.truncate(limit);
                assert_eq!(smallest(ids(count), limit), (sorted, has_more), "{limit} of {count}");
            }
        }
    }

    #[test]
    fn pages_of_all_cores_walk_through_everything_once() {
        for (count, cores, limit) in [(0, 2, 5), (1, 2, 5), (10, 2, 5), (100, 3, 7), (21, 3, 7)] {
            let mut expected: Vec<_> = ids(count).collect();
            expected.sort_unstable();
            let (mut found, mut after, mut page_count) = (Vec::new(), None, 0);
            loop {
                let of_core = |core| {
                    ids(count).filter(move |it| it.owner(cores).0 == core && Some(*it) > after)
                };
                let pages = (0..cores).map(|core| page_of(of_core(core), limit)).collect();
                let page = Page::join(pages, limit);
                assert!(page.uploads.len() <= limit);
                found.extend(page.uploads.iter().map(|it| it.id));
                page_count += 1;
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
            assert_eq!(found, expected);
            assert_eq!(page_count, expected.len().div_ceil(limit).max(1), "no empty last page");
        }
    }

    #[test]
    fn parameters() {
        assert_eq!(Query::parse(|_| None), Ok(Query::new()));
        let id = "00112233-4455-6677-8899-aabbccddeeff";
        let given = [("state", "failed,waiting"), ("after", id), ("limit", "1000")];
        let some =
            Query::parse(|name| given.iter().find(|it| it.0 == name).map(|it| it.1)).unwrap();
        assert_eq!(some.limit, 1000);
        assert_eq!(some.after.unwrap().to_string(), id);
        for state in UploadState::ALL {
            let is_wanted = matches!(state, UploadState::Failed | UploadState::Waiting);
            assert_eq!(some.states.has(state), is_wanted);
            assert!(StateSet::parse(state.name()).unwrap().has(state));
        }
        for (name, wrong) in [
            ("state", "done"),
            ("state", "failed,"),
            ("state", ""),
            ("after", "1"),
            ("limit", "0"),
            ("limit", "1001"),
            ("limit", "-1"),
        ] {
            let error = Query::parse(|it| (it == name).then_some(wrong)).unwrap_err();
            assert!(error.starts_with(&format!("{name} invalid: ")), "{error}");
        }
    }
}
