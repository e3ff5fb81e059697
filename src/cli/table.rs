//! Sizes as Docker words them, and JSON documents.

use serde::Serialize;

use super::error::{CliError, line};

/// Prints one JSON document.
pub fn print_json<T: Serialize>(value: &T) -> Result<(), CliError> {
    line(&serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Gives a size as docker shows it: three digits at most and a decimal unit.
pub fn human_size(bytes: u64) -> String {
    scaled(bytes, 1000, ["B", "kB", "MB", "GB", "TB", "PB"])
}

/// Gives a size of memory as docker shows it: four digits at most and a binary unit.
pub fn human_memory(bytes: u64) -> String {
    scaled(bytes, 1024, ["B", "KiB", "MiB", "GiB", "TiB", "PiB"])
}

fn scaled(bytes: u64, base: u64, units: [&str; 6]) -> String {
    let digits = if base == 1000 { 3 } else { 4 };
    let (mut divisor, mut unit) = (1, 0);
    while bytes / divisor >= base && unit + 1 < units.len() {
        divisor *= base;
        unit += 1;
    }
    let whole = bytes / divisor;
    let decimals = usize::saturating_sub(digits, whole.to_string().len());
    let scale = 10u64.pow(u32::try_from(decimals).unwrap_or(0));
    let (value, rest) = (u128::from(bytes) * u128::from(scale), u128::from(divisor));
    let rounded = (value + rest / 2) / rest;
    let (whole, fraction) = (rounded / u128::from(scale), rounded % u128::from(scale));
    let fraction = format!("{fraction:0decimals$}");
    let fraction = fraction.trim_end_matches('0');
    let dot = if fraction.is_empty() { "" } else { "." };
    format!("{whole}{dot}{fraction}{}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (bytes, expect) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (1049, "1.05kB"),
            (1100, "1.1kB"),
            (4_263_000, "4.26MB"),
            (42_400_000, "42.4MB"),
            (123_456_789, "123MB"),
            (u64::MAX, "18447PB"),
        ] {
            assert_eq!(human_size(bytes), expect);
        }
        for (bytes, expect) in [(1023, "1023B"), (1536, "1.5KiB"), (700 << 10, "700KiB"), (5 << 29, "2.5GiB")] {
            assert_eq!(human_memory(bytes), expect);
        }
    }
}
