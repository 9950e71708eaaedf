//! The time that counts for time-outs.
//!
//! A ticket may live for days and over many starts of the server, and clocks jump. So time-outs
//! count *service time*: how long a server has been running on the storage directory, over all its
//! runs. While none ran, nobody could have come, and no time has passed. The journal carries the
//! time from run to run; a machine's clock is never asked.

use std::time::{Duration, Instant};

/// Service time in a run.
#[derive(Clone, Copy, Debug)]
pub struct ServiceClock {
    base_ms: u64,
    started: Instant,
}

impl ServiceClock {
    /// `base_ms`: what the runs before have counted, in milliseconds.
    pub fn new(base_ms: u64, started: Instant) -> Self {
        Self { base_ms, started }
    }

    /// Service time at `now`, in milliseconds.
    pub fn ms(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.started).as_millis();
        self.base_ms.saturating_add(u64::try_from(since).unwrap_or(u64::MAX))
    }

    /// When it is `ms`. What was before this run is its start; what no clock reaches is a century
    /// away.
    pub fn instant(&self, ms: u64) -> Instant {
        let from_start = Duration::from_millis(ms.saturating_sub(self.base_ms)).min(CENTURY);
        self.started + from_start
    }
}

const CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_on_where_the_run_before_ended() {
        let started = Instant::now();
        let clock = ServiceClock::new(5_000, started);
        assert_eq!(clock.ms(started), 5_000);
        assert_eq!(clock.ms(started + Duration::from_millis(1_500)), 6_500);
        assert_eq!(clock.instant(6_500), started + Duration::from_millis(1_500));
    }

    #[test]
    fn what_is_past_or_far_away_has_an_instant_too() {
        let started = Instant::now();
        let clock = ServiceClock::new(5_000, started);
        assert_eq!(clock.instant(0), started);
        assert_eq!(clock.instant(u64::MAX), started + CENTURY);
        assert_eq!(ServiceClock::new(u64::MAX, started).ms(started + CENTURY), u64::MAX);
    }
}
