//! The command line: arguments in, exit code out. One file per command; its doc comment is its help.

mod attach;
mod boot;
mod completion;
mod confirm;
mod container;
mod create;
mod data;
pub mod error;
mod events;
mod exec;
mod filter;
pub mod format;
mod history;
mod images;
mod info;
mod inspect;
mod isolation;
mod kill;
mod limits;
mod load;
mod login;
mod logs;
mod man;
mod moment;
mod network;
mod nouns;
mod pause;
mod pool;
mod port;
mod progress;
mod provider;
mod ps;
mod pull;
mod push;
mod quota;
mod rename;
mod restart;
mod rm;
mod rmi;
mod run;
mod save;
mod scheduler;
mod several;
mod start;
mod stats;
mod stop;
mod table;
mod tag;
mod top;
mod update;
mod version;
mod wait;
mod words;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser, Subcommand};

pub use data::cp::{CpFlags, left_out};
use error::{CliError, EXIT_CORACLE_FAILED, note};

/// Run Docker images without root and without a daemon.
#[derive(Parser)]
#[command(name = "coracle", version, propagate_version = true, disable_help_subcommand = true)]
struct Cli {
    /// Keep images and containers in DIR [default: $CORACLE_ROOT, $XDG_DATA_HOME/coracle]
    #[arg(long, value_name = "DIR", global = true)]
    root: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
// What is not asked for is not built: that is nearly all of a start's time and memory.
#[command(defer = true)]
enum Command {
    #[command(flatten)]
    OnContainers(nouns::OnContainers),
    Ps(ps::PsArgs),
    Events(events::EventsArgs),
    #[command(flatten)]
    OnImages(nouns::OnImages),
    Images(images::ImagesArgs),
    Rmi(rmi::RmiArgs),
    Login(login::LoginArgs),
    Logout(login::LogoutArgs),
    Inspect(inspect::InspectArgs),
    Volume(data::volume::VolumeArgs),
    Network(data::network::NetworkCommandArgs),
    Unshare(data::unshare::UnshareArgs),
    Info(info::InfoArgs),
    Version(version::VersionArgs),
    /// Work with containers, by Docker's longer names
    #[command(subcommand)]
    Container(nouns::ContainerCommand),
    /// Work with images, by Docker's longer names
    #[command(subcommand)]
    Image(nouns::ImageCommand),
    /// Work with coracle as a whole
    #[command(subcommand)]
    System(nouns::SystemCommand),
    Scheduler(scheduler::SchedulerArgs),
    Provider(provider::ProviderArgs),
    Quota(quota::QuotaArgs),
    Pool(pool::PoolArgs),
    Completion(completion::CompletionArgs),
    Man(man::ManArgs),
}

/// Parses the arguments and runs one command.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => return usage(&told_by_all(args).unwrap_or(error)),
    };
    dispatch(cli.root, cli.command).unwrap_or_else(|error| error.report())
}

/// Parses once more with every command built, whose texts belong into a help or an error.
fn told_by_all(args: Vec<OsString>) -> Option<clap::Error> {
    whole().try_get_matches_from(args).err()
}

/// Gives the definition of all commands, with their flags and texts.
fn whole() -> clap::Command {
    let mut command = Cli::command();
    command.build();
    command
}

fn dispatch(root: Option<PathBuf>, command: Command) -> Result<ExitCode, CliError> {
    match command {
        Command::OnContainers(command) => command.run(root),
        Command::Ps(args) => ps::run(root, args),
        Command::Events(args) => events::run(root, args),
        Command::OnImages(command) => command.run(root),
        Command::Images(args) => images::run(root, args),
        Command::Rmi(args) => rmi::run(root, args),
        Command::Login(args) => login::login(args),
        Command::Logout(args) => login::logout(args),
        Command::Inspect(args) => inspect::run(root, args),
        Command::Volume(args) => data::volume::run(root, args),
        Command::Network(args) => data::network::run(root, args),
        Command::Unshare(args) => data::unshare::run(args),
        Command::Info(args) => info::run(root, args),
        Command::Version(args) => version::run(&args),
        Command::Container(command) => command.run(root),
        Command::Image(command) => command.run(root),
        Command::System(command) => command.run(root),
        Command::Scheduler(args) => scheduler::run(root, args),
        Command::Provider(args) => provider::run(root, args),
        Command::Quota(args) => quota::run(root, args),
        Command::Pool(args) => pool::run(args),
        Command::Completion(args) => completion::run(&args, whole()),
        Command::Man(args) => man::run(&args, whole()),
    }
}

/// Prints help where it was asked for; refuses an unknown flag by its name.
fn usage(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        ErrorKind::UnknownArgument => {
            let flag = context(error, ContextKind::InvalidArg);
            note(&format!("error: flag {flag} is not implemented"));
            if let Some(reason) = isolation::refusal(&flag) {
                note(&format!("hint: {reason}"));
                return ExitCode::from(EXIT_CORACLE_FAILED);
            }
            let near = error.get(ContextKind::SuggestedArg).map(ToString::to_string);
            // A mere likeness of letters is no hint: the two start the same or nothing is said.
            match near.filter(|near| near.chars().take(3).eq(flag.chars().take(3))) {
                Some(near) => note(&format!("hint: did you mean {near}?")),
                None => note("hint: add --help to see the flags that are"),
            }
        }
        ErrorKind::InvalidSubcommand => {
            let command = context(error, ContextKind::InvalidSubcommand);
            note(&format!("error: command {command} is not implemented"));
            let near = match error.get(ContextKind::SuggestedSubcommand) {
                // The likeliest is the last.
                Some(ContextValue::Strings(near)) => near.last().cloned(),
                Some(ContextValue::String(near)) => Some(near.clone()),
                _ => None,
            };
            match near {
                Some(near) => note(&format!("hint: did you mean {near}?")),
                None => note("hint: add --help to see the commands that are"),
            }
        }
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let run = std::env::args_os().any(|arg| arg == "run");
            note(&format!("error: no {} given", if run { "image" } else { "command" }));
            note("hint: add --help to see what the command needs");
        }
        ErrorKind::MissingRequiredArgument => {
            let missing = context(error, ContextKind::InvalidArg).to_lowercase();
            let missing = missing.trim_matches(['<', '>', '.']).trim_end_matches('s');
            note(&format!("error: no {missing} given"));
            note("hint: add --help to see what the command needs");
        }
        _ => {
            let text = error.render().to_string();
            let mut lines =
                text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("For more"));
            note(lines.next().unwrap_or("error: the command line is not understood"));
            match lines.next().filter(|line| line.starts_with('[')) {
                Some(values) => note(&format!("hint: {}", values.trim_matches(['[', ']']))),
                None => note("hint: add --help to see how it is used"),
            }
        }
    }
    ExitCode::from(EXIT_CORACLE_FAILED)
}

fn context(error: &clap::Error, kind: ContextKind) -> String {
    error.get(kind).map(ToString::to_string).unwrap_or_default()
}
