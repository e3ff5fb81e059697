//! `coracle container ls`, `coracle image rm` and so on: Docker's longer names of the same commands.

use clap::Subcommand;

use super::inspect::Kind;
use super::{Command, history, images, inspect, load, logs, port, ps, pull, push, rm, rmi, run, save, stats, tag, top};

/// Names what can be done to containers.
#[derive(Subcommand)]
pub enum ContainerCommand {
    Run(Box<run::RunArgs>),
    #[command(visible_aliases = ["list", "ps"])]
    Ls(ps::PsArgs),
    Rm(rm::RmArgs),
    Inspect(inspect::InspectArgs),
    Logs(logs::LogsArgs),
    Top(top::TopArgs),
    Stats(stats::StatsArgs),
    Port(port::PortArgs),
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
}

impl From<ContainerCommand> for Command {
    fn from(command: ContainerCommand) -> Self {
        match command {
            ContainerCommand::Run(args) => Self::Run(args),
            ContainerCommand::Ls(args) => Self::Ps(args),
            ContainerCommand::Top(args) => Self::Top(args),
            ContainerCommand::Stats(args) => Self::Stats(args),
            ContainerCommand::Port(args) => Self::Port(args),
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
        }
    }
}
