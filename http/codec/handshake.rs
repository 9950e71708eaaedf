//! The opening handshake of a WebSocket, server side (RFC 6455 section 4.2).

use bytes::Bytes;
use tungstenite::handshake::derive_accept_key;

use super::request::{Framing, Head, Method};
use super::response::Response;

/// Why a handshake is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandshakeError {
    /// No request to switch to WebSocket, or a malformed one.
    NotAnUpgrade,
    /// `Sec-WebSocket-Key` is not there exactly once with 16 bytes in base64.
    KeyInvalid,
    /// `Sec-WebSocket-Version` is there and is not 13.
    VersionUnsupported,
}

/// The whole response that opens the WebSocket. No subprotocol and no extension is ever selected,
/// and every origin is welcome.
pub fn accept(head: &Head) -> Result<Bytes, HandshakeError> {
    if head.method != Method::Get || !head.is_upgrade() {
        return Err(HandshakeError::NotAnUpgrade);
    }
    // What followed the head would be a body to one reader and frames to another.
    if !matches!(head.framing, Framing::None | Framing::Length(0)) {
        return Err(HandshakeError::NotAnUpgrade);
    }
    let mut versions = head.headers("sec-websocket-version");
    match (versions.next(), versions.next()) {
        (Some(VERSION), None) => {}
        (None, _) => return Err(HandshakeError::NotAnUpgrade),
        (Some(_), _) => return Err(HandshakeError::VersionUnsupported),
    }
    let mut keys = head.headers("sec-websocket-key");
    let (Some(key), None) = (keys.next(), keys.next()) else {
        return Err(HandshakeError::KeyInvalid);
    };
    if !is_key(key) {
        return Err(HandshakeError::KeyInvalid);
    }
    Ok(Bytes::from(format!(
        "HTTP/1.1 101 Switching Protocols\r\n\
         Upgrade: websocket\r\n\
         Connection: Upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\n\r\n",
        derive_accept_key(key.as_bytes())
    )))
}

impl HandshakeError {
    /// What the client is told: 400, or 426 with the version it should speak.
    pub fn response(self) -> Response {
        let refusal = match self {
            Self::NotAnUpgrade | Self::KeyInvalid => Response::text(400, "Bad Request\n"),
            Self::VersionUnsupported => Response::text(426, "Upgrade Required\n")
                .with_header("Upgrade", "websocket")
                .with_header("Connection", "Upgrade"),
        };
        refusal
            .with_header("Sec-WebSocket-Version", VERSION)
            .with_header("X-Content-Type-Options", "nosniff")
    }
}

/// 16 bytes in base64 are 22 characters and two of padding.
fn is_key(key: &str) -> bool {
    key.strip_suffix("==").is_some_and(|digits| {
        digits.len() == 22
            && digits.bytes().all(|it| it.is_ascii_alphanumeric() || matches!(it, b'+' | b'/'))
    })
}

const VERSION: &str = "13";

#[cfg(test)]
mod tests {
    use super::super::request::tests::head;
    use super::HandshakeError::*;
    use super::*;

    const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    const UPGRADE: &str = "Host: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n";
    const THIRTEEN: &str = "Sec-WebSocket-Version: 13\r\n";

    fn request(line: &str, fields: &[&str]) -> Head {
        head(&format!("{line}\r\n{}\r\n", fields.concat()))
    }

    const GET: &str = "GET /chat HTTP/1.1";

    #[test]
    fn example_of_the_rfc() {
        let offers = "Sec-WebSocket-Protocol: chat\r\nOrigin: http://example.com\r\n\
                      Sec-WebSocket-Extensions: permessage-deflate\r\n";
        let head = request(GET, &[UPGRADE, KEY, THIRTEEN, offers]);
        let expected = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                        Connection: Upgrade\r\n\
                        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        assert_eq!(accept(&head), Ok(Bytes::from(expected)));
    }

    #[test]
    fn refusals() {
        let rows: [(&str, Head, HandshakeError); 14] = [
            ("plain GET", request(GET, &["Host: a\r\n"]), NotAnUpgrade),
            ("POST", request("POST / HTTP/1.1", &[UPGRADE, KEY, THIRTEEN]), NotAnUpgrade),
            ("HTTP/1.0", request("GET / HTTP/1.0", &[UPGRADE, KEY, THIRTEEN]), NotAnUpgrade),
            (
                "a body",
                request(GET, &[UPGRADE, KEY, THIRTEEN, "Content-Length: 1\r\n"]),
                NotAnUpgrade,
            ),
            ("no version", request(GET, &[UPGRADE, KEY]), NotAnUpgrade),
            (
                "version 8",
                request(GET, &[UPGRADE, KEY, "Sec-WebSocket-Version: 8\r\n"]),
                VersionUnsupported,
            ),
            ("two versions", request(GET, &[UPGRADE, KEY, THIRTEEN, THIRTEEN]), VersionUnsupported),
            ("no key", request(GET, &[UPGRADE, THIRTEEN]), KeyInvalid),
            ("two keys", request(GET, &[UPGRADE, KEY, KEY, THIRTEEN]), KeyInvalid),
            (
                "15 bytes",
                request(GET, &[UPGRADE, THIRTEEN, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j\r\n"]),
                KeyInvalid,
            ),
            (
                "20 digits",
                request(GET, &[UPGRADE, THIRTEEN, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j==\r\n"]),
                KeyInvalid,
            ),
            (
                "24 digits",
                request(
                    GET,
                    &[UPGRADE, THIRTEEN, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQaa==\r\n"],
                ),
                KeyInvalid,
            ),
            (
                "no padding",
                request(GET, &[UPGRADE, THIRTEEN, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ\r\n"]),
                KeyInvalid,
            ),
            (
                "not base64",
                request(
                    GET,
                    &[UPGRADE, THIRTEEN, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j_Q==\r\n"],
                ),
                KeyInvalid,
            ),
        ];
        for (name, head, expected) in rows {
            assert_eq!(accept(&head), Err(expected), "{name}");
        }
    }

    #[test]
    fn what_a_refused_client_is_told() {
        for (error, status, upgrade) in [
            (NotAnUpgrade, 400, None),
            (KeyInvalid, 400, None),
            (VersionUnsupported, 426, Some("websocket")),
        ] {
            let response = error.response();
            assert_eq!(response.status, status);
            assert_eq!(response.header("sec-websocket-version"), Some("13"));
            assert_eq!(response.header("x-content-type-options"), Some("nosniff"));
            assert_eq!(response.header("upgrade"), upgrade);
        }
        assert_eq!(NotAnUpgrade.response().body, "Bad Request\n");
    }
}
