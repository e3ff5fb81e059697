//! Processor time and processor sets.

use oci_spec::runtime::LinuxCpu;

use super::{Controller, MAX, Setting, Settings};

/// The kernel's default length of a bandwidth period (cgroup-v2.rst, cpu.max).
const PERIOD_DEFAULT_US: u64 = 100_000;
/// Bounds of version 1's cpu.shares (kernel/sched/sched.h, MIN_SHARES and MAX_SHARES).
const SHARES_MIN: u64 = 2;
const SHARES_MAX: u64 = 262_144;
/// Bounds of cpu.weight (cgroup-v2.rst).
const WEIGHT_MIN: u64 = 1;
const WEIGHT_MAX: u64 = 10_000;

pub(super) fn add(cpu: &LinuxCpu, made: &mut Settings) {
    const CPU: Controller = Controller::Cpu;
    if let Some(value) = cpu.idle() {
        made.add(Setting::new("cpu.idle", CPU, "cpu.idle", value));
    }
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        made.add(Setting::new("cpu.shares", CPU, "cpu.weight", weight(shares)));
    }
    if let Some((field, value)) = bandwidth(cpu) {
        made.add(Setting::new(field, CPU, "cpu.max", value));
    }
    if let Some(burst) = cpu.burst() {
        made.add(Setting::new("cpu.burst", CPU, "cpu.max.burst", burst));
    }
    if let Some(value) = cpu.realtime_runtime().filter(|value| *value != 0) {
        made.refuse("cpu.realtimeRuntime", value, "cgroup v2 has no limits for realtime processes");
    }
    if let Some(value) = cpu.realtime_period().filter(|value| *value != 0) {
        made.refuse("cpu.realtimePeriod", value, "cgroup v2 has no limits for realtime processes");
    }
    for (field, file, list) in [("cpu.cpus", "cpuset.cpus", cpu.cpus()), ("cpu.mems", "cpuset.mems", cpu.mems())] {
        match list.as_deref().filter(|list| !list.is_empty()) {
            None => {}
            Some(list) if parse_list(list).is_some() => {
                made.add(Setting::new(field, Controller::Cpuset, file, list));
            }
            Some(list) => made.refuse(field, list, "is no list such as 0-2,7"),
        }
    }
}

/// The linear map of runc and crun of 2020 to 2025, which keeps proportions: 2..262144 to 1..10000.
fn weight(shares: u64) -> u64 {
    let shares = shares.clamp(SHARES_MIN, SHARES_MAX);
    WEIGHT_MIN + (shares - SHARES_MIN) * (WEIGHT_MAX - WEIGHT_MIN) / (SHARES_MAX - SHARES_MIN)
}

/// The value of cpu.max. A period of 0 is how callers of runc say "not set".
fn bandwidth(cpu: &LinuxCpu) -> Option<(&'static str, String)> {
    let period = cpu.period().filter(|period| *period != 0);
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let field = if quota.is_some() { "cpu.quota" } else { "cpu.period" };
    if quota.is_none() && period.is_none() {
        return None;
    }
    let quota = quota.filter(|quota| *quota > 0).map_or(MAX.to_owned(), |quota| quota.to_string());
    Some((field, format!("{quota} {}", period.unwrap_or(PERIOD_DEFAULT_US))))
}

/// The numbers in a list such as `0-2,7`; `None` for what is none. Sorted, once each.
pub(in crate::cgroup) fn parse_list(list: &str) -> Option<Vec<u32>> {
    /// The kernel's largest NR_CPUS; what is above is no processor.
    const NUMBER_MAX: u32 = 8191;
    let number = |text: &str| text.parse().ok().filter(|number| *number <= NUMBER_MAX);
    let mut numbers = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (number(first)?, number(last)?);
        if first > last {
            return None;
        }
        numbers.extend(first..=last);
    }
    numbers.sort_unstable();
    numbers.dedup();
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::super::tests::lines;
    use super::*;
    use serde_json::json;

    #[test]
    fn c16_cpu() {
        for (asked, expect) in [
            (json!({"quota": 20000, "period": 100000}), vec!["cpu.max=20000 100000"]),
            (json!({"quota": 20000}), vec!["cpu.max=20000 100000"]),
            (json!({"quota": 1}), vec!["cpu.max=1 100000"]),
            (json!({"quota": -1}), vec!["cpu.max=max 100000"]),
            (json!({"quota": 0, "period": 0}), vec![]),
            (json!({"period": 50000}), vec!["cpu.max=max 50000"]),
            (json!({"shares": 0}), vec![]),
            (json!({"idle": 1}), vec!["cpu.idle=1"]),
            (json!({"quota": 5000, "burst": 1000}), vec!["cpu.max=5000 100000", "cpu.max.burst=1000"]),
            (json!({"realtimeRuntime": 5, "realtimePeriod": 7}), vec!["!cpu.realtimeRuntime", "!cpu.realtimePeriod"]),
            (json!({"cpus": "0-1,3", "mems": "0"}), vec!["cpuset.cpus=0-1,3", "cpuset.mems=0"]),
            (json!({"cpus": "", "mems": ""}), vec![]),
            (json!({"cpus": "1,,2"}), vec!["!cpu.cpus"]),
            (json!({"cpus": "0-999999"}), vec!["!cpu.cpus"]),
            (json!({"cpus": "2-1"}), vec!["!cpu.cpus"]),
            (json!({"mems": "a\n1"}), vec!["!cpu.mems"]),
        ] {
            assert_eq!(lines(json!({"cpu": asked.clone()})), expect, "{asked}");
        }
    }

    #[test]
    fn shares_become_weights_in_proportion() {
        for (shares, expect) in
            [(1, 1), (2, 1), (1024, 39), (2048, 79), (4321, 165), (262_144, 10_000), (u64::MAX, 10_000)]
        {
            assert_eq!(weight(shares), expect, "{shares}");
        }
    }

    #[test]
    fn lists() {
        assert_eq!(parse_list("0-2,7\n"), Some(vec![0, 1, 2, 7]));
        assert_eq!(parse_list("3,1-3"), Some(vec![1, 2, 3]));
        for bad in ["", "-", "1-", "x", "1,", "4-2", "99999"] {
            assert_eq!(parse_list(bad), None, "{bad:?}");
        }
    }
}
