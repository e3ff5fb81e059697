//! Runs a further process in a running container.

use std::os::fd::{BorrowedFd, RawFd};

use oci_spec::runtime::{LinuxSeccomp, Process};

use crate::failure::{LaunchFailure, Stage};
use crate::launch::{Running, Stdio};

/// Everything about one more process in a container.
pub struct ExecOptions<'a> {
    /// The container's init as the caller sees it.
    pub pid: i32,
    /// The same process; the caller has checked that it is the container it means.
    pub pidfd: BorrowedFd<'a>,
    /// What to run.
    pub process: &'a Process,
    /// The container's system call filter.
    pub seccomp: Option<&'a LinuxSeccomp>,
    /// Standard streams.
    pub stdio: Stdio<'a>,
    /// Descriptors that the program keeps under their numbers.
    pub keep_fds: &'a [RawFd],
    /// Kills the process when the caller dies.
    pub die_with_parent: bool,
    /// The cgroup (v2) in which the process is born.
    pub cgroup: Option<BorrowedFd<'a>>,
}

impl<'a> ExecOptions<'a> {
    /// An exec with nothing but the necessary.
    pub fn new(pid: i32, pidfd: BorrowedFd<'a>, process: &'a Process) -> Self {
        Self {
            pid,
            pidfd,
            process,
            seccomp: None,
            stdio: Stdio::Inherit,
            keep_fds: &[],
            die_with_parent: false,
            cgroup: None,
        }
    }
}

/// Joins the container's namespaces and runs the process; returns once `execve` has succeeded.
pub fn exec(options: ExecOptions<'_>) -> Result<Running, LaunchFailure> {
    Err(LaunchFailure::rule(Stage::Plan, options.pid, "exec is not finished yet"))
}
