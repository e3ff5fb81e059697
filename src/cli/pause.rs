//! `coracle pause` and `coracle unpause`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::error::CliError;
use super::several;
use crate::engine::{Engine, lifecycle};

/// Freeze every process of containers
#[derive(Args)]
pub struct PauseArgs {
    /// Containers, by name or id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Let paused containers go on
#[derive(Args)]
pub struct UnpauseArgs {
    /// Containers, by name or id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Freezes each.
pub fn pause(root: Option<PathBuf>, args: PauseArgs) -> Result<ExitCode, CliError> {
    let engine = Engine::open(root)?;
    several::each(&args.containers, |wanted| Ok(lifecycle::pause(&engine, wanted)?))
}

/// Thaws each.
pub fn unpause(root: Option<PathBuf>, args: UnpauseArgs) -> Result<ExitCode, CliError> {
    let engine = Engine::open(root)?;
    several::each(&args.containers, |wanted| Ok(lifecycle::unpause(&engine, wanted)?))
}
