//! Work inside a user namespace without a container: unpacking layers and removing what they own.

use std::os::fd::BorrowedFd;

use crate::failure::{LaunchFailure, Stage};
use crate::idmap::IdMap;

/// Runs `work` in a child that is root of a new user namespace with this map.
///
/// Returns its exit code, 128 + n when a signal ended it. SIGTERM, SIGINT, SIGHUP and SIGQUIT sent to
/// the caller meanwhile reach the child. The caller must be single-threaded; `work` may start threads.
pub fn run_in(map: &IdMap, work: impl FnOnce() -> i32) -> Result<i32, LaunchFailure> {
    let _ = (map, work);
    Err(LaunchFailure::rule(Stage::Plan, "user namespace", "not finished yet"))
}

/// Makes the calling process root of a user namespace that it owns. There is no way back.
pub fn enter(userns: BorrowedFd<'_>) -> Result<(), LaunchFailure> {
    let _ = userns;
    Err(LaunchFailure::rule(Stage::Plan, "user namespace", "not finished yet"))
}
