//! `coracle wait`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::error::{CliError, line};
use crate::engine::{Engine, lifecycle};

/// Wait until containers have ended, then print their exit codes
#[derive(Args)]
pub struct WaitArgs {
    /// Containers, by name or id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Waits for each in turn.
pub fn run(root: Option<PathBuf>, args: WaitArgs) -> Result<ExitCode, CliError> {
    let engine = Engine::open(root)?;
    for wanted in &args.containers {
        line(&lifecycle::wait(&engine, wanted)?.to_string());
    }
    Ok(ExitCode::SUCCESS)
}
