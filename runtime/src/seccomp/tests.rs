//! The default profile and the compiler, asked call by call through the interpreter.

use std::collections::{BTreeMap, HashSet};

use oci_spec::runtime::LinuxSeccomp;

use super::compile::{Program, SeccompError, compile};
use super::interpreter::{Call, judge};
use super::names::{Architecture, Names};
use super::profile::{Verdict, When, default_profile};
use super::table::{GROUPS, REFUSED};
use crate::caps::{CapSet, parse};
use crate::defaults;

const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0000 + 38;
const EAFNOSUPPORT: u32 = 0x0005_0000 + 97;
const KILL_PROCESS: u32 = 0x8000_0000;
const KILL_THREAD: u32 = 0;

/// A compiled profile that can be asked by name.
struct Filter {
    programs: Vec<Program>,
    names: Names,
    arch: Architecture,
}

impl Filter {
    fn new(profile: &LinuxSeccomp) -> Self {
        let arch = Architecture::native();
        Self { programs: compile(profile).expect("a valid profile"), names: arch.names(), arch }
    }

    fn default_with(capabilities: CapSet) -> Self {
        Self::new(&default_profile(capabilities))
    }

    fn json(text: &str) -> Self {
        Self::new(&parse_profile(text))
    }

    fn number(&self, number: u32, args: &[u64]) -> u32 {
        let mut call = Call { number, arch: self.arch.audit(), args: [0; 6] };
        call.args[..args.len()].copy_from_slice(args);
        judge(&self.programs, &call)
    }

    fn ask(&self, name: &str, args: &[u64]) -> u32 {
        self.number(self.names.number(name).expect(name), args)
    }
}

fn parse_profile(text: &str) -> LinuxSeccomp {
    serde_json::from_str(text).expect("a profile")
}

fn with(names: &[&str]) -> CapSet {
    names
        .iter()
        .fold(defaults::capabilities(), |set, name| set.with(parse(name).expect("a capability")))
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
    let names: BTreeMap<u32, &str> =
        filter.names.iter().map(|(name, number)| (number, name)).collect();
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
    for bit in [
        0x0002_0000_u64,
        0x0200_0000,
        0x0400_0000,
        0x0800_0000,
        0x1000_0000,
        0x2000_0000,
        0x4000_0000,
    ] {
        for call in ["clone", "unshare"] {
            assert_eq!(filter.ask(call, &[bit]), EPERM, "{call} {bit:#x}");
            assert_eq!(filter.ask(call, &[bit | 0x11]), EPERM, "{call} {bit:#x} and others");
            assert_eq!(
                filter.ask(call, &[bit | 0xdead_0000_0000_0000]),
                EPERM,
                "{call} {bit:#x} and upper half"
            );
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
        assert_ne!(
            disguised,
            if expect == ALLOW { EPERM } else { ALLOW },
            "family {family} disguised"
        );
    }
    for protocol in 1..=25_u64 {
        assert_eq!(filter.ask("socket", &[16, 3, protocol]), EAFNOSUPPORT, "netlink {protocol}");
    }
    assert_eq!(Filter::default_with(with(&["NET_RAW"])).ask("socket", &[17, 3, 0]), ALLOW);
    assert_eq!(
        Filter::default_with(with(&["NET_RAW"])).ask("socket", &[38, 3, 0]),
        EAFNOSUPPORT,
        "AF_ALG"
    );
    assert_eq!(filter.ask("socketpair", &[1, 1, 0]), ALLOW);
    assert_eq!(filter.ask("socketpair", &[30, 1, 0]), EPERM, "TIPC");
}

#[test]
fn a16_terminal_injection_compares_the_low_half() {
    let filter = Filter::default_with(with(&["SYS_ADMIN", "SYS_TTY_CONFIG"]));
    for request in [0x5412_u64, 0x541c] {
        for upper in [0, 1_u64 << 32, 0xffff_ffff_0000_0000, 0x8000_0000_0000_0000] {
            assert_eq!(
                filter.ask("ioctl", &[0, request | upper]),
                EPERM,
                "{request:#x} {upper:#x}"
            );
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
        let When::With(any) = group.when else { continue };
        for capability in any {
            let filter = Filter::default_with(CapSet::EMPTY.with(*capability));
            let without = Filter::default_with(CapSet::EMPTY);
            for name in
                group.names.split_whitespace().filter(|name| filter.names.number(name).is_some())
            {
                if matches!(group.verdict, Verdict::Allow) {
                    assert_eq!(filter.ask(name, &[u64::MAX]), ALLOW, "{name} with {capability}");
                    assert_ne!(
                        without.ask(name, &[u64::MAX]),
                        ALLOW,
                        "{name} without {capability}"
                    );
                }
            }
        }
    }
}

#[test]
fn c13_x32_and_foreign_architectures() {
    let permissive = Filter::json(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mount"],"action":"SCMP_ACT_ERRNO"}]}"#,
    );
    let everything = Filter::json(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#);
    let strict = Filter::default_with(defaults::capabilities());
    for filter in [&permissive, &everything, &strict] {
        for arch in [0x4000_0003_u32, 0xc000_00f3, 0, u32::MAX] {
            let call = Call { number: 0, arch, args: [0; 6] };
            assert_eq!(judge(&filter.programs, &call), KILL_PROCESS, "arch {arch:#x}");
        }
        if cfg!(target_arch = "x86_64") {
            for number in [0, 165, 512, 0x3fff_ffff, 0xbfff_ffff] {
                assert_eq!(filter.number(number | 0x4000_0000, &[]), ENOSYS, "x32 {number}");
            }
        }
    }
    assert_eq!(permissive.ask("mount", &[]), EPERM);
    assert_eq!(permissive.ask("read", &[]), ALLOW);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn c13_listed_32_bit_architecture_is_judged_by_its_own_numbers() {
    let filter = Filter::json(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86","SCMP_ARCH_X32"],
            "syscalls":[{"names":["read","socketcall","mount"],"action":"SCMP_ACT_ALLOW"},
                        {"names":["write"],"action":"SCMP_ACT_KILL"}]}"#,
    );
    let foreign =
        |number| judge(&filter.programs, &Call { number, arch: 0x4000_0003, args: [0; 6] });
    assert_eq!(
        (foreign(3), foreign(102), foreign(21)),
        (ALLOW, ALLOW, ALLOW),
        "read, socketcall, mount of i386"
    );
    assert_eq!(foreign(4), KILL_THREAD, "write of i386");
    assert_eq!(foreign(5), EPERM, "open of i386");
    assert_eq!(
        (filter.ask("read", &[]), filter.ask("write", &[]), filter.ask("open", &[])),
        (ALLOW, KILL_THREAD, EPERM)
    );
    let third = Call { number: 0, arch: 0xc000_00b7, args: [0; 6] };
    assert_eq!(judge(&filter.programs, &third), KILL_PROCESS, "aarch64 is not listed");
}

#[test]
fn c13_newer_than_the_profile_is_enosys() {
    let filter = Filter::json(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read","openat2"],"action":"SCMP_ACT_ALLOW"}]}"#,
    );
    assert_eq!(filter.ask("write", &[]), EPERM, "older than the newest that is listed");
    assert_eq!(filter.ask("pidfd_getfd", &[]), ENOSYS, "the one after openat2");
    assert_eq!(filter.number(100_000, &[]), ENOSYS);
    let kill = Filter::json(
        r#"{"defaultAction":"SCMP_ACT_KILL_PROCESS","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}"#,
    );
    assert_eq!(kill.number(100_000, &[]), ENOSYS);
    let log = Filter::json(
        r#"{"defaultAction":"SCMP_ACT_LOG","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}"#,
    );
    assert_eq!(log.number(100_000, &[]), 0x7ffc_0000, "a logging default has nothing to hide");
}

#[test]
fn c13_same_argument_twice_means_or() {
    let filter = Filter::json(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["close"],"action":"SCMP_ACT_ALLOW","args":[
            {"index":0,"value":5,"op":"SCMP_CMP_EQ"},{"index":0,"value":7,"op":"SCMP_CMP_EQ"}]},
            {"names":["dup2"],"action":"SCMP_ACT_ALLOW","args":[
            {"index":0,"value":5,"op":"SCMP_CMP_EQ"},{"index":1,"value":7,"op":"SCMP_CMP_EQ"}]}]}"#,
    );
    assert_eq!([5, 6, 7].map(|fd| filter.ask("close", &[fd])), [ALLOW, EPERM, ALLOW]);
    assert_eq!(filter.ask("dup2", &[5, 7]), ALLOW);
    assert_eq!(filter.ask("dup2", &[5, 8]), EPERM);
    assert_eq!(filter.ask("dup2", &[6, 7]), EPERM);
}

#[test]
fn c13_operators_compare_64_bits() {
    let big = 0x1_0000_0005_u64;
    let check = |op: &str, value: u64, yes: &[u64], no: &[u64]| {
        let filter = Filter::json(&format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{{"names":["close"],"action":"SCMP_ACT_ALLOW",
                "args":[{{"index":3,"value":{value},"valueTwo":5,"op":"SCMP_CMP_{op}"}}]}}]}}"#
        ));
        for arg in yes {
            assert_eq!(filter.ask("close", &[0, 0, 0, *arg]), ALLOW, "{arg:#x} {op} {value:#x}");
        }
        for arg in no {
            assert_eq!(filter.ask("close", &[0, 0, 0, *arg]), EPERM, "{arg:#x} {op} {value:#x}");
        }
    };
    check("EQ", big, &[big], &[5, big + 1, 0x2_0000_0005]);
    check("NE", big, &[5, 0x2_0000_0005], &[big]);
    check("LT", big, &[0, 5, 0xffff_ffff, big - 1], &[big, big + 1, u64::MAX]);
    check("LE", big, &[0, big], &[big + 1, 0x2_0000_0000]);
    check("GE", big, &[big, big + 1, 0x2_0000_0000, u64::MAX], &[0, 0xffff_ffff, big - 1]);
    check("GT", big, &[big + 1, 0x2_0000_0000], &[big, 5, 0xffff_ffff]);
    check("MASKED_EQ", 0xff, &[5, 0x105, big], &[4, 0x15]);
    check("MASKED_EQ", 0xf_0000_00ff, &[5, 0x105], &[big, 4]);
}

#[test]
fn stricter_rule_wins_and_first_errno_wins() {
    let filter = Filter::json(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"syscalls":[
            {"names":["close"],"action":"SCMP_ACT_ALLOW"},
            {"names":["close"],"action":"SCMP_ACT_ERRNO","errnoRet":7,"args":[{"index":0,"value":5,"op":"SCMP_CMP_GE"}]},
            {"names":["close"],"action":"SCMP_ACT_ERRNO","errnoRet":8,"args":[{"index":0,"value":6,"op":"SCMP_CMP_GE"}]},
            {"names":["close"],"action":"SCMP_ACT_KILL_PROCESS","args":[{"index":0,"value":9,"op":"SCMP_CMP_EQ"}]},
            {"names":["close"],"action":"SCMP_ACT_ERRNO","errnoRet":38,"args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"}]}]}"#,
    );
    let results = [0, 1, 5, 6, 9].map(|fd| filter.ask("close", &[fd]));
    assert_eq!(results, [ALLOW, ENOSYS, 0x0005_0007, 0x0005_0007, KILL_PROCESS]);
}

#[test]
fn every_action_reaches_the_kernel() {
    let actions = [
        ("ALLOW", ALLOW),
        ("LOG", 0x7ffc_0000),
        ("TRACE", 0x7ff0_0001),
        ("TRAP", 0x0003_0000),
        ("KILL", KILL_THREAD),
        ("KILL_THREAD", KILL_THREAD),
        ("KILL_PROCESS", KILL_PROCESS),
        ("ERRNO", EPERM),
    ];
    for (default, default_word) in actions {
        for (rule, rule_word) in actions {
            let filter = Filter::json(&format!(
                r#"{{"defaultAction":"SCMP_ACT_{default}","syscalls":[{{"names":["close","file_setattr"],"action":"SCMP_ACT_{rule}"}}]}}"#
            ));
            assert_eq!(filter.ask("close", &[]), rule_word, "{rule} over {default}");
            assert_eq!(filter.ask("read", &[]), default_word, "{default} beside {rule}");
        }
    }
    let zero = Filter::json(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["close"],"action":"SCMP_ACT_ERRNO","errnoRet":0}]}"#,
    );
    assert_eq!(zero.ask("close", &[]), 0x0005_0000, "errno 0 pretends success");
}

#[test]
fn c13_bad_profiles_are_refused() {
    let refused = |text: &str| compile(&parse_profile(text)).expect_err(text);
    let rule = |default: &str, rule: &str| {
        format!(r#"{{"defaultAction":"SCMP_ACT_{default}","syscalls":[{rule}]}}"#)
    };
    assert!(matches!(
        refused(&rule("ALLOW", r#"{"names":["no_such"],"action":"SCMP_ACT_ERRNO"}"#)),
        SeccompError::UnknownSyscall { name } if name == "no_such"
    ));
    assert!(
        compile(&parse_profile(&rule(
            "ERRNO",
            r#"{"names":["no_such"],"action":"SCMP_ACT_ALLOW"}"#
        )))
        .is_ok()
    );
    assert!(
        compile(&parse_profile(&rule(
            "ALLOW",
            r#"{"names":["socketcall"],"action":"SCMP_ACT_ERRNO"}"#
        )))
        .is_ok()
    );
    assert!(matches!(
        refused(&rule("ALLOW", r#"{"names":["read"],"action":"SCMP_ACT_NOTIFY"}"#)),
        SeccompError::Notify
    ));
    assert!(matches!(
        refused(&rule("ALLOW", r#"{"names":["read"],"action":"SCMP_ACT_ERRNO","errnoRet":4096}"#)),
        SeccompError::Errno { errno: 4096, .. }
    ));
    assert!(matches!(
        refused(&rule("ERRNO", r#"{"names":["read"],"action":"SCMP_ACT_ALLOW","errnoRet":1}"#)),
        SeccompError::Errno { errno: 1, .. }
    ));
    assert!(matches!(
        refused(&rule(
            "ERRNO",
            r#"{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}"#
        )),
        SeccompError::ArgumentIndex { index: 6 }
    ));
    assert!(matches!(
        refused(r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_S390X"]}"#),
        SeccompError::ForeignArchitectures
    ));
    assert!(matches!(
        refused(
            r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}"#
        ),
        SeccompError::Flag { .. }
    ));
    let args =
        (0..5000).map(|value| format!(r#"{{"index":0,"value":{value},"op":"SCMP_CMP_EQ"}}"#));
    let text = format!(
        r#"{{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{}]}}"#,
        args.collect::<Vec<String>>().join(",")
    );
    assert!(matches!(refused(&rule("ERRNO", &text)), SeccompError::TooLarge { .. }));
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
