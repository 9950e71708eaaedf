//! When a web app that could not be told is told again.
//!
//! A hand-over is tried for days, with pauses that grow and are drawn at random, so that the tickets
//! of a web app that was down do not come back all at once; its first success brings some of them
//! forward. Pure: times are arguments, and the randomness is that of the ticket's id.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::record::TellingRecord;
use crate::ticket::TicketId;

/// For how long it is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// With a web app that cannot be reached, or says that it cannot answer now. Service time.
    pub timeout: Duration,
    /// With a web app that answers, and not what was asked for: so many times.
    pub refusals_max: u32,
}

/// What follows a try that has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Another one, after so long.
    TryAfter(Duration),
    GiveUp,
}

impl Patience {
    /// `telling` counts the failed try. `now_ms`: service time. `retry_after`: what the web app has
    /// asked for; more than an hour is an hour.
    pub fn next(
        &self,
        id: TicketId,
        telling: &TellingRecord,
        now_ms: u64,
        retry_after: Option<Duration>,
    ) -> Next {
        let tried = Duration::from_millis(now_ms.saturating_sub(telling.since_ms));
        if telling.refusal_count >= self.refusals_max || tried >= self.timeout {
            return Next::GiveUp;
        }
        let asked = retry_after.unwrap_or(Duration::ZERO).min(RETRY_AFTER_MAX);
        let delay = delay(id, telling.attempt).max(asked);
        // The last try is at the end of the time, not before it.
        Next::TryAfter(delay.min(self.timeout - tried))
    }
}

/// Full jitter: anything up to 1 s, 2 s, 4 s and so on to 5 minutes, and not less than 100 ms. The
/// same for the same id and attempt.
pub fn delay(id: TicketId, attempt: u32) -> Duration {
    let doublings = attempt.max(1) - 1;
    let most = DELAY_FIRST.checked_mul(1 << doublings.min(16)).unwrap_or(DELAY_MAX).min(DELAY_MAX);
    draw(id, attempt, DELAY_MIN, most)
}

/// After a start everything that waits is tried at once: within this time of a second.
pub fn start_delay(id: TicketId) -> Duration {
    draw(id, 0, Duration::ZERO, START_WITHIN)
}

/// Between `least` and `most`, by the bits of the id, which are random, and the attempt.
fn draw(id: TicketId, attempt: u32, least: Duration, most: Duration) -> Duration {
    // The finalizer of SplitMix64: every bit of the input changes half of the output.
    let mut bits = (id.0 as u64) ^ ((id.0 >> 64) as u64).rotate_left(32);
    bits = bits.wrapping_add(u64::from(attempt).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^= bits >> 31;
    let span = (most - least).as_millis() as u64 + 1;
    least + Duration::from_millis(bits % span)
}

/// Who waits for which host: scheme, name and port, as [`crate::handover::host_of`] says them.
#[derive(Debug, Default)]
pub struct Outbox {
    waiting: BTreeMap<String, BTreeSet<TicketId>>,
}

impl Outbox {
    pub fn insert(&mut self, host: String, id: TicketId) {
        self.waiting.entry(host).or_default().insert(id);
    }

    /// It does not wait any more; perhaps it did not.
    pub fn remove(&mut self, host: &str, id: TicketId) {
        let Some(ids) = self.waiting.get_mut(host) else { return };
        ids.remove(&id);
        if ids.is_empty() {
            self.waiting.remove(host);
        }
    }

    /// The host has answered: some of those who wait for it, who then do not wait any more. Each
    /// success takes some more along.
    pub fn take_some(&mut self, host: &str) -> Vec<TicketId> {
        let Some(ids) = self.waiting.get_mut(host) else { return Vec::new() };
        let some: Vec<TicketId> = ids.iter().copied().take(TAKEN_COUNT_MAX).collect();
        for id in &some {
            self.remove(host, *id);
        }
        some
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

const DELAY_MIN: Duration = Duration::from_millis(100);
const DELAY_FIRST: Duration = Duration::from_secs(1);
const DELAY_MAX: Duration = Duration::from_secs(300);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);
const START_WITHIN: Duration = Duration::from_millis(900);

/// Twice as many as one host is asked at a time.
const TAKEN_COUNT_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience =
        Patience { timeout: Duration::from_secs(72 * 3600), refusals_max: 10 };

    fn id(number: u128) -> TicketId {
        // Ids are random.
        TicketId(number.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c834))
    }

    fn telling(attempt: u32, refusal_count: u32) -> TellingRecord {
        TellingRecord { attempt, refusal_count, ..TellingRecord::default() }
    }

    #[test]
    fn delays_are_spread_and_their_bound_doubles_up_to_five_minutes() {
        for (attempt, most_s) in [(1, 1), (2, 2), (4, 8), (9, 256), (10, 300), (u32::MAX, 300)] {
            let delays: Vec<_> = (0..2_000).map(|it| delay(id(it), attempt)).collect();
            let most = Duration::from_secs(most_s);
            assert!(delays.iter().all(|it| (DELAY_MIN..=most).contains(it)));
            // Uniform: each tenth has about a tenth.
            for tenth in 0..10 {
                let (from, step) = (DELAY_MIN, (most - DELAY_MIN) / 10);
                let part = from + step * tenth..from + step * (tenth + 1);
                let count = delays.iter().filter(|it| part.contains(it)).count();
                assert!((140..=260).contains(&count), "attempt {attempt}, {tenth}: {count}");
            }
        }
        assert!((0..2_000).all(|it| start_delay(id(it)) < Duration::from_secs(1)));
    }

    #[test]
    fn gives_up_after_the_time_and_not_before_a_last_try() {
        let hours = |it: u64| it * 3_600_000;
        let next = |now_ms| PATIENCE.next(id(1), &telling(900, 0), now_ms, None);
        assert!(matches!(next(hours(71)), Next::TryAfter(it) if it <= DELAY_MAX));
        let last = Duration::from_millis(50);
        assert_eq!(next(hours(72) - 50), Next::TryAfter(last));
        assert_eq!(next(hours(72)), Next::GiveUp);
    }

    #[test]
    fn gives_up_after_so_many_refusals() {
        let next = |count| PATIENCE.next(id(1), &telling(count, count), 0, None);
        assert!(matches!(next(9), Next::TryAfter(_)));
        assert_eq!(next(10), Next::GiveUp);
    }

    #[test]
    fn honours_retry_after_up_to_an_hour() {
        let next = |seconds| {
            let retry_after = Some(Duration::from_secs(seconds));
            PATIENCE.next(id(1), &telling(1, 0), 0, retry_after)
        };
        assert_eq!(next(90), Next::TryAfter(Duration::from_secs(90)));
        assert_eq!(next(0), Next::TryAfter(delay(id(1), 1)));
        assert_eq!(next(1_000_000), Next::TryAfter(RETRY_AFTER_MAX));
        assert_eq!(next(u64::MAX), Next::TryAfter(RETRY_AFTER_MAX));
    }

    #[test]
    fn each_answer_of_a_host_takes_some_along() {
        let mut outbox = Outbox::default();
        for number in 0..40 {
            outbox.insert("http://a:80".into(), TicketId(number));
        }
        outbox.insert("http://b:80".into(), TicketId(99));
        outbox.remove("http://a:80", TicketId(0));
        outbox.remove("http://c:80", TicketId(0));
        let first: Vec<u128> = outbox.take_some("http://a:80").iter().map(|it| it.0).collect();
        assert_eq!(first, (1..33).collect::<Vec<_>>());
        assert_eq!(outbox.take_some("http://a:80").len(), 7);
        assert_eq!(outbox.take_some("http://a:80"), []);
        assert!(!outbox.is_empty());
        assert_eq!(outbox.take_some("http://b:80"), [TicketId(99)]);
        assert!(outbox.is_empty());
    }
}
