//! `coracle tag`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::error::CliError;
use crate::engine::Engine;

/// Give an image another name
#[derive(Args)]
pub struct TagArgs {
    /// Image, by name or id
    source: String,
    /// The new name
    target: String,
}

/// Adds the name.
pub fn run(root: Option<PathBuf>, args: TagArgs) -> Result<ExitCode, CliError> {
    let engine = Engine::open(root)?;
    let target = args.target.parse()?;
    engine.tag(&args.source, &target)?;
    Ok(ExitCode::SUCCESS)
}
