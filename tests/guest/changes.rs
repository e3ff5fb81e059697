//! `coracle update` changes each limit of a container that runs: measured by the kernel's counters, and read
//! from inside and outside.

use crate::container::{Container, usage, within};
use crate::host::{Delegated, Guest, User};

const BUSY: &str = "while :; do :; done";

#[test]
fn update_changes_the_share_of_a_processor() {
    let Some(guest) = Guest::find("update_changes_the_share_of_a_processor") else { return };
    let busy = Container::start(&guest, User::Alice, "busy", &["--cpus", "0.2"], BUSY);
    let share = || {
        let (used, clock) = usage(&guest, &[busy.cgroup()]);
        used[0] / clock
    };
    within(share(), 0.17, 0.23, "share of a processor");
    busy.update(&["--cpus", "0.5"]);
    within(share(), 0.45, 0.55, "share of a processor after the update");
    assert_eq!(busy.inside("cat /sys/fs/cgroup/cpu.max").ok(), "50000 100000");
}

#[test]
fn update_turns_weights_round_and_pins() {
    let Some(guest) = Guest::find("update_turns_weights_round_and_pins") else { return };
    guest.delegate(Delegated::All);
    let start = |name: &'static str, shares: &str| {
        let flags = ["--cpuset-cpus", "1", "--cpu-shares", shares];
        Container::start(&guest, User::Alice, name, &flags, BUSY)
    };
    let (first, second) = (start("first", "4096"), start("second", "1024"));
    first.update(&["--cpu-shares", "1024"]);
    second.update(&["--cpu-shares", "4096"]);
    let weight = |container: &Container<'_>| container.outside("cpu.weight").parse::<f64>().unwrap();
    let wanted = weight(&second) / weight(&first);
    assert!((3.0..5.0).contains(&wanted), "{wanted}");
    let (used, _) = usage(&guest, &[first.cgroup(), second.cgroup()]);
    within(used[1] / used[0], wanted * 0.8, wanted * 1.2, "second to first");
    first.update(&["--cpuset-cpus", "0"]);
    let status = format!("/proc/{}/status", first.inspect("State.Pid"));
    assert_eq!(guest.run(User::Root, &["grep", "Cpus_allowed_list", &status]).ok(), "Cpus_allowed_list:\t0");
    assert_eq!(first.inside("cat /sys/fs/cgroup/cpuset.cpus.effective").ok(), "0");
}

#[test]
fn update_of_memory_and_processes_bites() {
    let Some(guest) = Guest::find("update_of_memory_and_processes_bites") else { return };
    let flags = ["--memory", "300m", "--pids-limit", "40"];
    let room = Container::start(&guest, User::Alice, "room", &flags, "sleep 1000");
    let allocate = "dd if=/dev/zero of=/dev/null bs=100M count=1 2>/dev/null";
    // As much swap as memory, unless something else is asked for.
    assert_eq!(room.outside("memory.swap.max"), (300 << 20).to_string());
    room.inside(allocate).ok();
    let fork = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1 & done; wait";
    room.inside(fork).ok();
    assert!(room.outside("memory.events").contains("oom_kill 0"));
    assert_eq!(room.outside("pids.events"), "max 0");

    room.update(&["--pids-limit", "5"]);
    assert_eq!(room.inside("cat /sys/fs/cgroup/pids.max").ok(), "5");
    let refused = room.inside(fork);
    assert!(refused.failed().contains("can't fork"), "{refused:?}");
    assert_ne!(room.outside("pids.events"), "max 0");

    room.update(&["--memory", "64m", "--memory-swap", "64m"]);
    assert_eq!(room.inside("cat /sys/fs/cgroup/memory.max").ok(), "67108864");
    assert_eq!(room.inside(allocate).status, 137);
    assert!(!room.outside("memory.events").contains("oom_kill 0"), "{}", room.outside("memory.events"));
    assert_eq!(room.inspect("State.Running"), "true");
}

#[test]
fn update_changes_the_rate_of_writes() {
    let Some(guest) = Guest::find("update_changes_the_rate_of_writes") else { return };
    guest.delegate(Delegated::All);
    guest.sh(User::Alice, "mkdir -p ~/data").ok();
    let flags = ["-v", "/home/alice/data:/data", "--device-write-bps", "/dev/vda:1mb"];
    let writer = Container::start(&guest, User::Alice, "writer", &flags, "sleep 1000");
    // MiB in a second of a direct write, by the kernel's own counter of what reached the device.
    let rate = |chunks: u32| {
        let line = "cut -d' ' -f1 /proc/uptime; grep -o 'wbytes=[0-9]*' /sys/fs/cgroup/io.stat || echo wbytes=0";
        let write = format!("dd if=/dev/zero of=/data/rate bs=64k count={chunks} oflag=direct 2>/dev/null");
        let output = writer.inside(&format!("{line}; {write}; {line}"));
        let numbers: Vec<f64> =
            output.ok().lines().map(|line| line.trim_start_matches("wbytes=").parse().unwrap()).collect();
        assert_eq!(numbers.len(), 4, "{output:?}");
        (numbers[3] - numbers[1]) / (numbers[2] - numbers[0]) / f64::from(1 << 20)
    };
    within(rate(64), 0.85, 1.15, "MiB in a second");
    writer.update(&["--device-write-bps", "/dev/vda:2mb"]);
    within(rate(128), 1.7, 2.3, "MiB in a second after the update");
    assert!(writer.inside("cat /sys/fs/cgroup/io.max").ok().contains("wbps=2097152"));
}
