//! When the owner lets new work in: hours, a machine nobody uses, mains power. What runs goes on.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::facts;

/// Minutes of a day.
const DAY_MINUTES: u16 = 24 * 60;

/// Is a span of the day in local time, in minutes after midnight; one that ends before it begins lasts over midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hours {
    from: u16,
    to: u16,
}

/// Says that a span was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid hours {0:?}: expected HH:MM-HH:MM")]
pub struct HoursError(String);

impl FromStr for Hours {
    type Err = HoursError;

    fn from_str(text: &str) -> Result<Self, HoursError> {
        let minutes = |text: &str| {
            let (hour, minute) = text.split_once(':')?;
            let (hour, minute) = (hour.parse::<u16>().ok()?, minute.parse::<u16>().ok()?);
            (minute < 60 && hour * 60 + minute <= DAY_MINUTES).then_some(hour * 60 + minute)
        };
        let span = text.split_once('-').and_then(|(from, to)| Some((minutes(from)?, minutes(to)?)));
        let (from, to) = span.filter(|(from, to)| from != to).ok_or_else(|| HoursError(text.to_owned()))?;
        Ok(Self { from, to })
    }
}

impl Hours {
    fn holds(self, minute: u16) -> bool {
        if self.from < self.to {
            (self.from..self.to).contains(&minute)
        } else {
            minute >= self.from || minute < self.to
        }
    }
}

/// Is what the owner wants; nothing said is always.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Policy {
    /// Within one of these; none is the whole day.
    pub hours: Vec<Hours>,
    /// Nobody has typed for so many seconds.
    pub idle_s: Option<u64>,
    /// Never while a battery is drained.
    pub mains_only: bool,
}

/// Is what the machine is like just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    minute: u16,
    /// None where nobody can tell.
    idle_s: Option<u64>,
    on_battery: bool,
}

impl Now {
    /// Looks.
    pub fn look() -> Self {
        let local = jiff::Zoned::now();
        let minute = u16::try_from(local.hour()).unwrap_or(0) * 60 + u16::try_from(local.minute()).unwrap_or(0);
        Self { minute, idle_s: facts::idle_s(), on_battery: facts::is_on_battery() }
    }
}

impl Policy {
    /// Says why new work is not welcome just now, if so.
    pub fn closed(&self, now: Now) -> Option<&'static str> {
        if !self.hours.is_empty() && !self.hours.iter().any(|hours| hours.holds(now.minute)) {
            return Some("it is not the hour for it");
        }
        if self.mains_only && now.on_battery {
            return Some("the machine runs on its battery");
        }
        // Whether anybody types cannot be seen where there is no terminal: nobody does.
        let in_use = self.idle_s.zip(now.idle_s).is_some_and(|(wanted, idle)| idle < wanted);
        in_use.then_some("somebody uses the machine")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_a_user_and_a_battery_close_the_door() {
        let at = |minute, idle_s, on_battery| Now { minute, idle_s, on_battery };
        let policy = Policy {
            hours: vec!["22:00-07:30".parse().unwrap(), "12:00-13:00".parse().unwrap()],
            idle_s: Some(900),
            mains_only: true,
        };
        for (now, expect) in [
            (at(23 * 60, Some(901), false), None),
            (at(7 * 60 + 29, None, false), None),
            (at(12 * 60, Some(900), false), None),
            (at(7 * 60 + 30, None, false), Some("it is not the hour for it")),
            (at(13 * 60, None, false), Some("it is not the hour for it")),
            (at(0, Some(899), false), Some("somebody uses the machine")),
            (at(0, None, true), Some("the machine runs on its battery")),
        ] {
            assert_eq!(policy.closed(now), expect, "{now:?}");
        }
        assert_eq!(Policy::default().closed(at(0, Some(0), true)), None);
        for bad in ["", "1-2", "25:00-26:00", "10:60-11:00", "10:00-10:00", "10:00"] {
            assert!(bad.parse::<Hours>().is_err(), "{bad}");
        }
    }
}
