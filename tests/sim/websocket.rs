//! A client's end of a WebSocket, as different as RFC 6455 allows.

use crate::rng::Rng;

/// Appends a message, in fragments cut anywhere, each with its own mask, pings in between.
pub(crate) fn write_message(rng: &mut Rng, out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    let mut rest = payload;
    let mut opcode = opcode;
    loop {
        let take = match rng.below(4) {
            0 => rng.below(rest.len() + 1),
            1 => rest.len().min(131_000),
            _ => rest.len(),
        };
        // Empty fragments are allowed, but not without end.
        let is_last = take == rest.len() && !rng.chance(5);
        write_frame(rng, out, opcode | if is_last { FIN } else { 0 }, &rest[..take]);
        if is_last {
            return;
        }
        rest = &rest[take..];
        opcode = CONTINUATION;
        if rng.chance(5) {
            write_frame(rng, out, FIN | PING, b"are you there?");
        }
    }
}

pub(crate) fn write_close(rng: &mut Rng, out: &mut Vec<u8>) {
    let payload: &[u8] = if rng.chance(50) { b"" } else { &[0x03, 0xe8] };
    write_frame(rng, out, FIN | CLOSE, payload);
}

fn write_frame(rng: &mut Rng, out: &mut Vec<u8>, first: u8, payload: &[u8]) {
    out.push(first);
    match payload.len() {
        it @ 0..126 => out.push(MASKED | it as u8),
        it @ 126..65_536 => {
            out.push(MASKED | 126);
            out.extend((it as u16).to_be_bytes());
        }
        it => {
            out.push(MASKED | 127);
            out.extend((it as u64).to_be_bytes());
        }
    }
    let mask = (rng.next() as u32).to_le_bytes();
    out.extend(mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
}

/// Takes the next frame of the server off `input`: its opcode and its payload.
pub(crate) fn read_frame(input: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let (head, length) = match *input.as_slice() {
        [_, it, ..] if it < 126 => (2, usize::from(it)),
        [_, 126, high, low, ..] => (4, usize::from(u16::from_be_bytes([high, low]))),
        [_, it, ..] => {
            assert!(it <= 126, "a server does not mask and has no large messages");
            return None;
        }
        _ => return None,
    };
    if input.len() < head + length {
        return None;
    }
    let first = input[0];
    assert_eq!(first & 0xf0, FIN, "a server sends whole frames");
    let payload = input[head..head + length].to_vec();
    input.drain(..head + length);
    Some((first & 0x0f, payload))
}

const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;
const CONTINUATION: u8 = 0;
pub(crate) const TEXT: u8 = 1;
pub(crate) const BINARY: u8 = 2;
pub(crate) const CLOSE: u8 = 8;
pub(crate) const PING: u8 = 9;
pub(crate) const PONG: u8 = 10;
