//! Who an upload is: the id of its ticket.

use std::fmt;

use crate::op::CoreId;

/// The id of a ticket: a random (version 4) UUID, in its hyphenated lower-case form on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TicketId(pub u128);

impl TicketId {
    /// Reads the 36-character form. Upper case is the same id.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        if bytes.len() != TEXT_BYTES {
            return None;
        }
        let mut value = 0u128;
        for (index, byte) in bytes.iter().enumerate() {
            if HYPHENS.contains(&index) {
                if *byte != b'-' {
                    return None;
                }
                continue;
            }
            let digit = char::from(*byte).to_digit(16)?;
            value = value << 4 | u128::from(digit);
        }
        Some(Self(value))
    }

    /// The core that owns this ticket in a run with `core_count` cores: its first four bytes,
    /// modulo the number of cores. Nothing is looked up.
    pub fn owner(self, core_count: u16) -> CoreId {
        assert!(core_count > 0);
        let first_four = (self.0 >> 96) as u32;
        CoreId((first_four % u32::from(core_count)) as u16)
    }

    /// The first 8 digits: enough for a log, too little to use the ticket.
    pub fn short(self) -> String {
        format!("{:08x}", (self.0 >> 96) as u32)
    }
}

impl fmt::Display for TicketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let it = self.0;
        let (a, b, c) = ((it >> 96) as u32, (it >> 80) as u16, (it >> 64) as u16);
        let (d, e) = ((it >> 48) as u16, it as u64 & 0xffff_ffff_ffff);
        write!(f, "{a:08x}-{b:04x}-{c:04x}-{d:04x}-{e:012x}")
    }
}

/// Ids are cut in logs and panics too.
impl fmt::Debug for TicketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

const TEXT_BYTES: usize = 36;
const HYPHENS: [usize; 4] = [8, 13, 18, 23];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trip() {
        let text = "00112233-4455-6677-8899-aabbccddeeff";
        let id = TicketId::parse(text).unwrap();
        assert_eq!(id.to_string(), text);
        assert_eq!(TicketId::parse(&text.to_uppercase()), Some(id));
        assert_eq!(id.short(), "00112233");
        assert_eq!(format!("{id:?}"), "00112233");
    }

    #[test]
    fn refuses_everything_else() {
        for text in [
            "",
            "00112233-4455-6677-8899-aabbccddeef",
            "00112233-4455-6677-8899-aabbccddeefff",
            "00112233x4455-6677-8899-aabbccddeeff",
            "0011223344-55-6677-8899-aabbccddeeff",
            "g0112233-4455-6677-8899-aabbccddeeff",
            "é011223-4455-6677-8899-aabbccddeeff",
        ] {
            assert_eq!(TicketId::parse(text), None, "{text}");
        }
    }

    #[test]
    fn owner_is_first_four_bytes_modulo_cores() {
        let id = TicketId::parse("00000007-4455-6677-8899-aabbccddeeff").unwrap();
        assert_eq!(id.owner(1), CoreId(0));
        assert_eq!(id.owner(4), CoreId(3));
    }
}
