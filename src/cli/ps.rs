//! `coracle ps`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::error::{CliError, line};
use super::table::{self, Format};
use crate::engine::Engine;
use crate::engine::container::short_id;
use crate::engine::containers::{self, Container};

/// What docker shows of a command without --no-trunc.
const COMMAND_CHARS: usize = 20;

/// List containers
#[derive(Args)]
pub struct PsArgs {
    /// Also those that have ended
    #[arg(short, long)]
    all: bool,
    /// Show only ids
    #[arg(short, long)]
    quiet: bool,
    /// Show whole ids and commands
    #[arg(long)]
    no_trunc: bool,
    /// table or json
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    #[serde(rename = "ID")]
    id: String,
    image: String,
    command: String,
    created_since: String,
    state: &'static str,
    status: String,
    names: String,
}

/// Lists the containers.
pub fn run(root: Option<PathBuf>, args: PsArgs) -> Result<ExitCode, CliError> {
    let engine = Engine::open(root)?;
    let listed = containers::list(engine.root());
    let shown = listed.iter().filter(|container| args.all || container.status().is_active());
    let rows: Vec<Row> = shown.map(|container| row(container, args.no_trunc)).collect();
    if args.quiet {
        rows.iter().for_each(|row| line(&row.id));
    } else if args.format == Format::Json {
        table::print_json(&rows)?;
    } else {
        let cells = rows.iter().map(|row| {
            let (created, status) = (row.created_since.clone(), row.status.clone());
            vec![row.id.clone(), row.image.clone(), row.command.clone(), created, status, row.names.clone()]
        });
        table::print(&["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "NAMES"], &cells.collect::<Vec<_>>());
    }
    Ok(ExitCode::SUCCESS)
}

fn row(container: &Container, whole: bool) -> Row {
    let record = &container.record;
    let command = record.argv.join(" ");
    let short = command.chars().count() > COMMAND_CHARS && !whole;
    let command = if short { command.chars().take(COMMAND_CHARS - 1).chain(['…']).collect() } else { command };
    let state = container.status().word();
    let status = match &container.exit {
        Some(exit) if exit.unknown => "Exited (unknown)".to_owned(),
        Some(exit) => format!("Exited ({}) {}", exit.exit_code, age(exit.finished_ns)),
        None if container.status().is_active() => "Up".to_owned(),
        None => "Created".to_owned(),
    };
    Row {
        id: if whole { record.id.clone() } else { short_id(&record.id).to_owned() },
        image: record.image.clone(),
        command: format!("\"{command}\""),
        created_since: age(record.created_ns),
        state,
        status,
        names: record.name.clone().unwrap_or_default(),
    }
}

fn age(moment_ns: u64) -> String {
    table::age_since_epoch(moment_ns / 1_000_000_000)
}
