//! Listings the way docker prints them: aligned columns, or JSON for programs.

use serde::Serialize;

use super::error::{CliError, line};
use crate::report::one_line;

/// Names how a listing is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Table,
    Json,
}

/// Prints rows under headings, columns separated by three spaces like docker's.
pub fn print(headings: &[&str], rows: &[Vec<String>]) {
    let clean: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| one_line(cell)).collect()).collect();
    let width = |column: usize| {
        let cells = clean.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(headings.get(column).map(|heading| heading.len())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let headings: Vec<String> = headings.iter().map(|heading| (*heading).to_owned()).collect();
    for row in std::iter::once(&headings).chain(&clean) {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        line(cells.collect::<Vec<_>>().join("   ").trim_end());
    }
}

/// Prints one JSON document.
pub fn print_json<T: Serialize>(value: &T) -> Result<(), CliError> {
    line(&serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Gives a size as docker shows it: three digits and a decimal unit.
pub fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let (mut value, mut unit) = (bytes, 0);
    let mut thousandths = 0;
    while value >= 1000 && unit + 1 < UNITS.len() {
        thousandths = value % 1000;
        value /= 1000;
        unit += 1;
    }
    let name = UNITS[unit];
    match (unit, value) {
        (0, _) | (_, 100..) => format!("{value}{name}"),
        (_, 10..) => format!("{value}.{}{name}", thousandths / 100),
        _ => format!("{value}.{:02}{name}", thousandths / 10),
    }
}

/// Gives how long ago a moment was, as docker words it.
pub fn human_age(seconds: i64) -> String {
    const STEPS: [(i64, &str); 6] = [
        (365 * 86_400, "year"),
        (30 * 86_400, "month"),
        (7 * 86_400, "week"),
        (86_400, "day"),
        (3600, "hour"),
        (60, "minute"),
    ];
    let (count, unit) = STEPS
        .iter()
        .find(|(length, _)| seconds >= 2 * length)
        .map_or((seconds.max(0), "second"), |(length, unit)| (seconds / length, *unit));
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{plural} ago")
}

/// Gives the age of a moment in seconds since the epoch.
pub fn age_since_epoch(then_s: u64) -> String {
    human_age(jiff::Timestamp::now().as_second() - i64::try_from(then_s).unwrap_or(i64::MAX))
}

/// Gives the age of an RFC 3339 time stamp, or `N/A` where an image names none.
pub fn age_of(created: Option<&str>) -> String {
    let parsed = created.and_then(|text| text.parse::<jiff::Timestamp>().ok());
    parsed.map_or("N/A".to_owned(), |then| human_age(jiff::Timestamp::now().as_second() - then.as_second()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (bytes, expect) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1.00kB"),
            (4_263_000, "4.26MB"),
            (42_400_000, "42.4MB"),
            (123_456_789, "123MB"),
        ] {
            assert_eq!(human_size(bytes), expect);
        }
    }

    #[test]
    fn ages() {
        for (seconds, expect) in [
            (-5, "0 seconds ago"),
            (1, "1 second ago"),
            (119, "119 seconds ago"),
            (120, "2 minutes ago"),
            (3 * 86_400, "3 days ago"),
            (800 * 86_400, "2 years ago"),
        ] {
            assert_eq!(human_age(seconds), expect);
        }
        assert_eq!(age_of(None), "N/A");
        assert_eq!(age_of(Some("nonsense")), "N/A");
    }
}
