//! `coracle container ls`, `coracle image rm` and so on: Docker's longer names of the same commands.

use clap::Subcommand;

use super::data::{DataCommand, HousekeepingCommand, commit, cp, diff, export, import, prune};
use super::inspect::Kind;
use super::{
    Command, attach, boot, create, exec, history, images, inspect, kill, load, logs, pause, port, ps, pull, push,
    rename, restart, rm, rmi, run, save, start, stats, stop, tag, top, update, wait,
};

/// Names what can be done to containers.
#[derive(Subcommand)]
pub enum ContainerCommand {
    Run(Box<run::RunArgs>),
    Create(Box<create::CreateArgs>),
    Start(start::StartArgs),
    Stop(stop::StopArgs),
    Restart(restart::RestartArgs),
    Kill(kill::KillArgs),
    Pause(pause::PauseArgs),
    /// Let paused containers go on
    Unpause(pause::PauseArgs),
    Wait(wait::WaitArgs),
    Attach(attach::AttachArgs),
    Exec(exec::ExecArgs),
    Rename(rename::RenameArgs),
    #[command(visible_aliases = ["list", "ps"])]
    Ls(ps::PsArgs),
    Rm(rm::RmArgs),
    Inspect(inspect::InspectArgs),
    Logs(logs::LogsArgs),
    Top(top::TopArgs),
    Stats(stats::StatsArgs),
    Port(port::PortArgs),
    Update(Box<update::UpdateArgs>),
    Cp(cp::CpArgs),
    Diff(diff::DiffArgs),
    Commit(commit::CommitArgs),
    Export(export::ExportArgs),
    Prune(prune::ContainerPruneArgs),
}

/// Names what is about the whole of coracle.
#[derive(Subcommand)]
pub enum SystemCommand {
    Boot(boot::BootArgs),
    InstallUnit(boot::InstallUnitArgs),
    #[command(flatten)]
    Housekeeping(HousekeepingCommand),
}

/// Names what can be done to images.
#[derive(Subcommand)]
pub enum ImageCommand {
    #[command(visible_alias = "list")]
    Ls(images::ImagesArgs),
    #[command(visible_alias = "remove")]
    Rm(rmi::RmiArgs),
    Pull(pull::PullArgs),
    Push(push::PushArgs),
    Tag(tag::TagArgs),
    Inspect(inspect::InspectArgs),
    History(history::HistoryArgs),
    Load(load::LoadArgs),
    Save(save::SaveArgs),
    Import(import::ImportArgs),
    Prune(prune::ImagePruneArgs),
}

impl From<ContainerCommand> for Command {
    fn from(command: ContainerCommand) -> Self {
        match command {
            ContainerCommand::Run(args) => Self::Run(args),
            ContainerCommand::Create(args) => Self::Create(args),
            ContainerCommand::Start(args) => Self::Start(args),
            ContainerCommand::Stop(args) => Self::Stop(args),
            ContainerCommand::Restart(args) => Self::Restart(args),
            ContainerCommand::Kill(args) => Self::Kill(args),
            ContainerCommand::Pause(args) => Self::Pause(args),
            ContainerCommand::Unpause(args) => Self::Unpause(args),
            ContainerCommand::Wait(args) => Self::Wait(args),
            ContainerCommand::Attach(args) => Self::Attach(args),
            ContainerCommand::Exec(args) => Self::Exec(args),
            ContainerCommand::Rename(args) => Self::Rename(args),
            ContainerCommand::Ls(args) => Self::Ps(args),
            ContainerCommand::Top(args) => Self::Top(args),
            ContainerCommand::Stats(args) => Self::Stats(args),
            ContainerCommand::Update(args) => Self::Update(args),
            ContainerCommand::Port(args) => Self::Port(args),
            ContainerCommand::Cp(args) => Self::Data(DataCommand::Cp(args)),
            ContainerCommand::Diff(args) => Self::Data(DataCommand::Diff(args)),
            ContainerCommand::Commit(args) => Self::Data(DataCommand::Commit(args)),
            ContainerCommand::Export(args) => Self::Data(DataCommand::Export(args)),
            ContainerCommand::Prune(args) => Self::Data(DataCommand::ContainerPrune(args)),
            ContainerCommand::Logs(args) => Self::Logs(args),
            ContainerCommand::Rm(args) => Self::Rm(args),
            ContainerCommand::Inspect(args) => Self::Inspect(args.only(Kind::Container)),
        }
    }
}

impl From<ImageCommand> for Command {
    fn from(command: ImageCommand) -> Self {
        match command {
            ImageCommand::Ls(args) => Self::Images(args),
            ImageCommand::Rm(args) => Self::Rmi(args),
            ImageCommand::Pull(args) => Self::Pull(args),
            ImageCommand::Push(args) => Self::Push(args),
            ImageCommand::Tag(args) => Self::Tag(args),
            ImageCommand::Inspect(args) => Self::Inspect(args.only(Kind::Image)),
            ImageCommand::History(args) => Self::History(args),
            ImageCommand::Load(args) => Self::Load(args),
            ImageCommand::Save(args) => Self::Save(args),
            ImageCommand::Import(args) => Self::Data(DataCommand::Import(args)),
            ImageCommand::Prune(args) => Self::Data(DataCommand::ImagePrune(args)),
        }
    }
}
