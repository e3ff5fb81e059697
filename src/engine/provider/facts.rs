//! What this machine says about itself: typed facts, each with the time it may be believed.

use std::collections::BTreeMap;
use std::path::Path;

use coracle_runtime::cgroup::{Controller, Outlook, outlook};
use coracle_scheduler::model::{FactReport, FactValue};

use super::Shares;
use crate::engine::quota;
use coracle_runtime::programs;

/// What changes by itself is believed for so long.
const FLEETING_MS: u64 = 60_000;
/// A battery's charge and a disk's room change slowly.
const SLOW_MS: u64 = 600_000;

fn text(path: &str) -> String {
    fs_err::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// Changes at every boot (proc_sys_kernel(5), random/boot_id).
pub fn boot_id() -> String {
    text("/proc/sys/kernel/random/boot_id")
}

/// Gives an amount of /proc/meminfo (proc_meminfo(5)) in bytes, 0 where there is none.
pub fn memory_bytes(name: &str) -> u64 {
    let all = text("/proc/meminfo");
    let line = all.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().strip_suffix(" kB"));
    line.and_then(|kib| kib.parse::<u64>().ok()).map_or(0, |kib| kib << 10)
}

/// Gives the room that is left on the disk of a directory, in bytes.
pub fn disk_free_bytes(path: &Path) -> u64 {
    rustix::fs::statvfs(path).map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Measures everything.
pub fn measure(root: &Path, shares: &Shares) -> BTreeMap<String, FactReport> {
    let mut facts = Facts(BTreeMap::new());
    let uname = rustix::system::uname();
    facts.put("kernel", FactValue::Text(uname.release().to_string_lossy().into_owned()), None);
    facts.put("arch", FactValue::Text(uname.machine().to_string_lossy().into_owned()), None);
    facts.put("hostname", FactValue::Text(uname.nodename().to_string_lossy().into_owned()), None);
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    facts.number("cpus", cpus, None);
    facts.number("memory", memory_bytes("MemTotal"), None);
    facts.number("memory_free", memory_bytes("MemAvailable"), Some(FLEETING_MS));
    facts.number("disk_free", disk_free_bytes(root), Some(SLOW_MS));
    load(&mut facts, &text("/proc/loadavg"), cpus);
    if let Some(idle) = idle_s() {
        facts.number("idle", idle, Some(FLEETING_MS));
    }
    let cards = names("/dev").filter(|name| name.strip_prefix("nvidia").is_some_and(|rest| rest.parse::<u8>().is_ok()));
    facts.number("gpus", cards.count(), None);
    power(&mut facts);
    limits(&mut facts, &outlook(), &missing_limits(root, shares));
    facts.0
}

struct Facts(BTreeMap<String, FactReport>);

impl Facts {
    fn put(&mut self, name: &str, value: FactValue, ttl_ms: Option<u64>) {
        self.0.insert(name.to_owned(), FactReport { value, age_ms: 0, ttl_ms });
    }

    /// Puts a number; what a double cannot hold is no longer exact, and nobody compares so closely.
    fn number(&mut self, name: &str, value: impl ToString, ttl_ms: Option<u64>) {
        if let Ok(value) = value.to_string().parse() {
            self.put(name, FactValue::Number(value), ttl_ms);
        }
    }
}

/// The three averages of proc_loadavg(5), and the original project's fact: the ten-minute one in percent of the
/// processors, which lies between the kernel's five and fifteen minutes.
fn load(facts: &mut Facts, text: &str, cpus: usize) {
    let numbers: Vec<f64> = text.split_whitespace().take(3).filter_map(|word| word.parse().ok()).collect();
    let [one, five, fifteen] = numbers[..] else { return };
    for (name, value) in [("load1", one), ("load5", five), ("load15", fifteen)] {
        facts.number(name, value, Some(FLEETING_MS));
    }
    let percent = f64::midpoint(five, fifteen) * 100.0 / f64::from(u32::try_from(cpus).unwrap_or(1));
    facts.number("system_overload_10min", format!("{percent:.0}"), Some(FLEETING_MS));
}

/// Says how the machine is powered (sysfs-class-power): a desktop has no battery.
fn power(facts: &mut Facts) {
    for battery in batteries() {
        facts.number("battery", text(&format!("{battery}/capacity")), Some(SLOW_MS));
    }
    facts.put("on_battery", FactValue::Bool(is_on_battery()), Some(FLEETING_MS));
}

/// Lists the names in a directory; none where it cannot be read.
fn names(directory: &str) -> impl Iterator<Item = String> {
    let entries = fs_err::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

fn batteries() -> impl Iterator<Item = String> {
    let supplies = names("/sys/class/power_supply").map(|name| format!("/sys/class/power_supply/{name}"));
    supplies.filter(|supply| text(&format!("{supply}/type")) == "Battery")
}

/// Tells whether a battery is being drained.
pub fn is_on_battery() -> bool {
    batteries().any(|battery| text(&format!("{battery}/status")) == "Discharging")
}

/// Gives the seconds since somebody last typed at a terminal: reading from one touches it (tty(4)). A desktop session
/// shows here only where its display server reads a virtual terminal. None where there is no terminal.
pub fn idle_s() -> Option<u64> {
    let consoles = names("/dev").filter(|name| name.strip_prefix("tty").is_some_and(|rest| rest.parse::<u8>().is_ok()));
    let consoles = consoles.map(|name| format!("/dev/{name}"));
    let windows = names("/dev/pts").filter(|name| name.parse::<u32>().is_ok()).map(|name| format!("/dev/pts/{name}"));
    let ages = consoles.chain(windows).filter_map(|path| {
        let read = fs_err::metadata(path).ok()?.accessed().ok()?;
        Some(read.elapsed().unwrap_or_default().as_secs())
    });
    ages.min()
}

/// Names the limits beside the cgroup's that nothing here can enforce.
pub fn missing_limits(root: &Path, shares: &Shares) -> Vec<&'static str> {
    let mut missing = Vec::new();
    if !quota::is_likely(root) {
        missing.push("disk");
    }
    // A rate needs a network of the container's own, which pasta leads out of.
    let network = shares.network.as_deref().unwrap_or("pasta");
    let shared = network == "host" || network.starts_with("container:");
    // Where there is no network, nothing flows.
    if shared || (network != "none" && programs::find("pasta").is_none()) {
        missing.push("bandwidth");
    }
    missing
}

/// Says which limits hold here.
fn limits(facts: &mut Facts, outlook: &Outlook, missing: &[&str]) {
    let there = match outlook {
        Outlook::Place { controllers, .. } => controllers.as_slice(),
        Outlook::NoHierarchy { .. } | Outlook::NoPlace { .. } => &[],
    };
    for controller in [Controller::Cpu, Controller::Cpuset, Controller::Io, Controller::Memory, Controller::Pids] {
        let word = if there.contains(&controller) { "hard" } else { "none" };
        facts.put(&format!("limit_{}", controller.name()), FactValue::Text(word.to_owned()), None);
    }
    for name in ["disk", "bandwidth"] {
        let word = if missing.contains(&name) { "none" } else { "hard" };
        facts.put(&format!("limit_{name}"), FactValue::Text(word.to_owned()), None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_and_limits_by_their_names() {
        let mut facts = Facts(BTreeMap::new());
        load(&mut facts, "0.50 1.00 3.00 1/200 77\n", 4);
        assert_eq!(facts.0["load15"].value, FactValue::Number(3.0));
        assert_eq!(facts.0["system_overload_10min"].value, FactValue::Number(50.0));
        load(&mut facts, "broken", 4);
        limits(&mut facts, &Outlook::NoHierarchy { hybrid: true }, &["disk"]);
        assert_eq!(facts.0["limit_disk"].value, FactValue::Text("none".into()));
        assert_eq!(facts.0["limit_bandwidth"].value, FactValue::Text("hard".into()));
        assert_eq!(facts.0["limit_memory"].value, FactValue::Text("none".into()));
        let some = Outlook::Place { cgroup: "/x".into(), scope: true, controllers: vec![Controller::Memory] };
        limits(&mut facts, &some, &[]);
        assert_eq!(facts.0["limit_memory"].value, FactValue::Text("hard".into()));
        assert_eq!(facts.0["limit_cpu"].value, FactValue::Text("none".into()));
    }
}
