//! `coracle stop`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::error::CliError;
use super::{kill, several};
use crate::engine::{Engine, lifecycle};

/// Stop containers: their stop signal, then SIGKILL
#[derive(Args)]
pub struct StopArgs {
    /// Seconds before SIGKILL, -1 to wait for ever [default: 10, or --stop-timeout of run]
    #[arg(short = 't', long = "time", visible_alias = "timeout", value_name = "SECONDS", allow_hyphen_values = true)]
    time: Option<i64>,
    /// Ask with this signal instead of the container's own
    #[arg(short, long, value_name = "SIGNAL")]
    signal: Option<String>,
    /// Containers, by name or id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Stops each.
pub fn run(root: Option<PathBuf>, args: StopArgs) -> Result<ExitCode, CliError> {
    let engine = Engine::open(root)?;
    let signal = args.signal.as_deref().map(kill::signal).transpose()?;
    several::each(&args.containers, |wanted| Ok(lifecycle::stop(&engine, wanted, args.time, signal)?))
}
