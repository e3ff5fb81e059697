//! `coracle pool exec`: one more command in an instance, wherever it is.

use std::os::fd::AsFd;
use std::process::ExitCode;

use clap::Args;
use coracle_scheduler::client::Pool;
use coracle_scheduler::ssh::{Ends, Request};
use coracle_shim::terminal::RawTerminal;

use super::ssh;
use crate::cli::error::CliError;
use crate::engine::run::require_terminal;
use crate::env;

/// What a terminal is called when nobody says.
const TERMINAL: &str = "xterm";

/// Run one more command in an instance; ends with the command's exit code
#[derive(Args)]
#[command(override_usage = "coracle pool exec [OPTIONS] INSTANCE COMMAND [ARGUMENT]...")]
pub struct ExecArgs {
    /// Keep standard input open
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// User by name or number [default: the image's]
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Name or id
    instance: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Runs it.
pub fn exec(pool: Pool, args: ExecArgs) -> Result<ExitCode, CliError> {
    if args.tty && args.interactive {
        require_terminal()?;
    }
    let found = pool.find("/v1/instances", "instance", &args.instance)?;
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    let provider = found["alloc"]["provider"].as_str();
    let provider = provider.ok_or_else(|| CliError::message(format!("instance {} does not run", args.instance)))?;
    let request = Request {
        login: args.user.unwrap_or_else(|| text("name")),
        host: text("id"),
        authority: ssh::authority(&pool, provider)?,
        words: args.command,
        copy: false,
        interactive: args.interactive,
        terminal: args.tty.then(|| env::term().unwrap_or_else(|| TERMINAL.to_owned())),
    };
    let raw = if args.tty && args.interactive { RawTerminal::enter(std::io::stdin().as_fd())? } else { None };
    let code = pool.exec(&format!("/v1/instances/{}/streams", text("id")), &request, Ends::default());
    drop(raw);
    pool.end();
    Ok(ExitCode::from(u8::try_from(code?).unwrap_or(u8::MAX)))
}
