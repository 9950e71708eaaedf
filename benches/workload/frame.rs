//! Frames of WebSocket, as a client says and hears them (RFC 6455, 5.2).

use std::ops::Range;

use crate::error::Problem;

/// Opcode and where the payload is, of an unmasked frame that is a whole message (RFC 6455, 5.2).
/// `None`: not all there yet.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<(u8, Range<usize>)>, Problem> {
    let [first, second, rest @ ..] = bytes else { return Ok(None) };
    if first & 0x70 != 0 || second & MASKED != 0 {
        return Err(Problem::Garbage("a frame with reserved bits, or with a mask"));
    }
    if first & FIN == 0 {
        return Err(Problem::Garbage("a message in several frames"));
    }
    let (length, head_bytes) = match second & 0x7f {
        126 => match rest {
            [high, low, ..] => (u16::from_be_bytes([*high, *low]), 4),
            _ => return Ok(None),
        },
        127 => return Err(Problem::Garbage("a message that is too long")),
        short => (u16::from(short), 2),
    };
    let end = head_bytes + usize::from(length);
    Ok((bytes.len() >= end).then_some((first & 0xf, head_bytes..end)))
}

pub(crate) fn text(text: &str) -> Vec<u8> {
    whole(TEXT, text.as_bytes())
}

/// A short message or a control frame. Its key is 0: it is not the payload that is measured.
pub(crate) fn whole(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = head(FIN | opcode, payload.len() as u64, [0; 4]);
    frame.extend_from_slice(payload);
    frame
}

pub(crate) fn head(first_byte: u8, length_bytes: u64, key: [u8; 4]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(14);
    bytes.push(first_byte);
    match length_bytes {
        short @ 0..126 => bytes.push(MASKED | short as u8),
        medium @ 126..65536 => {
            bytes.push(MASKED | 126);
            bytes.extend_from_slice(&(medium as u16).to_be_bytes());
        }
        long => {
            bytes.push(MASKED | 127);
            bytes.extend_from_slice(&long.to_be_bytes());
        }
    }
    bytes.extend_from_slice(&key);
    bytes
}

pub(crate) const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;
pub(crate) const CONTINUATION: u8 = 0x0;
pub(crate) const TEXT: u8 = 0x1;
pub(crate) const BINARY: u8 = 0x2;
pub(crate) const CLOSE: u8 = 0x8;
pub(crate) const PING: u8 = 0x9;
pub(crate) const PONG: u8 = 0xa;
