//! From a seccomp profile in the form of a `config.json` to a filter for seccomp(2).
//!
//! seccompiler compiles the comparisons of arguments. How a call is found by its number is ours
//! (see `dispatch`): seccompiler tries one number after the other and knows one action per filter,
//! so a profile would become a stack of filters of 1,900 instructions, which the kernel takes
//! 0.7 ms to check and translate at every start. Found by halving, with all actions in one filter,
//! it takes 0.05 ms.
//!
//! Where two rules hold for the same call the stricter one wins (seccomp(2): KILL_PROCESS, KILL,
//! TRAP, ERRNO, TRACE, LOG, ALLOW), and among several errnos the one that the profile names first.
//! libseccomp drops a rule with arguments when the same call has one without; a profile that says
//! "allow ioctl, refuse TIOCSTI" means it, so here the refusal holds.
//!
//! Besides the rules a filter answers for other architectures (killed, unless listed), for x32
//! (always ENOSYS: its numbers would slip past any list of refusals), and for calls that are newer
//! than the profile (ENOSYS, so that programs fall back).

use std::collections::BTreeMap;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator, LinuxSyscall,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use super::dispatch::{self, Dispatch};
use super::names::Architecture;

/// One classic BPF program, ready for seccomp(2).
pub type Program = BpfProgram;

/// The kernel's BPF_MAXINSNS.
const MAX_INSTRUCTIONS: usize = 4096;

/// The kernel's MAX_ERRNO; a larger SECCOMP_RET_DATA would be cut to it silently.
const MAX_ERRNO: u32 = 4095;

/// seccompiler's own architecture check (load, compare, kill), which ours replaces.
const FOREIGN_HEAD: usize = 3;

/// x32 numbers carry this bit (asm/unistd.h, __X32_SYSCALL_BIT).
const X32_BIT: u32 = 0x4000_0000;

/// What seccompiler's code returns where no rule holds; [`tests`] replaces it by a jump. No action
/// of the kernel has this number.
const NO_RULE_HOLDS: u32 = 0x7ff0_ffff;

/// What seccompiler's code returns for a call that the listener answers; it has no such action.
const ASK: u32 = 0x7ff0_fffe;

/// Trace with this datum is [`ASK`].
const ASK_DATUM: u32 = 0xfffe;

/// The call by which the listener's descriptor leaves the process under the filter.
const LISTENER_CALL: &str = "sendmsg";

/// Trace with this datum is [`NO_RULE_HOLDS`]; a profile cannot ask for it, see [`MAX_ERRNO`].
const NO_RULE_DATUM: u32 = 0xffff;

/// Why a profile cannot be turned into filters.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// A refusal of a call that no table knows would silently not happen.
    #[error("seccomp rule refuses unknown system call {name:?}")]
    UnknownSyscall {
        /// The name as written.
        name: String,
    },
    /// The profile lists architectures and this machine's is not among them.
    #[error("seccomp profile has no rules for this machine's architecture")]
    ForeignArchitectures,
    /// Nobody would ever hand out the descriptor by which it is answered.
    #[error("seccomp action SCMP_ACT_NOTIFY is not possible as the default")]
    NotifyDefault,
    /// Without a listener the kernel answers ENOSYS.
    #[error("seccomp action SCMP_ACT_NOTIFY needs a listenerPath")]
    NotifyAlone,
    /// The listener's own descriptor is sent by that call.
    #[error("seccomp action SCMP_ACT_NOTIFY is not possible for sendmsg")]
    NotifyItself,
    /// The errno does not fit, or the action has none.
    #[error("seccomp errnoRet {errno} is not possible with {action}")]
    Errno {
        /// The number as written.
        errno: u32,
        /// The action beside it.
        action: LinuxSeccompAction,
    },
    /// A system call has six arguments.
    #[error("seccomp argument index {index} is above 5")]
    ArgumentIndex {
        /// The index as written.
        index: usize,
    },
    /// A flag that this runtime does not pass on.
    #[error("seccomp flag {flag} is not supported")]
    Flag {
        /// The flag as written.
        flag: LinuxSeccompFilterFlag,
    },
    /// The kernel takes 4096 instructions per filter.
    #[error("seccomp profile needs {instructions} instructions, the kernel takes 4096")]
    TooLarge {
        /// What it would need.
        instructions: usize,
    },
    /// seccompiler refused the rules.
    #[error("seccomp rules cannot be compiled")]
    Backend(#[source] seccompiler::BackendError),
}

/// What becomes of a call: the action and its data, comparable by strictness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Outcome {
    action: LinuxSeccompAction,
    errno: u32,
}

/// One way for a rule to hold: all of these comparisons. Empty means always.
type Case = Vec<SeccompCondition>;

/// A rule of the profile with its cases.
struct Rule<'a> {
    names: &'a [String],
    outcome: Outcome,
    cases: Vec<Case>,
}

/// Compiles a profile into one program for each architecture that it lists.
///
/// All of them are to be installed, in this order: the machine's own, which is the one that may ask a
/// listener, comes last. Each lets the calls of the other listed architectures pass.
pub fn compile(profile: &LinuxSeccomp) -> Result<Vec<Program>, SeccompError> {
    let listens = profile.listener_path().as_ref().is_some_and(|path| !path.as_os_str().is_empty());
    for flag in profile.flags().iter().flatten() {
        // It says how the listener is waited for.
        if *flag == LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv && !listens {
            return Err(SeccompError::Flag { flag: *flag });
        }
    }
    let default = Outcome::new(profile.default_action(), profile.default_errno_ret())?;
    if default.action == LinuxSeccompAction::ScmpActNotify {
        return Err(SeccompError::NotifyDefault);
    }
    let asks = |rule: &LinuxSyscall| rule.action() == LinuxSeccompAction::ScmpActNotify;
    for rule in profile.syscalls().iter().flatten().filter(|rule| asks(rule)) {
        if !listens {
            return Err(SeccompError::NotifyAlone);
        }
        if rule.names().iter().any(|name| name == LISTENER_CALL) {
            return Err(SeccompError::NotifyItself);
        }
    }
    let rules = profile.syscalls().iter().flatten().map(Rule::new).collect::<Result<Vec<Rule<'_>>, SeccompError>>()?;
    let architectures = architectures(profile.architectures().as_deref())?;
    let mut programs = Vec::new();
    for architecture in &architectures {
        let others: Vec<Architecture> = architectures.iter().copied().filter(|other| other != architecture).collect();
        programs.push(compile_for(*architecture, &others, default, &rules)?);
    }
    Ok(programs)
}

/// The architectures to judge; an absent list means the native one alone.
fn architectures(list: Option<&[Arch]>) -> Result<Vec<Architecture>, SeccompError> {
    let native = Architecture::native();
    let mut result = Vec::new();
    for architecture in list.unwrap_or(&[Arch::ScmpArchNative]).iter().filter_map(|arch| Architecture::from_spec(*arch))
    {
        if architecture.is_possible() && !result.contains(&architecture) {
            result.push(architecture);
        }
    }
    // libseccomp adds the native architecture to whatever is listed; an explicit list without it
    // would kill every program here, which nobody means.
    if list.is_some_and(<[Arch]>::is_empty) {
        result.push(native);
    }
    result.sort_by_key(|architecture| *architecture == native);
    if result.contains(&native) { Ok(result) } else { Err(SeccompError::ForeignArchitectures) }
}

/// The rules that concern one call, in the order of the profile.
type Rules<'a> = Vec<(Outcome, &'a [Case])>;

/// The filter for one architecture.
fn compile_for(
    architecture: Architecture,
    others: &[Architecture],
    default: Outcome,
    rules: &[Rule<'_>],
) -> Result<Program, SeccompError> {
    let names = architecture.names();
    let mut calls: BTreeMap<u32, Rules<'_>> = BTreeMap::new();
    for rule in rules {
        for name in rule.names {
            match names.number(name) {
                Some(number) => {
                    // One filter has the listener; the kernel's own answer elsewhere is ENOSYS.
                    let asks = rule.outcome.action == LinuxSeccompAction::ScmpActNotify;
                    let foreign = asks && architecture != Architecture::native();
                    let outcome = if foreign { Outcome::ENOSYS } else { rule.outcome };
                    calls.entry(number).or_default().push((outcome, &rule.cases));
                }
                None => rule.check_absent(name, default)?,
            }
        }
    }
    let mut table = Dispatch::new(default.word());
    if default.hides_newer() {
        let newest = calls.last_key_value().map_or(0, |(number, _)| *number);
        table.set(newest + 1..=u32::MAX, Outcome::ENOSYS.word());
        for gap in names.gaps() {
            table.set(gap.clone(), Outcome::ENOSYS.word());
        }
    }
    for (number, rules) in calls {
        match judgement(architecture, number, rules, default)? {
            Judgement::Always(outcome) => table.set(number..=number, outcome.word()),
            Judgement::Depends(code) => table.set_code(number, code),
        }
    }
    if architecture == Architecture::X86_64 {
        table.set(X32_BIT..=u32::MAX, Outcome::ENOSYS.word());
    }
    let listed: Vec<u32> = others.iter().map(|other| other.audit()).collect();
    let program = table.assemble(architecture.audit(), &listed);
    if program.len() > MAX_INSTRUCTIONS {
        return Err(SeccompError::TooLarge { instructions: program.len() });
    }
    Ok(program)
}

/// What the rules of one call come to.
enum Judgement {
    Always(Outcome),
    Depends(Program),
}

/// Puts the rules in order, strictest first, and ends with the first that always holds.
fn judgement(
    architecture: Architecture,
    number: u32,
    mut rules: Rules<'_>,
    default: Outcome,
) -> Result<Judgement, SeccompError> {
    // Stable, so that rules of equal strictness stay in the order of the profile.
    rules.sort_by_key(|(outcome, _)| outcome.rank());
    let mut code = Program::new();
    let mut last = default;
    for (outcome, cases) in rules {
        if cases.iter().any(Vec::is_empty) {
            last = outcome;
            break;
        }
        code.append(&mut tests(architecture, number, cases, outcome)?);
    }
    if code.is_empty() {
        return Ok(Judgement::Always(last));
    }
    code.push(dispatch::give(last.word()));
    Ok(Judgement::Depends(code))
}

/// Code that returns `outcome` where one of the cases holds, and else runs on behind itself.
fn tests(architecture: Architecture, number: u32, cases: &[Case], outcome: Outcome) -> Result<Program, SeccompError> {
    let chain = cases
        .iter()
        .map(|case| SeccompRule::new(case.clone()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(SeccompError::Backend)?;
    let map = BTreeMap::from([(i64::from(number), chain)]);
    let miss = SeccompAction::Trace(NO_RULE_DATUM);
    let filter =
        SeccompFilter::new(map, miss, outcome.to_backend()?, architecture.target()).map_err(SeccompError::Backend)?;
    let whole = Program::try_from(filter).map_err(|error| match error {
        seccompiler::BackendError::FilterTooLarge(instructions) => SeccompError::TooLarge { instructions },
        other => SeccompError::Backend(other),
    })?;
    let mut code = whole[FOREIGN_HEAD..].to_vec();
    let end = code.len();
    for (position, step) in code.iter_mut().enumerate() {
        if *step == dispatch::give(NO_RULE_HOLDS) {
            *step = dispatch::skip(end - position - 1);
        } else if *step == dispatch::give(ASK) {
            *step = dispatch::give(outcome.word());
        }
    }
    Ok(code)
}

impl Outcome {
    const ENOSYS: Self = Self { action: LinuxSeccompAction::ScmpActErrno, errno: libc::ENOSYS.unsigned_abs() };

    fn new(action: LinuxSeccompAction, errno: Option<u32>) -> Result<Self, SeccompError> {
        use LinuxSeccompAction::{ScmpActErrno, ScmpActKill, ScmpActKillThread, ScmpActTrace};
        let action = if action == ScmpActKill { ScmpActKillThread } else { action };
        let has_errno = matches!(action, ScmpActErrno | ScmpActTrace);
        match errno {
            Some(errno) if !has_errno || errno > MAX_ERRNO => Err(SeccompError::Errno { errno, action }),
            Some(errno) => Ok(Self { action, errno }),
            None => Ok(Self { action, errno: if has_errno { libc::EPERM.unsigned_abs() } else { 0 } }),
        }
    }

    /// The value that a filter returns.
    fn word(self) -> u32 {
        self.action.as_u32(Some(0)) | self.errno
    }

    /// Smaller is stricter; the kernel reads the action as a signed number.
    fn rank(self) -> i32 {
        self.action.as_u32(Some(0)).cast_signed()
    }

    /// Says whether calls newer than the profile get ENOSYS instead of this default.
    fn hides_newer(self) -> bool {
        use LinuxSeccompAction::{ScmpActAllow, ScmpActLog, ScmpActTrace};
        // A tracer answers for itself, and a default that lets calls run has nothing to hide.
        !matches!(self.action, ScmpActAllow | ScmpActLog | ScmpActTrace) && self != Self::ENOSYS
    }

    fn to_backend(self) -> Result<SeccompAction, SeccompError> {
        Ok(match self.action {
            LinuxSeccompAction::ScmpActAllow => SeccompAction::Allow,
            LinuxSeccompAction::ScmpActErrno => SeccompAction::Errno(self.errno),
            LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => SeccompAction::KillThread,
            LinuxSeccompAction::ScmpActKillProcess => SeccompAction::KillProcess,
            LinuxSeccompAction::ScmpActLog => SeccompAction::Log,
            LinuxSeccompAction::ScmpActTrace => SeccompAction::Trace(self.errno),
            LinuxSeccompAction::ScmpActTrap => SeccompAction::Trap,
            LinuxSeccompAction::ScmpActNotify => SeccompAction::Trace(ASK_DATUM),
        })
    }
}

impl<'a> Rule<'a> {
    fn new(rule: &'a LinuxSyscall) -> Result<Self, SeccompError> {
        let outcome = Outcome::new(rule.action(), rule.errno_ret())?;
        let args = rule.args().as_deref().unwrap_or_default();
        let conditions = args.iter().map(condition).collect::<Result<Case, SeccompError>>()?;
        // runc's reading (C13): comparisons of one argument with several values are alternatives,
        // because libseccomp cannot express them together. Different arguments must all hold.
        let repeated =
            args.iter().enumerate().any(|(at, arg)| args[..at].iter().any(|earlier| earlier.index() == arg.index()));
        let cases =
            if repeated { conditions.into_iter().map(|condition| vec![condition]).collect() } else { vec![conditions] };
        Ok(Self { names: rule.names(), outcome, cases })
    }

    /// Judges a name that the architecture lacks.
    ///
    /// Leaving out a permission makes the filter stricter. Leaving out a refusal is harmless where
    /// the call belongs to another architecture, and a hole where nobody knows the name.
    fn check_absent(&self, name: &str, default: Outcome) -> Result<(), SeccompError> {
        let elsewhere = || {
            [Architecture::X86_64, Architecture::X86, Architecture::Aarch64, Architecture::Arm]
                .into_iter()
                .any(|architecture| architecture.names().number(name).is_some())
        };
        if self.outcome.rank() < default.rank() && !elsewhere() {
            return Err(SeccompError::UnknownSyscall { name: name.to_owned() });
        }
        Ok(())
    }
}

/// One comparison in seccompiler's form; all 64 bits count, as in libseccomp.
fn condition(arg: &LinuxSeccompArg) -> Result<SeccompCondition, SeccompError> {
    let index = arg.index();
    let out_of_range = || SeccompError::ArgumentIndex { index };
    let number = u8::try_from(index).map_err(|_| out_of_range())?;
    let (operator, value) = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => (SeccompCmpOp::Ne, arg.value()),
        LinuxSeccompOperator::ScmpCmpLt => (SeccompCmpOp::Lt, arg.value()),
        LinuxSeccompOperator::ScmpCmpLe => (SeccompCmpOp::Le, arg.value()),
        LinuxSeccompOperator::ScmpCmpEq => (SeccompCmpOp::Eq, arg.value()),
        LinuxSeccompOperator::ScmpCmpGe => (SeccompCmpOp::Ge, arg.value()),
        LinuxSeccompOperator::ScmpCmpGt => (SeccompCmpOp::Gt, arg.value()),
        LinuxSeccompOperator::ScmpCmpMaskedEq => (SeccompCmpOp::MaskedEq(arg.value()), arg.value_two().unwrap_or(0)),
    };
    let length = match operator {
        // A mask without upper bits needs no look at the upper half.
        SeccompCmpOp::MaskedEq(mask) if mask <= u64::from(u32::MAX) => SeccompCmpArgLen::Dword,
        _ => SeccompCmpArgLen::Qword,
    };
    SeccompCondition::new(number, length, operator, value).map_err(|_| out_of_range())
}
