//! `coracle inspect` for images.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use coracle_images::{Image, Reference};
use serde_json::{Value, json};

use super::error::CliError;
use super::table;
use crate::engine::{Engine, EngineError};

/// Show everything about images as JSON
#[derive(Args)]
pub struct InspectArgs {
    /// Images, by name or id
    #[arg(required = true)]
    images: Vec<String>,
}

/// Prints one array with an object for each image, under docker's keys.
pub fn run(root: Option<PathBuf>, args: InspectArgs) -> Result<ExitCode, CliError> {
    let engine = Engine::open(root)?;
    let mut all = Vec::new();
    for name in args.images {
        let image = engine.store().find(&name)?.ok_or(EngineError::UnknownImage(name))?;
        all.push(describe(&image));
    }
    table::print_json(&all)?;
    Ok(ExitCode::SUCCESS)
}

fn describe(image: &Image) -> Value {
    let tags: Vec<String> = image.names.iter().map(Reference::familiar).collect();
    let mut digests: Vec<String> =
        image.names.iter().map(|name| format!("{}@{}", name.familiar_name(), image.manifest)).collect();
    digests.dedup();
    let layers: Vec<String> = image.layers.iter().map(|layer| layer.diff_id.to_string()).collect();
    json!({
        "Id": image.id.to_string(),
        "RepoTags": tags,
        "RepoDigests": digests,
        "Created": image.config.created(),
        "Author": image.config.author().clone().unwrap_or_default(),
        "Architecture": image.config.architecture().to_string(),
        "Variant": image.config.variant(),
        "Os": image.config.os().to_string(),
        "Size": image.size_bytes,
        "Config": image.config.config(),
        "RootFS": { "Type": "layers", "Layers": layers },
    })
}
