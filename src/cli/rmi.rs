//! `coracle rmi`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::error::{CliError, line, note};
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

/// Removes each image; one that cannot be removed does not keep the others. With --force, as in docker, one
/// that is not there is said and no failure.
pub fn run(root: Option<PathBuf>, args: RmiArgs) -> Result<ExitCode, CliError> {
    let engine = Engine::open(root)?;
    let mut failure: Option<CliError> = None;
    for name in args.images {
        if args.force && engine.store().find(&name).is_ok_and(|found| found.is_none()) {
            note(&format!("note: no such image: {name}"));
            continue;
        }
        let removed = match engine.remove_image(&name, args.force) {
            Ok(removed) => removed,
            Err(error) => {
                if let Some(earlier) = failure.replace(error.into()) {
                    let _ = earlier.report();
                }
                continue;
            }
        };
        for name in removed.untagged {
            line(&format!("Untagged: {name}"));
        }
        for id in removed.deleted {
            line(&format!("Deleted: {id}"));
        }
    }
    failure.map_or(Ok(ExitCode::SUCCESS), Err)
}
