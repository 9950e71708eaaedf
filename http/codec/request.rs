//! Request heads of HTTP/1.0 and HTTP/1.1 (RFC 9112), read strictly: whatever two readers could
//! understand differently is refused.

use std::ops::Range;

pub use super::request_error::RequestError;
pub use super::request_syntax::Method;
use super::request_syntax::{Lines, find_lines, is_host, parse_request_line, parse_target};

/// What a request says before its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub method: Method,
    /// As sent, still percent-encoded; begins with `/`, or is `*` with OPTIONS. Of a target in
    /// absolute form, the part after the authority.
    pub path: String,
    /// What follows the first `?`, as sent.
    pub query: Option<String>,
    /// 0 or 1.
    pub minor_version: u8,
    /// How the body is delimited.
    pub framing: Framing,
    /// Names and values of the fields, one after the other.
    text: String,
    fields: Vec<Field>,
}

/// RFC 9112 section 6.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    None,
    /// `Content-Length`, in bytes.
    Length(u64),
    Chunked,
}

/// What a head may measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLimits {
    /// From the request line to the empty line.
    pub head_bytes_max: usize,
    /// At most 64.
    pub field_count_max: usize,
}

/// Reads a head at the beginning of `bytes`, and how long it is, with the empty lines that may
/// precede it. `None`: the head is not complete yet; call again with all of it and more.
pub fn parse_head(
    bytes: &[u8],
    limits: &HeadLimits,
) -> Result<Option<(Head, usize)>, RequestError> {
    let Some(Lines { start, fields, end }) = find_lines(bytes, limits.head_bytes_max)? else {
        return Ok(None);
    };
    let (method, target, minor_version) = parse_request_line(&bytes[start..fields - 2])?;
    let (path, query) = parse_target(target, method)?;
    let (text, fields) = parse_fields(&bytes[fields..end], limits.field_count_max)?;
    let mut head =
        Head { method, path, query, minor_version, framing: Framing::None, text, fields };
    check_host(&head)?;
    check_expectation(&head)?;
    head.framing = framing(&head)?;
    Ok(Some((head, end)))
}

impl Head {
    /// The value of the first field of this name (compared without case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers(name).next()
    }

    /// The values of all fields of this name, in order.
    pub fn headers<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        self.fields
            .iter()
            .filter(move |it| self.text[it.name.clone()].eq_ignore_ascii_case(name))
            .map(|it| &self.text[it.value.clone()])
    }

    /// Whether the comma-separated lists in the fields of this name hold `token` (compared without
    /// case).
    pub fn has_token(&self, name: &str, token: &str) -> bool {
        self.headers(name)
            .flat_map(|it| it.split(','))
            .any(|it| it.trim_matches([' ', '\t']).eq_ignore_ascii_case(token))
    }

    /// Whether the connection goes on after the response (RFC 9112 section 9.3).
    pub fn keep_alive(&self) -> bool {
        !self.has_token("connection", "close")
            && (self.minor_version == 1 || self.has_token("connection", "keep-alive"))
    }

    /// Whether the client waits for `100 Continue` before it sends the body.
    pub fn expects_continue(&self) -> bool {
        self.minor_version == 1 && self.header("expect").is_some()
    }

    /// Whether the client asks for WebSocket (or at least says so; the opening handshake checks
    /// the rest).
    pub fn is_upgrade(&self) -> bool {
        self.minor_version == 1
            && self.has_token("connection", "upgrade")
            && self.has_token("upgrade", "websocket")
    }
}

impl Default for HeadLimits {
    fn default() -> Self {
        Self { head_bytes_max: 16 * 1024, field_count_max: FIELD_COUNT_MAX }
    }
}

/// Places in [`Head::text`].
#[derive(Clone, Debug, PartialEq, Eq)]
struct Field {
    name: Range<usize>,
    value: Range<usize>,
}

fn parse_fields(
    bytes: &[u8],
    field_count_max: usize,
) -> Result<(String, Vec<Field>), RequestError> {
    let mut storage = [httparse::EMPTY_HEADER; FIELD_COUNT_MAX];
    let storage = &mut storage[..field_count_max.min(FIELD_COUNT_MAX)];
    let parsed = match httparse::parse_headers(bytes, storage) {
        Ok(httparse::Status::Complete((_, parsed))) => parsed,
        Ok(httparse::Status::Partial) => return Err(RequestError::FieldInvalid),
        Err(httparse::Error::TooManyHeaders) => return Err(RequestError::FieldsTooMany),
        Err(_) => return Err(RequestError::FieldInvalid),
    };
    let mut text = String::with_capacity(bytes.len());
    let mut fields = Vec::with_capacity(parsed.len());
    for it in parsed {
        let start = text.len();
        text.push_str(it.name);
        let name = start..text.len();
        // RFC 9110 section 5.5: bytes above 0x7f have no meaning that could be relied on.
        text.push_str(&String::from_utf8_lossy(it.value));
        fields.push(Field { value: name.end..text.len(), name });
    }
    Ok((text, fields))
}

/// RFC 9112 section 3.2.
fn check_host(head: &Head) -> Result<(), RequestError> {
    let mut hosts = head.headers("host");
    match (hosts.next(), hosts.next()) {
        (None, _) if head.minor_version == 0 => Ok(()),
        (None, _) => Err(RequestError::HostMissing),
        (Some(_), Some(_)) => Err(RequestError::HostRepeated),
        (Some(host), None) if is_host(host) => Ok(()),
        (Some(_), None) => Err(RequestError::HostInvalid),
    }
}

/// RFC 9110 section 10.1.1. A client of HTTP/1.0 cannot expect anything; what it says is ignored.
fn check_expectation(head: &Head) -> Result<(), RequestError> {
    let met = |it: &str| it.eq_ignore_ascii_case("100-continue");
    if head.minor_version == 0 || head.headers("expect").all(met) {
        Ok(())
    } else {
        Err(RequestError::ExpectationUnknown)
    }
}

/// RFC 9112 section 6. Everything that has been used to smuggle requests is refused.
fn framing(head: &Head) -> Result<Framing, RequestError> {
    let mut codings = head.headers("transfer-encoding");
    let mut lengths = head.headers("content-length");
    match (codings.next(), lengths.next()) {
        (None, None) => Ok(Framing::None),
        (Some(_), Some(_)) => Err(RequestError::BothLengths),
        (Some(_), None) if head.minor_version == 0 => {
            Err(RequestError::TransferEncodingInOldVersion)
        }
        (Some(coding), None) if codings.next().is_none() => {
            if coding.eq_ignore_ascii_case("chunked") {
                Ok(Framing::Chunked)
            } else {
                Err(RequestError::TransferEncodingUnsupported)
            }
        }
        (Some(_), None) => Err(RequestError::TransferEncodingUnsupported),
        (None, Some(_)) if lengths.next().is_some() => Err(RequestError::ContentLengthRepeated),
        (None, Some(length)) if length.contains(',') => Err(RequestError::ContentLengthRepeated),
        (None, Some(length)) => {
            if length.is_empty() || !length.bytes().all(|it| it.is_ascii_digit()) {
                return Err(RequestError::ContentLengthInvalid);
            }
            length.parse().map(Framing::Length).map_err(|_| RequestError::ContentLengthInvalid)
        }
    }
}

const FIELD_COUNT_MAX: usize = 64;

#[cfg(test)]
pub(super) mod tests {
    use super::RequestError::*;
    use super::*;

    pub(in crate::codec) fn parse(bytes: &[u8]) -> Result<Option<(Head, usize)>, RequestError> {
        parse_head(bytes, &HeadLimits::default())
    }

    pub(in crate::codec) fn head(text: &str) -> Head {
        let (head, length) = parse(text.as_bytes()).expect("valid").expect("complete");
        assert_eq!(length, text.len());
        head
    }

    #[test]
    fn a_head_with_everything() {
        let text = "POST /a/b%20c?x=1&y=%2F?z HTTP/1.1\r\nHost: example.org:8080\r\n\
                    Content-Length: 12\r\nX-Empty:\r\nCookie: \t a=b \r\nCookie: c\r\n\
                    Connection: Keep-Alive , Upgrade\r\nUser-Agent: caf\u{e9}\r\n\r\n";
        let head = head(text);
        assert_eq!(head.method, Method::Post);
        assert_eq!(head.path, "/a/b%20c");
        assert_eq!(head.query.as_deref(), Some("x=1&y=%2F?z"));
        assert_eq!(head.minor_version, 1);
        assert_eq!(head.framing, Framing::Length(12));
        assert_eq!(head.header("HOST"), Some("example.org:8080"));
        assert_eq!(head.header("x-empty"), Some(""));
        assert_eq!(head.header("absent"), None);
        assert_eq!(head.headers("cookie").collect::<Vec<_>>(), ["a=b", "c"]);
        assert_eq!(head.header("user-agent"), Some("caf\u{e9}"));
        assert!(head.has_token("connection", "UPGRADE"));
        assert!(!head.has_token("connection", "close"));
        assert!(head.keep_alive() && !head.is_upgrade() && !head.expects_continue());
    }

    #[test]
    fn what_follows_the_head_is_left_alone() {
        let text = b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\nGET /next";
        let (head, length) = parse(text).expect("valid").expect("complete");
        assert_eq!((head.path.as_str(), length), ("/", text.len() - 9));
    }

    #[test]
    fn targets() {
        for (target, path, query) in [
            ("/", "/", None),
            ("/?", "/", Some("")),
            ("//x/../y", "//x/../y", None),
            ("http://example.org", "/", None),
            ("HTTPS://example.org:443/a?b", "/a", Some("b")),
            ("http://[::1]:4000?b", "/", Some("b")),
        ] {
            let head = head(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
            assert_eq!((head.path.as_str(), head.query.as_deref()), (path, query), "{target}");
        }
        assert_eq!(head("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").path, "*");
    }

    #[test]
    fn questions_about_a_head() {
        type Question = fn(&Head) -> bool;
        let rows: [(&str, &str, Question, bool); 13] = [
            ("1.1 stays", "1.1\r\nHost: a", Head::keep_alive, true),
            ("1.1 closes", "1.1\r\nHost: a\r\nConnection: close", Head::keep_alive, false),
            (
                "close wins",
                "1.1\r\nHost: a\r\nConnection: keep-alive, close",
                Head::keep_alive,
                false,
            ),
            ("1.0 closes", "1.0", Head::keep_alive, false),
            ("1.0 stays", "1.0\r\nConnection: Keep-Alive", Head::keep_alive, true),
            ("expects", "1.1\r\nHost: a\r\nExpect: 100-Continue", Head::expects_continue, true),
            ("1.0 does not", "1.0\r\nExpect: 100-continue", Head::expects_continue, false),
            ("nor anything", "1.0\r\nExpect: tea", Head::expects_continue, false),
            (
                "upgrade",
                "1.1\r\nHost: a\r\nConnection: x, upgrade\r\nUpgrade: WebSocket",
                Head::is_upgrade,
                true,
            ),
            ("not listed", "1.1\r\nHost: a\r\nUpgrade: websocket", Head::is_upgrade, false),
            ("not named", "1.1\r\nHost: a\r\nConnection: upgrade", Head::is_upgrade, false),
            (
                "h2c",
                "1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c",
                Head::is_upgrade,
                false,
            ),
            ("1.0", "1.0\r\nConnection: upgrade\r\nUpgrade: websocket", Head::is_upgrade, false),
        ];
        for (name, rest, question, answer) in rows {
            assert_eq!(question(&head(&format!("GET / HTTP/{rest}\r\n\r\n"))), answer, "{name}");
        }
    }

    #[test]
    fn refusals() {
        let rows: [(&str, RequestError); 52] = [
            ("GET / HTTP/1.1\nHost: a\n\n", LineEndInvalid),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n", LineEndInvalid),
            ("GET / HTTP/1.1\r\nHost: a\r\n\n", LineEndInvalid),
            ("GET / HTTP/1.1\r\nA: b\rc\r\n", LineEndInvalid),
            ("GET / HTTP/1.1\r\r\n", LineEndInvalid),
            ("GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", LineFolded),
            ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", LineFolded),
            ("\x16\x03\x01", RequestLineInvalid),
            (" GET / HTTP/1.1\r\n", RequestLineInvalid),
            ("\nGET / HTTP/1.1\r\n", RequestLineInvalid),
            ("GET  / HTTP/1.1\r\n\r\n", RequestLineInvalid),
            ("GET / HTTP/1.1 \r\n\r\n", RequestLineInvalid),
            ("GET /\r\n\r\n", RequestLineInvalid),
            ("GET\t/ HTTP/1.1\r\n\r\n", RequestLineInvalid),
            ("G(T / HTTP/1.1\r\n\r\n", RequestLineInvalid),
            ("GET / http/1.1\r\n\r\n", RequestLineInvalid),
            ("GET / HTTP/1.10\r\n\r\n", RequestLineInvalid),
            ("GET / HTTP/2.0\r\n\r\n", VersionUnsupported),
            ("PRI * HTTP/2.0\r\n\r\n", VersionUnsupported),
            ("GET / HTTP/0.9\r\n\r\n", VersionUnsupported),
            ("GET / HTTP/1.2\r\n\r\n", VersionUnsupported),
            ("CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", MethodNotImplemented),
            ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", TargetInvalid),
            ("GET a HTTP/1.1\r\nHost: a\r\n\r\n", TargetInvalid),
            ("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", TargetInvalid),
            ("GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n", TargetInvalid),
            ("GET http://u@a/x HTTP/1.1\r\nHost: a\r\n\r\n", TargetInvalid),
            ("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", TargetInvalid),
            ("GET /\u{e4} HTTP/1.1\r\nHost: a\r\n\r\n", TargetInvalid),
            ("GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n", TargetInvalid),
            ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", FieldInvalid),
            ("GET / HTTP/1.1\r\nHost\r\n\r\n", FieldInvalid),
            ("GET / HTTP/1.1\r\n: a\r\n\r\n", FieldInvalid),
            ("GET / HTTP/1.1\r\nHost: a\0\r\n\r\n", FieldInvalid),
            ("GET / HTTP/1.1\r\n\r\n", HostMissing),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", HostRepeated),
            ("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", HostRepeated),
            ("GET / HTTP/1.1\r\nHost:\r\n\r\n", HostInvalid),
            ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", HostInvalid),
            ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", HostInvalid),
            ("GET / HTTP/1.1\r\nHost: a:70000\r\n\r\n", HostInvalid),
            ("GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", HostInvalid),
            ("GET / HTTP/1.1\r\nHost: a\r\nExpect: tea\r\n\r\n", ExpectationUnknown),
            ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", ContentLengthInvalid),
            ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", ContentLengthInvalid),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551616\r\n\r\n",
                ContentLengthInvalid,
            ),
            ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n", ContentLengthRepeated),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
                ContentLengthRepeated,
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
                TransferEncodingUnsupported,
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\
                 Transfer-Encoding: chunked\r\n\r\n",
                TransferEncodingUnsupported,
            ),
            ("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", TransferEncodingInOldVersion),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\
                 Content-Length: 1\r\n\r\n",
                BothLengths,
            ),
        ];
        for (text, expected) in rows {
            assert_eq!(parse(text.as_bytes()), Err(expected), "{text:?}");
        }
    }

    #[test]
    fn limits() {
        let limits = HeadLimits { head_bytes_max: 60, field_count_max: 3 };
        let exact = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(28));
        assert_eq!(exact.len(), 60);
        assert!(matches!(parse_head(exact.as_bytes(), &limits), Ok(Some((_, 60)))));
        let longer = exact.replace("X: ", "X: x");
        for (text, expected) in [
            (longer.as_str(), HeadTooLong),
            (&longer[..60], HeadTooLong),
            (&format!("GET /{}", "x".repeat(100)), TargetTooLong),
            ("GET / HTTP/1.1\r\nHost: a\r\nB:\r\nC:\r\nD:\r\n\r\n", FieldsTooMany),
        ] {
            assert_eq!(parse_head(text.as_bytes(), &limits), Err(expected), "{text:?}");
        }
        assert_eq!(parse_head(&longer.as_bytes()[..59], &limits), Ok(None));
        assert!(parse_head(b"GET / HTTP/1.1\r\nHost: a\r\nB:\r\nC:\r\n\r\n", &limits).is_ok());
    }
}
