//! Named places where a test lets things go wrong: killed, failed, or slow.
//!
//! They exist in builds with debug assertions only; in a release build [`hit`] is nothing. Which one is
//! armed is a word that the command line reads from the environment and hands to [`arm`]; it goes over
//! to forked children.

use std::io;

use rustix::io::Errno;

use crate::failure::{LaunchFailure, Stage};

/// Every failpoint of a container's life, in its order; tests walk this list.
pub const NAMES: &[&str] = &[
    "id_reserved",
    "state_written",
    "quota_set",
    "netns_made",
    "helper_started",
    "cgroup_made",
    "cloned",
    "uidmap_done",
    "gidmap_done",
    "mounts_done",
    "pivoted",
    "caps_dropped",
    "seccomp_loaded",
    "ready_sent",
    "start_received",
    "execed",
    "status_row",
    "exit_seen",
    "exit_written_unsynced",
    "exit_reported",
    "stop_term_sent",
    "cgroup_killed",
    "umounted",
    "rootfs_removed",
    "state_removed",
    "log_rotated_mid",
];

/// What an armed failpoint does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The process ends as if by SIGKILL.
    Abort,
    /// The step fails with EIO.
    Error,
    /// The step takes [`DELAY_MS`] longer, while others act.
    Delay,
}

/// Long enough for another command to get in between.
pub const DELAY_MS: u64 = 300;

#[cfg(debug_assertions)]
static ARMED: std::sync::OnceLock<(String, Action)> = std::sync::OnceLock::new();

/// Arms `NAME=abort|error|delay`; false when that is no failpoint or this is a release build.
pub fn arm(text: &str) -> bool {
    let Some((name, action)) = text.split_once('=') else { return false };
    let action = match action {
        "abort" => Action::Abort,
        "error" => Action::Error,
        "delay" => Action::Delay,
        _ => return false,
    };
    NAMES.contains(&name) && set(name, action)
}

#[cfg(debug_assertions)]
fn set(name: &str, action: Action) -> bool {
    ARMED.set((name.to_owned(), action)).is_ok()
}

#[cfg(not(debug_assertions))]
fn set(_name: &str, _action: Action) -> bool {
    false
}

/// Does what the failpoint of this name is armed for.
///
/// # Errors
/// `EIO` where it is armed to fail.
#[cfg(debug_assertions)]
pub fn hit(name: &str) -> io::Result<()> {
    debug_assert!(NAMES.contains(&name), "{name} is not in the list");
    match ARMED.get() {
        Some((armed, action)) if armed == name => act(*action),
        _ => Ok(()),
    }
}

/// Passes a failpoint of a launch.
pub(crate) fn pass(stage: Stage, name: &str) -> Result<(), LaunchFailure> {
    hit(name).map_err(|_| LaunchFailure::new(stage, "pass", name, Errno::IO))
}

/// Does nothing: this is a release build.
///
/// # Errors
/// None.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn hit(_name: &str) -> io::Result<()> {
    Ok(())
}

#[cfg(debug_assertions)]
fn act(action: Action) -> io::Result<()> {
    match action {
        Action::Abort => {
            // Not abort(3): nothing may run and nothing may be dumped, as with SIGKILL from outside.
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            // The first process of a pid namespace cannot kill itself.
            crate::sys::exit_now(137)
        }
        Action::Error => Err(Errno::IO.into()),
        Action::Delay => {
            std::thread::sleep(std::time::Duration::from_millis(DELAY_MS));
            Ok(())
        }
    }
}
