//! What the compiler makes of other people's profiles (C13).

use super::super::compile::{SeccompError, compile};
use super::super::interpreter::{Call, judge};
use super::{ALLOW, ENOSYS, EPERM, Filter, KILL_PROCESS, KILL_THREAD, parse_profile};
use crate::defaults;

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
    let foreign = |number| judge(&filter.programs, &Call { number, arch: 0x4000_0003, args: [0; 6] });
    assert_eq!((foreign(3), foreign(102), foreign(21)), (ALLOW, ALLOW, ALLOW), "read, socketcall, mount of i386");
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
    let log =
        Filter::json(r#"{"defaultAction":"SCMP_ACT_LOG","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}"#);
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
    let rule = |default: &str, rule: &str| format!(r#"{{"defaultAction":"SCMP_ACT_{default}","syscalls":[{rule}]}}"#);
    assert!(matches!(
        refused(&rule("ALLOW", r#"{"names":["no_such"],"action":"SCMP_ACT_ERRNO"}"#)),
        SeccompError::UnknownSyscall { name } if name == "no_such"
    ));
    assert!(compile(&parse_profile(&rule("ERRNO", r#"{"names":["no_such"],"action":"SCMP_ACT_ALLOW"}"#))).is_ok());
    assert!(compile(&parse_profile(&rule("ALLOW", r#"{"names":["socketcall"],"action":"SCMP_ACT_ERRNO"}"#))).is_ok());
    assert!(matches!(
        refused(&rule("ALLOW", r#"{"names":["read"],"action":"SCMP_ACT_NOTIFY"}"#)),
        SeccompError::NotifyAlone
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
        refused(r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}"#),
        SeccompError::Flag { .. }
    ));
    let args = (0..5000).map(|value| format!(r#"{{"index":0,"value":{value},"op":"SCMP_CMP_EQ"}}"#));
    let text = format!(
        r#"{{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{}]}}"#,
        args.collect::<Vec<String>>().join(",")
    );
    assert!(matches!(refused(&rule("ERRNO", &text)), SeccompError::TooLarge { .. }));
}
