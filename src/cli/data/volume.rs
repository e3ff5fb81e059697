//! `coracle volume`: create, ls, inspect, rm, prune.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use coracle_runtime::UserNs;
use serde_json::{Value, json};

use super::super::confirm::confirm;
use super::super::error::{CliError, line};
use super::super::filter::Filters;
use super::super::format::Format;
use super::super::{moment, table};
use crate::engine::quota::{self, Charge, DiskSize};
use crate::engine::volumes::{self, Volume, VolumeError};
use crate::engine::{Engine, container};

const COLUMNS: &str = "{{.Driver}}\t{{.Name}}";
const HEADINGS: [(&str, &str); 1] = [("Name", "VOLUME NAME")];
/// The one kind there is: directories.
const DRIVER: &str = "local";

/// Manage volumes
#[derive(Args)]
#[command(disable_help_subcommand = true)]
pub struct VolumeArgs {
    #[command(subcommand)]
    command: VolumeCommand,
}

#[derive(Subcommand)]
#[command(defer = true)]
enum VolumeCommand {
    Create(CreateArgs),
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    Inspect(InspectArgs),
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
    Prune(PruneArgs),
}

/// Make a volume
#[derive(Args)]
struct CreateArgs {
    /// Set a label
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    label: Vec<String>,
    /// What may be written: SIZE[,inodes=N][,backend=project|fuse]; under fuse one container at a time
    #[arg(long, value_name = "SIZE[,inodes=N]")]
    size: Option<DiskSize>,
    /// Kind of volume; only local
    #[arg(short, long, default_value = DRIVER)]
    driver: String,
    /// Name [default: random]
    name: Option<String>,
}

/// List volumes
#[derive(Args)]
struct LsArgs {
    /// Show only names
    #[arg(short, long)]
    quiet: bool,
    /// Keep volumes with dangling=, driver=, label= or name=
    #[arg(short, long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
    /// json, or a Go template such as '{{.Name}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

/// Show everything about volumes as JSON
#[derive(Args)]
struct InspectArgs {
    /// json, or a Go template such as '{{.Mountpoint}}'
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Volumes, by name
    #[arg(required = true)]
    volumes: Vec<String>,
}

/// Remove volumes that no container uses
#[derive(Args)]
struct RmArgs {
    /// A volume that is not there is no error
    #[arg(short, long)]
    force: bool,
    /// Volumes, by name
    #[arg(required = true)]
    volumes: Vec<String>,
}

/// Remove the unnamed volumes that no container uses
#[derive(Args)]
pub struct PruneArgs {
    /// Also those that somebody named
    #[arg(short, long)]
    pub all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
    /// Keep volumes without label=, or with label!=
    #[arg(long = "filter", value_name = "KEY=VALUE")]
    pub filters: Vec<String>,
}

/// Runs one of the commands.
pub fn run(root: Option<PathBuf>, args: VolumeArgs) -> Result<ExitCode, CliError> {
    let engine = Engine::open(root)?;
    match args.command {
        VolumeCommand::Create(args) => create(&engine, args),
        VolumeCommand::Ls(args) => ls(&engine, &args),
        VolumeCommand::Inspect(args) => inspect(&engine, args),
        VolumeCommand::Rm(args) => rm(&engine, args),
        VolumeCommand::Prune(args) => {
            let what = if args.all { "all volumes" } else { "all anonymous volumes" };
            let warning = format!("WARNING! This will remove {what} that no container uses.");
            if !args.force && !confirm(&warning) {
                return Ok(ExitCode::SUCCESS);
            }
            let filters = Filters::parse(&args.filters, &["label"])?;
            let pruned = prune(&engine, args.all, &filters)?;
            report(&pruned);
            line(&format!("Total reclaimed space: {}", table::human_size(pruned.bytes)));
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn create(engine: &Engine, args: CreateArgs) -> Result<ExitCode, CliError> {
    if args.driver != DRIVER {
        return Err(CliError::message(format!("volume driver {:?} is not implemented; there is local", args.driver)));
    }
    let pairs = args.label.iter().map(|label| label.split_once('=').unwrap_or((label, "")));
    let labels: BTreeMap<String, String> = pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    if labels.keys().any(String::is_empty) {
        return Err(CliError::message("a label needs a name"));
    }
    volumes::sweep(engine)?;
    let name = match args.name {
        Some(name) => name,
        None => container::new_id()?,
    };
    let idmap = engine.idmap(UserNs::Auto)?;
    let limit = args.size.map(|size| quota::choose_for_volume(engine.root(), &idmap, size)).transpose()?;
    let charge = limit.as_ref().map_or(Charge::Nothing, Charge::Own);
    let (volume, made) = volumes::create(engine.root(), &name, labels, None, charge)?;
    if let (Some(limit), false) = (&limit, made)
        && volume.record.disk.as_ref().map(|had| had.bytes) != Some(limit.bytes)
    {
        return Err(CliError::message(format!("volume {name} is there already, with another size")));
    }
    line(&name);
    Ok(ExitCode::SUCCESS)
}

fn ls(engine: &Engine, args: &LsArgs) -> Result<ExitCode, CliError> {
    let filters = Filters::parse(&args.filters, &["dangling", "driver", "label", "name"])?;
    let dangling = filters.truth("dangling")?;
    let format = Format::listing(args.format.as_deref(), COLUMNS)?.headed(&HEADINGS);
    let mut rows = Vec::new();
    for volume in volumes::list(engine.root()) {
        let record = &volume.record;
        let kept = filters.labels("label", |key| record.labels.get(key).map(String::as_str))
            && filters.any("name", |part| record.name.contains(part))
            && filters.any("driver", |driver| driver == DRIVER)
            && dangling.is_none_or(|wanted| wanted == volumes::users_of(engine.root(), &record.name).is_empty());
        if kept {
            rows.push(describe(&volume));
        }
    }
    if args.quiet {
        rows.iter().for_each(|row| line(row["Name"].as_str().unwrap_or_default()));
    } else {
        format.print(&rows)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn inspect(engine: &Engine, args: InspectArgs) -> Result<ExitCode, CliError> {
    let mut rows = Vec::new();
    for name in args.volumes {
        let volume = volumes::find(engine.root(), &name)?.ok_or(VolumeError::Unknown(name))?;
        rows.push(describe(&volume));
    }
    match args.format.as_deref() {
        None => table::print_json(&rows)?,
        Some(format) => Format::parse(format)?.print(&rows)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Gives a volume under docker's names.
pub fn describe(volume: &Volume) -> Value {
    let record = &volume.record;
    let seconds = i64::try_from(record.created_ns / 1_000_000_000).unwrap_or(i64::MAX);
    let created = jiff::Timestamp::from_second(seconds).map(|at| at.to_string()).unwrap_or_default();
    json!({
        "Name": record.name,
        "Driver": DRIVER,
        "Mountpoint": volume.data(),
        "CreatedAt": created,
        "Created": moment::created_at(seconds),
        "Labels": record.labels,
        "Options": {},
        "Scope": DRIVER,
        "Anonymous": record.anonymous_for.is_some(),
        // Ours: only where it has a limit of its own.
        "Disk": quota::volume_usage(volume),
    })
}

/// Removes each volume; what fails is said, and the others are removed nevertheless.
fn rm(engine: &Engine, args: RmArgs) -> Result<ExitCode, CliError> {
    volumes::sweep(engine)?;
    let mut code = ExitCode::SUCCESS;
    for name in args.volumes {
        match volumes::remove(engine, &name, None) {
            Ok(()) => line(&name),
            Err(crate::engine::EngineError::Volume(VolumeError::Unknown(_))) if args.force => line(&name),
            Err(error) => code = CliError::from(error).report(),
        }
    }
    Ok(code)
}

/// Is what a pruning took away.
pub struct Pruned {
    pub names: Vec<String>,
    pub bytes: u64,
}

/// Removes the volumes that no container uses.
pub fn prune(engine: &Engine, all: bool, filters: &Filters) -> Result<Pruned, CliError> {
    volumes::sweep(engine)?;
    let mut pruned = Pruned { names: Vec::new(), bytes: 0 };
    for volume in volumes::list(engine.root()) {
        let record = &volume.record;
        let meant = (all || record.anonymous_for.is_some())
            && filters.labels("label", |key| record.labels.get(key).map(String::as_str));
        if !meant || !volumes::users_of(engine.root(), &record.name).is_empty() {
            continue;
        }
        let bytes = volumes::size(engine, &volume)?;
        match volumes::remove(engine, &record.name, None) {
            Ok(()) => {
                pruned.bytes += bytes;
                pruned.names.push(record.name.clone());
            }
            // Taken into use, or removed by somebody else, this moment.
            Err(crate::engine::EngineError::Volume(VolumeError::InUse { .. } | VolumeError::Unknown(_))) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(pruned)
}

/// Lists what was pruned as docker does.
pub fn report(pruned: &Pruned) {
    if !pruned.names.is_empty() {
        line("Deleted Volumes:");
        pruned.names.iter().for_each(|name| line(name));
        line("");
    }
}
