//! `coracle images`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use coracle_images::{Image, Reference};
use serde::Serialize;

use super::error::{CliError, line};
use super::table::{self, Format};
use crate::engine::Engine;

/// List the images that are here
#[derive(Args)]
#[command(visible_alias = "image-list")]
pub struct ImagesArgs {
    /// Show only ids
    #[arg(short, long)]
    quiet: bool,
    /// Show whole ids
    #[arg(long)]
    no_trunc: bool,
    /// Show digests of manifests
    #[arg(long)]
    digests: bool,
    /// table or json
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Only images of this repository or this reference
    reference: Option<String>,
}

/// Is one line of the listing, under docker's names.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    repository: String,
    tag: String,
    digest: String,
    #[serde(rename = "ID")]
    id: String,
    created_at: Option<String>,
    created_since: String,
    size: String,
    size_bytes: u64,
}

/// Lists the images.
pub fn run(root: Option<PathBuf>, args: ImagesArgs) -> Result<ExitCode, CliError> {
    let engine = Engine::open(root)?;
    let wanted = args.reference.as_deref().map(str::parse::<Reference>).transpose()?;
    let tag_given =
        args.reference.as_deref().is_some_and(|text| text.rsplit('/').next().is_some_and(|n| n.contains(':')));
    let mut rows = Vec::new();
    for image in engine.store().list()? {
        let names: Vec<Option<&Reference>> = match image.names.as_slice() {
            [] => vec![None],
            names => names.iter().map(Some).collect(),
        };
        for name in names {
            if matches(name, wanted.as_ref(), tag_given) {
                rows.push(row(&image, name, args.no_trunc));
            }
        }
    }
    if args.quiet {
        rows.iter().for_each(|row| line(&row.id));
    } else if args.format == Format::Json {
        table::print_json(&rows)?;
    } else {
        print_table(&rows, args.digests);
    }
    Ok(ExitCode::SUCCESS)
}

fn matches(name: Option<&Reference>, wanted: Option<&Reference>, tag_given: bool) -> bool {
    match (name, wanted) {
        (_, None) => true,
        (None, Some(_)) => false,
        (Some(name), Some(wanted)) => {
            name.registry() == wanted.registry()
                && name.repository() == wanted.repository()
                && (!tag_given || name.tag() == wanted.tag())
        }
    }
}

fn row(image: &Image, name: Option<&Reference>, whole: bool) -> Row {
    let id = if whole { image.id.to_string() } else { image.id.short().to_owned() };
    let none = || "<none>".to_owned();
    Row {
        repository: name.map_or_else(none, Reference::familiar_name),
        tag: name.and_then(|name| name.tag().map(str::to_owned)).unwrap_or_else(none),
        digest: image.manifest.to_string(),
        id,
        created_at: image.config.created().clone(),
        created_since: table::age_of(image.config.created().as_deref()),
        size: table::human_size(image.size_bytes),
        size_bytes: image.size_bytes,
    }
}

fn print_table(rows: &[Row], digests: bool) {
    let headings: &[&str] = if digests {
        &["REPOSITORY", "TAG", "DIGEST", "IMAGE ID", "CREATED", "SIZE"]
    } else {
        &["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"]
    };
    let cells = rows.iter().map(|row| {
        let mut cells = vec![row.repository.clone(), row.tag.clone()];
        if digests {
            cells.push(row.digest.clone());
        }
        cells.extend([row.id.clone(), row.created_since.clone(), row.size.clone()]);
        cells
    });
    table::print(headings, &cells.collect::<Vec<_>>());
}
