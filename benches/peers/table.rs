//! Tables in Markdown, and how figures are written.

use std::fmt::Write as _;

use crate::stats::Summary;

/// A table whose first column holds text and whose others hold figures.
#[derive(Debug)]
pub(crate) struct Table {
    heads: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(heads: &[&str]) -> Self {
        Self { heads: heads.iter().map(|it| (*it).to_owned()).collect(), rows: Vec::new() }
    }

    /// # Panics
    ///
    /// When there are more or fewer cells than heads.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells: Vec<String> = cells.into_iter().collect();
        assert_eq!(cells.len(), self.heads.len(), "a cell for each head: {cells:?}");
        self.rows.push(cells);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(crate) fn markdown(&self) -> String {
        let mut text = line(&self.heads);
        text.push_str("|---|");
        text.push_str(&"---:|".repeat(self.heads.len() - 1));
        text.push('\n');
        for row in &self.rows {
            text.push_str(&line(row));
        }
        text
    }
}

/// Like [`Table::markdown`], for tables of sentences.
pub(crate) fn left_aligned(table: &Table) -> String {
    table.markdown().replace("---:|", "---|")
}

fn line(cells: &[String]) -> String {
    let mut text = String::from("|");
    for cell in cells {
        // A bar would end the cell.
        let _ = write!(text, " {} |", cell.replace('|', "\\|").replace('\n', " "));
    }
    text.push('\n');
    text
}

/// Three significant digits, commas between thousands: "0.213", "1.62", "20.4", "1,048,576".
pub(crate) fn number(value: f64) -> String {
    let digits = match value.abs() {
        0.0 => 0,
        it if it < 0.9995 => 3,
        it if it < 9.995 => 2,
        it if it < 99.95 => 1,
        _ => 0,
    };
    let text = format!("{value:.digits$}");
    let (whole, fraction) = text.split_at(text.find('.').unwrap_or(text.len()));
    let (sign, whole) = whole.split_at(whole.len() - whole.trim_start_matches('-').len());
    let mut grouped = String::new();
    for (index, digit) in whole.char_indices() {
        if index > 0 && (whole.len() - index) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    format!("{sign}{grouped}{fraction}")
}

/// A whole number: "16", "1,000".
pub(crate) fn count(value: u64) -> String {
    number_short(value as f64)
}

/// "0.213 (0.201 to 0.240)", or a dash where nothing was measured.
pub(crate) fn with_range(summary: Option<Summary>) -> String {
    let Some(Summary { median, min, max, count }) = summary else { return DASH.to_owned() };
    if count == 1 {
        return number(median);
    }
    format!("{} ({} to {})", number(median), number(min), number(max))
}

pub(crate) fn median(summary: Option<Summary>) -> String {
    summary.map_or(DASH.to_owned(), |it| number(it.median))
}

/// "64 MiB", "1 GiB", "131,000 B".
pub(crate) fn bytes(length: u64) -> String {
    for (unit, shift) in [("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        if length >> shift > 0 && length.trailing_zeros() >= shift - 4 {
            return format!("{} {unit}", number_short(length as f64 / (1u64 << shift) as f64));
        }
    }
    format!("{} B", number_short(length as f64))
}

/// A number without the zeros behind the point.
fn number_short(value: f64) -> String {
    let text = number(value);
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

const DASH: &str = "–";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_markdown() {
        let mut table = Table::new(&["server", "CPU-s/GiB"]);
        assert!(table.is_empty());
        table.row(["a|b".to_owned(), "0.2".to_owned()]);
        table.row(["c".to_owned(), "12".to_owned()]);
        let text = "| server | CPU-s/GiB |\n|---|---:|\n| a\\|b | 0.2 |\n| c | 12 |\n";
        assert_eq!(table.markdown(), text);
        assert_eq!(left_aligned(&table), text.replace("---:", "---"));
    }

    #[test]
    #[should_panic(expected = "a cell for each head")]
    fn row_of_another_width_is_a_mistake() {
        Table::new(&["server", "CPU-s/GiB"]).row(["a".to_owned()]);
    }

    #[test]
    fn numbers_have_three_digits_that_count() {
        let written = [
            (0.0, "0"),
            (0.2134, "0.213"),
            (0.9996, "1.00"),
            (1.615, "1.61"),
            (9.996, "10.0"),
            (20.44, "20.4"),
            (99.96, "100"),
            (999.6, "1,000"),
            (1_048_576.0, "1,048,576"),
            (-1234.0, "-1,234"),
            (-0.5, "-0.500"),
        ];
        for (value, text) in written {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn range_is_shown_where_there_is_one() {
        assert_eq!(with_range(Summary::of([0.2, 0.1, 0.4])), "0.200 (0.100 to 0.400)");
        assert_eq!(with_range(Summary::of([0.2])), "0.200");
        assert_eq!(with_range(None), DASH);
        assert_eq!(median(Summary::of([0.2, 0.1, 0.4])), "0.200");
        assert_eq!(median(None), DASH);
    }

    #[test]
    fn counts_have_no_fraction() {
        assert_eq!([1, 16, 999, 10_000].map(count), ["1", "16", "999", "10,000"]);
    }

    #[test]
    fn lengths_are_whole_in_their_unit() {
        for (length, text) in [
            (1 << 30, "1 GiB"),
            (20 << 30, "20 GiB"),
            (512 << 10, "512 KiB"),
            (3 << 19, "1.5 MiB"),
            (131_000, "131,000 B"),
            (5, "5 B"),
        ] {
            assert_eq!(bytes(length), text);
        }
    }
}
