//! `coracle attach`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use coracle_shim::attach::{AttachOptions, DetachKeys, Muted};

use super::error::CliError;
use super::several;
use crate::engine::{Engine, attach};

/// Connect standard input, output and error to a container that runs
#[derive(Args)]
pub struct AttachArgs {
    /// Keys that leave the container
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: DetachKeys,
    /// Leave standard input alone
    #[arg(long)]
    no_stdin: bool,
    /// Pass signals on to the container
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    sig_proxy: bool,
    /// The container, by name or id
    container: String,
}

/// Stays until the container ends, whose exit code it gives, or the person leaves.
pub fn run(root: Option<PathBuf>, args: AttachArgs) -> Result<ExitCode, CliError> {
    let engine = Engine::open(root)?;
    let options = AttachOptions {
        stdin: !args.no_stdin,
        terminal: false,
        pass_signals: args.sig_proxy,
        keys: args.detach_keys,
        muted: Muted::default(),
    };
    Ok(several::exit(attach::attach(&engine, &args.container, options)?))
}
