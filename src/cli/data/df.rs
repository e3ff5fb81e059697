//! `coracle system df`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::super::error::{CliError, line};
use super::super::format::Format;
use super::super::table::human_size;
use crate::engine::Engine;
use crate::engine::housekeeping::{self, Usage};

const COLUMNS: &str = "{{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}";
const HEADINGS: [(&str, &str); 1] = [("TotalCount", "TOTAL")];
const VERBOSE: &str = "{{.Name}}\t{{.Active}}\t{{.Size}}";

/// Show what images, containers and volumes take on disk
#[derive(Args)]
pub struct DfArgs {
    /// List each of them
    #[arg(short, long)]
    verbose: bool,
    /// json, or a Go template such as '{{.Type}}'
    #[arg(long, value_name = "FORMAT", conflicts_with = "verbose")]
    format: Option<String>,
}

/// Measures and shows it.
pub fn run(root: Option<PathBuf>, args: DfArgs) -> Result<ExitCode, CliError> {
    let format = Format::listing(args.format.as_deref(), COLUMNS)?.headed(&HEADINGS);
    let used = housekeeping::disk_usage(&Engine::open(root)?)?;
    if args.verbose {
        for (title, rows) in
            [("Images", &used.images), ("Containers", &used.containers), ("Local Volumes", &used.volumes)]
        {
            line(&format!("{title} space usage:\n"));
            let rows: Vec<Value> = rows.iter().map(each).collect();
            Format::listing(None, VERBOSE)?.print(&rows)?;
            line("");
        }
        return Ok(ExitCode::SUCCESS);
    }
    let rows = [
        row("Images", &used.images, used.images_bytes, used.images_free_bytes),
        summed("Containers", &used.containers),
        summed("Local Volumes", &used.volumes),
    ];
    format.print(&rows)?;
    Ok(ExitCode::SUCCESS)
}

fn each(usage: &Usage) -> Value {
    json!({"Name": usage.name, "Active": usage.active, "Size": human_size(usage.bytes)})
}

fn summed(title: &str, list: &[Usage]) -> Value {
    let sum = |wanted: &dyn Fn(&Usage) -> bool| -> u64 {
        list.iter().filter(|usage| wanted(usage)).map(|usage| usage.bytes).sum()
    };
    row(title, list, sum(&|_| true), sum(&|usage| !usage.active))
}

fn row(title: &str, list: &[Usage], bytes: u64, free_bytes: u64) -> Value {
    let percent = (free_bytes * 100).checked_div(bytes).unwrap_or(0);
    json!({
        "Type": title,
        "TotalCount": list.len().to_string(),
        "Active": list.iter().filter(|usage| usage.active).count().to_string(),
        "Size": human_size(bytes),
        "Reclaimable": format!("{} ({percent}%)", human_size(free_bytes)),
    })
}
