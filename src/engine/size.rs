//! Sizes and numbers the way Docker writes them: `64m`, `1g`, `nofile=1024:2048`.

/// Says that a text is no size.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a size such as 64m, 512k or 2g")]
pub struct SizeError(String);

/// Parses a size in bytes with Docker's binary suffixes b, k, m, g, t, p (also kb, kib, …) and fractions.
pub fn parse_size_bytes(text: &str) -> Result<u64, SizeError> {
    let fail = || SizeError(text.to_owned());
    let lower = text.to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, suffix) = lower.split_at(digits);
    let suffix = suffix.strip_prefix(' ').unwrap_or(suffix);
    let unit = suffix.strip_suffix("ib").or_else(|| suffix.strip_suffix('b')).unwrap_or(suffix);
    let shift = match unit {
        "" if suffix != "ib" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return Err(fail()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let whole: u64 = whole.parse().map_err(|_| fail())?;
    let bytes = whole.checked_mul(1 << shift).ok_or_else(fail)?;
    bytes.checked_add(fraction_bytes(fraction, shift).ok_or_else(fail)?).ok_or_else(fail)
}

/// The bytes of `.5` of a unit, rounded down.
fn fraction_bytes(digits: &str, shift: u32) -> Option<u64> {
    /// More digits than these change no byte, and ten to their number times a unit still fits.
    const DIGITS_MAX: usize = 18;
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits = &digits[..digits.len().min(DIGITS_MAX)];
    let value: u128 = digits.parse().ok()?;
    let whole = 10_u128.pow(u32::try_from(digits.len()).ok()?);
    u64::try_from((value << shift) / whole).ok()
}

/// Is one `--ulimit NAME=SOFT[:HARD]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ulimit {
    /// Docker's name, e.g. `nofile`.
    pub name: &'static str,
    pub soft: u64,
    pub hard: u64,
}

/// Says why a `--ulimit` was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid ulimit {request:?}: {reason}")]
pub struct UlimitError {
    request: String,
    reason: &'static str,
}

/// The names of getrlimit(2) as docker run spells them.
pub const ULIMIT_NAMES: &[&str] = &[
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

impl std::str::FromStr for Ulimit {
    type Err = UlimitError;

    fn from_str(request: &str) -> Result<Self, UlimitError> {
        let fail = |reason| UlimitError { request: request.to_owned(), reason };
        let (name, values) = request.split_once('=').ok_or_else(|| fail("expected NAME=SOFT[:HARD]"))?;
        let name = ULIMIT_NAMES.iter().find(|known| **known == name).ok_or_else(|| fail("unknown limit"))?;
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        let value = |text: &str| match text {
            "-1" | "unlimited" => Ok(u64::MAX),
            number => number.parse().map_err(|_| fail("not a number, -1 or unlimited")),
        };
        let (soft, hard) = (value(soft)?, value(hard)?);
        if soft > hard {
            return Err(fail("the soft limit is above the hard limit"));
        }
        Ok(Self { name, soft, hard })
    }
}

impl Ulimit {
    /// Gives the name as the runtime spec spells it, e.g. `RLIMIT_NOFILE`.
    pub fn spec_name(&self) -> String {
        format!("RLIMIT_{}", self.name.to_ascii_uppercase())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, expect) in [
            ("0", 0),
            ("64", 64),
            ("64b", 64),
            ("1k", 1024),
            ("2KB", 2048),
            ("3MiB", 3 << 20),
            ("1g", 1 << 30),
            ("1.5g", 3 << 29),
            ("0.5k", 512),
            ("2 m", 2 << 20),
        ] {
            assert_eq!(parse_size_bytes(text), Ok(expect), "{text}");
        }
        for bad in ["", "m", "-1", "1.g", ".5g", "1.2.3", "1 5", "1x", "ib", "1ib", "99999999999999999999", "99999999t"]
        {
            assert!(parse_size_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ulimits() {
        assert_eq!("nofile=10:20".parse(), Ok(Ulimit { name: "nofile", soft: 10, hard: 20 }));
        assert_eq!("core=-1".parse::<Ulimit>().unwrap().hard, u64::MAX);
        for bad in ["nofile", "wat=1", "nofile=20:10", "nofile=x", "nofile=1:"] {
            assert!(bad.parse::<Ulimit>().is_err(), "{bad}");
        }
    }
}
