//! Moments and spans of time: how Docker words them and how a person may write them.

use jiff::{SignedDuration, Timestamp};

/// Says why a moment was not understood.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no moment: give seconds since 1970, 2006-01-02T15:04:05Z, or how long ago such as 1h30m")]
pub struct MomentError(pub String);

/// Words a span of time as Docker does.
pub fn span(seconds: i64) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    // Docker rounds hours to the nearest, everything else down.
    let hours = (seconds + HOUR / 2) / HOUR;
    match seconds {
        ..1 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..MINUTE => format!("{seconds} seconds"),
        _ if seconds < 2 * MINUTE => "About a minute".to_owned(),
        _ if seconds < HOUR => format!("{} minutes", seconds / MINUTE),
        _ if hours == 1 => "About an hour".to_owned(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 14 => format!("{} days", hours / 24),
        _ if hours < 24 * 60 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

/// Words how long ago a moment in seconds since the epoch was.
pub fn ago(then_s: i64) -> String {
    format!("{} ago", span(Timestamp::now().as_second() - then_s))
}

/// Writes a moment as Docker's listings do: `2006-01-02 15:04:05 +0000 UTC`.
pub fn created_at(then_s: i64) -> String {
    Timestamp::from_second(then_s).map_or_else(|_| String::new(), |then| then.strftime("%F %T +0000 UTC").to_string())
}

/// Reads what `--since` and `--until` take: an RFC 3339 moment, one without zone or time (taken as UTC),
/// seconds since the epoch, or a Go duration that means "so long ago".
pub fn parse(text: &str, now: Timestamp) -> Result<Timestamp, MomentError> {
    let fail = || MomentError(text.to_owned());
    if let Ok(moment) = text.parse::<Timestamp>() {
        return Ok(moment);
    }
    if let Ok(civil) = text.parse::<jiff::civil::DateTime>() {
        return civil.to_zoned(jiff::tz::TimeZone::UTC).map(|zoned| zoned.timestamp()).map_err(|_| fail());
    }
    if text.starts_with(|c: char| c.is_ascii_digit()) && text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return epoch(text).ok_or_else(fail);
    }
    let span = duration(text).ok_or_else(fail)?;
    now.checked_sub(span).map_err(|_| fail())
}

/// Reads `1700000000` and `1700000000.000000001`.
fn epoch(text: &str) -> Option<Timestamp> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let nanoseconds = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    Timestamp::new(seconds.parse().ok()?, nanoseconds).ok()
}

/// Reads a Go duration such as `1h30m` or `1.5s`.
pub fn duration(text: &str) -> Option<SignedDuration> {
    let mut rest = text.strip_prefix('-').unwrap_or(text);
    let mut total = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let units = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(units);
        let scale = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += number.parse::<f64>().ok()? * scale;
        rest = after;
    }
    SignedDuration::try_from_secs_f64(if text.starts_with('-') { -total } else { total }).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans() {
        for (seconds, expect) in [
            (-5, "Less than a second"),
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (119, "About a minute"),
            (120, "2 minutes"),
            (3600, "About an hour"),
            (5400, "2 hours"),
            (47 * 3600, "47 hours"),
            (48 * 3600, "2 days"),
            (14 * 86_400, "2 weeks"),
            (70 * 86_400, "2 months"),
            (800 * 86_400, "2 years"),
        ] {
            assert_eq!(span(seconds), expect, "{seconds}");
        }
        assert_eq!(created_at(0), "1970-01-01 00:00:00 +0000 UTC");
    }

    #[test]
    fn moments() {
        let now = Timestamp::from_second(10_000).unwrap();
        for (text, seconds) in [
            ("1h", 6400),
            ("1h30m10s", 4590),
            ("10", 10),
            ("1970-01-01", 0),
            ("1970-01-01T00:01", 60),
            ("1970-01-01T00:01:05", 65),
            ("1970-01-01T01:00:00+01:00", 0),
            ("0s", 10_000),
        ] {
            assert_eq!(parse(text, now).map(|moment| moment.as_second()), Ok(seconds), "{text}");
        }
        assert_eq!(parse("1.5", now).unwrap().as_nanosecond(), 1_500_000_000);
        for bad in ["", "yesterday", "1", "1x", "-", "1h1", "..", "99999999999999999999"] {
            assert_eq!(parse(bad, now).is_ok(), bad == "1", "{bad}");
        }
    }
}
