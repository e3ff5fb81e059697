//! `coracle rm`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::error::CliError;
use super::several;
use crate::engine::{Engine, EngineError, containers, lifecycle, run as engine_run, volumes};

/// Remove containers
#[derive(Args)]
pub struct RmArgs {
    /// End those that run first, and be content when there is no such container
    #[arg(short, long)]
    force: bool,
    /// Also remove their anonymous volumes
    #[arg(short, long)]
    volumes: bool,
    /// Containers, by name or id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Removes each.
pub fn run(root: Option<PathBuf>, args: RmArgs) -> Result<ExitCode, CliError> {
    let engine = Engine::open(root)?;
    engine_run::remove_abandoned(&engine);
    containers::sweep(&engine);
    several::each(&args.containers, |wanted| {
        let found = containers::find(engine.root(), wanted).ok().filter(|_| args.volumes);
        let volumes = found.map(|found| volumes::anonymous_of(engine.root(), &found.record)).unwrap_or_default();
        match lifecycle::remove(&engine, wanted, args.force) {
            Err(EngineError::UnknownContainer(_)) if args.force => {}
            removed => removed?,
        }
        Ok(volumes::remove_unused(&engine, &volumes)?)
    })
}
