//! `coracle start`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use coracle_shim::attach::{AttachOptions, DetachKeys, Muted};
use coracle_shim::client::Client;

use super::error::CliError;
use super::several;
use crate::engine::{Engine, attach, containers, lifecycle, run, sharing};

/// Start containers that were created or have ended
#[derive(Args)]
pub struct StartArgs {
    /// Show the container's output and give its exit code
    #[arg(short, long)]
    attach: bool,
    /// Pass standard input to the container
    #[arg(short, long)]
    interactive: bool,
    /// Keys that leave the container
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: DetachKeys,
    /// Containers, by name or id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Starts each; with -a or -i there is one, and its exit code is the command's.
pub fn run(root: Option<PathBuf>, args: StartArgs) -> Result<ExitCode, CliError> {
    sharing::protect(root.as_ref())?;
    let engine = Engine::open(root)?;
    if !args.attach && !args.interactive {
        return several::each(&args.containers, |wanted| Ok(lifecycle::start_and_leave(&engine, wanted)?));
    }
    let [wanted] = args.containers.as_slice() else {
        return Err(CliError::message("you cannot start and attach to several containers at once"));
    };
    let record = containers::find(engine.root(), wanted)?.record;
    let session = AttachOptions {
        muted: Muted::default(),
        stdin: args.interactive && record.open_stdin,
        terminal: record.tty,
        pass_signals: !record.tty,
        keys: args.detach_keys,
    };
    if session.terminal && session.stdin {
        run::require_terminal()?;
    }
    let code = match lifecycle::start(&engine, wanted, true)? {
        Some((container, channel)) => attach::follow(Client::from_socket(channel), session, container.id())?,
        // It runs already: then this is attach.
        None => attach::attach(&engine, wanted, session)?,
    };
    Ok(several::exit(code))
}
