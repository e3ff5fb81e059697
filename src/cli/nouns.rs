//! What is done to containers, images and coracle as a whole; most of it also under Docker's longer names, as in
//! `coracle container start`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;

use super::data::{commit, cp, df, diff, export, import, prune, reset};
use super::error::{CliError, EXIT_CORACLE_FAILED, EXIT_FAILURE};
use super::inspect::Kind;
use super::{
    attach, boot, create, events, exec, history, images, info, inspect, kill, load, logs, pause, port, ps, pull, push,
    rename, restart, rm, rmi, run, save, start, stats, stop, tag, top, update, wait,
};

// Named alike with and without `container` before it.
#[derive(Subcommand)]
#[command(defer = true)]
pub enum OnContainers {
    Run(Box<run::RunArgs>),
    Create(Box<create::CreateArgs>),
    Start(start::StartArgs),
    Stop(stop::StopArgs),
    Restart(restart::RestartArgs),
    Kill(kill::KillArgs),
    Pause(pause::PauseArgs),
    Unpause(pause::UnpauseArgs),
    Wait(wait::WaitArgs),
    Attach(attach::AttachArgs),
    Exec(exec::ExecArgs),
    Rename(rename::RenameArgs),
    Rm(rm::RmArgs),
    Logs(logs::LogsArgs),
    Top(top::TopArgs),
    Stats(stats::StatsArgs),
    Port(port::PortArgs),
    Update(Box<update::UpdateArgs>),
    Cp(cp::CpArgs),
    Diff(diff::DiffArgs),
    Commit(commit::CommitArgs),
    Export(export::ExportArgs),
}

impl OnContainers {
    pub fn run(self, root: Option<PathBuf>) -> Result<ExitCode, CliError> {
        let failed = |error: CliError| error.with_exit_code(EXIT_CORACLE_FAILED);
        match self {
            Self::Run(args) => run::run(root, *args).map_err(failed),
            Self::Create(args) => create::run(root, *args).map_err(failed),
            Self::Start(args) => start::run(root, args),
            Self::Stop(args) => stop::run(root, args),
            Self::Restart(args) => restart::run(root, args),
            Self::Kill(args) => kill::run(root, args),
            Self::Pause(args) => pause::pause(root, args),
            Self::Unpause(args) => pause::unpause(root, args),
            Self::Wait(args) => wait::run(root, args),
            Self::Attach(args) => attach::run(root, args),
            Self::Exec(args) => exec::run(root, args).map_err(|error| error.with_exit_code(EXIT_FAILURE)),
            Self::Rename(args) => rename::run(root, args),
            Self::Rm(args) => rm::run(root, args),
            Self::Logs(args) => logs::run(root, args),
            Self::Top(args) => top::run(root, args),
            Self::Stats(args) => stats::run(root, args),
            Self::Port(args) => port::run(root, args),
            Self::Update(args) => update::run(root, *args),
            Self::Cp(args) => cp::run(root, args),
            Self::Diff(args) => diff::run(root, args),
            Self::Commit(args) => commit::run(root, args),
            Self::Export(args) => export::run(root, args),
        }
    }
}

// Named alike with and without `image` before it.
#[derive(Subcommand)]
#[command(defer = true)]
pub enum OnImages {
    Pull(pull::PullArgs),
    Push(push::PushArgs),
    Tag(tag::TagArgs),
    History(history::HistoryArgs),
    Load(load::LoadArgs),
    Save(save::SaveArgs),
    Import(import::ImportArgs),
}

impl OnImages {
    pub fn run(self, root: Option<PathBuf>) -> Result<ExitCode, CliError> {
        match self {
            Self::Pull(args) => pull::run(root, args),
            Self::Push(args) => push::run(root, args),
            Self::Tag(args) => tag::run(root, args),
            Self::History(args) => history::run(root, args),
            Self::Load(args) => load::run(root, args),
            Self::Save(args) => save::run(root, args),
            Self::Import(args) => import::run(root, args),
        }
    }
}

#[derive(Subcommand)]
#[command(defer = true)]
pub enum ContainerCommand {
    #[command(flatten)]
    Alike(OnContainers),
    #[command(visible_aliases = ["list", "ps"])]
    Ls(ps::PsArgs),
    Inspect(inspect::InspectArgs),
    Prune(prune::ContainerPruneArgs),
}

impl ContainerCommand {
    pub fn run(self, root: Option<PathBuf>) -> Result<ExitCode, CliError> {
        match self {
            Self::Alike(command) => command.run(root),
            Self::Ls(args) => ps::run(root, args),
            Self::Inspect(args) => inspect::run(root, args.only(Kind::Container)),
            Self::Prune(args) => prune::containers(root, args),
        }
    }
}

#[derive(Subcommand)]
#[command(defer = true)]
pub enum ImageCommand {
    #[command(flatten)]
    Alike(OnImages),
    #[command(visible_alias = "list")]
    Ls(images::ImagesArgs),
    #[command(visible_alias = "remove")]
    Rm(rmi::RmiArgs),
    Inspect(inspect::InspectArgs),
    Prune(prune::ImagePruneArgs),
}

impl ImageCommand {
    pub fn run(self, root: Option<PathBuf>) -> Result<ExitCode, CliError> {
        match self {
            Self::Alike(command) => command.run(root),
            Self::Ls(args) => images::run(root, args),
            Self::Rm(args) => rmi::run(root, args),
            Self::Inspect(args) => inspect::run(root, args.only(Kind::Image)),
            Self::Prune(args) => prune::images(root, args),
        }
    }
}

#[derive(Subcommand)]
#[command(defer = true)]
pub enum SystemCommand {
    Boot(boot::BootArgs),
    Events(events::EventsArgs),
    Info(info::InfoArgs),
    InstallUnit(boot::InstallUnitArgs),
    Df(df::DfArgs),
    Prune(prune::SystemPruneArgs),
    Reset(reset::ResetArgs),
}

impl SystemCommand {
    pub fn run(self, root: Option<PathBuf>) -> Result<ExitCode, CliError> {
        match self {
            Self::Boot(args) => boot::boot(root, args),
            Self::Events(args) => events::run(root, args),
            Self::Info(args) => info::run(root, args),
            Self::InstallUnit(args) => boot::install_unit(root, args),
            Self::Df(args) => df::run(root, args),
            Self::Prune(args) => prune::system(root, args),
            Self::Reset(args) => reset::run(root, args),
        }
    }
}
