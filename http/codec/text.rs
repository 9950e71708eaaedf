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
