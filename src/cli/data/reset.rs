//! `coracle system reset`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::super::confirm::confirm;
use super::super::error::{CliError, note};
use crate::engine::{Engine, housekeeping};

/// Remove every container, volume and image, files of subordinate ids included
#[derive(Args)]
pub struct ResetArgs {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

/// Removes everything.
pub fn run(root: Option<PathBuf>, args: ResetArgs) -> Result<ExitCode, CliError> {
    let engine = Engine::open(root)?;
    let place = engine.root().display();
    let warning =
        format!("WARNING! This will remove all containers, all volumes with their data, and all images in {place}.");
    if !args.force && !confirm(&warning) {
        return Ok(ExitCode::SUCCESS);
    }
    for left in housekeeping::reset(&engine)? {
        note(&format!("note: {} is not coracle's and stays", left.display()));
    }
    Ok(ExitCode::SUCCESS)
}
