//! `coracle create`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::container::{ContainerArgs, options};
use super::error::{CliError, line};
use super::progress::Bars;
use super::run::Rest;
use crate::engine::{Engine, run as engine_run, sharing};

/// Make a container without starting it
#[derive(Args)]
#[command(
    disable_help_flag = true,
    disable_help_subcommand = true,
    override_usage = "coracle create [OPTIONS] IMAGE [COMMAND] [ARGUMENT]..."
)]
pub struct CreateArgs {
    /// Show this help
    #[arg(long, action = clap::ArgAction::HelpLong)]
    help: Option<bool>,
    #[command(flatten)]
    container: ContainerArgs,
    #[command(subcommand)]
    rest: Rest,
}

/// Makes it and prints its id.
pub fn run(root: Option<PathBuf>, args: CreateArgs) -> Result<ExitCode, CliError> {
    let Rest::ImageAndCommand(command) = args.rest;
    let bars = if args.container.quiet { Bars::quiet() } else { Bars::new() };
    let options = options(args.container, command)?;
    sharing::protect(root.as_ref())?;
    let engine = Engine::open(root)?;
    line(&engine_run::create(&engine, &options, &bars)?);
    Ok(ExitCode::SUCCESS)
}
