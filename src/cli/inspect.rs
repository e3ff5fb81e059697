//! `coracle inspect`: everything about containers, images and volumes, under Docker's keys.

mod container;
mod image;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::error::{CliError, line};
use super::format::Format;
use super::table;
use crate::engine::volumes::{self, VolumeError};
use crate::engine::{Engine, EngineError, containers};

/// Names a kind of thing that can be inspected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    Container,
    Image,
    Volume,
}

/// Show everything about containers, images and volumes as JSON
#[derive(Args)]
pub struct InspectArgs {
    /// json, or a Go template such as '{{.State.Status}}'
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Also measure what containers have written
    #[arg(short, long)]
    size: bool,
    /// Look only among things of this kind
    #[arg(long = "type", value_enum, value_name = "KIND")]
    kind: Option<Kind>,
    /// Containers, images and volumes, by name or id
    #[arg(required = true)]
    names: Vec<String>,
}

/// Says that nothing has this name; the code is Docker's.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    #[error("no such object: {0}")]
    NoObject(String),
}

impl InspectArgs {
    /// Looks only among things of one kind.
    pub fn only(self, kind: Kind) -> Self {
        Self { kind: Some(kind), ..self }
    }
}

/// Prints what was found, and then the first name that was not.
pub fn run(root: Option<PathBuf>, args: InspectArgs) -> Result<ExitCode, CliError> {
    let format = args.format.as_deref().map(Format::parse).transpose()?;
    let engine = Engine::open(root)?;
    let mut found = Vec::new();
    let mut failure = None;
    for name in &args.names {
        match describe(&engine, name, &args) {
            Ok(value) => found.push(value),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    match &format {
        None => table::print_json(&found)?,
        Some(format) if format.is_json() => line(&Value::Array(found).to_string()),
        Some(format) => format.print(&found)?,
    }
    failure.map_or(Ok(ExitCode::SUCCESS), Err)
}

fn describe(engine: &Engine, name: &str, args: &InspectArgs) -> Result<Value, CliError> {
    if args.kind.is_none_or(|kind| kind == Kind::Container) {
        match containers::find(engine.root(), name) {
            Ok(found) => return Ok(container::describe(engine, &found, args.size)?),
            Err(EngineError::UnknownContainer(_)) if args.kind.is_none() => {}
            Err(error) => return Err(error.into()),
        }
    }
    if args.kind.is_none_or(|kind| kind == Kind::Image) {
        match (engine.store().find(name)?, args.kind) {
            (Some(found), _) => return Ok(image::describe(&found)?),
            (None, Some(_)) => return Err(EngineError::UnknownImage(name.to_owned()).into()),
            (None, None) => {}
        }
    }
    // A name that no volume can have is only looked for among the others.
    match (volumes::find(engine.root(), name), args.kind) {
        (Ok(Some(found)), _) => Ok(super::data::volume::describe(&found)),
        (Err(error), Some(_)) => Err(error.into()),
        (Ok(None), Some(_)) => Err(VolumeError::Unknown(name.to_owned()).into()),
        (_, None) => Err(InspectError::NoObject(name.to_owned()).into()),
    }
}
