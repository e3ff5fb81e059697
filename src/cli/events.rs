//! `coracle events`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::error::CliError;
use super::filter::Filters;
use super::format::{Format, FormatError};
use super::moment;
use crate::engine::Engine;
use crate::engine::events::{self, Event, Kind};
use crate::report::one_line;

const FILTERS: [&str; 6] = ["container", "event", "image", "label", "type", "volume"];

/// Show what happens to containers, images and volumes
#[derive(Args)]
pub struct EventsArgs {
    /// Start with what happened since a moment, or within a span such as 10m
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// End at a moment
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Keep events with type=, event=, container=, image=, volume= or label=
    #[arg(short, long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
    /// json, or a Go template such as '{{.Action}} {{.Actor.Attributes.name}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

/// Says that the events could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the events")]
pub struct EventsError(#[source] std::io::Error);

/// Prints events until it is interrupted, or until the asked moment.
pub fn run(root: Option<PathBuf>, args: EventsArgs) -> Result<ExitCode, CliError> {
    let filters = Filters::parse(&args.filters, &FILTERS)?;
    let format = args.format.as_deref().map(Format::parse).transpose()?;
    let now = Timestamp::now();
    let moment = |text: &Option<String>| text.as_deref().map(|text| moment::parse(text, now)).transpose();
    let (since, until) = (moment(&args.since)?, moment(&args.until)?);
    let engine = Engine::open(root)?;
    let mut out = std::io::stdout().lock();
    let mut failure: Option<FormatError> = None;
    let mut take = |event: Option<Event>| {
        let Some(event) = event else { return out.flush().is_ok() };
        if !keeps(&filters, &event) {
            return true;
        }
        let text = match &format {
            None => Ok(plain(&event)),
            Some(format) => format.line(&described(&event)),
        };
        match text {
            // A reader that has gone away wants no more.
            Ok(text) => writeln!(out, "{text}").is_ok(),
            Err(error) => {
                failure = Some(error);
                false
            }
        }
    };
    events::read(engine.root(), since, until, &mut take).map_err(EventsError)?;
    failure.map_or(Ok(ExitCode::SUCCESS), |error| Err(error.into()))
}

fn keeps(filters: &Filters, event: &Event) -> bool {
    let attribute = |key: &str| event.attributes.get(key).map(String::as_str);
    // The word before a colon stands for all of its kind: `health_status: healthy`.
    let action = event.action.split(':').next().unwrap_or_default();
    let is = |kind: Kind, wanted: &str| {
        event.kind == kind && (event.id.starts_with(wanted) || attribute("name") == Some(wanted))
    };
    filters.any("type", |wanted| wanted == event.kind.word())
        && filters.any("event", |wanted| *wanted == event.action || wanted == action)
        && filters.any("container", |wanted| is(Kind::Container, wanted))
        && filters.any("volume", |wanted| is(Kind::Volume, wanted))
        && filters.any("image", |wanted| is(Kind::Image, wanted) || attribute("image") == Some(wanted))
        && filters.labels("label", attribute)
}

/// Words an event as docker does: `TIME container start ID (image=busybox, name=web)`.
fn plain(event: &Event) -> String {
    let time = Timestamp::from_nanosecond(i128::from(event.time_ns)).unwrap_or_default();
    let attributes: Vec<String> = event.attributes.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let time = time.strftime("%FT%T.%9fZ");
    let text = format!("{time} {} {} {} ({})", event.kind.word(), event.action, event.id, attributes.join(", "));
    one_line(&text)
}

/// Gives an event under docker's names, the older ones too.
fn described(event: &Event) -> Value {
    let mut value = json!({
        "Type": event.kind.word(),
        "Action": event.action,
        "Actor": {"ID": event.id, "Attributes": event.attributes},
        "scope": "local",
        "time": event.time_ns / 1_000_000_000,
        "timeNano": event.time_ns,
    });
    if event.kind != Kind::Volume {
        value["status"] = event.action.as_str().into();
        value["id"] = event.id.as_str().into();
    }
    if let Some(image) = event.attributes.get("image") {
        value["from"] = image.as_str().into();
    }
    value
}
