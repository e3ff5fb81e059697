//! `linux.resources.devices` as a program of the kernel (BPF_PROG_TYPE_CGROUP_DEVICE).
//!
//! Only root of the host needs it, and only root may: in a user namespace no device node can be made,
//! and the nodes that are there are bound one by one. The list is an allow list (GHSA-g54h-m393-cpwq):
//! what no rule allows is denied, whatever the first rule says.

use std::os::fd::AsFd;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use super::directory::Directory;
use super::error::CgroupError;
use crate::sys::{Instruction, attach_device_program, load_device_program};

/// linux/bpf.h, BPF_DEVCG_ACC_*.
const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
/// linux/bpf.h, BPF_DEVCG_DEV_*.
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;
const ALL: i32 = MKNOD | READ | WRITE;

/// A rule in numbers; `None` is any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<i32>,
    major: Option<i32>,
    minor: Option<i32>,
    access: i32,
}

/// What every container may use, whatever its rules (runtime specification, default devices): nodes may
/// be made, /dev/null and its like, terminals and their multiplexer may be used.
const ALWAYS: [(Option<i32>, Option<i32>, i32); 9] = [
    (None, None, MKNOD),
    (Some(1), Some(3), ALL),
    (Some(1), Some(5), ALL),
    (Some(1), Some(7), ALL),
    (Some(1), Some(8), ALL),
    (Some(1), Some(9), ALL),
    (Some(5), Some(0), ALL),
    (Some(5), Some(2), ALL),
    (Some(136), None, ALL),
];

/// Loads the rules onto a cgroup.
pub(super) fn restrict(directory: &Directory, rules: &[LinuxDeviceCgroup]) -> Result<(), CgroupError> {
    let failed = |op, source| CgroupError::File { op, path: directory.path().to_owned(), source };
    let program = load_device_program(&compile(&all(rules)))
        .map_err(|errno| failed("load linux.resources.devices for", errno.into()))?;
    let cgroup = Directory::checked(directory.path()).map_err(|source| failed("open", source))?;
    attach_device_program(cgroup.as_fd(), program.as_fd())
        .map_err(|errno| failed("put linux.resources.devices on", errno.into()))
}

/// The rules in numbers, with those that always hold after them.
fn all(rules: &[LinuxDeviceCgroup]) -> Vec<Rule> {
    let number = |value: Option<i64>| value.filter(|value| *value >= 0).and_then(|value| i32::try_from(value).ok());
    let mut list: Vec<Rule> = Vec::new();
    for rule in rules {
        let kind = match rule.typ() {
            None | Some(LinuxDeviceType::A) => None,
            Some(LinuxDeviceType::B) => Some(BLOCK),
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(CHARACTER),
            // A FIFO is no device to the kernel.
            Some(LinuxDeviceType::P) => continue,
        };
        let access = rule.access().as_deref().map_or(ALL, |text| {
            let bits = [('m', MKNOD), ('r', READ), ('w', WRITE)];
            bits.iter().filter(|(letter, _)| text.contains(*letter)).fold(0, |sum, (_, bit)| sum | bit)
        });
        let rule = Rule { allow: rule.allow(), kind, major: number(rule.major()), minor: number(rule.minor()), access };
        match list.last_mut() {
            // "r" and "w" for the same device are "rw": one open may want both.
            Some(last) if (Rule { access, ..*last }) == rule => last.access |= access,
            _ => list.push(rule),
        }
    }
    for (major, minor, access) in ALWAYS {
        let kinds: &[i32] = if access == MKNOD { &[BLOCK, CHARACTER] } else { &[CHARACTER] };
        list.extend(kinds.iter().map(|kind| Rule { allow: true, kind: Some(*kind), major, minor, access }));
    }
    list
}

// Opcodes of linux/bpf.h.
const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xbf;
const MOVE_NUMBER: u8 = 0xb7;
const AND_NUMBER: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_EQUAL: u8 = 0x15;
const JUMP_UNEQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;
// Registers: r0 is the answer, r1 the kernel's struct bpf_cgroup_dev_ctx.
const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: to | from << 4, offset, immediate }
}

/// The last rule that speaks of an access decides; what none speaks of is denied.
fn compile(rules: &[Rule]) -> Vec<Instruction> {
    let mut program = vec![
        // access_type: what is done in the upper half, to what in the lower.
        instruction(LOAD_WORD, KIND, CONTEXT, 0, 0),
        instruction(MOVE, ACCESS, KIND, 0, 0),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(AND_NUMBER, KIND, 0, 0, 0xffff),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let mut tests = Vec::new();
        for (register, wanted) in [(KIND, rule.kind), (MAJOR, rule.major), (MINOR, rule.minor)] {
            if let Some(wanted) = wanted {
                tests.push(instruction(JUMP_UNEQUAL, register, 0, 0, wanted));
            }
        }
        tests.push(instruction(MOVE, SCRATCH, ACCESS, 0, 0));
        if rule.allow {
            // It allows an access that wants nothing else.
            tests.push(instruction(AND_NUMBER, SCRATCH, 0, 0, !rule.access));
            tests.push(instruction(JUMP_UNEQUAL, SCRATCH, 0, 0, 0));
        } else {
            // It denies an access that wants any of it.
            tests.push(instruction(AND_NUMBER, SCRATCH, 0, 0, rule.access));
            tests.push(instruction(JUMP_EQUAL, SCRATCH, 0, 0, 0));
        }
        /// The answer and the exit after the tests.
        const REST: usize = 2;
        let length = tests.len() + REST;
        for (at, test) in tests.iter_mut().enumerate() {
            if matches!(test.code, JUMP_EQUAL | JUMP_UNEQUAL) {
                test.offset = i16::try_from(length - at - 1).unwrap_or(i16::MAX);
            }
        }
        program.extend(tests);
        program.push(instruction(MOVE_NUMBER, ANSWER, 0, 0, rule.allow.into()));
        program.push(instruction(EXIT, 0, 0, 0, 0));
    }
    program.push(instruction(MOVE_NUMBER, ANSWER, 0, 0, 0));
    program.push(instruction(EXIT, 0, 0, 0, 0));
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Executes a program as the kernel would.
    fn allows(program: &[Instruction], kind: i32, major: i32, minor: i32, access: i32) -> bool {
        let context = [(access << 16) | kind, major, minor];
        let mut registers = [0_i64; 11];
        let mut at = 0_usize;
        loop {
            let Instruction { code, registers: pair, offset, immediate } = program[at];
            let (to, from) = (usize::from(pair & 15), usize::from(pair >> 4));
            at += 1;
            match code {
                LOAD_WORD => registers[to] = i64::from(context[usize::try_from(offset / 4).unwrap()]),
                MOVE => registers[to] = registers[from],
                MOVE_NUMBER => registers[to] = immediate.into(),
                AND_NUMBER => registers[to] &= i64::from(immediate),
                SHIFT_RIGHT => registers[to] >>= immediate,
                JUMP_EQUAL if registers[to] == i64::from(immediate) => at += usize::try_from(offset).unwrap(),
                JUMP_UNEQUAL if registers[to] != i64::from(immediate) => at += usize::try_from(offset).unwrap(),
                JUMP_EQUAL | JUMP_UNEQUAL => {}
                EXIT => return registers[0] == 1,
                other => panic!("no such instruction: {other:#x}"),
            }
        }
    }

    fn program(json: serde_json::Value) -> Vec<Instruction> {
        let rules: Vec<LinuxDeviceCgroup> = serde_json::from_value(json).unwrap();
        compile(&all(&rules))
    }

    #[test]
    fn a14_devices_are_an_allow_list() {
        let denied = serde_json::json!({"allow": false, "access": "rwm"});
        for rules in [
            serde_json::json!([denied]),
            serde_json::json!([{"allow": true, "type": "c", "major": 10, "minor": 200, "access": "rw"}]),
        ] {
            let program = program(rules);
            for minor in [3, 5, 7, 8, 9] {
                assert!(allows(&program, CHARACTER, 1, minor, READ | WRITE), "1:{minor}");
            }
            assert!(allows(&program, CHARACTER, 136, 42, READ | WRITE));
            assert!(allows(&program, BLOCK, 8, 0, MKNOD), "a node alone opens nothing");
            // Disks, /dev/mem, /dev/kmsg, /dev/kvm.
            for (kind, major, minor) in [(BLOCK, 8, 0), (CHARACTER, 1, 1), (CHARACTER, 1, 11), (CHARACTER, 10, 232)] {
                assert!(!allows(&program, kind, major, minor, READ), "{major}:{minor}");
                assert!(!allows(&program, kind, major, minor, READ | WRITE), "{major}:{minor}");
            }
        }
    }

    #[test]
    fn the_last_rule_that_speaks_decides() {
        let program = program(serde_json::json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "b", "major": 8, "access": "r"},
            {"allow": true, "type": "b", "major": 8, "access": "w"},
            {"allow": false, "type": "b", "major": 8, "minor": 1, "access": "w"},
        ]));
        assert!(allows(&program, BLOCK, 8, 0, READ | WRITE));
        assert!(allows(&program, BLOCK, 8, 1, READ));
        assert!(!allows(&program, BLOCK, 8, 1, READ | WRITE));
        assert!(!allows(&program, CHARACTER, 8, 0, READ));
    }

    #[test]
    fn everything_can_be_allowed() {
        let program = program(serde_json::json!([{"allow": true, "type": "a", "access": "rwm"}]));
        assert!(allows(&program, BLOCK, 8, 0, READ | WRITE | MKNOD));
    }

    #[test]
    fn a14_the_kernel_takes_the_program() {
        let program =
            program(serde_json::json!([{"allow": false}, {"allow": true, "type": "b", "major": 8, "minor": 1}]));
        match load_device_program(&program) {
            Ok(_) => {}
            // Only root may load any; the verifier answers otherwise.
            Err(errno) => assert_eq!(errno, rustix::io::Errno::PERM),
        }
    }
}
