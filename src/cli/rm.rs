//! `coracle rm`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::error::{CliError, line};
use crate::engine::Engine;

/// Remove containers that have ended
#[derive(Args)]
pub struct RmArgs {
    /// Containers, by name or id
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Removes each container; the first failure ends it.
pub fn run(root: Option<PathBuf>, args: RmArgs) -> Result<ExitCode, CliError> {
    let engine = Engine::open(root)?;
    for wanted in args.containers {
        engine.remove_container(&wanted)?;
        line(&wanted);
    }
    Ok(ExitCode::SUCCESS)
}
