//! How fast bytes come, over the last seconds. It costs a comparison for each receive.

use std::time::{Duration, Instant};

/// Counts in steps: the one that is going on, and the one before it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    since: Instant,
    bytes: u64,
    before: (Duration, u64),
}

impl Rate {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, bytes: 0, before: (Duration::ZERO, 0) }
    }

    pub(super) fn on_received(&mut self, now: Instant, bytes: u64) {
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed >= STEP {
            // After a silence nothing is known of the seconds just before.
            self.before = if elapsed < 2 * STEP { (elapsed, self.bytes) } else { (STEP, 0) };
            (self.since, self.bytes) = (now, 0);
        }
        self.bytes += bytes;
    }

    pub(super) fn bytes_per_s(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.since);
        let (time, bytes) = if elapsed < STEP {
            (elapsed + self.before.0, self.bytes + self.before.1)
        } else {
            (elapsed, self.bytes)
        };
        // The first bytes come at once, and say little.
        let time_ms = time.as_millis().max(1000);
        u64::try_from(u128::from(bytes) * 1000 / time_ms).unwrap_or(u64::MAX)
    }
}

const STEP: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_that_of_the_last_seconds() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut rate = Rate::new(start);
        assert_eq!(rate.bytes_per_s(at(0)), 0);
        // 1000 bytes each 100 ms, for a minute.
        for tenth in 1..=600 {
            rate.on_received(at(100 * tenth), 1000);
            let bytes_per_s = rate.bytes_per_s(at(100 * tenth));
            assert!(tenth < 20 || (9_000..=11_000).contains(&bytes_per_s), "{tenth} {bytes_per_s}");
        }
        // Ten times as fast: known within two steps.
        for tenth in 601..=660 {
            rate.on_received(at(100 * tenth), 10_000);
        }
        assert!((90_000..=110_000).contains(&rate.bytes_per_s(at(66_000))));
        // Silence.
        assert!(rate.bytes_per_s(at(76_000)) < 30_000);
        assert!(rate.bytes_per_s(at(700_000)) < 1_000);
        // What comes after it is not taken for that of the silence.
        rate.on_received(at(700_000), 50_000);
        assert!((10_000..20_000).contains(&rate.bytes_per_s(at(700_010))));
        assert!(rate.bytes_per_s(at(710_000)) < 6_000);
    }
}
