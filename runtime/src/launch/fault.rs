//! Turns a bare error number into a failure that says where and on what.

use std::fmt::Display;

use rustix::io::Errno;

use crate::failure::{LaunchFailure, Stage};

/// Names the operation of a failed system call.
pub(crate) trait Fault<T> {
    /// `stage`, operation, object; as in `open.fault(Stage::Mounts, "open", path)?`.
    fn fault(self, stage: Stage, op: &str, target: impl Display) -> Result<T, LaunchFailure>;
}

impl<T> Fault<T> for Result<T, Errno> {
    fn fault(self, stage: Stage, op: &str, target: impl Display) -> Result<T, LaunchFailure> {
        self.map_err(|errno| LaunchFailure::new(stage, op, target, errno))
    }
}

impl<T> Fault<T> for Result<T, nix::errno::Errno> {
    fn fault(self, stage: Stage, op: &str, target: impl Display) -> Result<T, LaunchFailure> {
        self.map_err(|errno| LaunchFailure::new(stage, op, target, Errno::from_raw_os_error(errno as i32)))
    }
}
