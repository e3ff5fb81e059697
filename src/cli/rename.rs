//! `coracle rename`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::error::CliError;
use crate::engine::record::Record;
use crate::engine::{Engine, containers, events};

/// Give a container another name
#[derive(Args)]
pub struct RenameArgs {
    /// The container, by name or id
    container: String,
    /// Its new name
    name: String,
}

/// Renames it, running or not.
pub fn run(root: Option<PathBuf>, args: RenameArgs) -> Result<ExitCode, CliError> {
    let engine = Engine::open(root)?;
    let found = containers::find(engine.root(), &args.container)?;
    containers::edit(engine.root(), found.id(), |container| container.rename(&args.name))?;
    let named = Record { name: Some(args.name), ..found.record };
    events::emit_container(engine.root(), &named, "rename", &[("oldName", &args.container)]);
    Ok(ExitCode::SUCCESS)
}
