//! `coracle commit`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::super::error::{CliError, line};
use super::super::progress::Bars;
use crate::engine::Engine;
use crate::engine::author::{self, AuthorOptions, Pause};

/// Make an image of what a container is now
///
/// What is mounted in the container, volumes among them, does not belong to it.
#[derive(Args)]
pub struct CommitArgs {
    /// Who made it
    #[arg(short, long, value_name = "PERSON")]
    author: Option<String>,
    /// What it is about
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// Apply an instruction of a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// Stop the container's processes meanwhile [default: where it has a cgroup of its own]
    #[arg(short, long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pause: Option<bool>,
    /// Say nothing but the image's id
    #[arg(short, long)]
    quiet: bool,
    /// Container, by name or id
    container: String,
    /// Name of the image
    name: Option<String>,
}

/// Commits, and prints the image's id.
pub fn run(root: Option<PathBuf>, args: CommitArgs) -> Result<ExitCode, CliError> {
    let engine = Engine::open(root)?;
    let bars = if args.quiet { Bars::quiet() } else { Bars::new() };
    let options = AuthorOptions { name: args.name, author: args.author, message: args.message, changes: args.change };
    let pause = match args.pause {
        None => Pause::WherePossible,
        Some(true) => Pause::Required,
        Some(false) => Pause::No,
    };
    line(&author::commit(&engine, &args.container, &options, pause, &bars)?);
    Ok(ExitCode::SUCCESS)
}
