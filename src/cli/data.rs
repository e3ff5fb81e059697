//! The commands that keep or move data.

pub mod commit;
pub mod cp;
mod df;
pub mod diff;
pub mod export;
pub mod import;
mod network;
pub mod prune;
mod reset;
mod unshare;
pub mod volume;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;

use super::error::CliError;

/// Names the commands.
#[derive(Subcommand)]
pub enum DataCommand {
    Volume(volume::VolumeArgs),
    Network(network::NetworkCommandArgs),
    Cp(cp::CpArgs),
    Diff(diff::DiffArgs),
    Export(export::ExportArgs),
    Import(import::ImportArgs),
    Commit(commit::CommitArgs),
    Unshare(unshare::UnshareArgs),
    /// Known as `container prune`.
    #[command(skip)]
    ContainerPrune(prune::ContainerPruneArgs),
    /// Known as `image prune`.
    #[command(skip)]
    ImagePrune(prune::ImagePruneArgs),
}

/// Names what is done to everything at once.
#[derive(Subcommand)]
pub enum HousekeepingCommand {
    Df(df::DfArgs),
    Prune(prune::SystemPruneArgs),
    Reset(reset::ResetArgs),
}

/// Runs one of these.
pub fn keep_house(root: Option<PathBuf>, command: HousekeepingCommand) -> Result<ExitCode, CliError> {
    match command {
        HousekeepingCommand::Df(args) => df::run(root, args),
        HousekeepingCommand::Prune(args) => prune::system(root, args),
        HousekeepingCommand::Reset(args) => reset::run(root, args),
    }
}

/// Runs one of them.
pub fn run(root: Option<PathBuf>, command: DataCommand) -> Result<ExitCode, CliError> {
    match command {
        DataCommand::Volume(args) => volume::run(root, args),
        DataCommand::Network(args) => network::run(root, args),
        DataCommand::Cp(args) => cp::run(root, args),
        DataCommand::Diff(args) => diff::run(root, args),
        DataCommand::Export(args) => export::run(root, args),
        DataCommand::Import(args) => import::run(root, args),
        DataCommand::Commit(args) => commit::run(root, args),
        DataCommand::Unshare(args) => unshare::run(args),
        DataCommand::ContainerPrune(args) => prune::containers(root, args),
        DataCommand::ImagePrune(args) => prune::images(root, args),
    }
}
