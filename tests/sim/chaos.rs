//! What goes wrong from outside: the server's end, and the state of its disk.

use std::time::{Duration, Instant};

use engine::op::StorageHealth;

use crate::disk::Weather;
use crate::rng::Rng;

/// How often, how, and for how long.
#[derive(Debug)]
pub(crate) struct Chaos {
    ends_left: u32,
    /// One in so many steps.
    ends_every: usize,
    weathers_left: u32,
    weathers_every: usize,
    /// When the disk is well again.
    clears_at: Option<Instant>,
}

/// How a server ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Stop,
    Kill,
    PowerCut,
}

impl Chaos {
    pub(crate) fn new(rng: &mut Rng, is_fair: bool) -> Self {
        Self {
            ends_left: rng.pick(&[0, 1, 2, 4]),
            ends_every: rng.pick(&[100, 700, 3_000]),
            weathers_left: if is_fair { 0 } else { rng.below(3) as u32 },
            weathers_every: rng.pick(&[200, 2_000]),
            clears_at: None,
        }
    }

    /// Nothing goes wrong any more.
    pub(crate) fn calm(&mut self) {
        (self.ends_left, self.weathers_left) = (0, 0);
    }

    /// Whether the server ends now.
    pub(crate) fn poll_end(&mut self, rng: &mut Rng) -> Option<End> {
        if self.ends_left == 0 || rng.below(self.ends_every) > 0 {
            return None;
        }
        self.ends_left -= 1;
        Some(rng.pick(&[End::Stop, End::Kill, End::Kill, End::PowerCut, End::PowerCut]))
    }

    /// Whether a start is cut short, and by which of its calls.
    pub(crate) fn poll_cut(&mut self, rng: &mut Rng) -> Option<usize> {
        if self.ends_left == 0 || !rng.chance(30) {
            return None;
        }
        self.ends_left -= 1;
        Some(rng.below(40))
    }

    /// No room for a while, or no writing, or no directory. It passes.
    pub(crate) fn change_weather(&mut self, now: Instant, weather: &mut Weather, rng: &mut Rng) {
        match self.clears_at {
            Some(at) if at <= now => {
                self.clears_at = None;
                (weather.is_full, weather.health) = (false, StorageHealth::Good);
            }
            None if self.weathers_left > 0 && rng.below(self.weathers_every) == 0 => {
                self.weathers_left -= 1;
                match rng.below(4) {
                    0 => weather.health = StorageHealth::ReadOnly,
                    1 => weather.health = StorageHealth::Gone,
                    _ => weather.is_full = true,
                }
                self.clears_at = Some(now + Duration::from_millis(rng.below(20_000) as u64));
            }
            _ => {}
        }
    }

    pub(crate) fn clears_at(&self) -> Option<Instant> {
        self.clears_at
    }
}
