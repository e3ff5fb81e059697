//! `coracle run`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use coracle_shim::attach::DetachKeys;

use super::container::{ContainerArgs, options};
use super::error::{CliError, line};
use super::progress::Bars;
use crate::engine::options::Attached;
use crate::engine::run::{Attaching, Ran};
use crate::engine::{Engine, run as engine_run, sharing};

/// Run a command in a new container
///
/// The image is pulled when it is not here yet. Exit codes: the command's own, 125 when coracle
/// failed, 126 when the command cannot be invoked, 127 when it is not found, 128+n after signal n.
#[derive(Args)]
#[command(
    disable_help_flag = true,
    disable_help_subcommand = true,
    override_usage = "coracle run [OPTIONS] IMAGE [COMMAND] [ARGUMENT]..."
)]
pub struct RunArgs {
    /// Show this help
    #[arg(long, action = clap::ArgAction::HelpLong)]
    help: Option<bool>,
    /// Return when the command runs, and print the container's id
    #[arg(short, long)]
    detach: bool,
    /// Attach only these: stdin, stdout, stderr [default: stdout and stderr, and stdin with -i]
    #[arg(short, long, value_name = "STREAM", ignore_case = true)]
    attach: Vec<StreamArg>,
    /// Keys that leave a container which has a shim
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: DetachKeys,
    /// Pass signals on to the container
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    sig_proxy: bool,
    #[command(flatten)]
    container: ContainerArgs,
    #[command(subcommand)]
    rest: Rest,
}

/// Names a stream of the caller.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum StreamArg {
    Stdin,
    Stdout,
    Stderr,
}

/// Is everything from the first word that is no flag of ours: nothing after it is looked at, as in Docker.
#[derive(clap::Subcommand)]
pub enum Rest {
    /// Image to run, then the command and its arguments instead of the image's.
    #[command(external_subcommand)]
    ImageAndCommand(Vec<String>),
}

/// Runs the command and gives the container's exit code.
pub fn run(root: Option<PathBuf>, args: RunArgs) -> Result<ExitCode, CliError> {
    let Rest::ImageAndCommand(command) = args.rest;
    let bars = if args.container.quiet { Bars::quiet() } else { Bars::new() };
    let mut options = options(args.container, command)?;
    options.set_detached(args.detach);
    if !args.attach.is_empty() {
        if args.detach {
            return Err(CliError::message("conflicting options: cannot specify both --attach and --detach"));
        }
        let has = |stream| args.attach.contains(&stream);
        options.attach = Some(Attached { stdout: has(StreamArg::Stdout), stderr: has(StreamArg::Stderr) });
        options.wants_shim = true;
    }
    sharing::protect(root.as_ref())?;
    let engine = Engine::open(root)?;
    let attaching = Attaching { keys: args.detach_keys, pass_signals: args.sig_proxy, tell_id: Some(line) };
    Ok(match engine_run::run(&engine, &options, &attaching, &bars)? {
        Ran::Ended(code) => ExitCode::from(code),
        Ran::Detached(id) => {
            // Nothing to say to a person who has left by the keys.
            if !id.is_empty() {
                line(&id);
            }
            ExitCode::SUCCESS
        }
    })
}
