//! What a web app's answer means.

use std::time::{Duration, SystemTime};

use engine::handover::{Answer, Outcome};
use hyper::StatusCode;

/// One answer, as far as it matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    /// At most [`REPLY_BYTES_MAX`]. `None`: it was longer.
    pub(super) body: Option<Vec<u8>>,
    pub(super) retry_after: Option<Duration>,
}

impl Reply {
    pub(super) fn is_ok(&self) -> bool {
        self.status == StatusCode::OK
    }
}

/// What an answer means: the table at [`Answer`]. An arrived file is handed over when the web app
/// says so in so many words. Of a cancellation it is only told: whoever can answer was told.
pub(super) fn interpret(outcome: &Outcome, reply: &Reply) -> Answer {
    let retry_after = reply.retry_after;
    if is_passing(reply.status) {
        return Answer::Unreached { error: status_error(reply), retry_after };
    }
    if matches!(outcome, Outcome::Cancelled { .. }) {
        return Answer::Done;
    }
    if !reply.is_ok() {
        return Answer::Refused { error: status_error(reply), retry_after };
    }
    match reply.body.as_deref().map(<[u8]>::trim_ascii) {
        Some(b"done") => Answer::Done,
        Some(b"wait") => Answer::Wait,
        _ => {
            let error = format!("the answer is neither done nor wait: {}", excerpt(reply));
            Answer::Refused { error, retry_after }
        }
    }
}

/// What a server answers that cannot serve now: one that is down, starting or overloaded, or the
/// proxy in front of it.
fn is_passing(status: StatusCode) -> bool {
    status.is_server_error()
        || matches!(
            status,
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS
        )
}

fn status_error(reply: &Reply) -> String {
    format!("status {}, not 200: {}", reply.status, excerpt(reply))
}

/// Reads `Retry-After`: seconds or a date (RFC 9110, section 10.2.3). A past date is no wait.
pub(super) fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or(Duration::ZERO))
}

/// The beginning of a body, for the log: one line, without control characters.
fn excerpt(reply: &Reply) -> String {
    let Some(body) = &reply.body else {
        return format!("longer than {REPLY_BYTES_MAX} bytes");
    };
    let text = String::from_utf8_lossy(body);
    let clean = text.trim().chars().map(|it| if it.is_control() { ' ' } else { it });
    format!("{:?}", clean.take(EXCERPT_CHARS_MAX).collect::<String>())
}

/// Long enough for any error page worth an excerpt.
pub(super) const REPLY_BYTES_MAX: usize = 64 * 1024;
const EXCERPT_CHARS_MAX: usize = 200;

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn arrived() -> Outcome {
        Outcome::Arrived { path: PathBuf::from("/x") }
    }

    fn reply(status: u16, body: &str) -> Reply {
        Reply {
            status: StatusCode::from_u16(status).unwrap(),
            body: Some(body.as_bytes().to_vec()),
            retry_after: None,
        }
    }

    #[test]
    fn done_and_wait_may_have_space_around() {
        for body in ["done", "done\n", " done\r\n"] {
            assert_eq!(interpret(&arrived(), &reply(200, body)), Answer::Done);
        }
        assert_eq!(interpret(&arrived(), &reply(200, "wait\n")), Answer::Wait);
    }

    #[test]
    fn everything_else_is_a_refusal() {
        for (status, body, error) in [
            (200, "", "the answer is neither done nor wait: \"\""),
            (200, "Done", "the answer is neither done nor wait: \"Done\""),
            (200, "done done", "the answer is neither done nor wait: \"done done\""),
            (201, "done", "status 201 Created, not 200: \"done\""),
            (204, "", "status 204 No Content, not 200: \"\""),
            (400, "a\nb\u{1b}", "status 400 Bad Request, not 200: \"a b \""),
        ] {
            assert_eq!(
                interpret(&arrived(), &reply(status, body)),
                Answer::Refused { error: error.to_owned(), retry_after: None }
            );
        }
        let long = Reply { body: None, ..reply(200, "") };
        let Answer::Refused { error, .. } = interpret(&arrived(), &long) else { panic!() };
        assert!(error.ends_with("longer than 65536 bytes"), "{error}");
    }

    #[test]
    fn of_a_cancellation_the_web_app_is_only_told() {
        let cancelled = Outcome::Cancelled { reason: "why".to_owned() };
        for it in [reply(200, "done"), reply(200, "wait"), reply(301, ""), reply(404, "")] {
            assert_eq!(interpret(&cancelled, &it), Answer::Done);
        }
    }

    #[test]
    fn every_status_has_its_class() {
        let cancelled = Outcome::Cancelled { reason: "why".to_owned() };
        for status in 200..=999 {
            let passing = matches!(status, 408 | 425 | 429 | 500..=599);
            let is_unreached = |it| matches!(it, Answer::Unreached { .. });
            let arrival = interpret(&arrived(), &reply(status, "done"));
            assert_eq!(is_unreached(arrival.clone()), passing, "{status}");
            assert_eq!(arrival == Answer::Done, status == 200, "{status}");
            let cancellation = interpret(&cancelled, &reply(status, "done"));
            assert_eq!(is_unreached(cancellation.clone()), passing, "{status}");
            assert_eq!(cancellation == Answer::Done, !passing, "{status}");
        }
    }

    #[test]
    fn both_classes_say_when_to_come_back() {
        let after = Some(Duration::from_secs(9));
        let with = |it: Reply| interpret(&arrived(), &Reply { retry_after: after, ..it });
        for it in [with(reply(503, "")), with(reply(404, "")), with(reply(200, "later"))] {
            let (Answer::Unreached { retry_after, .. } | Answer::Refused { retry_after, .. }) = it
            else {
                panic!("{it:?}")
            };
            assert_eq!(retry_after, after);
        }
    }

    #[test]
    fn retry_after() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let seconds = |it| Some(Duration::from_secs(it));
        assert_eq!(parse_retry_after(" 120 ", now), seconds(120));
        assert_eq!(parse_retry_after("Sun, 06 Nov 1994 08:50:07 GMT", now), seconds(30));
        assert_eq!(parse_retry_after("Sun, 06 Nov 1994 08:00:00 GMT", now), seconds(0));
        assert_eq!(parse_retry_after("soon", now), None);
        assert_eq!(parse_retry_after("-1", now), None);
    }
}
