//! Handing a finished file over to its web app: what is said, and what the answer means. Pure; the
//! HTTP client is the server's control thread.

use std::path::PathBuf;
use std::time::Duration;

use crate::ticket::TicketId;

/// One request to a web app's `signalFinishURL`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Callback {
    pub ticket: TicketId,
    pub url: String,
    pub backend_secret: String,
    /// What the callback is signed with. Empty: with the server's own secret, if it has one.
    pub signing_secret: String,
    /// Verbatim what the web app gave with the ticket. Empty: nothing.
    pub metadata: String,
    /// Verbatim what the browser said, or empty if none ever connected. Only data: it may hold
    /// anything.
    pub filename_from_browser: String,
    pub outcome: Outcome,
    /// Counted from 1. Numbers may be missing: not every attempt gets as far as the web app.
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

/// What came of one [`Callback`]. `error` is for the log and the operator, never for the browser.
///
/// | | an arrival | a cancellation |
/// |---|---|---|
/// | 200 `done` | `Done` | `Done` |
/// | 200 `wait` | `Wait` | `Done` |
/// | 408, 425, 429, 5xx | `Unreached` | `Unreached` |
/// | no whole answer: no address, no connection, no TLS, time-out, cut off, no HTTP | `Unreached` | `Unreached` |
/// | everything else: another status or body, a redirect that is not followed | `Refused` | `Done` |
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The web app has the file, or knows that there will be none.
    Done,
    /// The web app will call `finish_upload`.
    Wait,
    /// The web app did not get to decide: worth another try for as long as anybody wants the file.
    Unreached { error: String, retry_after: Option<Duration> },
    /// The web app, or what stands in its place, does not take the file: worth a few more tries.
    Refused { error: String, retry_after: Option<Duration> },
}

/// Scheme, host and port of an absolute URL, in one spelling: lower case, without user and
/// password, without the port that is the default of http or https. Hand-overs to the same host
/// wait for the same web app. Empty if the URL has no scheme or no host.
pub fn host_of(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return String::new() };
    let scheme = scheme.to_ascii_lowercase();
    let end = rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len());
    let authority = rest[..end].rsplit('@').next().unwrap_or("").to_ascii_lowercase();
    let default_port = match scheme.as_str() {
        "http" => ":80",
        "https" => ":443",
        _ => ":",
    };
    let host = authority.strip_suffix(default_port).unwrap_or(&authority);
    let host = host.strip_suffix(':').unwrap_or(host);
    if scheme.is_empty() || host.is_empty() || host.starts_with(':') {
        return String::new();
    }
    format!("{scheme}://{host}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_one_spelling() {
        for (url, host) in [
            ("http://host", "http://host"),
            ("http://host/x", "http://host"),
            ("HTTP://Host:80?x", "http://host"),
            ("http://host:#x", "http://host"),
            ("https://ada:p@ss@Host:8443/x?y@z", "https://host:8443"),
            ("https://host:443/", "https://host"),
            ("https://host:80/", "https://host:80"),
            ("http://host:443/", "http://host:443"),
            ("http://[::80]/x", "http://[::80]"),
            ("http://[::1]:80/x", "http://[::1]"),
            ("http://127.0.0.1:8080\\x", "http://127.0.0.1:8080"),
            ("http://host/a@b://c", "http://host"),
            ("/only/a/path", ""),
            ("host/path", ""),
            ("://host", ""),
            ("http://", ""),
            ("http:///path", ""),
            ("http://:80/", ""),
            ("http://ada@/", ""),
            ("", ""),
        ] {
            assert_eq!(host_of(url), host, "{url}");
        }
    }
}
