//! `coracle history`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use coracle_images::{HistoryEntry, Image};
use serde_json::{Value, json};

use super::error::{CliError, line};
use super::format::Format;
use super::{moment, table};
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
    /// json, or a Go template such as '{{.CreatedBy}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Image, by name or id
    image: String,
}

const COLUMNS: &str = "{{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}";
const HEADINGS: [(&str, &str); 2] = [("ID", "IMAGE"), ("CreatedSince", "CREATED")];

/// Prints the steps, newest first.
pub fn run(root: Option<PathBuf>, args: HistoryArgs) -> Result<ExitCode, CliError> {
    let format = Format::listing(args.format.as_deref(), COLUMNS)?.headed(&HEADINGS);
    let engine = Engine::open(root)?;
    let image = engine.store().find(&args.image)?.ok_or(EngineError::UnknownImage(args.image))?;
    let steps = steps(&image, args.no_trunc);
    if args.quiet {
        steps.iter().for_each(|step| line(step["ID"].as_str().unwrap_or_default()));
    } else {
        format.print(&steps)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Gives the steps as docker names their parts, newest first.
fn steps(image: &Image, whole: bool) -> Vec<Value> {
    let mut steps: Vec<Value> = image.history().into_iter().rev().map(|entry| step(entry, whole)).collect();
    if let Some(newest) = steps.first_mut() {
        newest["ID"] = if whole { image.id.to_string() } else { image.id.short().to_owned() }.into();
    }
    steps
}

fn step(entry: HistoryEntry, whole: bool) -> Value {
    let created_by = entry.created_by.unwrap_or_default();
    let short = created_by.chars().count() > CREATED_BY_CHARS && !whole;
    let created = entry.created.as_deref().and_then(|text| text.parse::<jiff::Timestamp>().ok());
    json!({
        "ID": "<missing>",
        "CreatedSince": created.map_or_else(|| "N/A".to_owned(), |then| moment::ago(then.as_second())),
        "CreatedAt": entry.created.unwrap_or_default(),
        "CreatedBy": if short {
            created_by.chars().take(CREATED_BY_CHARS - 1).chain(['…']).collect()
        } else {
            created_by
        },
        "Size": table::human_size(entry.layer.map_or(0, |layer| layer.size_bytes)),
        "Comment": entry.comment.unwrap_or_default(),
    })
}
