//! What went wrong between a specification and a running process.
//!
//! A failure is plain data with a fixed wire form, because it is made in a freshly cloned child and
//! read by its parent. Hints for people are chosen by `(stage, errno)`, never by matching text.

use std::fmt;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// The step of a launch that failed; its order is the order of the launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Stage {
    /// The specification asks for something that is wrong or not supported.
    Plan = 0,
    /// A file, directory or namespace of the host could not be opened.
    Prepare,
    /// The namespaces could not be created.
    Namespaces,
    /// The user and group ids could not be mapped.
    Ids,
    /// The caller's own set-up of the namespaces (network) failed.
    Network,
    /// The root filesystem could not be mounted.
    Rootfs,
    /// A mount inside the container failed.
    Mounts,
    /// Device nodes or the console could not be made.
    Devices,
    /// Sysctls, host name, masked or read-only paths.
    Confine,
    /// A hook failed or ran out of time.
    Hooks,
    /// Limits, user, groups and capabilities of the process.
    Identity,
    /// The working directory could not be entered.
    WorkingDirectory,
    /// The system call filter was refused.
    Seccomp,
    /// The process waited for its start signal and lost its starter.
    Gate,
    /// The program could not be executed.
    Exec,
}

/// All stages by their wire number.
const STAGES: [Stage; 15] = [
    Stage::Plan,
    Stage::Prepare,
    Stage::Namespaces,
    Stage::Ids,
    Stage::Network,
    Stage::Rootfs,
    Stage::Mounts,
    Stage::Devices,
    Stage::Confine,
    Stage::Hooks,
    Stage::Identity,
    Stage::WorkingDirectory,
    Stage::Seccomp,
    Stage::Gate,
    Stage::Exec,
];

/// Docker's exit code for "the runtime itself failed".
pub const EXIT_RUNTIME_FAILED: i32 = 125;
/// Docker's exit code for "the command cannot be invoked".
pub const EXIT_CANNOT_INVOKE: i32 = 126;
/// Docker's exit code for "the command was not found".
pub const EXIT_NOT_FOUND: i32 = 127;

/// One failed operation of a launch.
///
/// `errno` is 0 where no system call failed; then `op` is the whole statement about `target`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct LaunchFailure {
    /// Where in the launch it happened.
    pub stage: Stage,
    /// What was tried, e.g. `mount` or `write`.
    pub op: String,
    /// What it was tried on.
    pub target: String,
    /// The error number of the kernel, or 0.
    pub errno: i32,
}

impl LaunchFailure {
    /// Describes a system call that failed.
    pub fn new(stage: Stage, op: &str, target: impl fmt::Display, errno: Errno) -> Self {
        Self { stage, op: op.to_owned(), target: target.to_string(), errno: errno.raw_os_error() }
    }

    /// Describes a rule that `target` breaks; no system call failed.
    pub fn rule(stage: Stage, target: impl fmt::Display, statement: &str) -> Self {
        Self { stage, op: statement.to_owned(), target: target.to_string(), errno: 0 }
    }

    /// The exit code Docker gives for this kind of failure (125, 126 or 127).
    pub fn exit_code(&self) -> i32 {
        match self.stage {
            Stage::Exec | Stage::WorkingDirectory if self.errno == libc::ENOENT => EXIT_NOT_FOUND,
            Stage::Exec | Stage::WorkingDirectory => EXIT_CANNOT_INVOKE,
            _ => EXIT_RUNTIME_FAILED,
        }
    }

    /// The wire form: stage, errno, then op and target with their lengths. Cut to `WIRE_MAX`.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let op = cut(&self.op, WIRE_TEXT_MAX);
        let target = cut(&self.target, WIRE_TEXT_MAX);
        let mut wire = Vec::with_capacity(WIRE_HEAD + op.len() + target.len());
        wire.push(self.stage as u8);
        wire.extend_from_slice(&self.errno.to_le_bytes());
        for text in [op, target] {
            wire.extend_from_slice(&u16::try_from(text.len()).unwrap_or(u16::MAX).to_le_bytes());
        }
        wire.extend_from_slice(op.as_bytes());
        wire.extend_from_slice(target.as_bytes());
        wire
    }

    /// Reads what [`LaunchFailure::encode`] wrote; `None` when it is damaged.
    pub(crate) fn decode(wire: &[u8]) -> Option<Self> {
        let (head, text) = wire.split_at_checked(WIRE_HEAD)?;
        let stage = *STAGES.get(usize::from(head[0]))?;
        let errno = i32::from_le_bytes(head[1..5].try_into().ok()?);
        let op_len = usize::from(u16::from_le_bytes(head[5..7].try_into().ok()?));
        let target_len = usize::from(u16::from_le_bytes(head[7..9].try_into().ok()?));
        let (op, rest) = text.split_at_checked(op_len)?;
        let (target, _) = rest.split_at_checked(target_len)?;
        Some(Self {
            stage,
            op: String::from_utf8_lossy(op).into_owned(),
            target: String::from_utf8_lossy(target).into_owned(),
            errno,
        })
    }
}

/// Bytes before the two texts: stage 1, errno 4, two lengths of 2.
const WIRE_HEAD: usize = 9;
/// A path has at most 4096 bytes; nothing longer helps a reader.
const WIRE_TEXT_MAX: usize = 4096;
/// The longest wire form, for the reader's buffer.
pub(crate) const WIRE_MAX: usize = WIRE_HEAD + 2 * WIRE_TEXT_MAX;

fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

impl fmt::Display for LaunchFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.errno == 0 {
            return write!(f, "{}: {}", self.target, self.op);
        }
        write!(f, "{} {}: {}", self.op, self.target, describe(self.errno))
    }
}

/// The kernel's name for an error number, in the middle of a sentence.
pub fn describe(errno: i32) -> String {
    let text = nix::errno::Errno::from_raw(errno).desc();
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wire_form_survives() {
        for stage in STAGES {
            let failure = LaunchFailure::new(stage, "mount", "/proc", Errno::PERM);
            assert_eq!(LaunchFailure::decode(&failure.encode()), Some(failure));
        }
        let long = LaunchFailure::rule(Stage::Plan, "é".repeat(WIRE_TEXT_MAX), "is too long");
        let wire = long.encode();
        assert!(wire.len() <= WIRE_MAX);
        assert_eq!(LaunchFailure::decode(&wire).map(|read| read.op), Some("is too long".to_owned()));
        for end in 0..wire.len() {
            assert_eq!(LaunchFailure::decode(&wire[..end]), None, "cut at {end}");
        }
    }

    #[test]
    fn says_one_line() {
        let failure = LaunchFailure::new(Stage::Ids, "write", "/proc/412/uid_map", Errno::PERM);
        assert_eq!(failure.to_string(), "write /proc/412/uid_map: operation not permitted");
        let rule = LaunchFailure::rule(Stage::Mounts, "/proc", "must be an ordinary directory");
        assert_eq!(rule.to_string(), "/proc: must be an ordinary directory");
    }

    #[test]
    fn exit_codes_follow_docker() {
        let code = |stage, errno| LaunchFailure::new(stage, "x", "y", errno).exit_code();
        assert_eq!(code(Stage::Exec, Errno::NOENT), 127);
        assert_eq!(code(Stage::Exec, Errno::ACCESS), 126);
        assert_eq!(code(Stage::Exec, Errno::NOEXEC), 126);
        assert_eq!(code(Stage::Mounts, Errno::NOENT), 125);
    }
}
