//! `coracle unshare`.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use clap::Args;
use coracle_runtime::{UserNs, userns};
use nix::sched::{CloneFlags, unshare};

use super::super::error::{CliError, note};
use crate::engine::EngineError;
use crate::env;

/// A command that is not found, and one that cannot be run, as shells say it.
const EXIT_NOT_FOUND: i32 = 127;
const EXIT_CANNOT_RUN: i32 = 126;

/// Run a command as root of the user namespace that containers' files belong to
///
/// Files of containers and volumes look there as they look inside. Mounts made there are seen by nobody else.
#[derive(Args)]
#[command(disable_help_flag = true, override_usage = "coracle unshare [COMMAND] [ARGUMENT]...")]
pub struct UnshareArgs {
    /// Show this help
    #[arg(long, action = clap::ArgAction::HelpLong)]
    help: Option<bool>,
    /// Command and its arguments [default: $SHELL]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// Runs the command and gives its exit code.
pub fn run(args: UnshareArgs) -> Result<ExitCode, CliError> {
    let idmap = crate::engine::choose_idmap(UserNs::Auto)?;
    let mut command = args.command;
    if command.is_empty() {
        command.push(env::value("SHELL").unwrap_or_else(|| "/bin/sh".into()));
    }
    let status = userns::run_in(&idmap, || {
        if let Err(errno) = unshare(CloneFlags::CLONE_NEWNS) {
            note(&format!("error: cannot make a mount namespace: {errno}"));
            return EXIT_CANNOT_RUN;
        }
        let error = Command::new(&command[0]).args(&command[1..]).exec();
        note(&format!("error: cannot run {}: {error}", command[0].display()));
        if error.kind() == std::io::ErrorKind::NotFound { EXIT_NOT_FOUND } else { EXIT_CANNOT_RUN }
    })
    .map_err(EngineError::UserNamespace)?;
    Ok(ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX)))
}
