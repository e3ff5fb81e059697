//! `coracle ps`: reads records and states, takes no lock and changes nothing, so nothing can hold it up.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use coracle_images::{Image, Reference};
use serde_json::{Map, Value};

use super::error::{CliError, line};
use super::filter::{FilterError, Filters};
use super::format::Format;
use super::{moment, table, words};
use crate::engine::container::short_id;
use crate::engine::containers::{self, Container, Status};
use crate::engine::{Engine, usage};

/// What docker shows of a command without --no-trunc.
const COMMAND_CHARS: usize = 20;
const COLUMNS: &str = "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}";
const HEADINGS: [(&str, &str); 3] =
    [("ID", "CONTAINER ID"), ("RunningFor", "CREATED"), ("LocalVolumes", "LOCAL VOLUMES")];
const FILTERS: [&str; 10] =
    ["ancestor", "before", "exited", "health", "id", "label", "name", "since", "status", "volume"];
/// Docker's words for `--filter status=`; two of them never come true here.
const STATUSES: [&str; 7] = ["created", "restarting", "running", "removing", "paused", "exited", "dead"];
const HEALTHS: [&str; 4] = ["starting", "healthy", "unhealthy", "none"];
/// Signs of a regular expression that a name cannot contain.
const PATTERN_SIGNS: [char; 10] = ['*', '+', '?', '(', ')', '[', ']', '{', '}', '|'];

/// List containers
#[derive(Args)]
pub struct PsArgs {
    /// Also those that do not run
    #[arg(short, long)]
    all: bool,
    /// Show only ids
    #[arg(short, long)]
    quiet: bool,
    /// Show the N newest, however they are
    #[arg(short = 'n', long, value_name = "N", allow_hyphen_values = true)]
    last: Option<i64>,
    /// Show the newest, however it is
    #[arg(short, long)]
    latest: bool,
    /// Also show how much each has written
    #[arg(short, long)]
    size: bool,
    /// Show whole ids and commands
    #[arg(long)]
    no_trunc: bool,
    /// Keep containers with id=, name=, label=, status=, exited=, ancestor=, volume=, health=, before= or since=
    #[arg(short, long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
    /// json, or a Go template such as '{{.Names}}' or 'table {{.ID}}\t{{.Status}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

/// Lists the containers.
pub fn run(root: Option<PathBuf>, args: PsArgs) -> Result<ExitCode, CliError> {
    let filters = Filters::parse(&args.filters, &FILTERS)?;
    check(&filters)?;
    let columns = if args.size { format!("{COLUMNS}\t{{{{.Size}}}}") } else { COLUMNS.to_owned() };
    let format = Format::listing(args.format.as_deref(), &columns)?.headed(&HEADINGS);
    let engine = Engine::open(root)?;
    let keep = Keep::new(&engine, &filters)?;
    let most = match args.last {
        Some(count) if count >= 0 => usize::try_from(count).ok(),
        _ => args.latest.then_some(1),
    };
    // A status that was asked for by name is shown although it does not run.
    let all = args.all || most.is_some() || filters.has("status");
    // What a container has written is counted by another process, and none may be made beside threads.
    let list = if args.size { containers::list } else { containers::list_at_once };
    let kept = list(engine.root())
        .into_iter()
        .filter(|container| (all || container.status().is_active()) && keep.keeps(container));
    let rows: Vec<Value> = kept
        .take(most.unwrap_or(usize::MAX))
        .map(|container| {
            let mut row = row(&container, args.no_trunc, !args.quiet && !format.shows_own_columns());
            if args.size {
                row["Size"] = written(&engine, &container).into();
            }
            row
        })
        .collect();
    if args.quiet {
        rows.iter().for_each(|row| line(row["ID"].as_str().unwrap_or_default()));
    } else {
        format.print(&rows)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses values that could never match.
fn check(filters: &Filters) -> Result<(), FilterError> {
    let fail = |key, value: &String, reason: String| Err(FilterError::Value { key, value: value.clone(), reason });
    for value in filters.values("status") {
        if !STATUSES.contains(&value.as_str()) {
            return fail("status", value, format!("expected one of {}", STATUSES.join(", ")));
        }
    }
    for value in filters.values("health") {
        if !HEALTHS.contains(&value.as_str()) {
            return fail("health", value, format!("expected one of {}", HEALTHS.join(", ")));
        }
    }
    for value in filters.values("exited") {
        if value.parse::<i32>().is_err() {
            return fail("exited", value, "not an exit code".to_owned());
        }
    }
    for value in filters.values("name") {
        if value.contains(PATTERN_SIGNS) {
            return fail("name", value, "of regular expressions only ^ and $ are implemented".to_owned());
        }
    }
    Ok(())
}

/// Is what the filters mean, with names of containers and images looked up once.
struct Keep<'a> {
    filters: &'a Filters,
    after_ns: Option<u64>,
    before_ns: Option<u64>,
    ancestors: Vec<Ancestor>,
    images: Vec<Image>,
}

/// Is an image named by `--filter ancestor=`.
struct Ancestor {
    asked: String,
    name: Option<Reference>,
    image: Option<Image>,
}

impl<'a> Keep<'a> {
    fn new(engine: &Engine, filters: &'a Filters) -> Result<Self, CliError> {
        let created = |wanted: &String| -> Result<u64, CliError> {
            Ok(containers::find(engine.root(), wanted)?.record.created_ns)
        };
        let (mut after_ns, mut before_ns) = (None, None);
        for wanted in filters.values("since") {
            after_ns = after_ns.max(Some(created(wanted)?));
        }
        for wanted in filters.values("before") {
            before_ns = Some(created(wanted)?.min(before_ns.unwrap_or(u64::MAX)));
        }
        let (mut ancestors, mut images) = (Vec::new(), Vec::new());
        for asked in filters.values("ancestor") {
            let image = engine.store().find(asked)?;
            ancestors.push(Ancestor { asked: asked.clone(), name: asked.parse().ok(), image });
        }
        if !ancestors.is_empty() {
            images = engine.store().list()?;
        }
        Ok(Self { filters, after_ns, before_ns, ancestors, images })
    }

    fn keeps(&self, container: &Container) -> bool {
        let (record, filters) = (&container.record, self.filters);
        let exited = || match (&container.exit, container.status()) {
            (Some(exit), Status::Exited) => Some(exit.exit_code.to_string()),
            _ => None,
        };
        let health = || match (&record.health, container.status().is_active()) {
            (Some(_), true) => container.health().map_or_else(|| "starting".to_owned(), |health| health.status),
            _ => "none".to_owned(),
        };
        self.after_ns.is_none_or(|after| record.created_ns > after)
            && self.before_ns.is_none_or(|before| record.created_ns < before)
            && filters.any("id", |id| record.id.starts_with(id.as_str()))
            && filters.any("name", |wanted| name_matches(wanted, record.name.as_deref().unwrap_or_default()))
            && filters.labels("label", |key| record.labels.get(key).map(String::as_str))
            && filters.any("status", |status| status == container.status().word())
            && filters.any("exited", |code| exited().as_ref() == Some(code))
            && filters.any("health", |wanted| *wanted == health())
            && filters.any("volume", |wanted| {
                record.mounts.iter().any(|mount| {
                    mount.name.as_ref() == Some(wanted)
                        || mount.destination.as_os_str() == wanted.as_str()
                        || mount.source.as_ref().is_some_and(|source| source.as_os_str() == wanted.as_str())
                })
            })
            && (self.ancestors.is_empty() || self.ancestors.iter().any(|ancestor| self.descends(container, ancestor)))
    }

    /// Says whether a container was made from an image, or from one that was built on it.
    fn descends(&self, container: &Container, ancestor: &Ancestor) -> bool {
        let record = &container.record;
        let same_name = ancestor.name.is_some() && record.image.parse::<Reference>().ok() == ancestor.name;
        if same_name || record.image == ancestor.asked {
            return true;
        }
        let Some(below) = &ancestor.image else { return false };
        if record.image_id == below.id.to_string() {
            return true;
        }
        let image = self.images.iter().find(|image| record.image_id == image.id.to_string());
        image.is_some_and(|image| {
            let layers = |image: &Image| image.layers.iter().map(|layer| layer.diff_id.clone()).collect::<Vec<_>>();
            !below.layers.is_empty() && layers(image).starts_with(&layers(below))
        })
    }
}

/// Matches a name as docker does: anywhere, unless `^` or `$` say where.
fn name_matches(wanted: &str, name: &str) -> bool {
    let (start, wanted) = wanted.strip_prefix('^').map_or((false, wanted), |rest| (true, rest));
    let (end, wanted) = wanted.strip_suffix('$').map_or((false, wanted), |rest| (true, rest));
    let wanted = wanted.strip_prefix('/').unwrap_or(wanted);
    match (start, end) {
        (true, true) => name == wanted,
        (true, false) => name.starts_with(wanted),
        (false, true) => name.ends_with(wanted),
        (false, false) => name.contains(wanted),
    }
}

/// Gives a container under docker's names; with `all` also what the usual columns do not show.
fn row(container: &Container, whole: bool, all: bool) -> Value {
    let record = &container.record;
    let command = command_line(&record.argv);
    let short = command.chars().count() > COMMAND_CHARS && !whole;
    let command = if short { command.chars().take(COMMAND_CHARS - 1).chain(['…']).collect() } else { command };
    let mut row = Map::from_iter([
        ("ID".to_owned(), Value::from(if whole { record.id.as_str() } else { short_id(&record.id) })),
        ("Image".to_owned(), record.image.as_str().into()),
        ("Command".to_owned(), format!("\"{command}\"").into()),
        ("RunningFor".to_owned(), moment::ago(seconds(record.created_ns)).into()),
        ("Status".to_owned(), status(container).into()),
        ("Ports".to_owned(), words::ports(record.ports()).into()),
        ("Names".to_owned(), record.called().into()),
    ]);
    if all {
        row.extend(more(container));
    }
    Value::Object(row)
}

/// Gives what the usual columns do not show.
fn more(container: &Container) -> Map<String, Value> {
    let record = &container.record;
    let labels: Vec<String> = record.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let volumes = record.mounts.iter().filter(|mount| mount.kind == "volume").count();
    let mounts = record.mounts.iter().filter(|mount| mount.kind != "tmpfs").map(|mount| {
        mount.name.clone().or_else(|| Some(mount.source.as_ref()?.display().to_string())).unwrap_or_default()
    });
    Map::from_iter([
        ("CreatedAt".to_owned(), moment::created_at(seconds(record.created_ns)).into()),
        ("State".to_owned(), container.status().word().into()),
        ("Labels".to_owned(), labels.join(",").into()),
        ("Mounts".to_owned(), mounts.collect::<Vec<_>>().join(",").into()),
        ("LocalVolumes".to_owned(), volumes.to_string().into()),
        ("Networks".to_owned(), words::network(&record.network).into()),
        ("Size".to_owned(), "0B".into()),
    ])
}

/// Joins a command as docker does: arguments with a space stand between single quotes.
fn command_line(argv: &[String]) -> String {
    let words = argv.iter().map(|word| if word.contains(' ') { format!("'{word}'") } else { word.clone() });
    words.collect::<Vec<_>>().join(" ")
}

fn seconds(moment_ns: u64) -> i64 {
    i64::try_from(moment_ns / 1_000_000_000).unwrap_or(i64::MAX)
}

/// Words a status as docker does.
fn status(container: &Container) -> String {
    let since = |moment_ns: u64| moment::ago(seconds(moment_ns));
    let exit = container.exit.as_ref();
    match container.status() {
        Status::Created => "Created".to_owned(),
        Status::Exited => match exit {
            Some(exit) if exit.unknown => "Exited (unknown)".to_owned(),
            Some(exit) => format!("Exited ({}) {}", exit.exit_code, since(exit.finished_ns)),
            None => "Exited".to_owned(),
        },
        Status::Restarting => {
            let (code, finished) = exit.map_or((0, 0), |exit| (exit.exit_code, exit.finished_ns));
            format!("Restarting ({code}) {}", since(finished))
        }
        Status::Running | Status::Paused => {
            let started_ns = container.state.as_ref().map_or(0, |state| state.started_ns);
            let ago = since(started_ns);
            let up = ago.strip_suffix(" ago").unwrap_or(&ago);
            let more = match (container.status(), &container.record.health) {
                (Status::Paused, _) => " (Paused)".to_owned(),
                (_, None) => String::new(),
                (_, Some(_)) => match container.health() {
                    Some(health) if health.status != "starting" => format!(" ({})", health.status),
                    _ => " (health: starting)".to_owned(),
                },
            };
            format!("Up {up}{more}")
        }
    }
}

/// Words how much a container has written, and how much it has with its image.
fn written(engine: &Engine, container: &Container) -> String {
    let Ok(own) = usage::written_bytes(container) else { return "?".to_owned() };
    let image = engine.store().find(&container.record.image_id).ok().flatten();
    let all = own.saturating_add(image.map_or(0, |image| image.size_bytes));
    format!("{} (virtual {})", table::human_size(own), table::human_size(all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_anywhere_unless_anchored() {
        for (wanted, name, matches) in [
            ("eb", "web", true),
            ("^eb", "web", false),
            ("^/web$", "web", true),
            ("we$", "web", false),
            ("", "web", true),
        ] {
            assert_eq!(name_matches(wanted, name), matches, "{wanted}");
        }
    }
}
