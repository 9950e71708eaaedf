//! Request heads of HTTP/1.0 and HTTP/1.1 (RFC 9112), read strictly: whatever two readers could
//! understand differently is refused.

use std::ops::Range;

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

/// Case-sensitive (RFC 9110 section 9.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
    Options,
    /// Any other token.
    Other,
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

/// Why a request is refused. [`RequestError::status`] says how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestError {
    LineEndInvalid,
    LineFolded,
    RequestLineInvalid,
    MethodNotImplemented,
    TargetInvalid,
    TargetTooLong,
    VersionUnsupported,
    HeadTooLong,
    FieldInvalid,
    FieldsTooMany,
    HostMissing,
    HostRepeated,
    HostInvalid,
    ContentLengthInvalid,
    ContentLengthRepeated,
    TransferEncodingUnsupported,
    /// HTTP/1.0 does not know it (RFC 9112 section 6.1).
    TransferEncodingInOldVersion,
    BothLengths,
    ExpectationUnknown,
    BodyTooLong,
    ChunkInvalid,
    ChunkExtensionsTooLong,
    TrailersTooLong,
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

impl RequestError {
    /// The status of the response. The connection is closed after it.
    pub fn status(self) -> u16 {
        match self {
            Self::LineEndInvalid
            | Self::LineFolded
            | Self::RequestLineInvalid
            | Self::TargetInvalid
            | Self::FieldInvalid
            | Self::HostMissing
            | Self::HostRepeated
            | Self::HostInvalid
            | Self::ContentLengthInvalid
            | Self::ContentLengthRepeated
            | Self::TransferEncodingInOldVersion
            | Self::BothLengths
            | Self::ChunkInvalid
            | Self::ChunkExtensionsTooLong => 400,
            Self::BodyTooLong => 413,
            Self::TargetTooLong => 414,
            Self::ExpectationUnknown => 417,
            Self::HeadTooLong | Self::FieldsTooMany | Self::TrailersTooLong => 431,
            Self::MethodNotImplemented | Self::TransferEncodingUnsupported => 501,
            Self::VersionUnsupported => 505,
        }
    }

    /// One sentence for the body of the response.
    pub fn message(self) -> &'static str {
        match self {
            Self::LineEndInvalid => "A line of the request head does not end with CR LF.",
            Self::LineFolded => "A header field continues on a second line.",
            Self::RequestLineInvalid => "The request line is not `METHOD target HTTP/1.1`.",
            Self::MethodNotImplemented => "The request method is not implemented.",
            Self::TargetInvalid => "The request target is not a path or an http URI.",
            Self::TargetTooLong => "The request target is too long.",
            Self::VersionUnsupported => "Only HTTP/1.0 and HTTP/1.1 are spoken here.",
            Self::HeadTooLong => "The request head is too long.",
            Self::FieldInvalid => "A header field is not `Name: value`.",
            Self::FieldsTooMany => "The request has too many header fields.",
            Self::HostMissing => "The Host header field is missing.",
            Self::HostRepeated => "There is more than one Host header field.",
            Self::HostInvalid => "The Host header field is not `host` or `host:port`.",
            Self::ContentLengthInvalid => "The Content-Length is not a number of bytes.",
            Self::ContentLengthRepeated => "There is more than one Content-Length.",
            Self::TransferEncodingUnsupported => "The only Transfer-Encoding here is `chunked`.",
            Self::TransferEncodingInOldVersion => "HTTP/1.0 has no Transfer-Encoding.",
            Self::BothLengths => "There are both a Content-Length and a Transfer-Encoding.",
            Self::ExpectationUnknown => "The only expectation met here is `100-continue`.",
            Self::BodyTooLong => "The request body is too long.",
            Self::ChunkInvalid => "The chunked body is malformed.",
            Self::ChunkExtensionsTooLong => "The chunked body has too long chunk extensions.",
            Self::TrailersTooLong => "The chunked body has too long trailers.",
        }
    }
}

impl Method {
    fn parse(token: &[u8]) -> Self {
        match token {
            b"GET" => Self::Get,
            b"HEAD" => Self::Head,
            b"POST" => Self::Post,
            b"PUT" => Self::Put,
            b"PATCH" => Self::Patch,
            b"DELETE" => Self::Delete,
            b"OPTIONS" => Self::Options,
            _ => Self::Other,
        }
    }
}

/// RFC 9110 section 5.6.2.
pub(super) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Places in [`Head::text`].
#[derive(Clone, Debug, PartialEq, Eq)]
struct Field {
    name: Range<usize>,
    value: Range<usize>,
}

/// Where the parts of a complete head are.
struct Lines {
    /// The request line.
    start: usize,
    /// The first field, right after the request line's CR LF.
    fields: usize,
    /// After the empty line.
    end: usize,
}

/// Finds the lines of a head and checks how they end. What is complete is checked even when the
/// head is not, so that a hopeless head is refused early.
fn find_lines(bytes: &[u8], head_bytes_max: usize) -> Result<Option<Lines>, RequestError> {
    let bounded = &bytes[..bytes.len().min(head_bytes_max)];
    // RFC 9112 section 2.2: empty lines before a request are ignored.
    let start = bounded.chunks(2).take_while(|it| *it == b"\r\n").count() * 2;
    if let Some(first) = bounded.get(start)
        && !is_token_byte(*first)
        && *first != b'\r'
    {
        return Err(RequestError::RequestLineInvalid);
    }
    let mut fields = None;
    let mut line_start = start;
    while let Some(length) = bounded[line_start..].iter().position(|it| *it == b'\n') {
        let line_end = line_start + length + 1;
        match bounded[line_start..line_end] {
            [ref line @ .., b'\r', b'\n'] if !line.contains(&b'\r') => {}
            _ => return Err(RequestError::LineEndInvalid),
        }
        match fields {
            None => fields = Some(line_end),
            Some(fields) if length == 1 => {
                return Ok(Some(Lines { start, fields, end: line_end }));
            }
            Some(_) if matches!(bounded[line_start], b' ' | b'\t') => {
                return Err(RequestError::LineFolded);
            }
            Some(_) => {}
        }
        line_start = line_end;
    }
    let unfinished = &bounded[line_start..];
    if let Some((_, before)) = unfinished.split_last()
        && before.contains(&b'\r')
    {
        return Err(RequestError::LineEndInvalid);
    }
    match fields {
        _ if bytes.len() < head_bytes_max => Ok(None),
        None => Err(RequestError::TargetTooLong),
        Some(_) => Err(RequestError::HeadTooLong),
    }
}

/// RFC 9112 section 3, with exactly one space between the parts.
fn parse_request_line(line: &[u8]) -> Result<(Method, &str, u8), RequestError> {
    let mut parts = line.split(|it| *it == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(RequestError::RequestLineInvalid);
    };
    if method.is_empty() || !method.iter().copied().all(is_token_byte) {
        return Err(RequestError::RequestLineInvalid);
    }
    let minor_version = match version {
        b"HTTP/1.0" => 0,
        b"HTTP/1.1" => 1,
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            return Err(RequestError::VersionUnsupported);
        }
        _ => return Err(RequestError::RequestLineInvalid),
    };
    if method == b"CONNECT" {
        return Err(RequestError::MethodNotImplemented);
    }
    let target = std::str::from_utf8(target).map_err(|_| RequestError::TargetInvalid)?;
    Ok((Method::parse(method), target, minor_version))
}

/// Origin form, absolute form, and the asterisk of OPTIONS (RFC 9112 section 3.2).
fn parse_target(target: &str, method: Method) -> Result<(String, Option<String>), RequestError> {
    if !target.bytes().all(|it| it.is_ascii_graphic() && it != b'#') {
        return Err(RequestError::TargetInvalid);
    }
    if target == "*" && method == Method::Options {
        return Ok((target.to_owned(), None));
    }
    let origin = if target.starts_with('/') {
        target
    } else {
        let after_scheme = ["http://", "https://"]
            .iter()
            .find(|it| target.get(..it.len()).is_some_and(|head| head.eq_ignore_ascii_case(it)))
            .map(|it| &target[it.len()..])
            .ok_or(RequestError::TargetInvalid)?;
        let length = after_scheme.find(['/', '?']).unwrap_or(after_scheme.len());
        let (authority, origin) = after_scheme.split_at(length);
        if !is_host(authority) {
            return Err(RequestError::TargetInvalid);
        }
        origin
    };
    let (path, query) = match origin.split_once('?') {
        Some((path, query)) => (path, Some(query.to_owned())),
        None => (origin, None),
    };
    Ok((if path.is_empty() { "/" } else { path }.to_owned(), query))
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

/// `host` or `host:port` (RFC 3986 section 3.2). The host is not empty, and there is no user.
fn is_host(authority: &str) -> bool {
    let (host_is_valid, after) = match authority.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, after)) => (address.parse::<std::net::Ipv6Addr>().is_ok(), after),
            None => return false,
        },
        None => {
            let length = authority.find(':').unwrap_or(authority.len());
            let (name, after) = authority.split_at(length);
            let valid = name
                .bytes()
                .all(|it| it.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%".contains(&it));
            (valid && !name.is_empty(), after)
        }
    };
    let port_is_valid = match after.strip_prefix(':') {
        Some(port) => {
            port.bytes().all(|it| it.is_ascii_digit())
                && (port.is_empty() || port.parse::<u16>().is_ok())
        }
        None => after.is_empty(),
    };
    host_is_valid && port_is_valid
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
