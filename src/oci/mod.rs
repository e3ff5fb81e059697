//! `coracle-oci`: the runc-compatible command line, for other people's tools and test suites.
//!
//! It keeps containers in directories of its own (`runtime::container`) and starts them with exactly
//! the code that `coracle run` uses. Errors are one line on stderr, and in `--log` in runc's form.

mod create;
mod delete;
mod error;
mod events;
mod exec;
mod features;
mod journal;
mod kill;
mod list;
mod notify;
mod pause;
mod place;
mod processes;
mod rootless;
mod spec;
mod streams;
mod update;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::{ContextKind, ErrorKind};
use clap::{Parser, Subcommand, ValueEnum};
use coracle_runtime::cgroup::Kind;
use coracle_runtime::defaults::OCI_VERSION;

use error::OciError;
use journal::Journal;
use place::Place;

/// Start and control containers from OCI bundles.
#[derive(Parser)]
#[command(name = "coracle-oci", disable_version_flag = true, disable_help_subcommand = true)]
struct Cli {
    /// Keep the containers' state in DIR
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Append errors to FILE
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Write the log as text or json
    #[arg(long, value_enum, default_value = "text")]
    log_format: journal::Format,
    /// Log more than errors
    #[arg(long)]
    debug: bool,
    /// Who makes cgroups [default: us, in whatever place is ours]; "disabled" ignores limits
    #[arg(long, value_enum)]
    cgroup_manager: Option<CgroupManager>,
    /// The same as --cgroup-manager=systemd
    #[arg(long)]
    systemd_cgroup: bool,
    /// Accepted for runc's sake: whether we are rootless is seen, not told
    #[arg(long, value_name = "true|false|auto")]
    rootless: Option<String>,
    /// Print the version
    #[arg(short = 'v', long)]
    version: bool,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CgroupManager {
    Disabled,
    Cgroupfs,
    Systemd,
}

#[derive(Subcommand)]
enum Command {
    Create(create::CreateArgs),
    Run(create::RunArgs),
    Start(create::StartArgs),
    State(list::StateArgs),
    Kill(kill::KillArgs),
    Delete(delete::DeleteArgs),
    List(list::ListArgs),
    Exec(Box<exec::ExecArgs>),
    Ps(processes::PsArgs),
    Pause(pause::PauseArgs),
    Resume(pause::ResumeArgs),
    Update(Box<update::UpdateArgs>),
    Events(events::EventsArgs),
    Spec(spec::SpecArgs),
    Features(features::FeaturesArgs),
}

/// What this runtime can do, in crun's form; programs that drive crun look for the words.
const FEATURES: &str = "+SYSTEMD +CAP +SECCOMP";

/// What every command gets.
struct Context {
    place: Place,
    journal: Journal,
    cgroups: Kind,
}

/// Parses the arguments and runs one command.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    if cli.version {
        list::print(&format!("coracle-oci version {}\nspec: {OCI_VERSION}\n{FEATURES}", env!("CARGO_PKG_VERSION")));
        return ExitCode::SUCCESS;
    }
    let journal = match Journal::open(cli.log.as_deref(), cli.log_format, cli.debug) {
        Ok(journal) => journal,
        Err(error) => return Journal::default().fail(&error),
    };
    match dispatch(cli, &journal) {
        Ok(code) => code,
        Err(error) => journal.fail(&error),
    }
}

fn dispatch(cli: Cli, journal: &Journal) -> Result<ExitCode, OciError> {
    let cgroups = match (cli.cgroup_manager, cli.systemd_cgroup) {
        (Some(CgroupManager::Disabled), _) => Kind::Disabled,
        (Some(CgroupManager::Systemd), _) | (_, true) => Kind::Systemd,
        (Some(CgroupManager::Cgroupfs), _) => Kind::Cgroupfs,
        (None, false) => Kind::Auto,
    };
    let Some(command) = cli.command else {
        return Err(OciError::NoCommand);
    };
    let context = Context { place: Place::new(cli.root), journal: journal.clone(), cgroups };
    match command {
        Command::Create(args) => create::create(&context, &args),
        Command::Run(args) => create::run(&context, &args),
        Command::Start(args) => create::start(&context, &args),
        Command::State(args) => list::state(&context, &args),
        Command::Kill(args) => kill::kill(&context, &args),
        Command::Delete(args) => delete::delete(&context, &args),
        Command::List(args) => list::list(&context, &args),
        Command::Exec(args) => exec::exec(&context, &args),
        Command::Ps(args) => processes::ps(&context, &args),
        Command::Pause(args) => pause::pause(&context, &args),
        Command::Resume(args) => pause::resume(&context, &args),
        Command::Update(args) => update::update(&context, &args),
        Command::Events(args) => events::events(&context, &args),
        Command::Spec(args) => spec::spec(&args),
        Command::Features(_) => features::features(),
    }
}

/// Prints help where it was asked for; refuses what we have not by its name.
fn usage(error: &clap::Error) -> ExitCode {
    let what = |kind| error.get(kind).map(ToString::to_string).unwrap_or_default();
    let journal = Journal::default();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::UnknownArgument => journal.fail(&OciError::UnknownFlag(what(ContextKind::InvalidArg))),
        ErrorKind::InvalidSubcommand => journal.fail(&OciError::UnknownCommand(what(ContextKind::InvalidSubcommand))),
        ErrorKind::MissingRequiredArgument => journal.fail(&OciError::MissingArgument(what(ContextKind::InvalidArg))),
        _ => {
            // The first line says it all; the rest is usage, which --help prints.
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            journal.fail(&OciError::Usage(line.trim_start_matches("error: ").to_owned()))
        }
    }
}
