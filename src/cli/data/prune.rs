//! `coracle container prune`, `image prune` and `system prune`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::super::confirm::confirm;
use super::super::error::{CliError, line};
use super::super::filter::{FilterError, Filters};
use super::super::{moment, table};
use super::volume;
use crate::engine::Engine;
use crate::engine::containers::Container;
use crate::engine::housekeeping::{self, Pruned};

const FILTERS: [&str; 2] = ["label", "until"];

/// Remove containers that have ended
#[derive(Args)]
pub struct ContainerPruneArgs {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Only those with label= or made before until=
    #[arg(long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
}

/// Remove images that have no name
#[derive(Args)]
pub struct ImagePruneArgs {
    /// Also those with a name that no container uses
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Only those with label= or made before until=
    #[arg(long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
}

/// Remove everything that is not used
#[derive(Args)]
pub struct SystemPruneArgs {
    /// Also images with a name that no container uses
    #[arg(short, long)]
    all: bool,
    /// Also anonymous volumes that no container uses
    #[arg(long)]
    volumes: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Only what has label= or was made before until=
    #[arg(long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
}

/// Removes containers.
pub fn containers(root: Option<PathBuf>, args: ContainerPruneArgs) -> Result<ExitCode, CliError> {
    if !args.force && !confirm("WARNING! This will remove all containers that do not run.") {
        return Ok(ExitCode::SUCCESS);
    }
    let engine = Engine::open(root)?;
    let pruned = prune_containers(&engine, &Filters::parse(&args.filters, &FILTERS)?)?;
    report("Deleted Containers:", &pruned);
    total(pruned.bytes)
}

/// Removes images.
pub fn images(root: Option<PathBuf>, args: ImagePruneArgs) -> Result<ExitCode, CliError> {
    let what = if args.all { "all images that no container uses" } else { "all images without a name" };
    if !args.force && !confirm(&format!("WARNING! This will remove {what}.")) {
        return Ok(ExitCode::SUCCESS);
    }
    let engine = Engine::open(root)?;
    let pruned = prune_images(&engine, args.all, &Filters::parse(&args.filters, &FILTERS)?)?;
    report("Deleted Images:", &pruned);
    total(pruned.bytes)
}

/// Removes containers, then volumes where asked, then images: in this order the first free the others.
pub fn system(root: Option<PathBuf>, args: SystemPruneArgs) -> Result<ExitCode, CliError> {
    let volumes = if args.volumes { ", anonymous volumes" } else { "" };
    let images = if args.all { "and all images that no container uses" } else { "and images without a name" };
    let warning = format!("WARNING! This will remove all containers that do not run{volumes} {images}.");
    if !args.force && !confirm(&warning) {
        return Ok(ExitCode::SUCCESS);
    }
    let engine = Engine::open(root)?;
    let filters = Filters::parse(&args.filters, &FILTERS)?;
    let mut bytes = 0;
    let pruned = prune_containers(&engine, &filters)?;
    report("Deleted Containers:", &pruned);
    bytes += pruned.bytes;
    if args.volumes {
        let pruned = volume::prune(&engine, false, &filters)?;
        volume::report(&pruned);
        bytes += pruned.bytes;
    }
    let pruned = prune_images(&engine, args.all, &filters)?;
    report("Deleted Images:", &pruned);
    total(bytes + pruned.bytes)
}

fn prune_containers(engine: &Engine, filters: &Filters) -> Result<Pruned, CliError> {
    let until = until(filters)?;
    let meant = |container: &Container| {
        let created_s = i64::try_from(container.record.created_ns / 1_000_000_000).unwrap_or(i64::MAX);
        filters.labels("label", |key| container.record.labels.get(key).map(String::as_str))
            && until.is_none_or(|until| created_s < until)
    };
    Ok(housekeeping::prune_containers(engine, &meant)?)
}

fn prune_images(engine: &Engine, all: bool, filters: &Filters) -> Result<Pruned, CliError> {
    let until = until(filters)?;
    let meant = |image: &coracle_images::Image| {
        let labels = image.config.config().as_ref().and_then(|config| config.labels().clone()).unwrap_or_default();
        let created = image.config.created().as_deref().and_then(|text| text.parse::<jiff::Timestamp>().ok());
        let created_s = created.map_or(0, jiff::Timestamp::as_second);
        filters.labels("label", |key| labels.get(key).map(String::as_str))
            && until.is_none_or(|until| created_s < until)
    };
    Ok(housekeeping::prune_images(engine, all, &meant)?)
}

/// Gives the moment of `until=` in seconds since the epoch.
fn until(filters: &Filters) -> Result<Option<i64>, CliError> {
    let mut least: Option<i64> = None;
    for text in filters.values("until") {
        let parsed = moment::parse(text, jiff::Timestamp::now()).map_err(|error| FilterError::Value {
            key: "until",
            value: text.clone(),
            reason: error.to_string(),
        })?;
        least = Some(least.map_or(parsed.as_second(), |least| least.min(parsed.as_second())));
    }
    Ok(least)
}

fn report(heading: &str, pruned: &Pruned) {
    if !pruned.gone.is_empty() {
        line(heading);
        pruned.gone.iter().for_each(|name| line(name));
        line("");
    }
}

fn total(bytes: u64) -> Result<ExitCode, CliError> {
    line(&format!("Total reclaimed space: {}", table::human_size(bytes)));
    Ok(ExitCode::SUCCESS)
}
