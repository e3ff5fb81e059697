//! `coracle diff`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::super::error::{CliError, line};
use super::super::format::Format;
use crate::engine::{Engine, transfer};
use crate::report::one_line;

/// List what a container changed of its image: A added, C changed, D deleted
#[derive(Args)]
pub struct DiffArgs {
    /// json, or a Go template such as '{{.Path}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Container, by name or id
    container: String,
}

/// Lists the changes.
pub fn run(root: Option<PathBuf>, args: DiffArgs) -> Result<ExitCode, CliError> {
    let format = args.format.as_deref().map(Format::parse).transpose()?;
    let engine = Engine::open(root)?;
    let changes = transfer::diff(&engine, &args.container)?;
    let rows = changes.iter().map(|(change, path)| (change.letter(), String::from_utf8_lossy(path)));
    match format {
        None => rows.for_each(|(letter, path)| line(&format!("{letter} {}", one_line(&path)))),
        Some(format) => {
            let rows: Vec<Value> =
                rows.map(|(letter, path)| json!({"Kind": letter.to_string(), "Path": path})).collect();
            format.print(&rows)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
