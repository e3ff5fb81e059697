//! `coracle history`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use coracle_images::{HistoryEntry, Image};
use serde::Serialize;

use super::error::{CliError, line};
use super::table::{self, Format};
use crate::engine::{Engine, EngineError};

/// What docker shows of a step without --no-trunc.
const CREATED_BY_CHARS: usize = 45;

/// Show how an image was made
#[derive(Args)]
pub struct HistoryArgs {
    /// Show whole commands
    #[arg(long)]
    no_trunc: bool,
    /// Show only ids
    #[arg(short, long)]
    quiet: bool,
    /// table or json
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Image, by name or id
    image: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Step {
    #[serde(rename = "ID")]
    id: String,
    created_at: Option<String>,
    created_since: String,
    created_by: String,
    size: u64,
    comment: String,
}

/// Prints the steps, newest first.
pub fn run(root: Option<PathBuf>, args: HistoryArgs) -> Result<ExitCode, CliError> {
    let engine = Engine::open(root)?;
    let image = engine.store().find(&args.image)?.ok_or(EngineError::UnknownImage(args.image))?;
    let steps = steps(&image, args.no_trunc);
    if args.quiet {
        steps.iter().for_each(|step| line(&step.id));
    } else if args.format == Format::Json {
        table::print_json(&steps)?;
    } else {
        let rows = steps.iter().map(|step| {
            let size = table::human_size(step.size);
            vec![step.id.clone(), step.created_since.clone(), step.created_by.clone(), size, step.comment.clone()]
        });
        table::print(&["IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"], &rows.collect::<Vec<_>>());
    }
    Ok(ExitCode::SUCCESS)
}

/// Gives the steps as docker names their parts, newest first.
fn steps(image: &Image, whole: bool) -> Vec<Step> {
    let mut steps: Vec<Step> = image.history().into_iter().rev().map(|entry| step(entry, whole)).collect();
    if let Some(newest) = steps.first_mut() {
        newest.id = if whole { image.id.to_string() } else { image.id.short().to_owned() };
    }
    steps
}

fn step(entry: HistoryEntry, whole: bool) -> Step {
    let created_by = entry.created_by.unwrap_or_default();
    let short = created_by.chars().count() > CREATED_BY_CHARS && !whole;
    Step {
        id: "<missing>".to_owned(),
        created_since: table::age_of(entry.created.as_deref()),
        created_at: entry.created,
        created_by: if short {
            created_by.chars().take(CREATED_BY_CHARS - 1).chain(['…']).collect()
        } else {
            created_by
        },
        size: entry.layer.map_or(0, |layer| layer.size_bytes),
        comment: entry.comment.unwrap_or_default(),
    }
}
