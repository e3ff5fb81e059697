//! What a container sees and may do (O5, security.md section 7), asked from inside.

use crate::env::{TestEnv, Who};
use crate::require;

fn sh(env: &TestEnv, flags: &[&str], script: &str) -> String {
    env.container(flags).args(&[&env.image("busybox"), "sh", "-c", script]).ok()
}

#[test]
fn every_namespace_is_its_own() {
    require!();
    let env = TestEnv::new();
    let names = ["user", "mnt", "pid", "ipc", "uts", "net", "cgroup"];
    let output = sh(&env, &[], &format!("for n in {}; do readlink /proc/self/ns/$n; done", names.join(" ")));
    for (inside, name) in output.lines().zip(names) {
        let outside = fs_err::read_link(format!("/proc/self/ns/{name}")).unwrap().display().to_string();
        // Root has a user namespace of its own only where it asked for a map.
        if name != "user" || env.who() != Who::Root {
            assert_ne!(inside, outside, "{name}");
        }
    }
    assert_eq!(output.lines().count(), names.len());
}

#[test]
fn devices_are_the_harmless_ones() {
    require!();
    let env = TestEnv::new();
    let output = sh(
        &env,
        &[],
        "ls /dev; for d in null zero full random urandom tty; do stat -c '%n %F %t:%T' /dev/$d; done; echo x >/dev/null && head -c 4 /dev/zero | wc -c",
    );
    let listed: Vec<&str> = output.lines().take_while(|line| !line.starts_with('/')).collect();
    let allowed = [
        "console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout",
        "tty", "urandom", "zero",
    ];
    for device in &listed {
        assert!(allowed.contains(device), "/dev/{device} is there");
    }
    for line in [
        "/dev/null character special file 1:3",
        "/dev/zero character special file 1:5",
        "/dev/tty character special file 5:0",
    ] {
        assert!(output.contains(line), "{output}");
    }
    assert!(output.ends_with('4'));
}

#[test]
fn masked_paths_read_empty() {
    require!();
    let env = TestEnv::new();
    let script = r#"
        for p in acpi asound interrupts kcore keys latency_stats sched_debug scsi timer_list timer_stats kmsg kallsyms; do
            p=/proc/$p
            if [ -d $p ]; then [ -z "$(ls -A $p)" ] || echo "$p has entries"
            elif [ -e $p ]; then [ "$(head -c 16 $p 2>/dev/null | wc -c)" = 0 ] || echo "$p has bytes"; fi
        done
        for p in /sys/firmware /sys/devices/virtual/powercap; do
            [ ! -d $p ] || [ -z "$(ls -A $p)" ] || echo "$p has entries"
        done
        umount /proc/kcore 2>/dev/null && echo unmounted
        echo done
    "#;
    assert_eq!(sh(&env, &[], script), "done");
}

#[test]
fn proc_and_sys_are_read_only_where_they_reach_the_kernel() {
    require!();
    let env = TestEnv::new();
    let script = r#"
        for f in /proc/sys/kernel/core_pattern /proc/sys/vm/drop_caches /proc/sysrq-trigger /proc/irq/default_smp_affinity; do
            [ -e $f ] || continue
            (echo x >$f) 2>/dev/null && echo "wrote $f"
        done
        touch /sys/fs/cgroup/x 2>/dev/null && echo "wrote cgroup"
        mkdir /sys/fs/cgroup/x 2>/dev/null && echo "made a cgroup"
        for d in /proc/bus /proc/fs /proc/irq /proc/sys; do
            [ ! -d $d ] || grep -q " $d ro," /proc/self/mountinfo || echo "$d is not read-only"
        done
        grep -q ' /sys ro,' /proc/self/mountinfo || echo "/sys is not read-only"
        mount -o remount,rw /proc/sys 2>/dev/null && echo remounted
        echo done
    "#;
    assert_eq!(sh(&env, &[], script), "done");
}

#[test]
fn nothing_can_be_mounted_or_unshared() {
    require!();
    let env = TestEnv::new();
    let script = r#"
        mount -t tmpfs x /tmp 2>/dev/null && echo mounted
        mount --bind /etc /tmp 2>/dev/null && echo bound
        umount /dev/shm 2>/dev/null && echo unmounted
        unshare -U true 2>/dev/null && echo unshared
        mknod /tmp/sda b 8 0 2>/dev/null && echo "made a block device"
        chroot / true 2>/dev/null && echo chroot
        echo done
    "#;
    assert_eq!(sh(&env, &[], script), "chroot\ndone", "CAP_SYS_CHROOT is in the default set, the others not");
}

#[test]
fn the_host_is_out_of_sight() {
    require!();
    let env = TestEnv::new();
    env.write("home/secret", "of the host");
    let script = format!(
        "ls -A {} 2>/dev/null; ls /proc | grep -c '^[0-9]'; cat /proc/1/cmdline | tr '\\0' ' ' | cut -c1-6; cat /proc/self/mountinfo",
        env.home().display()
    );
    let output = sh(&env, &[], &script);
    let mut lines = output.lines();
    let processes: u32 = lines.next().unwrap().parse().unwrap();
    assert!(processes <= 4, "{output}");
    assert!(lines.next().unwrap().starts_with("sh"), "{output}");
    let mounts: Vec<&str> = lines.collect();
    let root = mounts.iter().find(|line| line.split(' ').nth(4) == Some("/")).unwrap();
    assert!(!mounts.iter().any(|line| line.contains(" shared:")), "propagation reaches the host: {mounts:#?}");
    assert!(root.contains(" - overlay ") || root.contains(" - ext4 ") || root.contains(" - tmpfs "), "{root}");
    for line in &mounts {
        let point = line.split(' ').nth(4).unwrap();
        if ["/proc", "/sys", "/dev", "/dev/shm", "/dev/pts", "/dev/mqueue"].contains(&point) {
            assert!(line.contains("nosuid"), "{line}");
        }
    }
}

#[test]
fn hello_says_what_proc_says() {
    let env = TestEnv::new();
    let text = env.coracle(&["run", "--rm", "--network", "none", "coracle/hello"]).ok();
    let uid = nix::unistd::getuid().as_raw().to_string();
    assert!(text.contains(&uid), "the id on the host, {uid}, is not shown:\n{text}");
}

/// Perl is in every Debian base: it calls system calls by number and prints their errno.
const PROBE: &str = r#"
my @calls = (
    ["keyctl", 250, 0, -3, 0], ["add_key", 248, 0, 0, 0], ["bpf", 321, 0, 0, 0], ["userfaultfd", 323, 0],
    ["perf_event_open", 298, 0, 0, -1, -1, 0], ["io_uring_setup", 425, 1, 0], ["kexec_load", 246, 0, 0, 0, 0],
    ["init_module", 175, 0, 0, 0], ["finit_module", 313, -1, 0, 0], ["mount", 165, 0, 0, 0, 0, 0], ["umount2", 166, 0, 0],
    ["pivot_root", 155, 0, 0], ["unshare_user", 272, 0x10000000], ["unshare_mount", 272, 0x20000], ["setns", 308, 0, 0],
    ["clone_user", 56, 0x10000011, 0, 0, 0, 0], ["clone3", 435, 0, 0], ["open_by_handle_at", 304, -1, 0, 0],
    ["kcmp", 312, 1, 1, 0, 0, 0], ["pidfd_getfd", 438, -1, 0, 0],
    ["process_madvise", 440, -1, 0, 0, 0, 0], ["fsopen", 430, 0, 0], ["open_tree", 428, -100, 0, 0], ["move_mount", 429, -1, 0, -1, 0, 0],
    ["mount_setattr", 442, -1, 0, 0, 0, 0], ["swapon", 167, 0, 0], ["reboot", 169, 0, 0, 0, 0], ["settimeofday", 164, 0, 0],
    ["iopl", 172, 3], ["ioperm", 173, 0, 1, 1], ["acct", 163, 0], ["quotactl", 179, 0, 0, 0, 0], ["syslog", 103, 3, 0, 0],
    ["vhangup", 153], ["nfsservctl", 180, 0, 0, 0], ["personality_bad", 135, 0xdead], ["vmsplice", 278, -1, 0, 0, 0],
    ["lookup_dcookie", 212, 0, 0, 0], ["vsock", 41, 40, 1, 0], ["alg", 41, 38, 5, 0], ["packet", 41, 17, 3, 0],
    ["key", 41, 15, 3, 2], ["tipc", 41, 30, 1, 0], ["can", 41, 29, 3, 1], ["bluetooth", 41, 31, 3, 1], ["xdp", 41, 44, 3, 0],
    ["tiocsti", 16, 0, 0x5412, 0], ["tiocsti_high", 16, 0, 0x7fff00005412, 0], ["tioclinux", 16, 0, 0x541c, 0],
    ["unknown", 999, 0], ["x32_getpid", 0x40000027],
    ["getpid", 39], ["unix", 41, 1, 1, 0], ["inet", 41, 2, 1, 0], ["inet6", 41, 10, 1, 0], ["route", 41, 16, 3, 0],
);
for my $call (@calls) {
    my ($name, @args) = @$call;
    $! = 0;
    my $result = syscall($args[0], @args[1..$#args]);
    exit 0 if $result == 0 && $name eq "clone_user"; # the child that must not exist
    print "$name ", ($result < 0 ? $! + 0 : "ok"), "\n";
}
"#;

#[test]
fn system_calls_that_reach_the_kernel_itself_are_refused() {
    require!();
    let env = TestEnv::new();
    let output = env.container(&[&env.image("debian"), "perl", "-e", PROBE]).ok();
    let result = |name: &str| {
        let line = output.lines().find(|line| line.split(' ').next() == Some(name));
        line.unwrap_or_else(|| panic!("{name} is missing: {output}")).split(' ').nth(1).unwrap().to_owned()
    };
    let (eperm, enosys) = ("1".to_owned(), "38".to_owned());
    for name in ["getpid", "unix", "inet", "inet6", "route"] {
        assert_eq!(result(name), "ok", "{name}");
    }
    // Programs fall back from these when they are told that the kernel lacks them.
    assert_eq!(result("clone3"), enosys);
    assert_eq!(result("unknown"), enosys);
    for line in output.lines() {
        let (name, errno) = line.split_once(' ').unwrap();
        let allowed = ["getpid", "unix", "inet", "inet6", "route"].contains(&name);
        // Address families are refused with EAFNOSUPPORT (97) by some profiles.
        let refused = errno == eperm || errno == enosys || errno == "97";
        assert!(allowed || refused, "{name} got through the filter: {errno}\n{output}");
    }
}
