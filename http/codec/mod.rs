//! Bytes to meaning and back: HTTP/1.1 requests and responses, WebSocket frames and messages.
//!
//! Everything here is pure. A peer's bytes never panic, and never grow memory beyond a stated
//! limit.

pub mod body;
pub mod close_code;
pub mod frame;
pub mod handshake;
pub mod message;
mod message_error;
mod multipart;
pub mod params;
pub mod request;
mod request_error;
mod request_syntax;
pub mod response;
pub mod text;

/// Appends to a buffer that is known to end at `length_max`, so that doubling never reserves more
/// than that.
fn append_bounded(out: &mut Vec<u8>, bytes: &[u8], length_max: usize) {
    let needed = out.len() + bytes.len();
    if needed > out.capacity() {
        let capacity = (out.capacity() * 2).min(length_max).max(needed);
        out.reserve_exact(capacity - out.len());
    }
    out.extend_from_slice(bytes);
}
