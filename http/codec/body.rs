//! Request bodies (RFC 9112 sections 6 and 7): none, of a stated length, or chunked.

use super::append_bounded;
use super::request::{Framing, Head, RequestError};
use super::request_syntax::is_token_byte;

/// Takes a body from the connection's bytes, wherever they are cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BodyDecoder {
    state: State,
    /// How much data may still come.
    body_bytes_left: u64,
    body_bytes_max: usize,
    extension_bytes: usize,
    trailer_bytes: usize,
}

impl BodyDecoder {
    /// A body whose stated length exceeds `body_bytes_max` is refused here, a chunked one at the
    /// chunk that exceeds it, before its data.
    pub fn new(head: &Head, body_bytes_max: usize) -> Result<Self, RequestError> {
        let state = match head.framing {
            Framing::None => State::Complete,
            Framing::Length(length) if length > body_bytes_max as u64 => {
                return Err(RequestError::BodyTooLong);
            }
            Framing::Length(0) => State::Complete,
            Framing::Length(length) => State::Data { left: length, then: AfterData::Complete },
            Framing::Chunked => State::Size { digits: 0, size: 0 },
        };
        Ok(Self {
            state,
            body_bytes_left: body_bytes_max as u64,
            body_bytes_max,
            extension_bytes: 0,
            trailer_bytes: 0,
        })
    }

    /// Pulls what belongs to the body off the front of `input` and appends its data to `out`, which
    /// the caller hands in again each time. True: the body is complete, and `input` is where the
    /// next request begins.
    pub fn decode(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<bool, RequestError> {
        loop {
            match &mut self.state {
                State::Complete => return Ok(true),
                State::Data { left, then } => {
                    let take = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                    if take == 0 {
                        return Ok(false);
                    }
                    let (bytes, rest) = input.split_at(take);
                    append_bounded(out, bytes, self.body_bytes_max);
                    *input = rest;
                    *left -= take as u64;
                    if *left == 0 {
                        self.state = match then {
                            AfterData::Complete => State::Complete,
                            AfterData::NextChunk => State::DataCr,
                        };
                    }
                }
                _ => {
                    let Some((byte, rest)) = input.split_first() else { return Ok(false) };
                    *input = rest;
                    self.step(*byte)?;
                }
            }
        }
    }

    /// Takes one byte of what surrounds the data of chunks.
    fn step(&mut self, byte: u8) -> Result<(), RequestError> {
        self.state = match (self.state, byte) {
            (State::Size { digits, size }, _) if byte.is_ascii_hexdigit() => {
                if digits == SIZE_DIGITS_MAX {
                    return Err(RequestError::ChunkInvalid);
                }
                let digit = char::from(byte).to_digit(16).map_or(0, u64::from);
                State::Size { digits: digits + 1, size: size << 4 | digit }
            }
            (State::Size { digits: 0, .. }, _) => return Err(RequestError::ChunkInvalid),
            (State::Size { size, .. } | State::Extension { size }, b'\r') => {
                if size > self.body_bytes_left {
                    return Err(RequestError::BodyTooLong);
                }
                State::SizeLf { size }
            }
            (State::Size { size, .. } | State::BadSpace { size }, b';') => {
                State::Extension { size }
            }
            // RFC 9112 section 7.1.1: there may be "bad" white space before an extension.
            (State::Size { size, .. } | State::BadSpace { size }, b' ' | b'\t') => {
                self.count_extension_byte()?;
                State::BadSpace { size }
            }
            (State::Extension { .. }, _) if is_text(byte) => {
                self.count_extension_byte()?;
                self.state
            }
            (State::SizeLf { size: 0 }, b'\n') => State::TrailerStart,
            (State::SizeLf { size }, b'\n') => {
                self.body_bytes_left -= size;
                State::Data { left: size, then: AfterData::NextChunk }
            }
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size { digits: 0, size: 0 },
            (State::TrailerStart, b'\r') => State::LastLf,
            (State::TrailerStart | State::TrailerName, _) if is_token_byte(byte) => {
                self.count_trailer_byte()?;
                State::TrailerName
            }
            (State::TrailerName, b':') => State::TrailerValue,
            (State::TrailerValue, b'\r') => State::TrailerLf,
            (State::TrailerValue, _) if is_text(byte) => {
                self.count_trailer_byte()?;
                State::TrailerValue
            }
            (State::TrailerLf, b'\n') => State::TrailerStart,
            (State::LastLf, b'\n') => State::Complete,
            _ => return Err(RequestError::ChunkInvalid),
        };
        Ok(())
    }

    fn count_extension_byte(&mut self) -> Result<(), RequestError> {
        self.extension_bytes += 1;
        if self.extension_bytes > EXTENSION_BYTES_MAX {
            return Err(RequestError::ChunkExtensionsTooLong);
        }
        Ok(())
    }

    fn count_trailer_byte(&mut self) -> Result<(), RequestError> {
        self.trailer_bytes += 1;
        if self.trailer_bytes > TRAILER_BYTES_MAX {
            return Err(RequestError::TrailersTooLong);
        }
        Ok(())
    }
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Complete,
    /// `left` is never 0.
    Data {
        left: u64,
        then: AfterData,
    },
    Size {
        digits: u8,
        size: u64,
    },
    BadSpace {
        size: u64,
    },
    Extension {
        size: u64,
    },
    SizeLf {
        size: u64,
    },
    DataCr,
    DataLf,
    /// A trailer field or the empty line at the end.
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    LastLf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AfterData {
    Complete,
    NextChunk,
}

/// What may stand in an extension or in the value of a field: no control characters.
fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// What a `u64` holds.
const SIZE_DIGITS_MAX: u8 = 16;
/// Of all extensions of a body together; they are read and ignored.
const EXTENSION_BYTES_MAX: usize = 4096;
/// Of all trailer fields of a body together; they are read and ignored.
const TRAILER_BYTES_MAX: usize = 8192;

#[cfg(test)]
mod tests {
    use super::super::request::tests::head;
    use super::RequestError::*;
    use super::*;

    const BODY_BYTES_MAX: usize = 40;

    fn decoder(field: &str) -> Result<BodyDecoder, RequestError> {
        BodyDecoder::new(
            &head(&format!("POST / HTTP/1.1\r\nHost: a\r\n{field}\r\n")),
            BODY_BYTES_MAX,
        )
    }

    /// The body and what is left of the input, or `None` when more is needed.
    fn decode(
        field: &str,
        wire: &[u8],
        step: usize,
    ) -> Result<Option<(String, usize)>, RequestError> {
        let mut decoder = decoder(field)?;
        let mut body = Vec::new();
        let mut used = 0;
        for piece in wire.chunks(step.max(1)).chain([&b""[..]]) {
            let mut input = piece;
            let complete = decoder.decode(&mut input, &mut body)?;
            used += piece.len() - input.len();
            assert!(body.capacity() <= BODY_BYTES_MAX);
            if complete {
                return Ok(Some((String::from_utf8(body).expect("ASCII"), wire.len() - used)));
            }
            assert!(input.is_empty());
        }
        Ok(None)
    }

    const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";

    #[test]
    fn bodies() {
        let rows: [(&str, &str, &[u8], &str, usize); 9] = [
            ("none", "", b"GET", "", 3),
            ("length 0", "Content-Length: 0\r\n", b"GET", "", 3),
            ("length", "Content-Length: 5\r\n", b"helloGET", "hello", 3),
            ("no chunks", CHUNKED, b"0\r\n\r\nGET", "", 3),
            (
                "chunks",
                CHUNKED,
                b"5\r\nhello\r\n00C\r\n, wide world\r\n0\r\n\r\n",
                "hello, wide world",
                0,
            ),
            ("two", CHUNKED, b"5\r\nhello\r\n01\r\n!\r\n0\r\n\r\nGET", "hello!", 3),
            ("extensions", CHUNKED, b"1;a=b;c=\"d;\xe4\" \r\nx\r\n0 ; e\r\n\r\n", "x", 0),
            ("trailers", CHUNKED, b"1\r\nx\r\n0\r\nA: b\r\nB:\r\n\r\n", "x", 0),
            (
                "the longest",
                CHUNKED,
                b"28\r\n0123456789012345678901234567890123456789\r\n0\r\n\r\n",
                "0123456789012345678901234567890123456789",
                0,
            ),
        ];
        for (name, field, wire, body, left) in rows {
            for step in 1..=wire.len() {
                let (got, got_left) = decode(field, wire, step).expect(name).expect(name);
                assert_eq!(got, body, "{name} by {step}");
                assert_eq!(got_left, left, "{name} by {step}");
            }
        }
    }

    #[test]
    fn incomplete_bodies_wait() {
        let whole = b"1;a\r\nx\r\n0\r\nA: b\r\n\r\n";
        for length in 0..whole.len() {
            assert_eq!(decode(CHUNKED, &whole[..length], 3), Ok(None), "{length}");
        }
        assert_eq!(decode("Content-Length: 5\r\n", b"hell", 3), Ok(None));
    }

    #[test]
    fn refusals() {
        let rows: [(&[u8], RequestError); 19] = [
            (b"\r\n", ChunkInvalid),
            (b"g\r\n", ChunkInvalid),
            (b"-1\r\n", ChunkInvalid),
            (b" 1\r\n", ChunkInvalid),
            (b"0x1\r\n", ChunkInvalid),
            (b"1\n", ChunkInvalid),
            (b"1 \r\n", ChunkInvalid),
            (b"1;a\n", ChunkInvalid),
            (b"1;a\0", ChunkInvalid),
            (b"1\rx", ChunkInvalid),
            (b"1\r\nxx", ChunkInvalid),
            (b"1\r\nx\n", ChunkInvalid),
            (b"00000000000000001", ChunkInvalid),
            (b"0\r\n A: b\r\n\r\n", ChunkInvalid),
            (b"0\r\nA\r\n", ChunkInvalid),
            (b"0\r\nA: b\n", ChunkInvalid),
            (b"0\r\nA: b\r\n c", ChunkInvalid),
            (b"29\r\n", BodyTooLong),
            (b"ffffffffffffffff\r\n", BodyTooLong),
        ];
        for (wire, expected) in rows {
            assert_eq!(decode(CHUNKED, wire, 1), Err(expected), "{}", wire.escape_ascii());
        }
        assert_eq!(decode(CHUNKED, b"1\r\nx\r\n28\r\n", 4), Err(BodyTooLong));
        assert_eq!(decoder("Content-Length: 41\r\n"), Err(BodyTooLong));
        assert_eq!(decoder("Content-Length: 18446744073709551615\r\n"), Err(BodyTooLong));
    }

    #[test]
    fn what_is_ignored_has_a_limit() {
        let extension = [b"1;".to_vec(), vec![b'a'; EXTENSION_BYTES_MAX]].concat();
        assert_eq!(decode(CHUNKED, &extension, 999), Ok(None));
        assert_eq!(
            decode(CHUNKED, &[&extension[..], b"a"].concat(), 999),
            Err(ChunkExtensionsTooLong)
        );
        let trailer = [b"0\r\nA:".to_vec(), vec![b'a'; TRAILER_BYTES_MAX - 1]].concat();
        assert_eq!(decode(CHUNKED, &trailer, 999), Ok(None));
        assert_eq!(decode(CHUNKED, &[&trailer[..], b"a"].concat(), 999), Err(TrailersTooLong));
        let spread = b"1;aaa\r\nx\r\n".repeat(EXTENSION_BYTES_MAX / 3 + 1);
        let mut decoder = BodyDecoder::new(
            &head(&format!("POST / HTTP/1.1\r\nHost: a\r\n{CHUNKED}\r\n")),
            1 << 20,
        )
        .expect("chunked");
        let outcome = decoder.decode(&mut spread.as_slice(), &mut Vec::new());
        assert_eq!(outcome, Err(ChunkExtensionsTooLong));
    }
}
