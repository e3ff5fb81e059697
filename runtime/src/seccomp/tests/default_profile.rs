//! What the default profile allows and refuses, independent of how its table is written.

use std::collections::{BTreeMap, HashSet};

use super::super::compile::compile;
use super::super::names::Architecture;
use super::super::profile::{Verdict, When, default_profile};
use super::super::table::{GROUPS, REFUSED};
use super::{ALLOW, EAFNOSUPPORT, ENOSYS, EPERM, Filter};
use crate::caps::{CapSet, parse};
use crate::defaults;

fn with(names: &[&str]) -> CapSet {
    names.iter().fold(defaults::capabilities(), |set, name| set.with(parse(name).expect("a capability")))
}

#[test]
fn every_call_is_judged_by_a_person() {
    let mut seen: HashSet<&str> = HashSet::new();
    for group in GROUPS {
        assert!(group.reason.len() > 10, "{:?}", group.names);
        seen.extend(group.names.split_whitespace());
    }
    for (_, names) in REFUSED {
        for name in names.split_whitespace() {
            assert!(seen.insert(name), "{name} is refused and in the table");
        }
    }
    let tables = [Architecture::X86_64.names(), Architecture::Aarch64.names()];
    for names in &tables {
        for (name, number) in names.iter() {
            assert!(seen.contains(name), "{name} ({number}) is in no group");
        }
    }
    for name in seen {
        assert!(tables.iter().any(|names| names.number(name).is_some()), "{name} exists nowhere");
    }
}

/// The contract, independent of the table: what each number gets with harmless arguments.
#[test]
fn section7_every_number() {
    let filter = Filter::default_with(defaults::capabilities());
    let names: BTreeMap<u32, &str> = filter.names.iter().map(|(name, number)| (number, name)).collect();
    let last = *names.last_key_value().expect("a table").0;
    let refused = [
        "acct",
        "add_key",
        "bpf",
        "clock_settime",
        "delete_module",
        "fanotify_init",
        "finit_module",
        "fsconfig",
        "fsmount",
        "fsopen",
        "fspick",
        "init_module",
        "io_uring_enter",
        "io_uring_register",
        "io_uring_setup",
        "ioperm",
        "iopl",
        "kcmp",
        "kexec_file_load",
        "kexec_load",
        "keyctl",
        "lookup_dcookie",
        "lsm_get_self_attr",
        "lsm_list_modules",
        "lsm_set_self_attr",
        "migrate_pages",
        "mount",
        "mount_setattr",
        "move_mount",
        "move_pages",
        "open_by_handle_at",
        "open_tree",
        "open_tree_attr",
        "perf_event_open",
        "pidfd_getfd",
        "pivot_root",
        "process_madvise",
        "quotactl",
        "quotactl_fd",
        "reboot",
        "request_key",
        "setdomainname",
        "sethostname",
        "setns",
        "settimeofday",
        "swapoff",
        "swapon",
        "sysfs",
        "syslog",
        "umount2",
        "uselib",
        "userfaultfd",
        "ustat",
        "vhangup",
        "vmsplice",
    ];
    let absent = [
        "_sysctl",
        "afs_syscall",
        "clone3",
        "create_module",
        "epoll_ctl_old",
        "epoll_wait_old",
        "get_kernel_syms",
        "getpmsg",
        "nfsservctl",
        "putpmsg",
        "query_module",
        "security",
        "tuxcall",
        "vserver",
    ];
    // AF_UNSPEC is not a family anybody can open.
    let unspecified = ["socket"];
    for number in 0..=last + 50 {
        let expect = match names.get(&number) {
            None => ENOSYS,
            Some(name) if absent.contains(name) => ENOSYS,
            Some(name) if refused.contains(name) => EPERM,
            Some(name) if unspecified.contains(name) => EAFNOSUPPORT,
            Some(&"socketpair") => EPERM,
            Some(_) => ALLOW,
        };
        assert_eq!(filter.number(number, &[]), expect, "{number} {:?}", names.get(&number));
    }
}

#[test]
fn section7_namespaces_need_sys_admin() {
    let filter = Filter::default_with(defaults::capabilities());
    let admin = Filter::default_with(with(&["SYS_ADMIN"]));
    for bit in [0x0002_0000_u64, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000] {
        for call in ["clone", "unshare"] {
            assert_eq!(filter.ask(call, &[bit]), EPERM, "{call} {bit:#x}");
            assert_eq!(filter.ask(call, &[bit | 0x11]), EPERM, "{call} {bit:#x} and others");
            assert_eq!(filter.ask(call, &[bit | 0xdead_0000_0000_0000]), EPERM, "{call} {bit:#x} and upper half");
            assert_eq!(admin.ask(call, &[bit]), ALLOW, "{call} {bit:#x} with SYS_ADMIN");
        }
    }
    assert_eq!(filter.ask("unshare", &[0x80]), EPERM, "time namespace");
    assert_eq!(filter.ask("unshare", &[0x400]), ALLOW, "CLONE_FILES");
    assert_eq!(filter.ask("clone", &[0x003d_0f00]), ALLOW, "flags of pthread_create");
    assert_eq!(filter.ask("clone", &[0x11 | 0x80]), ALLOW, "the signal number of clone");
    for call in ["setns", "mount", "umount2", "pivot_root", "fsopen", "open_tree"] {
        assert_eq!(filter.ask(call, &[]), EPERM, "{call}");
        assert_eq!(admin.ask(call, &[]), ALLOW, "{call} with SYS_ADMIN");
    }
    assert_eq!(admin.ask("clone3", &[]), ALLOW);
}

#[test]
fn section7_socket_families() {
    let filter = Filter::default_with(defaults::capabilities());
    for family in 0..=50_u64 {
        let expect = match family {
            1 | 2 | 10 | 16 => ALLOW,
            17 => EPERM,
            _ => EAFNOSUPPORT,
        };
        assert_eq!(filter.ask("socket", &[family, 1, 0]), expect, "family {family}");
        // The kernel reads an int: the upper half must not change the family into an allowed one.
        let disguised = filter.ask("socket", &[family | 0x1_0000_0000, 1, 0]);
        assert_ne!(disguised, if expect == ALLOW { EPERM } else { ALLOW }, "family {family} disguised");
    }
    for protocol in 1..=25_u64 {
        assert_eq!(filter.ask("socket", &[16, 3, protocol]), EAFNOSUPPORT, "netlink {protocol}");
    }
    assert_eq!(Filter::default_with(with(&["NET_RAW"])).ask("socket", &[17, 3, 0]), ALLOW);
    assert_eq!(Filter::default_with(with(&["NET_RAW"])).ask("socket", &[38, 3, 0]), EAFNOSUPPORT, "AF_ALG");
    assert_eq!(filter.ask("socketpair", &[1, 1, 0]), ALLOW);
    assert_eq!(filter.ask("socketpair", &[30, 1, 0]), EPERM, "TIPC");
}

#[test]
fn a16_terminal_injection_compares_the_low_half() {
    let filter = Filter::default_with(with(&["SYS_ADMIN", "SYS_TTY_CONFIG"]));
    for request in [0x5412_u64, 0x541c] {
        for upper in [0, 1_u64 << 32, 0xffff_ffff_0000_0000, 0x8000_0000_0000_0000] {
            assert_eq!(filter.ask("ioctl", &[0, request | upper]), EPERM, "{request:#x} {upper:#x}");
        }
    }
    for request in [0x5401_u64, 0x5413, 0x5411, 0x541b, 0x541d, 0x0001_5412] {
        assert_eq!(filter.ask("ioctl", &[0, request]), ALLOW, "{request:#x}");
    }
}

#[test]
fn section7_personality() {
    let filter = Filter::default_with(defaults::capabilities());
    for value in [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff_u64, u64::MAX] {
        assert_eq!(filter.ask("personality", &[value]), ALLOW, "{value:#x}");
    }
    for value in [1, 0x40_0000, 0x0040_0000 | 8, 0xffff_fffe] {
        assert_eq!(filter.ask("personality", &[value]), EPERM, "{value:#x}");
    }
}

#[test]
fn capabilities_open_what_the_kernel_would_allow() {
    for group in GROUPS {
        let When::With(any) = group.when else {
            continue;
        };
        for capability in any {
            let filter = Filter::default_with(CapSet::EMPTY.with(*capability));
            let without = Filter::default_with(CapSet::EMPTY);
            for name in group.names.split_whitespace().filter(|name| filter.names.number(name).is_some()) {
                if matches!(group.verdict, Verdict::Allow) {
                    assert_eq!(filter.ask(name, &[u64::MAX]), ALLOW, "{name} with {capability}");
                    assert_ne!(without.ask(name, &[u64::MAX]), ALLOW, "{name} without {capability}");
                }
            }
        }
    }
}

#[test]
fn filters_fit_the_kernel() {
    for capabilities in [CapSet::EMPTY, defaults::capabilities(), CapSet::known()] {
        let programs = compile(&default_profile(capabilities)).expect("the default profile");
        let sizes: Vec<usize> = programs.iter().map(Vec::len).collect();
        assert_eq!(sizes.len(), 1, "{sizes:?}");
        assert!(sizes[0] < 500, "the kernel's work at every start: {sizes:?}");
    }
}
