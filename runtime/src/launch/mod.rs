//! Turns a plan into a running process in its own namespaces.
//!
//! The parent is single-threaded, opens and compiles everything first, and clones once with every
//! namespace. The child applies the plan, reports a failure as fixed-form data and leaves only by
//! `_exit` or `execve`.

mod options;
mod running;

pub use options::{Gate, LaunchOptions, Namespaces, Rootfs, Stdio};
pub use running::{Exit, Running, open_gate};

use crate::failure::{LaunchFailure, Stage};

/// Starts the container's first process.
///
/// With [`Gate::Immediate`] it returns once `execve` has succeeded; otherwise when everything but
/// the gate, the filter and `execve` is done.
pub fn launch(options: LaunchOptions<'_>) -> Result<Running, LaunchFailure> {
    Err(LaunchFailure::rule(Stage::Plan, options.id, "launching is not finished yet"))
}
