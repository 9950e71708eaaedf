//! WebSocket frames (RFC 6455 section 5.2): heads and payload pieces from a client's bytes, and
//! frames to a client.

use bytes::{BufMut, BytesMut};
use engine::mask::rotate;

/// Decodes client-to-server frames, wherever the input is cut. A payload is handed on as it
/// arrives and never held.
///
/// After an error the decoder is of no further use.
#[derive(Debug, Default)]
pub struct Decoder {
    state: State,
}

/// What [`Decoder::decode`] pulls off its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// The beginning of a frame. At least one `Payload` follows, even of an empty frame.
    Head {
        /// The last frame of its message.
        fin: bool,
        opcode: OpCode,
        /// Of the payload: at most 2^63 - 1, and at most 125 in a control frame.
        length_bytes: u64,
    },
    Payload {
        /// As sent, still masked. Empty only in an empty frame.
        bytes: &'a [u8],
        /// Rotated: `mask[0]` belongs to `bytes[0]`.
        mask: [u8; 4],
        /// This piece ends the frame.
        last: bool,
    },
}

/// RFC 6455 section 11.8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpCode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

/// What a client must not send. All of them fail the connection with 1002.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// No extension was agreed on that would give the bits a meaning (section 5.2).
    ReservedBits,
    OpCodeUnknown,
    /// Section 5.1: a server must close on a frame that is not masked.
    Unmasked,
    /// Section 5.2: the shortest form of the length is required.
    LengthNotMinimal,
    /// Section 5.2: the most significant bit of a 64-bit length must be 0.
    LengthTooLarge,
    ControlTooLong,
    ControlFragmented,
}

impl Decoder {
    /// Pulls one piece off the front of `input`. `None`: feed me more; all of `input` is used up.
    ///
    /// A wrong head is refused at its first wrong byte.
    pub fn decode<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Piece<'a>>, FrameError> {
        match &mut self.state {
            State::Head { spill, length } => {
                let Some(head) = fill_head(spill, length, input)? else { return Ok(None) };
                self.state = State::Payload { remaining: head.length_bytes, mask: head.mask };
                Ok(Some(Piece::Head {
                    fin: head.fin,
                    opcode: head.opcode,
                    length_bytes: head.length_bytes,
                }))
            }
            State::Payload { remaining, .. } if *remaining > 0 && input.is_empty() => Ok(None),
            State::Payload { remaining, mask } => {
                let take = usize::try_from(*remaining).unwrap_or(usize::MAX).min(input.len());
                let (bytes, rest) = input.split_at(take);
                let piece_mask = *mask;
                *input = rest;
                *remaining -= take as u64;
                *mask = rotate(*mask, take);
                let last = *remaining == 0;
                if last {
                    self.state = State::default();
                }
                Ok(Some(Piece::Payload { bytes, mask: piece_mask, last }))
            }
        }
    }

    /// What is still to come of the frame that has begun.
    pub fn remaining_bytes(&self) -> u64 {
        match self.state {
            State::Head { .. } => 0,
            State::Payload { remaining, .. } => remaining,
        }
    }
}

impl OpCode {
    /// Close, ping or pong: may stand between the frames of a message.
    pub fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }

    fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xa => Self::Pong,
            _ => return None,
        })
    }

    fn bits(self) -> u8 {
        match self {
            Self::Continuation => 0x0,
            Self::Text => 0x1,
            Self::Binary => 0x2,
            Self::Close => 0x8,
            Self::Ping => 0x9,
            Self::Pong => 0xa,
        }
    }
}

impl FrameError {
    /// For the close frame and the log.
    pub fn reason(self) -> &'static str {
        match self {
            Self::ReservedBits => "reserved bits are set",
            Self::OpCodeUnknown => "unknown opcode",
            Self::Unmasked => "frame is not masked",
            Self::LengthNotMinimal => "frame length is not in its shortest form",
            Self::LengthTooLarge => "frame length has its highest bit set",
            Self::ControlTooLong => "control frame is longer than 125 bytes",
            Self::ControlFragmented => "control frame is fragmented",
        }
    }
}

/// Writes one whole frame from server to client: unmasked and final.
pub fn encode(out: &mut BytesMut, opcode: OpCode, payload: &[u8]) {
    out.reserve(HEAD_BYTES_MAX + payload.len());
    out.put_u8(FIN | opcode.bits());
    match payload.len() {
        length @ 0..=125 => out.put_u8(length as u8),
        length @ 126..=0xffff => {
            out.put_u8(LENGTH_16);
            out.put_u16(length as u16);
        }
        length => {
            out.put_u8(LENGTH_64);
            out.put_u64(length as u64);
        }
    }
    out.put_slice(payload);
}

/// Writes a close frame. `reason` is cut, between characters, to the 123 bytes that fit.
pub fn encode_close(out: &mut BytesMut, code: u16, reason: &str) {
    let mut length = reason.len().min(CLOSE_REASON_BYTES_MAX);
    while !reason.is_char_boundary(length) {
        length -= 1;
    }
    let mut payload = [0; CONTROL_BYTES_MAX];
    payload[..2].copy_from_slice(&code.to_be_bytes());
    payload[2..2 + length].copy_from_slice(&reason.as_bytes()[..length]);
    encode(out, OpCode::Close, &payload[..2 + length]);
}

#[derive(Debug)]
enum State {
    /// Head bytes seen so far, when a head straddles two inputs.
    Head { spill: [u8; HEAD_BYTES_MAX], length: u8 },
    /// `mask[0]` belongs to the next byte.
    Payload { remaining: u64, mask: [u8; 4] },
}

impl Default for State {
    fn default() -> Self {
        Self::Head { spill: [0; HEAD_BYTES_MAX], length: 0 }
    }
}

struct Head {
    fin: bool,
    opcode: OpCode,
    length_bytes: u64,
    mask: [u8; 4],
}

/// Moves head bytes from `input` to `spill` until the head is whole.
fn fill_head(
    spill: &mut [u8; HEAD_BYTES_MAX],
    length: &mut u8,
    input: &mut &[u8],
) -> Result<Option<Head>, FrameError> {
    loop {
        let seen = usize::from(*length);
        let needed = head_length(&spill[..seen])?;
        if seen == needed {
            return parse_head(&spill[..seen]).map(Some);
        }
        let take = (needed - seen).min(input.len());
        if take == 0 {
            return Ok(None);
        }
        let (bytes, rest) = input.split_at(take);
        spill[seen..seen + take].copy_from_slice(bytes);
        *input = rest;
        *length += take as u8;
    }
}

/// How long the head is at least, going by what was seen of it; checks what was seen.
fn head_length(seen: &[u8]) -> Result<usize, FrameError> {
    let Some(&first) = seen.first() else { return Ok(1) };
    if first & RESERVED != 0 {
        return Err(FrameError::ReservedBits);
    }
    let opcode = OpCode::from_bits(first & 0x0f).ok_or(FrameError::OpCodeUnknown)?;
    if opcode.is_control() && first & FIN == 0 {
        return Err(FrameError::ControlFragmented);
    }
    let Some(&second) = seen.get(1) else { return Ok(2) };
    if second & MASKED == 0 {
        return Err(FrameError::Unmasked);
    }
    match second & !MASKED {
        LENGTH_16 | LENGTH_64 if opcode.is_control() => Err(FrameError::ControlTooLong),
        LENGTH_16 => Ok(2 + 2 + 4),
        LENGTH_64 => Ok(2 + 8 + 4),
        _ => Ok(2 + 4),
    }
}

/// `head` is whole, and its first two bytes were checked.
fn parse_head(head: &[u8]) -> Result<Head, FrameError> {
    let (length_field, mask) = head[1..].split_at(head.len() - 1 - 4);
    let number = length_field[1..].iter().fold(0, |sum: u64, byte| sum << 8 | u64::from(*byte));
    let (length_bytes, minimum) = match length_field[0] & !MASKED {
        LENGTH_16 => (number, 126),
        LENGTH_64 => (number, 1 << 16),
        short => (u64::from(short), 0),
    };
    if length_bytes < minimum {
        return Err(FrameError::LengthNotMinimal);
    }
    if length_bytes > i64::MAX as u64 {
        return Err(FrameError::LengthTooLarge);
    }
    Ok(Head {
        fin: head[0] & FIN != 0,
        opcode: OpCode::from_bits(head[0] & 0x0f).ok_or(FrameError::OpCodeUnknown)?,
        length_bytes,
        mask: [mask[0], mask[1], mask[2], mask[3]],
    })
}

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;
const LENGTH_16: u8 = 126;
const LENGTH_64: u8 = 127;
const HEAD_BYTES_MAX: usize = 2 + 8 + 4;
const CONTROL_BYTES_MAX: usize = 125;
const CLOSE_REASON_BYTES_MAX: usize = CONTROL_BYTES_MAX - 2;

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::codec) const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

    /// A client's frame, with its first byte as given.
    pub(in crate::codec) fn client_frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
        match payload.len() {
            length @ 0..=125 => frame.push(MASKED | length as u8),
            length @ 126..=0xffff => {
                frame.push(MASKED | LENGTH_16);
                frame.extend((length as u16).to_be_bytes());
            }
            length => {
                frame.push(MASKED | LENGTH_64);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.extend(MASK);
        frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, key)| byte ^ key));
        frame
    }

    fn head(fin: bool, opcode: OpCode, length_bytes: u64) -> Piece<'static> {
        Piece::Head { fin, opcode, length_bytes }
    }

    #[test]
    fn a_frame_in_one_piece() {
        let wire = client_frame(0x81, b"Hello");
        let mut input = wire.as_slice();
        let mut decoder = Decoder::default();
        assert_eq!(decoder.decode(&mut input), Ok(Some(head(true, OpCode::Text, 5))));
        let bytes = &[0x7f, 0x9f, 0x4d, 0x51, 0x58];
        assert_eq!(
            decoder.decode(&mut input),
            Ok(Some(Piece::Payload { bytes, mask: MASK, last: true }))
        );
        assert_eq!(decoder.decode(&mut input), Ok(None));
    }

    #[test]
    fn an_empty_frame_has_an_empty_payload() {
        let wire = client_frame(0x02, b"");
        let mut input = wire.as_slice();
        let mut decoder = Decoder::default();
        assert_eq!(decoder.decode(&mut input), Ok(Some(head(false, OpCode::Binary, 0))));
        assert!(input.is_empty());
        assert_eq!(
            decoder.decode(&mut input),
            Ok(Some(Piece::Payload { bytes: &[], mask: MASK, last: true }))
        );
        assert_eq!(decoder.decode(&mut input), Ok(None));
    }

    #[test]
    fn heads_and_payloads_cut_anywhere() {
        for length in [0, 1, 125, 126, 300, 65_535, 65_536] {
            let wire = client_frame(0x82, &vec![b'x'; length]);
            for cut in (0..wire.len().min(20)).chain([wire.len() - 1]) {
                let mut decoder = Decoder::default();
                let mut plain = Vec::new();
                let mut heads = 0;
                let mut ended = false;
                for mut input in [&wire[..cut], &wire[cut..]] {
                    while let Some(piece) = decoder.decode(&mut input).expect("valid") {
                        match piece {
                            Piece::Head { .. } => {
                                assert_eq!(piece, head(true, OpCode::Binary, length as u64));
                                heads += 1;
                            }
                            Piece::Payload { bytes, mask, last } => {
                                assert!(!ended);
                                let keys = mask.iter().cycle();
                                plain.extend(bytes.iter().zip(keys).map(|(it, key)| it ^ key));
                                ended = last;
                            }
                        }
                    }
                    assert!(input.is_empty());
                }
                assert!(ended && heads == 1, "{length} cut at {cut}");
                assert!(plain.len() == length && plain.iter().all(|it| *it == b'x'));
            }
        }
    }

    #[test]
    fn refuses_at_the_first_wrong_byte() {
        use FrameError::*;
        let rows: [(&str, &[u8], FrameError); 15] = [
            ("first reserved bit", &[0xc2], ReservedBits),
            ("second reserved bit", &[0xa2], ReservedBits),
            ("third reserved bit", &[0x92], ReservedBits),
            ("data opcode 3", &[0x83], OpCodeUnknown),
            ("control opcode 11", &[0x8b], OpCodeUnknown),
            ("ping in fragments", &[0x09], ControlFragmented),
            ("close in fragments", &[0x08], ControlFragmented),
            ("not masked", &[0x82, 0x05], Unmasked),
            ("ping of 126 bytes", &[0x89, 0xfe], ControlTooLong),
            ("close of 64-bit length", &[0x88, 0xff], ControlTooLong),
            ("125 in 16 bits", &[0x82, 0xfe, 0, 125, 0, 0, 0, 0], LengthNotMinimal),
            (
                "65535 in 64 bits",
                &[0x82, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0],
                LengthNotMinimal,
            ),
            ("0 in 64 bits", &[0x82, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], LengthNotMinimal),
            ("2^63", &[0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], LengthTooLarge),
            (
                "2^64 - 1",
                &[0x82, 0xff, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0],
                LengthTooLarge,
            ),
        ];
        for (name, wire, expected) in rows {
            assert_eq!(Decoder::default().decode(&mut &*wire), Err(expected), "{name}");
            let (_, shorter) = wire.split_last().expect("not empty");
            assert_eq!(
                Decoder::default().decode(&mut &*shorter),
                Ok(None),
                "{name}, one byte less"
            );
        }
    }

    #[test]
    fn the_largest_length_is_taken() {
        let wire = [0x82, 0xff, 0x7f, 255, 255, 255, 255, 255, 255, 255, 1, 2, 3, 4];
        let expected = head(true, OpCode::Binary, i64::MAX as u64);
        assert_eq!(Decoder::default().decode(&mut &wire[..]), Ok(Some(expected)));
    }

    #[test]
    fn encodes_every_form_of_the_length() {
        for (length, expected) in [
            (0, &[0x82, 0][..]),
            (125, &[0x82, 125]),
            (126, &[0x82, 126, 0, 126]),
            (65_535, &[0x82, 126, 255, 255]),
            (65_536, &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let mut out = BytesMut::new();
            encode(&mut out, OpCode::Binary, &vec![7; length]);
            assert_eq!(out[..expected.len()], *expected);
            assert_eq!(out.len(), expected.len() + length);
        }
    }

    #[test]
    fn close_reason_is_cut_between_characters() {
        for (reason, kept_bytes) in
            [("", 0), ("bye", 3), (&*"x".repeat(124), 123), (&*"ä".repeat(62), 122)]
        {
            let mut out = BytesMut::new();
            encode_close(&mut out, 1001, reason);
            assert_eq!(out[..4], [0x88, 2 + kept_bytes as u8, 0x03, 0xe9]);
            assert_eq!(out[4..], reason.as_bytes()[..kept_bytes]);
        }
    }
}
