//! UTF-8 that arrives in pieces (RFC 6455 section 8.1): refused at the first byte that no valid
//! text could hold at its place.

/// Validates a text across its pieces. `Default` is the beginning of a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Utf8Validator {
    /// Continuation bytes that the character at the end still needs, 0 to 3.
    missing: u8,
    /// What the next continuation byte may be: narrower than 0x80 to 0xbf after some first bytes,
    /// which excludes overlong forms, surrogates and what lies beyond U+10FFFF.
    lowest: u8,
    highest: u8,
}

/// The bytes are not UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotUtf8;

impl Utf8Validator {
    /// Takes the next piece, which may end within a character.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), NotUtf8> {
        let mut rest = bytes;
        while self.missing > 0 {
            let Some((byte, after)) = rest.split_first() else { return Ok(()) };
            if !(self.lowest..=self.highest).contains(byte) {
                return Err(NotUtf8);
            }
            (self.lowest, self.highest) = CONTINUATION;
            self.missing -= 1;
            rest = after;
        }
        match std::str::from_utf8(rest) {
            Ok(_) => Ok(()),
            Err(error) if error.error_len().is_some() => Err(NotUtf8),
            // The rest is the beginning of a character and nothing more.
            Err(error) => {
                let (first, others) = rest[error.valid_up_to()..].split_first().ok_or(NotUtf8)?;
                self.begin(*first);
                self.push(others)
            }
        }
    }

    /// The text ends here.
    pub fn finish(&self) -> Result<(), NotUtf8> {
        if self.missing == 0 { Ok(()) } else { Err(NotUtf8) }
    }

    /// `first` begins a character of two to four bytes.
    fn begin(&mut self, first: u8) {
        let (lowest, highest) = CONTINUATION;
        (self.missing, self.lowest, self.highest) = match first {
            0xe0 => (2, 0xa0, highest),
            0xed => (2, lowest, 0x9f),
            0xf0 => (3, 0x90, highest),
            0xf4 => (3, lowest, 0x8f),
            0xe1..=0xef => (2, lowest, highest),
            0xf1..=0xf3 => (3, lowest, highest),
            _ => (1, lowest, highest),
        };
    }
}

const CONTINUATION: (u8, u8) = (0x80, 0xbf);

#[cfg(test)]
mod tests {
    use super::*;

    fn validate(pieces: &[&[u8]]) -> Result<(), NotUtf8> {
        let mut validator = Utf8Validator::default();
        for it in pieces {
            validator.push(it)?;
        }
        validator.finish()
    }

    #[test]
    fn agrees_with_the_standard_library_wherever_the_text_is_cut() {
        let texts: [&[u8]; 16] = [
            b"",
            b"plain",
            "häßlich".as_bytes(),
            "日本語".as_bytes(),
            "a😀b".as_bytes(),
            "\u{7ff}\u{800}\u{ffff}\u{10000}\u{10ffff}".as_bytes(),
            b"\x80",
            b"a\xff",
            b"\xc0\xaf",
            b"\xc1\xbf",
            b"\xe0\x9f\xbf",
            b"\xed\xa0\x80",
            b"\xf0\x8f\xbf\xbf",
            b"\xf4\x90\x80\x80",
            b"\xf5\x80\x80\x80",
            b"\xe2\x82",
        ];
        for text in texts {
            let valid = std::str::from_utf8(text).is_ok();
            for first in 0..=text.len() {
                for second in first..=text.len() {
                    let pieces = [&text[..first], &text[first..second], &text[second..]];
                    assert_eq!(validate(&pieces).is_ok(), valid, "{text:x?} {first} {second}");
                }
            }
        }
    }

    #[test]
    fn agrees_on_every_sequence_of_three_bytes_of_interest() {
        let bytes: Vec<u8> =
            (0x7e..=0x81).chain(0x8f..=0x91).chain(0x9f..=0xa1).chain(0xbf..=0xff).collect();
        for a in &bytes {
            for b in &bytes {
                for c in &bytes {
                    let text = [*a, *b, *c, 0x80];
                    let valid = std::str::from_utf8(&text).is_ok();
                    let pieces = [&text[..1], &text[1..2], &text[2..3], &text[3..]];
                    assert_eq!(validate(&pieces).is_ok(), valid, "{text:x?}");
                }
            }
        }
    }

    #[test]
    fn refuses_at_the_first_impossible_byte() {
        for (possible, impossible) in [
            (&b""[..], 0x80),
            (b"", 0xc1),
            (b"", 0xf5),
            (b"\xe0", 0x9f),
            (b"\xed", 0xa0),
            (b"\xf0", 0x8f),
            (b"\xf4", 0x90),
            (b"\xe2\x82", b'a'),
            (b"\xf0\x9f\x98", 0xc0),
        ] {
            let mut validator = Utf8Validator::default();
            assert_eq!(validator.push(possible), Ok(()), "{possible:x?}");
            assert_eq!(validator.push(&[impossible]), Err(NotUtf8), "{possible:x?}");
        }
    }
}
