//! `coracle rmi`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::error::{CliError, line};
use crate::engine::Engine;

/// Remove images
#[derive(Args)]
pub struct RmiArgs {
    /// Remove an image that has several names or is used by a container
    #[arg(short, long)]
    force: bool,
    /// Images, by name or id
    #[arg(required = true)]
    images: Vec<String>,
}

/// Removes each image; the first failure ends it.
pub fn run(root: Option<PathBuf>, args: RmiArgs) -> Result<ExitCode, CliError> {
    let engine = Engine::open(root)?;
    for name in args.images {
        let removed = engine.remove_image(&name, args.force)?;
        for name in removed.untagged {
            line(&format!("Untagged: {name}"));
        }
        for id in removed.deleted {
            line(&format!("Deleted: {id}"));
        }
    }
    Ok(ExitCode::SUCCESS)
}
