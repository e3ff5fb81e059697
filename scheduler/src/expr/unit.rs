//! Numbers with units and versions with numbers.

use std::cmp::Ordering;

/// Multipliers by suffix. Sizes are bytes, times are milliseconds, `%` is a plain number of hundredths.
const UNITS: [(&str, f64); 19] = [
    ("kib", 1024.0),
    ("mib", 1_048_576.0),
    ("gib", 1_073_741_824.0),
    ("tib", 1_099_511_627_776.0),
    ("kb", 1e3),
    ("mb", 1e6),
    ("gb", 1e9),
    ("tb", 1e12),
    ("b", 1.0),
    ("us", 1e-3),
    ("ms", 1.0),
    ("s", 1e3),
    ("min", 6e4),
    ("h", 3.6e6),
    ("d", 8.64e7),
    ("mhz", 1e6),
    ("ghz", 1e9),
    ("%", 1.0),
    ("", 1.0),
];

/// Reads a decimal number with an optional unit; no infinity, no NaN, no exponent.
pub fn number(text: &str) -> Option<f64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && !".+-".contains(c)).unwrap_or(text.len());
    let (digits, unit) = (&text[..end], text[end..].trim().to_ascii_lowercase());
    let factor = UNITS.iter().find(|(name, _)| *name == unit)?.1;
    let value: f64 = digits.parse().ok()?;
    value.is_finite().then_some(value * factor)
}

/// Compares two versions part by part: numbers as numbers, a part that is missing as zero, and a pre-release
/// (`1.2-rc1`) before its release. `None` when either has no number at the front.
pub fn version_order(left: &str, right: &str) -> Option<Ordering> {
    let (left, right) = (version(left)?, version(right)?);
    let longest = left.0.len().max(right.0.len());
    let part = |parts: &[u64], place: usize| parts.get(place).copied().unwrap_or(0);
    let numbers = (0..longest).map(|place| part(&left.0, place).cmp(&part(&right.0, place)));
    let order = numbers.into_iter().find(|order| order.is_ne()).unwrap_or(Ordering::Equal);
    Some(order.then_with(|| match (&left.1, &right.1) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Greater,
        (Some(_), None) => Ordering::Less,
        (Some(left), Some(right)) => left.cmp(right),
    }))
}

fn version(text: &str) -> Option<(Vec<u64>, Option<String>)> {
    let text = text.trim().trim_start_matches(['v', 'V']);
    let (numbers, rest) = text.split_at(text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len()));
    let parts: Option<Vec<u64>> = numbers.trim_end_matches('.').split('.').map(|part| part.parse().ok()).collect();
    // A distribution's suffix (`6.1.0-13-amd64`, `5.15+deb12`) is no pre-release; letters after a dash are.
    let early = rest.strip_prefix('-').filter(|rest| {
        let word: String = rest.chars().take_while(char::is_ascii_alphabetic).collect::<String>().to_ascii_lowercase();
        ["alpha", "beta", "rc", "pre", "dev"].contains(&word.as_str())
    });
    Some((parts?, early.map(str::to_ascii_lowercase)))
}
