//! Limits as properties of a unit (systemd.resource-control(5), org.freedesktop.systemd1(5)).
//!
//! systemd has no words for some limits; those are only written to their files.

use super::super::dbus::Value;
use super::super::settings::{Settings, parse_list};

const SECOND_US: u64 = 1_000_000;
/// systemd keeps quotas in whole percents of a processor.
const QUOTA_STEP_US: u64 = 10_000;
/// systemd's "infinity".
const INFINITY: u64 = u64::MAX;

/// Everything that systemd can keep.
pub(super) fn of(settings: &Settings) -> Vec<(&'static str, Value)> {
    settings.list.iter().flat_map(|setting| property(&setting.file, &setting.value)).collect()
}

fn property(file: &str, value: &str) -> Vec<(&'static str, Value)> {
    let number = || if value == "max" { Some(INFINITY) } else { value.parse().ok() };
    let name = match file {
        "memory.max" => "MemoryMax",
        "memory.high" => "MemoryHigh",
        "memory.low" => "MemoryLow",
        "memory.min" => "MemoryMin",
        "memory.swap.max" => "MemorySwapMax",
        "cpu.weight" => "CPUWeight",
        "io.weight" => "IOWeight",
        "pids.max" => "TasksMax",
        "cpu.max" => return quota(value),
        "cpuset.cpus" => return mask("AllowedCPUs", value),
        "cpuset.mems" => return mask("AllowedMemoryNodes", value),
        _ => return Vec::new(),
    };
    // A weight by device is no number.
    number().map(|number| (name, Value::Number(number))).into_iter().collect()
}

fn quota(value: &str) -> Vec<(&'static str, Value)> {
    let Some((quota, period)) = value.split_once(' ') else { return Vec::new() };
    let Ok(period) = period.parse::<u64>() else { return Vec::new() };
    let per_second = match quota.parse::<u64>() {
        Ok(quota) => (quota.saturating_mul(SECOND_US) / period.max(1)).next_multiple_of(QUOTA_STEP_US),
        Err(_) => INFINITY,
    };
    vec![("CPUQuotaPerSecUSec", Value::Number(per_second)), ("CPUQuotaPeriodUSec", Value::Number(period))]
}

fn mask(name: &'static str, value: &str) -> Vec<(&'static str, Value)> {
    let mut bytes = Vec::new();
    for number in parse_list(value).unwrap_or_default() {
        let at = number as usize / 8;
        bytes.resize(bytes.len().max(at + 1), 0_u8);
        bytes[at] |= 1 << (number % 8);
    }
    vec![(name, Value::Bytes(bytes))]
}

#[cfg(test)]
mod tests {
    use super::super::super::settings::settings;
    use super::*;

    #[test]
    fn limits_become_properties() {
        let asked = serde_json::json!({
            "memory": {"limit": 100, "swap": -1}, "pids": {"limit": 5},
            "cpu": {"quota": 12345, "period": 100000, "shares": 4321, "cpus": "0,9", "burst": 1},
        });
        let made = of(&settings(&serde_json::from_value(asked).unwrap()));
        let expect = [
            ("MemoryMax", Value::Number(100)),
            ("MemorySwapMax", Value::Number(u64::MAX)),
            ("CPUWeight", Value::Number(165)),
            ("CPUQuotaPerSecUSec", Value::Number(130_000)),
            ("CPUQuotaPeriodUSec", Value::Number(100_000)),
            ("AllowedCPUs", Value::Bytes(vec![1, 2])),
            ("TasksMax", Value::Number(5)),
        ];
        assert_eq!(made, expect);
    }
}
