//! `coracle images`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use coracle_images::{Image, Reference};
use serde_json::{Value, json};

use super::error::{CliError, line};
use super::filter::{FilterError, Filters, glob};
use super::format::Format;
use super::{moment, table};
use crate::engine::{Engine, EngineError};

const COLUMNS: &str = "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}";
const COLUMNS_WITH_DIGESTS: &str = "{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}";
const HEADINGS: [(&str, &str); 2] = [("ID", "IMAGE ID"), ("CreatedSince", "CREATED")];
const FILTERS: [&str; 6] = ["before", "dangling", "label", "reference", "since", "until"];

/// List the images that are here
#[derive(Args)]
pub struct ImagesArgs {
    /// Accepted; there are no images but those shown
    #[arg(short, long)]
    all: bool,
    /// Show only ids
    #[arg(short, long)]
    quiet: bool,
    /// Show whole ids
    #[arg(long)]
    no_trunc: bool,
    /// Show digests of manifests
    #[arg(long)]
    digests: bool,
    /// Keep images with before=, since=, dangling=, label=, reference= or until=
    #[arg(short, long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
    /// json, or a Go template such as '{{.Repository}}' or 'table {{.ID}}\t{{.Size}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Only images of this repository, reference or pattern
    reference: Option<String>,
}

/// Lists the images.
pub fn run(root: Option<PathBuf>, args: ImagesArgs) -> Result<ExitCode, CliError> {
    let filters = Filters::parse(&args.filters, &FILTERS)?;
    let dangling = filters.truth("dangling")?;
    let columns = if args.digests { COLUMNS_WITH_DIGESTS } else { COLUMNS };
    let format = Format::listing(args.format.as_deref(), columns)?.headed(&HEADINGS);
    let engine = Engine::open(root)?;
    let (after, before) = bounds(&engine, &filters)?;
    let patterns: Vec<&String> = args.reference.iter().chain(filters.values("reference")).collect();
    let mut rows = Vec::new();
    for image in engine.store().list()? {
        let created = created_s(&image);
        let labels = image.config.config().as_ref().and_then(|config| config.labels().clone()).unwrap_or_default();
        let kept = filters.labels("label", |key| labels.get(key).map(String::as_str))
            && after.is_none_or(|after| created > after)
            && before.is_none_or(|before| created < before)
            && dangling.is_none_or(|dangling| dangling == image.names.is_empty());
        if !kept {
            continue;
        }
        let names: Vec<Option<&Reference>> = match image.names.as_slice() {
            [] => vec![None],
            names => names.iter().map(Some).collect(),
        };
        let named = names.into_iter().filter(|name| patterns.iter().all(|pattern| matches(*name, pattern)));
        rows.extend(named.map(|name| (created, row(&image, name, args.no_trunc))));
    }
    // Newest first, as in Docker; equal moments stay in the order of their names.
    rows.sort_by_key(|(created, _)| std::cmp::Reverse(*created));
    let rows: Vec<Value> = rows.into_iter().map(|(_, row)| row).collect();
    if args.quiet {
        rows.iter().for_each(|row| line(row["ID"].as_str().unwrap_or_default()));
    } else {
        format.print(&rows)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Gives the moments between which images are kept, by `since=IMAGE`, `before=IMAGE` and `until=TIME`.
fn bounds(engine: &Engine, filters: &Filters) -> Result<(Option<i64>, Option<i64>), CliError> {
    let moment_of = |name: &String| -> Result<i64, CliError> {
        let image = engine.store().find(name)?.ok_or_else(|| EngineError::UnknownImage(name.clone()))?;
        Ok(created_s(&image))
    };
    let (mut after, mut before) = (None, None);
    for name in filters.values("since") {
        after = after.max(Some(moment_of(name)?));
    }
    for name in filters.values("before") {
        let moment = moment_of(name)?;
        before = Some(before.map_or(moment, |before: i64| before.min(moment)));
    }
    for text in filters.values("until") {
        let until = moment::parse(text, jiff::Timestamp::now());
        let reason = |error: moment::MomentError| error.to_string();
        let until =
            until.map_err(|error| FilterError::Value { key: "until", value: text.clone(), reason: reason(error) })?;
        before = Some(before.map_or(until.as_second(), |before| before.min(until.as_second())));
    }
    Ok((after, before))
}

fn created_s(image: &Image) -> i64 {
    let created = image.config.created().as_deref().and_then(|text| text.parse::<jiff::Timestamp>().ok());
    created.map_or(0, jiff::Timestamp::as_second)
}

/// Matches `repository`, `repository:tag` and patterns of either, in the form that people write.
fn matches(name: Option<&Reference>, wanted: &str) -> bool {
    let Some(name) = name else { return false };
    let wanted_tag = wanted.rsplit('/').next().is_some_and(|last| last.contains(':'));
    if !wanted.contains(['*', '?']) {
        return wanted.parse::<Reference>().is_ok_and(|wanted| {
            name.registry() == wanted.registry()
                && name.repository() == wanted.repository()
                && (!wanted_tag || name.tag() == wanted.tag())
        });
    }
    glob(wanted, &if wanted_tag { name.familiar() } else { name.familiar_name() })
}

fn row(image: &Image, name: Option<&Reference>, whole: bool) -> Value {
    let created = image.config.created().as_deref().and_then(|text| text.parse::<jiff::Timestamp>().ok());
    let created = created.map(jiff::Timestamp::as_second);
    let size = table::human_size(image.size_bytes);
    json!({
        "Repository": name.map_or_else(|| "<none>".to_owned(), Reference::familiar_name),
        "Tag": name.and_then(Reference::tag).unwrap_or("<none>"),
        "Digest": image.manifest.to_string(),
        "ID": if whole { image.id.to_string() } else { image.id.short().to_owned() },
        "CreatedSince": created.map_or_else(|| "N/A".to_owned(), moment::ago),
        "CreatedAt": created.map_or_else(|| "N/A".to_owned(), moment::created_at),
        "Size": size,
        "VirtualSize": size,
        "SharedSize": "N/A",
        "UniqueSize": "N/A",
        "Containers": "N/A",
    })
}
