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
