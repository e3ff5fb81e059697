//! What `coracle/hello` prints: the container as it looks from inside.
//!
//! Runs as the first process of a container whose root filesystem holds nothing but this binary, so
//! it reads /proc and nothing else.

use std::fmt::Write as _;
use std::process::ExitCode;

use coracle_runtime::caps::CapSet;

use crate::cli::error::line;

/// The namespaces of namespaces(7), in the order of that page.
const NAMESPACES: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];

/// Prints the report.
pub fn main() -> ExitCode {
    let status = read("/proc/self/status");
    line("Hello from coracle. This is a container, seen from inside.\n");
    show("user", &ids(&status, "Uid", "/proc/self/uid_map"));
    show("group", &ids(&status, "Gid", "/proc/self/gid_map"));
    show("process id", &std::process::id().to_string());
    show("host name", read("/proc/sys/kernel/hostname").trim());
    show("namespaces", &namespaces());
    show("capabilities", &capabilities(&status, "CapEff"));
    show("  at most", &capabilities(&status, "CapBnd"));
    show("seccomp", seccomp(field(&status, "Seccomp"), field(&status, "Seccomp_filters")).as_str());
    show(
        "privileges",
        match field(&status, "NoNewPrivs") {
            "1" => "no process can gain any (no_new_privs)",
            _ => "setuid files can grant some (no_new_privs is off)",
        },
    );
    show("open files", &limit("Max open files"));
    show("processes", &limit("Max processes"));
    show("memory", &cgroup_limit("memory.max"));
    show("cpu", &cgroup_limit("cpu.max"));
    line("\nmounts:");
    for mount in mounts(&read("/proc/self/mountinfo")) {
        line(&format!("  {mount}"));
    }
    ExitCode::SUCCESS
}

fn show(label: &str, value: &str) {
    line(&format!("{label:<13} {value}"));
}

fn read(path: &str) -> String {
    fs_err::read_to_string(path).unwrap_or_default()
}

/// Gives the value of one line of proc_pid_status(5).
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let found = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    found.map_or("", str::trim)
}

/// Gives an id inside and the host's id behind it.
fn ids(status: &str, name: &str, map: &str) -> String {
    let inside = field(status, name).split_whitespace().next().and_then(|text| text.parse::<u32>().ok());
    let Some(inside) = inside else {
        return "unknown".into();
    };
    let mut text = inside.to_string();
    let (map, mut total) = (read(map), 0u64);
    for range in map.lines() {
        let numbers: Vec<u32> = range.split_whitespace().filter_map(|text| text.parse().ok()).collect();
        let [first, host, size] = numbers[..] else {
            continue;
        };
        total += u64::from(size);
        if inside >= first && inside - first < size {
            let _ = write!(text, ", on the host {}", host + (inside - first));
        }
    }
    let _ = write!(text, " ({total} mapped)");
    text
}

fn namespaces() -> String {
    let identity = |name: &str| {
        let link = fs_err::read_link(format!("/proc/self/ns/{name}")).ok()?;
        let text = link.to_string_lossy().into_owned();
        Some(format!("{name} {}", text.split(['[', ']']).nth(1)?))
    };
    NAMESPACES.iter().filter_map(|name| identity(name)).collect::<Vec<_>>().join(", ")
}

fn capabilities(status: &str, name: &str) -> String {
    let bits = u64::from_str_radix(field(status, name), 16).unwrap_or(0);
    let held: CapSet = CapSet::known().iter().filter(|capability| bits & capability.bitmask() != 0).collect();
    if held.is_empty() { "none".into() } else { held.to_string() }
}

fn seccomp(mode: &str, filters: &str) -> String {
    match mode {
        "2" => format!("{filters} filters on system calls"),
        "0" => "off".into(),
        other => format!("mode {other}"),
    }
}

/// Gives soft and hard value of one line of proc_pid_limits(5).
fn limit(name: &str) -> String {
    let limits = read("/proc/self/limits");
    let values = limits.lines().find_map(|line| line.strip_prefix(name));
    let mut values = values.unwrap_or_default().split_whitespace();
    match (values.next(), values.next()) {
        (Some(soft), Some(hard)) => format!("{soft}, at most {hard}"),
        _ => "unknown".into(),
    }
}

fn cgroup_limit(name: &str) -> String {
    match read(&format!("/sys/fs/cgroup/{name}")).trim() {
        "" => "no cgroup limit".into(),
        value => format!("{name} {value}"),
    }
}

/// Gives destination, filesystem type and flags of each mount (proc_pid_mountinfo(5)).
fn mounts(mountinfo: &str) -> Vec<String> {
    let one = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let left: Vec<&str> = left.split(' ').collect();
        Some(format!("{:<24} {:<8} {}", left.get(4)?, right.split(' ').next()?, left.get(5)?))
    };
    mountinfo.lines().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_mounts() {
        let status = "Name:\tx\nUid:\t0\t0\t0\t0\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t2\n";
        assert_eq!(field(status, "NoNewPrivs"), "1");
        assert_eq!(field(status, "Seccomp"), "2");
        assert_eq!(field(status, "Nope"), "");
        let line = "30 1 0:26 / /proc rw,nosuid shared:1 - proc proc rw";
        assert_eq!(mounts(line), [format!("{:<24} {:<8} rw,nosuid", "/proc", "proc")]);
    }
}
