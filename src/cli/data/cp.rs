//! `coracle cp`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::super::error::{CliError, note};
use crate::engine::Engine;
use crate::engine::transfer::{CopyEnd, CopyOptions, copy};

/// Copy files between a container and the host
///
/// Docker's rules: a directory goes into one that exists, SOURCE/. only what is in it; - is a tar
/// archive on standard input or output. The container may be stopped.
#[derive(Args)]
pub struct CpArgs {
    /// Keep the numbers of users and groups
    #[arg(short, long)]
    archive: bool,
    /// Follow a link that is the source
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Say nothing about what was left out
    #[arg(short, long)]
    quiet: bool,
    /// CONTAINER:PATH, PATH or -
    source: String,
    /// CONTAINER:PATH, PATH or -
    destination: String,
}

/// Copies.
pub fn run(root: Option<PathBuf>, args: CpArgs) -> Result<ExitCode, CliError> {
    let engine = Engine::open(root)?;
    let (from, to) = (CopyEnd::parse(&args.source), CopyEnd::parse(&args.destination));
    if to == CopyEnd::Stream && std::io::stdout().is_terminal() {
        return Err(CliError::message("an archive is not written to a terminal; redirect the output"));
    }
    let options = CopyOptions { archive: args.archive, follow: args.follow_link };
    let copied = copy(&engine, from, to, options)?;
    left_out(if args.quiet { 0 } else { copied.left_out });
    Ok(ExitCode::SUCCESS)
}

/// Says how much was not copied.
pub fn left_out(count: u64) {
    if count > 0 {
        note(&format!("note: {count} sockets and devices were left out"));
    }
}
