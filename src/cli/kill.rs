//! `coracle kill`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use coracle_shim::parse_signal;

use super::error::CliError;
use super::several;
use crate::engine::{Engine, EngineError, lifecycle};

/// Send a signal to containers
#[derive(Args)]
pub struct KillArgs {
    /// The signal, by name or number
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL")]
    signal: String,
    /// Containers, by name or id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Signals each.
pub fn run(root: Option<PathBuf>, args: KillArgs) -> Result<ExitCode, CliError> {
    let signal = signal(&args.signal)?;
    let engine = Engine::open(root)?;
    several::each(&args.containers, |wanted| Ok(lifecycle::kill(&engine, wanted, signal)?))
}

/// Gives the number of a signal by its name or number.
pub fn signal(text: &str) -> Result<i32, EngineError> {
    parse_signal(text).ok_or_else(|| EngineError::UnknownSignal(text.to_owned()))
}
