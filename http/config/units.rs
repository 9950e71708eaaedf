//! Values with units: `64MiB`, `30s`, `12h`. A number without a unit is refused, because everybody
//! reads it differently.

use std::time::Duration;

/// Why a value is wrong, and what to write instead. Both are sentences without a full stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub what: String,
    pub remedy: String,
}

impl Problem {
    pub fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into() }
    }
}

/// Reads a number of bytes: a whole number and a unit, with or without a space between.
pub fn parse_size(text: &str) -> Result<u64, Problem> {
    let (number, unit) = split(text, "64MiB")?;
    let Some(factor) = unit_factor(unit, &SIZE_UNITS) else {
        return Err(unknown_unit(text, number, unit, "size", &SIZE_UNITS));
    };
    number.checked_mul(factor).ok_or_else(|| too_large("64MiB"))
}

/// Reads a duration: one or more whole numbers with a unit each, such as `90s` or `1h30m`.
pub fn parse_duration(text: &str) -> Result<Duration, Problem> {
    let mut rest = text.trim();
    let mut total_ms = 0u64;
    loop {
        let (number, after) = split(rest, "30s")?;
        let end = after.find(|it: char| it.is_ascii_digit()).unwrap_or(after.len());
        let unit = after[..end].trim();
        let Some(factor) = unit_factor(unit, &DURATION_UNITS) else {
            return Err(unknown_unit(rest, number, unit, "time", &DURATION_UNITS));
        };
        total_ms = number
            .checked_mul(factor)
            .and_then(|it| it.checked_add(total_ms))
            .ok_or_else(|| too_large("30s"))?;
        rest = &after[end..];
        if rest.is_empty() {
            return Ok(Duration::from_millis(total_ms));
        }
    }
}

/// Writes a number of bytes in the largest unit that divides it.
pub fn format_size(bytes: u64) -> String {
    let whole = SIZE_UNITS.iter().rev().find(|(_, factor)| bytes.is_multiple_of(*factor));
    match whole {
        Some((unit, factor)) if bytes > 0 => format!("{}{unit}", bytes / factor),
        _ => "0B".to_owned(),
    }
}

/// Writes a duration in the largest unit that divides it, to the millisecond.
pub fn format_duration(duration: Duration) -> String {
    let total_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let whole = DURATION_UNITS.iter().rev().find(|(_, factor)| total_ms.is_multiple_of(*factor));
    match whole {
        Some((unit, factor)) if total_ms > 0 => format!("{}{unit}", total_ms / factor),
        _ => "0s".to_owned(),
    }
}

/// Which of `candidates` a mistyped `text` probably means: the nearest, if it is near.
pub fn nearest<'c>(text: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let typed = text.to_ascii_lowercase().replace('-', "_");
    candidates
        .into_iter()
        .map(|it| (edit_distance(&typed, &it.replace('-', "_")), it))
        .filter(|(distance, it)| *distance <= 1 + it.len() / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, it)| it)
}

fn split<'t>(text: &'t str, example: &str) -> Result<(u64, &'t str), Problem> {
    let text = text.trim();
    let end = text.find(|it: char| !it.is_ascii_digit()).unwrap_or(text.len());
    if end == 0 {
        return Err(Problem::new(
            "it does not begin with a whole number",
            format!("write a whole number and a unit, such as {example}"),
        ));
    }
    let number = text[..end].parse().map_err(|_| too_large(example))?;
    Ok((number, text[end..].trim_start()))
}

fn unit_factor(unit: &str, units: &[(&str, u64)]) -> Option<u64> {
    units.iter().find(|(it, _)| it.eq_ignore_ascii_case(unit)).map(|(_, factor)| *factor)
}

fn unknown_unit(text: &str, number: u64, unit: &str, of: &str, units: &[(&str, u64)]) -> Problem {
    let names: Vec<&str> = units.iter().map(|(it, _)| *it).collect();
    let what = if unit.is_empty() {
        format!("\"{text}\" has no unit")
    } else {
        format!("\"{unit}\" is not a unit of {of}")
    };
    // "64M" means 64MiB, "5min" means 5m: the first letter decides.
    let first = unit.get(..1).unwrap_or("");
    let guess = names
        .iter()
        .filter(|it| !first.is_empty() && it[..1].eq_ignore_ascii_case(first))
        .min_by_key(|it| it.len());
    let names = names.join(", ");
    Problem::new(
        what,
        match guess {
            Some(guess) => format!("did you mean {number}{guess}? (units: {names})"),
            None => format!("write a whole number and one of the units {names}"),
        },
    )
}

fn too_large(example: &str) -> Problem {
    Problem::new("it is too large", format!("write a smaller value, such as {example}"))
}

/// Levenshtein's distance, two rows at a time.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// Powers of 1024 only: a unit that could mean either is refused with a hint.
const SIZE_UNITS: [(&str, u64); 5] =
    [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];

const DURATION_UNITS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0B", 0),
            ("1B", 1),
            ("64MiB", 64 << 20),
            ("64 mib", 64 << 20),
            (" 3GiB ", 3 << 30),
            ("2TiB", 2 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        assert_eq!(format_size(64 << 20), "64MiB");
        assert_eq!(format_size(1500), "1500B");
        assert_eq!(format_size(0), "0B");
    }

    #[test]
    fn durations() {
        for (text, milliseconds) in [
            ("250ms", 250),
            ("30s", 30_000),
            ("55 S", 55_000),
            ("12h", 43_200_000),
            ("1h30m", 5_400_000),
            ("1d 2h", 93_600_000),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        assert_eq!(format_duration(Duration::from_secs(43_200)), "12h");
        assert_eq!(format_duration(Duration::from_millis(1500)), "1500ms");
        assert_eq!(format_duration(Duration::ZERO), "0s");
    }

    #[test]
    fn every_wrong_value_says_what_to_write() {
        for (text, what, remedy) in [
            ("", "it does not begin with a whole number", "such as 64MiB"),
            ("-1MiB", "it does not begin with a whole number", "such as 64MiB"),
            ("64", "\"64\" has no unit", "units B, KiB, MiB, GiB, TiB"),
            ("64M", "\"M\" is not a unit of size", "did you mean 64MiB?"),
            ("64MB", "\"MB\" is not a unit of size", "did you mean 64MiB?"),
            ("64é", "\"é\" is not a unit of size", "units B, KiB"),
            ("1.5GiB", "\".5GiB\" is not a unit of size", "units B, KiB"),
            ("99999999999999999999B", "it is too large", "smaller"),
            ("99999999999TiB", "it is too large", "smaller"),
        ] {
            let problem = parse_size(text).unwrap_err();
            assert_eq!(problem.what, what, "{text}");
            assert!(problem.remedy.contains(remedy), "{text}: {}", problem.remedy);
        }
        for (text, what, remedy) in [
            ("30", "\"30\" has no unit", "units ms, s, m, h, d"),
            ("30sec", "\"sec\" is not a unit of time", "did you mean 30s?"),
            ("2hours", "\"hours\" is not a unit of time", "did you mean 2h?"),
            ("5min", "\"min\" is not a unit of time", "did you mean 5m?"),
            ("1h30", "\"30\" has no unit", "units ms, s, m, h, d"),
            ("99999999999999999d", "it is too large", "such as 30s"),
        ] {
            let problem = parse_duration(text).unwrap_err();
            assert_eq!(problem.what, what, "{text}");
            assert!(problem.remedy.contains(remedy), "{text}: {}", problem.remedy);
        }
    }

    #[test]
    fn near_misses_are_found_and_far_ones_are_not() {
        let keys = ["listen", "storage_dir", "cores", "memory"];
        assert_eq!(nearest("lsiten", keys), Some("listen"));
        assert_eq!(nearest("storage-dir", keys), Some("storage_dir"));
        assert_eq!(nearest("Memory", keys), Some("memory"));
        assert_eq!(nearest("core", keys), Some("cores"));
        assert_eq!(nearest("workers", keys), None);
        assert_eq!(nearest("", keys), None);
    }

    #[test]
    fn edit_distance_is_levenshteins() {
        for (a, b, distance) in [
            ("", "", 0),
            ("", "abc", 3),
            ("kitten", "sitting", 3),
            ("flaw", "lawn", 2),
            ("same", "same", 0),
        ] {
            assert_eq!(edit_distance(a, b), distance);
            assert_eq!(edit_distance(b, a), distance);
        }
    }
}
