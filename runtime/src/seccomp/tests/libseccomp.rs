//! The same profile compiled by libseccomp and by us, asked the same 100,000 questions.
//!
//! Known differences, all of them stricter or what programs need: a refusal beside an allowance of the
//! same call (libseccomp drops it); calls that are newer than the profile (ENOSYS here, the
//! default there); x32 (ENOSYS here); 32-bit x86's two old multiplexers, whose parts libseccomp judges;
//! foreign architectures (both kill).

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};

use oci_spec::runtime::LinuxSeccomp;
use seccompiler::sock_filter;

use super::super::compile::{Program, compile};
use super::super::docker::{Conditioned, read_profile};
use super::super::interpreter::{Call, judge, run};
use super::super::names::Architecture;
use super::{ENOSYS, KILL_PROCESS};
use crate::caps::{CapSet, parse};
use crate::defaults;
use crate::seccomp::default_profile;

const QUESTIONS: usize = 100_000;
/// Where Debian's package golang-github-containers-common puts the profile in Docker's form.
const PUBLISHED: &str = "/usr/share/containers/seccomp.json";
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/seccomp/tests/libseccomp.py");
const X32_BIT: u32 = 0x4000_0000;
/// socketcall and ipc of 32-bit x86.
const MULTIPLEXERS: [u32; 2] = [102, 117];

/// What libseccomp made.
struct Theirs {
    program: Program,
    unknown: BTreeSet<String>,
}

#[expect(clippy::disallowed_methods, reason = "tests are told so by the suite")]
fn skip(reason: &str) {
    println!("SKIP c13_agrees_with_libseccomp: {reason}");
    assert_ne!(std::env::var("CORACLE_TEST_REQUIRE").as_deref(), Ok("all"), "nothing may be skipped: {reason}");
}

fn theirs(profile: &LinuxSeccomp) -> Option<Theirs> {
    let mut child = match Command::new("/usr/bin/python3")
        .arg(SCRIPT)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
    {
        Ok(child) => child,
        Err(error) => {
            skip(&format!("python3: {error}"));
            return None;
        }
    };
    let text = serde_json::to_vec(profile).expect("json");
    child.stdin.take().expect("a pipe").write_all(&text).expect("written");
    let output = child.wait_with_output().expect("ended");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if said.contains("libseccomp.so.2") {
        skip("libseccomp is not installed");
        return None;
    }
    assert!(output.status.success(), "{said}");
    let text = String::from_utf8(output.stdout).expect("text");
    let (unknown, hex) = text.trim_end().split_once('\n').expect("two lines");
    let bytes: Vec<u8> =
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect();
    let program = bytes
        .chunks_exact(8)
        .map(|step| sock_filter {
            code: u16::from_le_bytes([step[0], step[1]]),
            jt: step[2],
            jf: step[3],
            k: u32::from_le_bytes([step[4], step[5], step[6], step[7]]),
        })
        .collect();
    Some(Theirs { program, unknown: unknown.split_whitespace().map(str::to_owned).collect() })
}

/// xorshift64*: the same questions in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        let length = list.len() as u64;
        list[usize::try_from(self.roll() % length).expect("small")]
    }
}

/// Calls whose rules say different things: where two hold the strictest counts for us, and for
/// libseccomp the plain or the first one.
fn contradictory(profile: &LinuxSeccomp) -> BTreeSet<String> {
    let mut verdicts = BTreeMap::new();
    let mut found = BTreeSet::new();
    for rule in profile.syscalls().iter().flatten() {
        let verdict = (rule.action(), rule.errno_ret());
        for name in rule.names() {
            if *verdicts.entry(name).or_insert(verdict) != verdict {
                found.insert(name.clone());
            }
        }
    }
    found
}

/// As the kernel ranks them: a smaller number is stricter.
fn rank(word: u32) -> i32 {
    (word & 0xffff_0000).cast_signed()
}

/// Numbers that profiles compare with, their neighbours, and the same with upper halves.
fn interesting(profile: &LinuxSeccomp) -> Vec<u64> {
    let mut values = vec![0, 1, u64::MAX, u64::from(u32::MAX), 1 << 32, 1 << 63];
    for arg in profile.syscalls().iter().flatten().flat_map(|rule| rule.args().iter().flatten()) {
        for value in [arg.value(), arg.value_two().unwrap_or(0)] {
            values.extend([value, value.wrapping_add(1), value.wrapping_sub(1), value | 1 << 32, !value]);
        }
    }
    values
}

fn agree(title: &str, profile: &LinuxSeccomp, expect: &[&str]) {
    let Some(theirs) = theirs(profile) else { return };
    let ours = compile(profile).expect("compiled");
    let contradictory = contradictory(profile);
    let shown: Vec<&str> = contradictory.iter().map(String::as_str).collect();
    assert_eq!(shown, expect, "{title}: reviewed by a person");
    let listed: Vec<Architecture> = profile
        .architectures()
        .iter()
        .flatten()
        .filter_map(|arch| Architecture::from_spec(*arch))
        .filter(|arch| arch.is_possible())
        .collect();
    let tables: Vec<(Architecture, Vec<(&str, u32)>)> =
        listed.iter().map(|arch| (*arch, arch.names().iter().collect())).collect();
    let tables: Vec<_> = tables
        .into_iter()
        .map(|(arch, mut known)| {
            // The same questions in every run.
            known.sort_by_key(|(_, number)| *number);
            (arch, known)
        })
        .collect();
    let places: Vec<usize> = (0..tables.len()).collect();
    let names: BTreeSet<&String> = profile.syscalls().iter().flatten().flat_map(|rule| rule.names()).collect();
    let values = interesting(profile);
    let mut dice = Dice(0x5eed);
    let (mut same, mut newer, mut stricter) = (0, 0, 0);
    for _ in 0..QUESTIONS {
        let (arch, known) = &tables[dice.pick(&places)];
        let arch = *arch;
        let number = match dice.roll() % 8 {
            0 => u32::try_from(dice.roll() % 700).expect("small"),
            1 => u32::try_from(dice.roll() & 0xffff_ffff).expect("small"),
            _ => dice.pick(known).1,
        };
        // The kernel shows a filter no more of a 32-bit program's arguments than there is.
        let width = if matches!(arch, Architecture::X86 | Architecture::Arm) { u64::from(u32::MAX) } else { u64::MAX };
        let args = std::array::from_fn(|_| {
            width & if dice.roll().is_multiple_of(3) { dice.roll() } else { dice.pick(&values) }
        });
        let audit = if dice.roll().is_multiple_of(50) { 0x1234_5678 } else { arch.audit() };
        let call = Call { number, arch: audit, args };
        let (own, their) = (judge(&ours, &call), run(&theirs.program, &call));
        if audit != arch.audit() {
            assert!(
                own == KILL_PROCESS && their & 0x7fff_0000 == 0,
                "{title}: foreign architecture {own:#x} {their:#x}"
            );
            continue;
        }
        let name = known.iter().find(|(_, other)| *other == number).map(|(name, _)| (*name).to_owned());
        let unheard = name.as_ref().is_some_and(|name| theirs.unknown.contains(name));
        if unheard || (arch == Architecture::X86 && MULTIPLEXERS.contains(&number)) {
            continue;
        }
        if arch == Architecture::X86_64 && number & X32_BIT != 0 {
            assert_eq!(own, ENOSYS, "{title}: x32 {number:#x}");
            continue;
        }
        if own != their {
            if name.as_ref().is_some_and(|name| contradictory.contains(name)) && rank(own) < rank(their) {
                stricter += 1;
                continue;
            }
            let unnamed = name.as_ref().is_none_or(|name| !names.contains(name));
            assert!(
                own == ENOSYS && unnamed,
                "{title}: {arch:?} {name:?} {number} {args:x?}: {own:#x}, libseccomp {their:#x}"
            );
            newer += 1;
            continue;
        }
        same += 1;
    }
    println!("{title}: {same} the same, {newer} newer than the profile, {stricter} stricter");
    assert!(same > QUESTIONS / 2, "{title}: only {same} questions compared");
}

#[test]
fn c13_agrees_with_libseccomp_on_the_default_profile() {
    agree("default", &default_profile(defaults::capabilities()), &["ioctl", "socket"]);
}

#[test]
fn c13_agrees_with_libseccomp_on_the_published_profile() {
    let Ok(text) = fs_err::read(PUBLISHED) else {
        return skip("golang-github-containers-common is not installed");
    };
    let admin =
        defaults::capabilities().with(parse("SYS_ADMIN").expect("known")).with(parse("AUDIT_WRITE").expect("known"));
    // The list allows setns, and refuses it to whoever lacks the capability.
    let cases: [(&str, CapSet, &[&str]); 3] = [
        ("default set", defaults::capabilities(), &["setns", "socket"]),
        ("more", admin, &[]),
        ("none", CapSet::EMPTY, &["setns", "socket"]),
    ];
    for (title, capabilities, mixed) in cases {
        let profile = read_profile(&text, Conditioned::here(capabilities)).expect("read");
        agree(title, &profile, mixed);
    }
}
