//! Block devices: rates by device, and weights.

use oci_spec::runtime::{LinuxBlockIo, LinuxThrottleDevice};

use super::{Absent, Controller, MAX, Setting, Settings};

/// Bounds of blkio.weight in version 1, which the runtime specification speaks.
const WEIGHT_MIN: u16 = 10;
const WEIGHT_MAX: u16 = 1000;
const WEIGHT_RANGE: &str = "must be between 10 and 1000";
const NO_LEAF: &str = "cgroup v2 has no leaf weights";

pub(super) fn add(block: &LinuxBlockIo, made: &mut Settings) {
    if let Some(weight) = block.weight().filter(|weight| *weight != 0) {
        add_weight("blockIO.weight", None, weight, made);
    }
    if let Some(leaf) = block.leaf_weight().filter(|leaf| *leaf != 0) {
        made.refuse("blockIO.leafWeight", leaf, NO_LEAF);
    }
    for device in block.weight_device().iter().flatten() {
        let name = format!("{}:{}", device.major(), device.minor());
        if let Some(leaf) = device.leaf_weight().filter(|leaf| *leaf != 0) {
            made.refuse("blockIO.weightDevice", format!("{name} leafWeight {leaf}"), NO_LEAF);
        }
        if let Some(weight) = device.weight().filter(|weight| *weight != 0) {
            add_weight("blockIO.weightDevice", Some(&name), weight, made);
        }
    }
    let rates: [(&str, &Option<Vec<LinuxThrottleDevice>>, &str); 4] = [
        ("blockIO.throttleReadBpsDevice", block.throttle_read_bps_device(), "rbps"),
        ("blockIO.throttleWriteBpsDevice", block.throttle_write_bps_device(), "wbps"),
        ("blockIO.throttleReadIOPSDevice", block.throttle_read_iops_device(), "riops"),
        ("blockIO.throttleWriteIOPSDevice", block.throttle_write_iops_device(), "wiops"),
    ];
    for (field, devices, key) in rates {
        for device in devices.iter().flatten() {
            // The kernel refuses 0; in version 1 it lifts the limit.
            let rate = if device.rate() == 0 { MAX.to_owned() } else { device.rate().to_string() };
            let value = format!("{}:{} {key}={rate}", device.major(), device.minor());
            made.add(Setting::new(field, Controller::Io, "io.max", value));
        }
    }
}

/// Which of the two files exists depends on the kernel; which one counts, on the device's scheduler.
fn add_weight(field: &str, device: Option<&str>, weight: u16, made: &mut Settings) {
    if !(WEIGHT_MIN..=WEIGHT_MAX).contains(&weight) {
        made.refuse(field, weight, WEIGHT_RANGE);
        return;
    }
    let line = |value: u64| device.map_or(value.to_string(), |device| format!("{device} {value}"));
    const BFQ: &str = "io.bfq.weight";
    let bfq = Setting::new(field, Controller::Io, BFQ, line(weight.into()));
    made.add(bfq.absent(Absent::Harmless));
    let spread = Setting::new(field, Controller::Io, "io.weight", line(spread(weight)));
    made.add(spread.absent(Absent::ReplacedBy(BFQ)));
}

/// Maps 10..=1000 to 1..=10000 in a straight line, as runc and crun do.
fn spread(weight: u16) -> u64 {
    1 + u64::from(weight - WEIGHT_MIN) * 9999 / u64::from(WEIGHT_MAX - WEIGHT_MIN)
}

#[cfg(test)]
mod tests {
    use super::super::tests::lines;
    use serde_json::json;

    #[test]
    fn c16_block_devices() {
        for (asked, expect) in [
            (json!({"weight": 10}), vec!["io.bfq.weight=10", "io.weight=1"]),
            (json!({"weight": 1000}), vec!["io.bfq.weight=1000", "io.weight=10000"]),
            (json!({"weight": 0}), vec![]),
            (json!({"weight": 9}), vec!["!blockIO.weight"]),
            (json!({"weight": 10001}), vec!["!blockIO.weight"]),
            (json!({"leafWeight": 100}), vec!["!blockIO.leafWeight"]),
            (
                json!({"weightDevice": [{"major": 8, "minor": 0, "weight": 100, "leafWeight": 3}]}),
                vec!["io.bfq.weight=8:0 100", "io.weight=8:0 910", "!blockIO.weightDevice"],
            ),
            (
                json!({
                    "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1048576}],
                    "throttleWriteBpsDevice": [{"major": 8, "minor": 16, "rate": 0}],
                    "throttleReadIOPSDevice": [{"major": 8, "minor": 0, "rate": 10}],
                    "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 20}],
                }),
                vec!["io.max=8:0 rbps=1048576", "io.max=8:16 wbps=max", "io.max=8:0 riops=10", "io.max=8:0 wiops=20"],
            ),
        ] {
            assert_eq!(lines(json!({"blockIO": asked.clone()})), expect, "{asked}");
        }
    }
}
