//! The default profile in the form of a `config.json`, made from the rows of `table`.

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompOperator, LinuxSyscall,
};

use super::table::GROUPS;
use crate::caps::{CapSet, Capability};

/// A group of system calls that share a reason.
pub(super) struct Group {
    /// Why they are allowed, or refused in this way.
    #[cfg_attr(not(test), expect(dead_code, reason = "written for people; a test wants it there"))]
    pub reason: &'static str,
    /// Separated by blanks.
    pub names: &'static str,
    pub when: When,
    pub verdict: Verdict,
}

/// The capabilities that switch a group on.
#[derive(Clone, Copy)]
pub(super) enum When {
    Always,
    /// At least one of these is in the bounding set.
    With(&'static [Capability]),
    /// None of these is.
    Without(&'static [Capability]),
}

/// What a group does.
#[derive(Clone, Copy)]
pub(super) enum Verdict {
    Allow,
    /// Allowed where one of these holds. Each is a conjunction.
    AllowIf(&'static [&'static [Test]]),
    /// Refused with this errno.
    Refuse(i32),
    /// Refused with this errno where one of these holds, although another group may allow it.
    RefuseIf(i32, &'static [&'static [Test]]),
}

/// One comparison of an argument.
#[derive(Clone, Copy)]
pub(super) enum Test {
    /// The low 32 bits of argument `.0` are `.1`.
    Is(u8, u32),
    /// The low 32 bits of argument `.0`, masked with `.1`, are `.2`.
    Bits(u8, u32, u32),
    /// Argument `.0`, all 64 bits, is at least `.1`. Only for refusals: it also holds for values
    /// whose upper half is set and whose lower half is small.
    AtLeast(u8, u64),
    /// Argument `.0`, all 64 bits, is not `.1`. Only for refusals, for the same reason.
    Not(u8, u64),
}

use Test::{AtLeast, Bits, Is, Not};
use Verdict::{Allow, AllowIf, Refuse, RefuseIf};
use When::{Always, With, Without};

/// By its own name: not every runtime that may read our `config.json` knows `SCMP_ARCH_NATIVE`.
const NATIVE: Arch = if cfg!(target_arch = "aarch64") { Arch::ScmpArchAarch64 } else { Arch::ScmpArchX86_64 };

/// The profile for a container whose bounding set is `bounding`.
///
/// The capabilities decide because the kernel would let the same calls through for their holder.
pub fn default_profile(bounding: CapSet) -> LinuxSeccomp {
    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(LinuxSeccompAction::ScmpActErrno)
        .set_default_errno_ret(Some(libc::EPERM.unsigned_abs()))
        .set_architectures(Some(vec![NATIVE]))
        .set_syscalls(Some(GROUPS.iter().filter(|group| group.applies(bounding)).flat_map(Group::to_spec).collect()));
    profile
}

/// A profile that allows these calls, separated by blanks, and refuses all others with EPERM.
pub fn allow_only(names: &str) -> LinuxSeccomp {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names.split_whitespace().map(str::to_owned).collect());
    rule.set_action(LinuxSeccompAction::ScmpActAllow);
    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(LinuxSeccompAction::ScmpActErrno)
        .set_default_errno_ret(Some(libc::EPERM.unsigned_abs()))
        .set_architectures(Some(vec![NATIVE]))
        .set_syscalls(Some(vec![rule]));
    profile
}

impl Group {
    /// Says whether the group counts for a container with these capabilities.
    pub(super) fn applies(&self, bounding: CapSet) -> bool {
        match self.when {
            Always => true,
            With(any) => any.iter().any(|capability| bounding.contains(*capability)),
            Without(any) => !any.iter().any(|capability| bounding.contains(*capability)),
        }
    }

    fn to_spec(&self) -> Vec<LinuxSyscall> {
        let unconditional: &[&[Test]] = &[&[]];
        let (errno, cases) = match self.verdict {
            Allow => (None, unconditional),
            AllowIf(cases) => (None, cases),
            Refuse(errno) => (Some(errno), unconditional),
            RefuseIf(errno, cases) => (Some(errno), cases),
        };
        let names: Vec<String> = self.names.split_whitespace().map(str::to_owned).collect();
        cases
            .iter()
            .map(|case| {
                let mut rule = LinuxSyscall::default();
                rule.set_names(names.clone()).set_action(match errno {
                    Some(_) => LinuxSeccompAction::ScmpActErrno,
                    None => LinuxSeccompAction::ScmpActAllow,
                });
                rule.set_errno_ret(errno.map(i32::unsigned_abs));
                if !case.is_empty() {
                    rule.set_args(Some(case.iter().filter_map(|test| test.to_spec()).collect()));
                }
                rule
            })
            .collect()
    }
}

impl Test {
    fn to_spec(self) -> Option<LinuxSeccompArg> {
        use LinuxSeccompOperator::{ScmpCmpGe, ScmpCmpMaskedEq, ScmpCmpNe};
        // In a config.json the mask is `value` and what must remain of the argument is `valueTwo`.
        let (index, op, value, value_two) = match self {
            Is(index, value) => (index, ScmpCmpMaskedEq, u32::MAX.into(), Some(value.into())),
            Bits(index, mask, value) => (index, ScmpCmpMaskedEq, mask.into(), Some(value.into())),
            AtLeast(index, value) => (index, ScmpCmpGe, value, None),
            Not(index, value) => (index, ScmpCmpNe, value, None),
        };
        let mut builder = LinuxSeccompArgBuilder::default().index(index).op(op).value(value);
        if let Some(value_two) = value_two {
            builder = builder.value_two::<u64>(value_two);
        }
        builder.build().ok()
    }
}
