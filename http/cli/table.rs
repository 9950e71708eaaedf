//! Numbers and texts as people read them in a table.

use std::time::Duration;

/// Three digits and a unit: `1.5 GiB`.
pub(super) fn size(bytes: u64) -> String {
    let mut amount = bytes as f64;
    let mut units = UNITS.iter();
    let mut unit = units.next().expect("there are some");
    // What would be rounded to 1024 is one of the next unit.
    while amount >= 1023.5 {
        let Some(next) = units.next() else { break };
        amount /= 1024.0;
        unit = next;
    }
    let digits = if unit == &UNITS[0] || amount >= 99.95 {
        0
    } else if amount >= 9.995 {
        1
    } else {
        2
    };
    format!("{amount:.digits$} {unit}")
}

pub(super) fn rate(bytes_per_s: u64) -> String {
    if bytes_per_s == 0 { String::new() } else { format!("{}/s", size(bytes_per_s)) }
}

/// In per cent; 100 only when nothing is missing.
pub(super) fn progress(done: u64, of: u64) -> String {
    match of {
        0 => String::new(),
        _ => format!("{}%", u128::from(done) * 100 / u128::from(of)),
    }
}

/// The two largest units: `2d3h`, `5m10s`, `12s`.
pub(super) fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let units = [(86_400, "d"), (3600, "h"), (60, "m"), (1, "s")];
    let first = units.iter().position(|it| seconds >= it.0).unwrap_or(3);
    let mut rest = seconds;
    let mut text = String::new();
    for (factor, unit) in &units[first..units.len().min(first + 2)] {
        let count = rest / factor;
        rest %= factor;
        if count > 0 || text.is_empty() {
            text += &format!("{count}{unit}");
        }
    }
    text
}

/// What browsers and web apps say may hold anything: nothing of it commands the terminal.
pub(super) fn visible(text: &str) -> String {
    let shown = text.chars().map(|it| if is_harmless(it) { it } else { '\u{fffd}' });
    let mut shown: String = shown.take(TEXT_CHARS_MAX + 1).collect();
    if shown.chars().count() > TEXT_CHARS_MAX {
        shown.pop();
        shown.push('…');
    }
    shown
}

/// Neither control characters nor those that turn the direction of writing.
fn is_harmless(it: char) -> bool {
    let is_turning =
        matches!(it, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    !it.is_control() && !is_turning
}

const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
/// A table's row stays a row.
const TEXT_CHARS_MAX: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1536, "1.50 KiB"),
            (10 << 10, "10.0 KiB"),
            (1000 << 20, "1000 MiB"),
            ((1 << 30) - 1, "1.00 GiB"),
            (500 << 30, "500 GiB"),
            (1 << 60, "1024 PiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        assert_eq!((rate(0), rate(2 << 20)), (String::new(), "2.00 MiB/s".into()));
    }

    #[test]
    fn progress_is_whole_at_the_end_only() {
        let shown = [(0, 0), (0, 9), (999, 1000), (1000, 1000), (u64::MAX, u64::MAX)];
        let texts = shown.map(|(done, of)| progress(done, of));
        assert_eq!(texts, ["", "0%", "99%", "100%", "100%"]);
    }

    #[test]
    fn spans() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (310, "5m10s"),
            (3600, "1h"),
            (7325, "2h2m"),
            (183_600, "2d3h"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn nothing_commands_the_terminal() {
        assert_eq!(visible("a \"file\" é.txt"), "a \"file\" é.txt");
        assert_eq!(visible("\u{1b}[31m\r\n\u{9b}\u{202e}x"), "�[31m����x");
        assert_eq!(visible(&"x".repeat(300)).chars().count(), 201);
    }
}
