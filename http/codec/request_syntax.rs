//! The parts of a request head: its lines, the request line and what stands in it (RFC 9112
//! sections 2 and 3).

use super::request_error::RequestError;

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

/// Where the parts of a complete head are.
pub(super) struct Lines {
    /// The request line.
    pub(super) start: usize,
    /// The first field, right after the request line's CR LF.
    pub(super) fields: usize,
    /// After the empty line.
    pub(super) end: usize,
}

/// Finds the lines of a head and checks how they end. What is complete is checked even when the
/// head is not, so that a hopeless head is refused early.
pub(super) fn find_lines(
    bytes: &[u8],
    head_bytes_max: usize,
) -> Result<Option<Lines>, RequestError> {
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
pub(super) fn parse_request_line(line: &[u8]) -> Result<(Method, &str, u8), RequestError> {
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
pub(super) fn parse_target(
    target: &str,
    method: Method,
) -> Result<(String, Option<String>), RequestError> {
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

/// `host` or `host:port` (RFC 3986 section 3.2). The host is not empty, and there is no user.
pub(super) fn is_host(authority: &str) -> bool {
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

/// RFC 9110 section 5.6.2.
pub(super) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
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
