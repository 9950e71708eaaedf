//! Responses of HTTP/1.1 (RFC 9112 section 4).

use std::fmt::Write;
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};

/// A whole response, body included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub body: Bytes,
    headers: Vec<(&'static str, String)>,
}

/// What the request and the connection ask of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodeOptions<'a> {
    /// Answer to HEAD: the same head, and no body.
    pub head_only: bool,
    /// The connection is closed after this response.
    pub close: bool,
    /// Of the request.
    pub minor_version: u8,
    /// From [`http_date`].
    pub date: &'a str,
}

impl Response {
    /// No body and no content type.
    pub fn empty(status: u16) -> Self {
        Self { status, body: Bytes::new(), headers: Vec::new() }
    }

    /// `text/plain; charset=utf-8`.
    pub fn text(status: u16, body: impl Into<Bytes>) -> Self {
        Self::with_type(status, "text/plain; charset=utf-8", body)
    }

    pub fn with_type(status: u16, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        let response = Self { body: body.into(), ..Self::empty(status) };
        response.with_header("Content-Type", content_type)
    }

    /// Adds a header field. Control characters in `value` are left out, so that no value can end
    /// its line.
    pub fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        let mut value = value.into();
        value.retain(|it| it == '\t' || !it.is_control());
        self.headers.push((name, value));
        self
    }

    /// The value of the first field of this name (compared without case).
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut named = self.headers.iter().filter(|it| it.0.eq_ignore_ascii_case(name));
        named.next().map(|it| it.1.as_str())
    }

    /// Writes head and body.
    pub fn encode(&self, out: &mut BytesMut, options: EncodeOptions<'_>) {
        self.encode_head(out, options);
        if !options.head_only && self.has_body() {
            out.extend_from_slice(&self.body);
        }
    }

    /// Writes the head alone, for a large body that is sent from where it lies. It is to follow
    /// unless `options.head_only`.
    pub fn encode_head(&self, out: &mut BytesMut, options: EncodeOptions<'_>) {
        let reason = reason_phrase(self.status);
        put(out, format_args!("HTTP/1.1 {} {reason}\r\n", self.status));
        if self.status >= 200 {
            put(out, format_args!("Date: {}\r\n", options.date));
        }
        for (name, value) in &self.headers {
            put(out, format_args!("{name}: {value}\r\n"));
        }
        if self.has_body() {
            put(out, format_args!("Content-Length: {}\r\n", self.body.len()));
        }
        if self.status >= 200 {
            if options.close {
                put(out, format_args!("Connection: close\r\n"));
            } else if options.minor_version == 0 {
                put(out, format_args!("Connection: keep-alive\r\n"));
            }
        }
        put(out, format_args!("\r\n"));
    }

    /// RFC 9110 sections 15.2, 15.3.5 and 15.4.5.
    fn has_body(&self) -> bool {
        !matches!(self.status, 100..=199 | 204 | 304)
    }
}

/// A time for `Date` and `Last-Modified` (RFC 9110 section 5.6.7). It changes once a second.
pub fn http_date(time: SystemTime) -> String {
    httpdate::fmt_http_date(time)
}

/// What a client is told that waits before it sends its body.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

fn put(out: &mut BytesMut, arguments: std::fmt::Arguments<'_>) {
    out.write_fmt(arguments).expect("writing to memory does not fail");
}

/// Those that this server sends (RFC 9110 section 15); the phrase has no meaning to a client.
fn reason_phrase(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        200 => "OK",
        201 => "Created",
        204 => "No Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        507 => "Insufficient Storage",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const OPTIONS: EncodeOptions<'_> =
        EncodeOptions { head_only: false, close: false, minor_version: 1, date: DATE };

    fn encode(response: &Response, options: EncodeOptions<'_>) -> String {
        let mut out = BytesMut::new();
        response.encode(&mut out, options);
        String::from_utf8(out.to_vec()).expect("ASCII").replace(DATE, "now")
    }

    #[test]
    fn responses() {
        let text = Response::text(200, "ok");
        let rows = [
            (
                "text",
                text.clone(),
                OPTIONS,
                "HTTP/1.1 200 OK\r\nDate: now\r\nContent-Type: text/plain; charset=utf-8\r\n\
                 Content-Length: 2\r\n\r\nok",
            ),
            (
                "to HEAD, closing",
                text.clone(),
                EncodeOptions { head_only: true, close: true, ..OPTIONS },
                "HTTP/1.1 200 OK\r\nDate: now\r\nContent-Type: text/plain; charset=utf-8\r\n\
                 Content-Length: 2\r\nConnection: close\r\n\r\n",
            ),
            (
                "to HTTP/1.0, staying",
                Response::empty(405).with_header("Allow", "GET, HEAD"),
                EncodeOptions { minor_version: 0, ..OPTIONS },
                "HTTP/1.1 405 Method Not Allowed\r\nDate: now\r\nAllow: GET, HEAD\r\n\
                 Content-Length: 0\r\nConnection: keep-alive\r\n\r\n",
            ),
            (
                "to HTTP/1.0, closing",
                Response::empty(431),
                EncodeOptions { minor_version: 0, close: true, ..OPTIONS },
                "HTTP/1.1 431 Request Header Fields Too Large\r\nDate: now\r\n\
                 Content-Length: 0\r\nConnection: close\r\n\r\n",
            ),
            ("204", Response::empty(204), OPTIONS, "HTTP/1.1 204 No Content\r\nDate: now\r\n\r\n"),
            (
                "304 with a body that must not be sent",
                Response { body: Bytes::from_static(b"x"), ..Response::empty(304) },
                OPTIONS,
                "HTTP/1.1 304 Not Modified\r\nDate: now\r\n\r\n",
            ),
            ("100", Response::empty(100), OPTIONS, "HTTP/1.1 100 Continue\r\n\r\n"),
            (
                "a status without a phrase",
                Response::empty(299),
                OPTIONS,
                "HTTP/1.1 299 \r\nDate: now\r\nContent-Length: 0\r\n\r\n",
            ),
        ];
        for (name, response, options, expected) in rows {
            assert_eq!(encode(&response, options), expected, "{name}");
        }
        assert_eq!(CONTINUE, encode(&Response::empty(100), OPTIONS).as_bytes());
    }

    #[test]
    fn no_value_ends_its_line() {
        let response = Response::empty(301).with_header("Location", "/a\r\nSet-Cookie: b\0\x7f");
        assert_eq!(response.header("location"), Some("/aSet-Cookie: b"));
    }

    #[test]
    fn a_large_body_is_not_copied() {
        let mut out = BytesMut::new();
        let response = Response::text(200, vec![b'x'; 1 << 20]);
        response.encode_head(&mut out, OPTIONS);
        assert!(out.len() < 200 && out.ends_with(b"Content-Length: 1048576\r\n\r\n"));
    }

    #[test]
    fn dates() {
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(784_111_777);
        assert_eq!(http_date(time), DATE);
    }
}
