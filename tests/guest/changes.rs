//! `coracle update` changes each limit of a container that runs: measured by the kernel's counters, and read
//! from inside and outside.

use crate::container::{Container, settles_within, usage};
use crate::host::{CORACLE, Delegated, Guest, User};

const BUSY: &str = "while :; do :; done";

#[test]
fn update_changes_the_share_of_a_processor() {
    let Some(guest) = Guest::find("update_changes_the_share_of_a_processor") else { return };
    let busy = Container::start(&guest, User::Alice, "busy", &["--cpus", "0.2"], BUSY);
    let share = || {
        let (used, clock) = usage(&guest, &[busy.cgroup()]);
        used[0] / clock
    };
    settles_within(0.17, 0.23, "share of a processor", &share);
    busy.update(&["--cpus", "0.5"]);
    settles_within(0.45, 0.55, "share of a processor after the update", &share);
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
    settles_within(wanted * 0.8, wanted * 1.2, "second to first", || {
        let (used, _) = usage(&guest, &[first.cgroup(), second.cgroup()]);
        used[1] / used[0]
    });
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

/// What a device did for a container while a line of shell ran inside: of the kernel's own counter, in a second.
fn per_second(container: &Container<'_>, counter: &str, line: &str) -> f64 {
    let clock = "cut -d' ' -f1 /proc/uptime";
    let count = format!("grep -o '{counter}=[0-9]*' /sys/fs/cgroup/io.stat || echo {counter}=0");
    let output = container.inside(&format!("{clock}; {count}; {line} 2>/dev/null; {clock}; {count}"));
    let prefix = format!("{counter}=");
    let numbers: Vec<f64> =
        output.ok().lines().map(|line| line.trim_start_matches(prefix.as_str()).parse().unwrap()).collect();
    assert_eq!(numbers.len(), 4, "{output:?}");
    (numbers[3] - numbers[1]) / (numbers[2] - numbers[0])
}

const MEBIBYTE: f64 = (1 << 20) as f64;

#[test]
fn update_changes_rates_of_bytes() {
    let Some(guest) = Guest::find("update_changes_rates_of_bytes") else { return };
    guest.delegate(Delegated::All);
    guest.sh(User::Alice, "mkdir -p ~/data").ok();
    let flags =
        ["-v", "/home/alice/data:/data", "--device-write-bps", "/dev/vda:1mb", "--device-read-bps", "/dev/vda:8mb"];
    let busy = Container::start(&guest, User::Alice, "rates", &flags, "sleep 1000");
    let bytes = |counter: &str, line: &str| per_second(&busy, counter, line) / MEBIBYTE;
    let write = |chunks: u32| format!("dd if=/dev/zero of=/data/rate bs=64k count={chunks} oflag=direct");
    let read = |chunks: u32| format!("dd if=/data/rate of=/dev/null bs=64k count={chunks} iflag=direct");
    settles_within(0.85, 1.15, "MiB written in a second", || bytes("wbytes", &write(64)));
    busy.update(&["--device-write-bps", "/dev/vda:2mb", "--device-read-bps", "/dev/vda:1mb"]);
    settles_within(1.7, 2.3, "MiB written in a second after the update", || bytes("wbytes", &write(128)));
    settles_within(0.85, 1.15, "MiB read in a second", || bytes("rbytes", &read(64)));
    busy.update(&["--device-read-bps", "/dev/vda:2mb"]);
    settles_within(1.7, 2.3, "MiB read in a second after the update", || bytes("rbytes", &read(128)));
    let limits = busy.inside("cat /sys/fs/cgroup/io.max");
    assert!(limits.ok().contains("rbps=2097152 wbps=2097152"), "{limits:?}");
}

#[test]
fn update_changes_rates_of_operations() {
    let Some(guest) = Guest::find("update_changes_rates_of_operations") else { return };
    guest.delegate(Delegated::All);
    guest
        .sh(User::Alice, "mkdir -p ~/data && dd if=/dev/zero of=data/operations bs=4k count=400 2>/dev/null; sync")
        .ok();
    let flags = ["-v", "/home/alice/data:/data", "--device-write-iops", "/dev/vda:20"];
    let busy = Container::start(&guest, User::Alice, "operations", &flags, "sleep 1000");
    // Blocks that are there already: no other write comes with them.
    let write =
        |count: u32| format!("dd if=/dev/zero of=/data/operations bs=4k count={count} oflag=direct conv=notrunc");
    let read = |count: u32| format!("dd if=/data/operations of=/dev/null bs=4k count={count} iflag=direct");
    settles_within(17.0, 23.0, "writes in a second", || per_second(&busy, "wios", &write(80)));
    busy.update(&["--device-write-iops", "/dev/vda:40", "--device-read-iops", "/dev/vda:20"]);
    settles_within(34.0, 46.0, "writes in a second after the update", || per_second(&busy, "wios", &write(160)));
    settles_within(17.0, 23.0, "reads in a second", || per_second(&busy, "rios", &read(80)));
    busy.update(&["--device-read-iops", "/dev/vda:40"]);
    settles_within(34.0, 46.0, "reads in a second after the update", || per_second(&busy, "rios", &read(160)));
}

#[test]
fn update_of_what_nobody_can_enforce() {
    let Some(guest) = Guest::find("update_of_what_nobody_can_enforce") else { return };
    guest.delegate(Delegated::Default);
    let wished = Container::start(&guest, User::Alice, "wished", &["--memory", "64m"], "sleep 1000");
    let update = |flags: &[&str]| {
        let argv = [CORACLE, "update"].iter().chain(flags).copied().chain(["wished"]);
        guest.run(User::Alice, &argv.collect::<Vec<_>>())
    };
    let strict = update(&["--cpuset-cpus", "1", "--pids-limit", "33"]);
    assert!(strict.failed().contains("controller cpuset"), "{strict:?}");
    assert_ne!(wished.outside("pids.max"), "33", "what is refused changes nothing");
    let effort = update(&["--cpuset-cpus", "1", "--pids-limit", "33", "--limits=best-effort"]);
    assert_eq!(effort.ok(), "wished");
    assert!(effort.stderr.contains("note: cpu.cpus is not enforced: the controller cpuset"), "{effort:?}");
    assert_eq!(wished.outside("pids.max"), "33");
    assert_eq!(wished.outside("memory.max"), "67108864");
}
