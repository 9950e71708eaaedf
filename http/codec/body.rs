//! Request bodies (RFC 9112 sections 6 and 7): none, of a stated length, or chunked.

use super::append_bounded;
use super::request::{Framing, Head, RequestError, is_token_byte};

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
            (State::Size { size, .. }, b';') => State::Extension { size },
            (State::Extension { .. }, _) if is_text(byte) => {
                self.extension_bytes += 1;
                if self.extension_bytes > EXTENSION_BYTES_MAX {
                    return Err(RequestError::ChunkExtensionsTooLong);
                }
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
