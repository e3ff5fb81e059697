//! Every limit bites, as an ordinary user: measured by the kernel's counters, read from inside and outside.

use crate::container::{Container, settles_within, usage};
use crate::host::{CORACLE, Delegated, Guest, IMAGE, User};

#[test]
fn f10_memory_kills_the_container_and_not_its_neighbour() {
    let Some(guest) = Guest::find("f10_memory_kills_the_container_and_not_its_neighbour") else { return };
    let neighbour = Container::start(&guest, User::Alice, "neighbour", &["--memory", "64m"], "sleep 1000");
    guest.run(User::Alice, &[CORACLE, "rm", "-f", "victim", "roomy"]);
    let allocate = ["dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"];
    let run = |name: &str, memory: &str| {
        let mut argv = vec![CORACLE, "run", "--network", "none", "--name", name, "--memory", memory, IMAGE];
        argv.extend(allocate);
        guest.run(User::Alice, &argv)
    };
    let victim = run("victim", "64m");
    assert_eq!(victim.status, 137, "{victim:?}");
    assert!(victim.stderr.contains("out of memory"), "{victim:?}");
    let state = |name: &str| {
        let format = "{{.State.OOMKilled}} {{.State.ExitCode}}";
        guest.run(User::Alice, &[CORACLE, "inspect", "-f", format, name]).ok().to_owned()
    };
    assert_eq!(state("victim"), "true 137");
    run("roomy", "300m").ok();
    assert_eq!(state("roomy"), "false 0");
    assert_eq!(neighbour.inspect("State.Running"), "true");
    assert!(neighbour.outside("memory.events").contains("oom_kill 0"), "{}", neighbour.outside("memory.events"));
    guest.run(User::Alice, &[CORACLE, "rm", "victim", "roomy"]).ok();
}

#[test]
fn cpus_hold_a_busy_loop() {
    let Some(guest) = Guest::find("cpus_hold_a_busy_loop") else { return };
    let busy = Container::start(&guest, User::Alice, "busy", &["--cpus", "0.2"], "while :; do :; done");
    settles_within(0.17, 0.23, "share of a processor", || {
        let (used, clock) = usage(&guest, &[busy.cgroup()]);
        used[0] / clock
    });
    let throttled = busy.outside("cpu.stat");
    assert!(!throttled.contains("nr_throttled 0\n"), "{throttled}");
}

#[test]
fn f11_pids_stop_a_fork_bomb() {
    let Some(guest) = Guest::find("f11_pids_stop_a_fork_bomb") else { return };
    // Its first process must not need to fork, or the bomb would end itself.
    let bomb = "bomb() { bomb | bomb & }; bomb 2>/dev/null & exec sleep 1000";
    let bomb = Container::start(&guest, User::Alice, "bomb", &["--pids-limit", "32"], bomb);
    let cgroup = bomb.cgroup();
    guest.wait_for(User::Root, &format!("! grep -qx 'max 0' {cgroup}/pids.events"), "the limit was met");
    // The host stays responsive: another container starts and ends.
    let argv = [CORACLE, "run", "--rm", "--network", "none", "--pids-limit", "32", IMAGE, "echo", "alive"];
    assert_eq!(guest.run(User::Alice, &argv).ok(), "alive");
    let current: u32 = bomb.outside("pids.current").parse().unwrap();
    assert!((1..=32).contains(&current), "{current}");
    bomb.end();
    guest.wait_for(User::Root, &format!("! grep -q . {cgroup}/cgroup.procs"), "every process of the bomb is gone");
}

#[test]
fn write_rate_holds_direct_writes() {
    let Some(guest) = Guest::find("write_rate_holds_direct_writes") else { return };
    guest.delegate(Delegated::All);
    guest.prepare(User::Alice);
    guest.sh(User::Alice, "mkdir -p ~/data").ok();
    let script = "cut -d' ' -f1 /proc/uptime; dd if=/dev/zero of=/data/file bs=64k count=96 oflag=direct 2>/dev/null; \
                  cut -d' ' -f1 /proc/uptime; cat /sys/fs/cgroup/io.stat";
    let argv = [
        CORACLE,
        "run",
        "--rm",
        "--network",
        "none",
        "-v",
        "/home/alice/data:/data",
        "--device-write-bps",
        "/dev/vda:1mb",
        IMAGE,
        "sh",
        "-c",
        script,
    ];
    settles_within(0.85, 1.15, "MiB in a second", || {
        let output = guest.run(User::Alice, &argv);
        let lines: Vec<&str> = output.ok().lines().collect();
        let seconds = lines[1].parse::<f64>().unwrap() - lines[0].parse::<f64>().unwrap();
        let written = lines.iter().find_map(|line| line.split(" wbytes=").nth(1)).unwrap();
        let written: f64 = written.split(' ').next().unwrap().parse().unwrap();
        assert!(written >= f64::from(96 * (64 << 10)), "{output:?}");
        written / seconds / f64::from(1 << 20)
    });
}

#[test]
fn cpuset_pins() {
    let Some(guest) = Guest::find("cpuset_pins") else { return };
    guest.delegate(Delegated::All);
    let script = "grep Cpus_allowed_list /proc/self/status; cat /sys/fs/cgroup/cpuset.cpus.effective; sleep 1000";
    let pinned = Container::start(&guest, User::Alice, "pinned", &["--cpuset-cpus", "1"], script);
    let status = format!("/proc/{}/status", pinned.inspect("State.Pid"));
    assert_eq!(guest.run(User::Root, &["grep", "Cpus_allowed_list", &status]).ok(), "Cpus_allowed_list:\t1");
    assert_eq!(pinned.outside("cpuset.cpus.effective"), "1");
    let argv = [CORACLE, "run", "--rm", "--network", "none", "--cpuset-cpus", "7", IMAGE, "true"];
    let refused = guest.run(User::Alice, &argv);
    assert!(refused.failed().contains("cpus"), "{refused:?}");
}

#[test]
fn weights_share_in_proportion() {
    let Some(guest) = Guest::find("weights_share_in_proportion") else { return };
    guest.delegate(Delegated::All);
    let busy = "while :; do :; done";
    let start = |name: &'static str, shares: &str| {
        let flags = ["--cpuset-cpus", "1", "--cpu-shares", shares];
        Container::start(&guest, User::Alice, name, &flags, busy)
    };
    let (heavy, light) = (start("heavy", "4096"), start("light", "1024"));
    let weight = |container: &Container<'_>| container.outside("cpu.weight").parse::<f64>().unwrap();
    let wanted = weight(&heavy) / weight(&light);
    assert!((3.0..5.0).contains(&wanted), "{wanted}");
    settles_within(wanted * 0.8, wanted * 1.2, "heavy to light", || {
        let (used, _) = usage(&guest, &[heavy.cgroup(), light.cgroup()]);
        used[0] / used[1]
    });
}

/// Flag, value, file of the cgroup, and what is in it.
const SETTINGS: [(&str, &str, &str, &str); 14] = [
    ("--cpus", "0.5", "cpu.max", "50000 100000"),
    ("--cpu-shares", "2048", "cpu.weight", "79"),
    ("--cpuset-cpus", "0-1", "cpuset.cpus", "0-1"),
    ("--cpuset-mems", "0", "cpuset.mems", "0"),
    ("--memory", "64m", "memory.max", "67108864"),
    ("--memory-swap", "192m", "memory.swap.max", "134217728"),
    ("--memory-reservation", "32m", "memory.low", "33554432"),
    ("--pids-limit", "77", "pids.max", "77"),
    ("--device-read-bps", "/dev/vda:2mb", "io.max", "rbps=2097152"),
    ("--device-write-bps", "/dev/vda:1mb", "io.max", "wbps=1048576"),
    ("--device-read-iops", "/dev/vda:200", "io.max", "riops=200"),
    ("--device-write-iops", "/dev/vda:100", "io.max", "wiops=100"),
    ("--blkio-weight", "500", "io.weight", "default 4950"),
    ("--cgroup-conf", "memory.high=60000000", "memory.high", "59998208"),
];

#[test]
fn every_limit_is_read_back_inside_and_outside() {
    let Some(guest) = Guest::find("every_limit_is_read_back_inside_and_outside") else { return };
    guest.delegate(Delegated::All);
    let flags: Vec<&str> = SETTINGS.iter().flat_map(|(flag, value, ..)| [*flag, *value]).collect();
    let files = SETTINGS.map(|(_, _, file, _)| format!("/sys/fs/cgroup/{file}")).join(" ");
    let script = format!("grep . {files}; while :; do sleep 1; done");
    let container = Container::start(&guest, User::Alice, "all", &flags, &script);
    for (flag, value, file, content) in SETTINGS {
        let outside = container.outside(file);
        assert!(outside.contains(content), "{flag} {value}: {file} is {outside}");
    }
    let argv = [CORACLE, "run", "--rm", "--network", "none"];
    let all: Vec<&str> = argv.iter().chain(&flags).copied().chain([IMAGE, "sh", "-c"]).collect();
    let script = format!("grep . {files}");
    let inside = guest.run(User::Alice, &[all.as_slice(), &[&script]].concat());
    for (flag, value, file, content) in SETTINGS {
        let found = inside
            .ok()
            .lines()
            .any(|line| line.starts_with(&format!("/sys/fs/cgroup/{file}:")) && line.contains(content));
        assert!(found, "{flag} {value}: {inside:?}");
    }
}

/// A container is where its limits are, and cannot change them, its kind, or its place (CVE-2025-47291).
#[test]
fn a21_a_container_is_in_its_own_leaf_and_stays_there() {
    let Some(guest) = Guest::find("a21_a_container_is_in_its_own_leaf_and_stays_there") else { return };
    for more in [&["--label", "cgroup=/"][..], &["--cap-add", "ALL"]] {
        let flags = [&["--memory", "64m", "--pids-limit", "50"], more].concat();
        let held = Container::start(&guest, User::Alice, "held", &flags, "sleep 1000");
        let (id, cgroup) = (held.inspect("Id"), held.cgroup());
        let base = "/sys/fs/cgroup/user.slice/user-1001.slice/user@1001.service/app.slice/coracle.scope";
        assert_eq!(cgroup, format!("{base}/coracle-{id}"), "exactly the leaf");
        let limits = || (held.outside("memory.max"), held.outside("pids.max"));
        assert_eq!(limits(), ("67108864".to_owned(), "50".to_owned()));
        // With every capability it may mount the hierarchy once more, and writes there in vain as well.
        let hostile = "mount -t cgroup2 none /tmp 2>/dev/null; mount -o remount,rw /sys/fs/cgroup 2>/dev/null
                       for place in /sys/fs/cgroup /tmp; do cd $place || continue
                         [ -e cgroup.procs ] || continue
                         for i in memory.max=max pids.max=max cgroup.type=threaded memory.high=max cgroup.freeze=1 \
                                  cgroup.kill=1 cgroup.max.descendants=9 ../cgroup.procs=1 ../memory.max=max; do
                           [ -e ${i%%=*} ] && echo ${i#*=} 2>/dev/null >${i%%=*} && echo written $place $i
                         done
                       done; cat /proc/1/cgroup /proc/self/cgroup; true";
        assert_eq!(held.inside(hostile).ok(), "0::/\n0::/", "{more:?}");
        assert_eq!(held.cgroup(), cgroup);
        assert_eq!(limits(), ("67108864".to_owned(), "50".to_owned()));
        assert_eq!(held.outside("cgroup.type"), "domain");
        assert_eq!(held.inspect("State.Running"), "true");
    }
}

#[test]
fn f20_an_undelegated_controller_is_an_error_and_the_printed_fix_works() {
    let Some(guest) = Guest::find("f20_an_undelegated_controller_is_an_error_and_the_printed_fix_works") else {
        return;
    };
    guest.delegate(Delegated::Default);
    guest.prepare(User::Alice);
    let run = |flag: &str, value: &str| {
        let argv = [CORACLE, "run", "--rm", "--network", "none", flag, value, IMAGE, "echo", "ran"];
        guest.run(User::Alice, &argv)
    };
    let io = run("--device-write-bps", "/dev/vda:1mb");
    assert!(io.failed().contains("controller io"), "{io:?}");
    let cpuset = run("--cpuset-cpus", "1");
    assert!(cpuset.failed().contains("controller cpuset"), "{cpuset:?}");
    // The hint is a line of shell up to its remark; the guest has no sudo, so root types the rest of it.
    let hint = cpuset.stderr.lines().find_map(|line| line.strip_prefix("hint: ")).unwrap();
    let fix = hint.split(" (this ends").next().unwrap().replace("sudo ", "").replace("$(id -u)", "1001");
    assert!(fix.contains("Delegate="), "{hint}");
    guest.sh(User::Root, &fix).ok();
    guest.wait_for(User::Root, "ss -Hltn sport = :7002 | grep -q .", "alice's agent is back");
    assert_eq!(run("--cpuset-cpus", "1").ok(), "ran");
    assert_eq!(run("--device-write-bps", "/dev/vda:1mb").ok(), "ran");
}

#[test]
fn f20_without_a_user_manager() {
    let Some(guest) = Guest::find("f20_without_a_user_manager") else { return };
    guest.prepare(User::Carol);
    let base = [CORACLE, "run", "--rm", "--network", "none", "--memory", "64m"];
    let script = "cat /sys/fs/cgroup/memory.max 2>&1; true";
    let refused = guest.run(User::Carol, &[base.as_slice(), &[IMAGE, "true"]].concat());
    assert!(refused.failed().contains("memory.limit"), "{refused:?}");
    assert!(refused.failed().contains("hint: "), "{refused:?}");
    let argv = [base.as_slice(), &["--limits=best-effort", IMAGE, "echo", "ran"]].concat();
    let unlimited = guest.run(User::Carol, &argv);
    assert_eq!(unlimited.ok(), "ran");
    assert!(unlimited.stderr.contains("memory.limit is not enforced"), "{unlimited:?}");
    // An administrator gives a cgroup to what carol runs, as Slurm does.
    let delegated =
        "systemd-run -q --wait --pipe --collect -p User=carol -p Delegate=yes -E HOME=/home/carol".split(' ');
    let argv: Vec<&str> = delegated.chain(base).chain([IMAGE, "sh", "-c", script]).collect();
    assert_eq!(guest.run(User::Root, &argv).ok(), "67108864");
}

/// A start where the scope is there already is a directory and no call: it works while nobody can be called.
#[test]
fn a_start_in_a_scope_that_is_there_asks_nobody() {
    let Some(guest) = Guest::find("a_start_in_a_scope_that_is_there_asks_nobody") else { return };
    let first = Container::start(&guest, User::Alice, "first", &["--memory", "64m"], "sleep 1000");
    let scope = "/user@1001.service/app.slice/coracle.scope/coracle-";
    assert!(first.cgroup().contains(scope), "{}", first.cgroup());
    let sockets = "bus systemd/private";
    let hide = format!("cd /run/user/1001 && for i in {sockets}; do mv $i $i.away || exit 1; done");
    guest.sh(User::Alice, &hide).ok();
    let second = Container::start(&guest, User::Alice, "second", &["--memory", "64m"], "sleep 1000");
    let show = format!("cd /run/user/1001 && for i in {sockets}; do mv $i.away $i || exit 1; done");
    guest.sh(User::Alice, &show).ok();
    assert!(second.cgroup().contains(scope), "{}", second.cgroup());
    assert_eq!(second.outside("memory.max"), "67108864");
}
