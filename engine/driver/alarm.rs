//! The one timer of a core.
//!
//! The machine says after every turn when it wants to be called; a turn that changes nothing costs
//! nothing, and an idle machine leaves no timer that could wake its core.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::pump::Kernel;

/// A runtime's sleep, or none while the machine needs none.
pub(super) struct Alarm<K: Kernel> {
    sleep: Option<Pin<Box<K::Sleep>>>,
    armed_at: Option<Instant>,
}

impl<K: Kernel> Alarm<K> {
    /// Arms it, again or for the first time, or takes it away.
    pub(super) fn set(&mut self, at: Option<Instant>) {
        if self.armed_at == at {
            return;
        }
        self.armed_at = at;
        let Some(at) = at else {
            self.sleep = None;
            return;
        };
        // A time that has passed must not keep the loop from entering the ring.
        let at = at.max(Instant::now() + TIMER_RESOLUTION);
        match &mut self.sleep {
            Some(sleep) => K::reset(sleep.as_mut(), at),
            None => self.sleep = Some(Box::pin(K::sleep_until(at))),
        }
    }

    /// Ready once, when the time has come.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let (Some(sleep), Some(_)) = (&mut self.sleep, self.armed_at) else {
            return Poll::Pending;
        };
        let polled = sleep.as_mut().poll(cx);
        if polled.is_ready() {
            self.armed_at = None;
        }
        polled
    }
}

impl<K: Kernel> Default for Alarm<K> {
    fn default() -> Self {
        Self { sleep: None, armed_at: None }
    }
}

/// Both runtimes have a wheel of milliseconds.
const TIMER_RESOLUTION: Duration = Duration::from_millis(1);
