//! `--net-rate up=RATE,down=RATE[,burst=SIZE]`: how much of the network a container may use.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::engine::size::parse_size_bytes;

/// What passes at once is at least this, or large packets never would.
const BURST_BYTES_MIN: u64 = 64 << 10;
/// As a part of a second at the full rate: enough for a kernel that looks at its queues every 4 ms.
const BURST_PARTS: u64 = 50;
/// Below this a single large packet takes seconds.
const RATE_BITS_MIN: u64 = 64_000;
/// The kernel counts bytes at a time in 32 bits.
const BURST_BYTES_MAX: u64 = 1 << 30;

/// Is the two directions as the container sees them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Bits a second that it may send.
    pub up_bits: Option<u64>,
    /// Bits a second that it may receive.
    pub down_bits: Option<u64>,
    /// What may pass at once after a pause.
    pub burst_bytes: Option<u64>,
}

/// Says that a rate was not understood.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid network rate {request:?}: {reason}")]
pub struct RateError {
    request: String,
    reason: &'static str,
}

impl Rate {
    /// Gives what may pass at once at a rate.
    pub fn burst(&self, bits: u64) -> u32 {
        let bytes = self.burst_bytes.unwrap_or_else(|| (bits / 8 / BURST_PARTS).max(BURST_BYTES_MIN));
        u32::try_from(bytes.min(BURST_BYTES_MAX)).unwrap_or(u32::MAX)
    }

    /// Puts what another one says over this one.
    pub fn changed(self, other: Self) -> Self {
        Self {
            up_bits: other.up_bits.or(self.up_bits),
            down_bits: other.down_bits.or(self.down_bits),
            burst_bytes: other.burst_bytes.or(self.burst_bytes),
        }
    }
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = |reason| RateError { request: text.to_owned(), reason };
        let mut rate = Self::default();
        for part in text.split(',') {
            match part.split_once('=') {
                Some(("up", value)) => rate.up_bits = Some(bits(value).ok_or_else(|| fail(RATE_FORM))?),
                Some(("down", value)) => rate.down_bits = Some(bits(value).ok_or_else(|| fail(RATE_FORM))?),
                Some(("burst", value)) => {
                    let size = parse_size_bytes(value).map_err(|_| fail("the burst is no size"))?;
                    if !(BURST_BYTES_MIN..=BURST_BYTES_MAX).contains(&size) {
                        return Err(fail("the burst is not 64k to 1g"));
                    }
                    rate.burst_bytes = Some(size);
                }
                _ => return Err(fail("expected up=RATE, down=RATE or burst=SIZE")),
            }
        }
        if rate.up_bits.is_none() && rate.down_bits.is_none() {
            return Err(fail("neither up= nor down= is given"));
        }
        Ok(rate)
    }
}

const RATE_FORM: &str = "a rate is a number with bit, kbit, mbit or gbit, 64kbit at least";

/// Reads a rate in tc's words, bits when it has none.
fn bits(text: &str) -> Option<u64> {
    let text = text.to_ascii_lowercase();
    let units = [("kbit", 1_000), ("mbit", 1_000_000), ("gbit", 1_000_000_000), ("bit", 1), ("", 1)];
    let (number, unit) = units.iter().find_map(|(word, unit)| Some((text.strip_suffix(word)?, unit)))?;
    let bits = number.parse::<u64>().ok()?.checked_mul(*unit)?;
    (bits >= RATE_BITS_MIN).then_some(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates() {
        let rate: Rate = "up=10mbit,down=1Gbit,burst=1m".parse().unwrap();
        let expected = Rate { up_bits: Some(10_000_000), down_bits: Some(1_000_000_000), burst_bytes: Some(1 << 20) };
        assert_eq!(rate, expected);
        assert_eq!("down=64000".parse::<Rate>().unwrap().down_bits, Some(64_000));
        assert_eq!("up=1gbit".parse::<Rate>().unwrap().burst(1_000_000_000), 2_500_000);
        for bad in
            ["", "up", "up=", "up=x", "up=1kbit", "left=1mbit", "burst=1m", "up=1mbit,burst=1", "up=99999999gbit9"]
        {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
    }
}
