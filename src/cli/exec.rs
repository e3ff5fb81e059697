//! `coracle exec`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use coracle_shim::attach::DetachKeys;
use rustix::termios::tcgetwinsize;

use super::container::env_entries;
use super::error::CliError;
use crate::engine::exec::{self, ExecRequest};
use crate::engine::options::Terminal;
use crate::engine::{Engine, sharing};

/// Run one more command in a container that runs
///
/// It ends with this command, unless that is left by the detach keys; then, and with -d, it ends with its container.
#[derive(Args)]
#[command(override_usage = "coracle exec [OPTIONS] CONTAINER COMMAND [ARGUMENT]...")]
pub struct ExecArgs {
    /// Return when the command runs
    #[arg(short, long)]
    detach: bool,
    /// Keep standard input open
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// Keys that leave a command with a terminal, which runs on
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: DetachKeys,
    /// Set an environment variable, NAME=VALUE or NAME for the caller's value
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Read environment variables from a file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// User and group, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Refused: a container's limits hold for everything in it
    #[arg(long, hide = true)]
    privileged: bool,
    /// The container, by name or id
    container: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Runs it and gives its exit code.
pub fn run(root: Option<PathBuf>, args: ExecArgs) -> Result<ExitCode, CliError> {
    if args.privileged {
        return Err(CliError::message("flag --privileged is not implemented: nobody here has privileges to give"));
    }
    let request = ExecRequest {
        command: args.command,
        env: env_entries(&args.env_file, &args.env)?,
        user: args.user,
        workdir: args.workdir,
        terminal: Terminal { interactive: args.interactive, tty: args.tty },
        detach: args.detach,
        detach_keys: args.detach_keys,
        size: tcgetwinsize(std::io::stdin()).ok().map(|size| (size.ws_row, size.ws_col)),
    };
    sharing::protect(root.as_ref())?;
    let engine = Engine::open(root)?;
    Ok(ExitCode::from(exec::exec(&engine, &args.container, &request)?))
}
