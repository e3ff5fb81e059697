//! Memory and swap. The runtime specification still speaks version 1: swap there is memory + swap.

use oci_spec::runtime::LinuxMemory;

use super::{Absent, Controller, MAX, Setting, Settings, limit_or_max};

const CONTROLLER: Controller = Controller::Memory;
const NO_FILE: &str = "cgroup v2 has no such limit";

pub(super) fn add(memory: &LinuxMemory, made: &mut Settings) {
    // 0 is how callers of runc say "not set".
    let set = |value: Option<i64>| value.filter(|value| *value != 0);
    let limit = set(memory.limit());
    for (field, value) in [("memory.limit", limit), ("memory.swap", set(memory.swap()))] {
        if let Some(value) = value.filter(|value| *value < -1) {
            made.refuse(field, value, "is below -1, which means no limit");
            return;
        }
    }
    if let Some(limit) = limit {
        made.add(Setting::new("memory.limit", CONTROLLER, "memory.max", limit_or_max(limit)));
    }
    if let Some(swap) = set(memory.swap()) {
        match swap_only(swap, limit) {
            Ok(value) => {
                let setting = Setting::new("memory.swap", CONTROLLER, "memory.swap.max", value);
                made.add(setting.absent(Absent::HarmlessWithoutSwap));
            }
            Err(reason) => made.refuse("memory.swap", swap, reason),
        }
    }
    match set(memory.reservation()) {
        Some(value) if value < -1 => made.refuse("memory.reservation", value, "is below -1, which means no limit"),
        Some(value) => made.add(Setting::new("memory.reservation", CONTROLLER, "memory.low", limit_or_max(value))),
        None => {}
    }
    if let Some(value) = memory.swappiness() {
        made.refuse("memory.swappiness", value, NO_FILE);
    }
    if memory.disable_oom_killer() == Some(true) {
        made.refuse("memory.disableOOMKiller", true, NO_FILE);
    }
    let kernel = set(memory.kernel());
    for (field, value) in [("memory.kernel", kernel), ("memory.kernelTCP", set(memory.kernel_tcp()))] {
        if let Some(value) = value.filter(|value| *value != -1) {
            made.refuse(field, value, NO_FILE);
        }
    }
}

/// Takes the memory out of version 1's sum of memory and swap.
fn swap_only(sum: i64, limit: Option<i64>) -> Result<String, &'static str> {
    match limit {
        _ if sum == -1 => Ok(MAX.to_owned()),
        None => Err("is memory plus swap, so it needs a memory limit"),
        Some(-1) => Err("is below the memory limit, which is none"),
        Some(limit) if sum < limit => Err("is memory plus swap and below the memory limit"),
        Some(limit) => Ok((sum - limit).to_string()),
    }
}

/// Whether a new memory limit may be set over what is in use (`checkBeforeUpdate`).
pub(in crate::cgroup) fn is_below_usage(memory: &LinuxMemory, used_bytes: u64) -> bool {
    memory.check_before_update() == Some(true)
        && memory
            .limit()
            .and_then(|limit| u64::try_from(limit).ok())
            .is_some_and(|limit| limit > 0 && limit < used_bytes)
}

#[cfg(test)]
mod tests {
    use super::super::tests::lines;
    use serde_json::json;

    #[test]
    fn c16_memory() {
        for (asked, expect) in [
            (json!({"limit": 67108864}), vec!["memory.max=67108864"]),
            (json!({"limit": -1}), vec!["memory.max=max"]),
            (json!({"limit": 0}), vec![]),
            (json!({"limit": -2}), vec!["!memory.limit"]),
            (json!({"limit": i64::MAX}), vec!["memory.max=9223372036854775807"]),
            (json!({"limit": 100, "swap": 150}), vec!["memory.max=100", "memory.swap.max=50"]),
            (json!({"limit": 100, "swap": 100}), vec!["memory.max=100", "memory.swap.max=0"]),
            (json!({"limit": 100, "swap": -1}), vec!["memory.max=100", "memory.swap.max=max"]),
            (json!({"limit": 100, "swap": 99}), vec!["memory.max=100", "!memory.swap"]),
            (json!({"swap": 99}), vec!["!memory.swap"]),
            (json!({"swap": -1}), vec!["memory.swap.max=max"]),
            (json!({"limit": -1, "swap": 5}), vec!["memory.max=max", "!memory.swap"]),
            (json!({"reservation": 7}), vec!["memory.low=7"]),
            (json!({"swappiness": 10}), vec!["!memory.swappiness"]),
            (json!({"disableOOMKiller": true}), vec!["!memory.disableOOMKiller"]),
            (json!({"disableOOMKiller": false, "useHierarchy": true}), vec![]),
            (json!({"kernel": 5, "kernelTCP": 6}), vec!["!memory.kernel", "!memory.kernelTCP"]),
            (json!({"kernelTCP": -1}), vec![]),
        ] {
            assert_eq!(lines(json!({"memory": asked.clone()})), expect, "{asked}");
        }
    }
}
