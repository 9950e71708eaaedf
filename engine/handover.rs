//! Handing a finished file over to its web app: what is said, what the answer means, when to try
//! again. Pure; the HTTP client is the server's control thread.

use std::path::PathBuf;
use std::time::Duration;

use crate::ticket::TicketId;

/// One request to a web app's `signalFinishURL`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Callback {
    pub ticket: TicketId,
    pub url: String,
    pub backend_secret: String,
    /// Verbatim what the browser said, or empty if none ever connected. Only data: it may hold
    /// anything.
    pub filename_from_browser: String,
    pub outcome: Outcome,
    /// Counted from 1.
    pub attempt: u32,
}

/// What became of the upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The file lies at this absolute path.
    Arrived {
        path: PathBuf,
    },
    Cancelled {
        reason: String,
    },
}

/// What came of one [`Callback`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// 200 and `done`: the web app has the file.
    Done,
    /// 200 and `wait`: the web app will call `finish_upload`.
    Wait,
    /// Anything else, or no answer at all. `error` is for the log, never for the browser.
    Failed { error: String, retry_after: Option<Duration> },
}

/// How long to wait before the next attempt: 1 s, 2 s, 4 s and so on up to 5 minutes, or what the
/// web app asked for with `Retry-After`, up to an hour.
pub fn retry_delay(attempt: u32, retry_after: Option<Duration>) -> Duration {
    let doubled = Duration::from_secs(1 << (attempt.max(1) - 1).min(16));
    let delay = doubled.min(RETRY_DELAY_MAX);
    retry_after.map_or(delay, |it| it.clamp(delay, RETRY_AFTER_MAX))
}

const RETRY_DELAY_MAX: Duration = Duration::from_secs(300);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_five_minutes() {
        let delays: Vec<u64> = (1..12).map(|it| retry_delay(it, None).as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!(retry_delay(u32::MAX, None), RETRY_DELAY_MAX);
    }

    #[test]
    fn honours_retry_after_within_limits() {
        let seconds = |it| Some(Duration::from_secs(it));
        assert_eq!(retry_delay(1, seconds(90)).as_secs(), 90);
        assert_eq!(retry_delay(4, seconds(1)).as_secs(), 8);
        assert_eq!(retry_delay(1, seconds(1_000_000)), RETRY_AFTER_MAX);
    }
}
