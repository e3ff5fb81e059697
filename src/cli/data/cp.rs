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
    #[command(flatten)]
    flags: CpFlags,
    /// CONTAINER:PATH, PATH or -
    source: String,
    /// CONTAINER:PATH, PATH or -
    destination: String,
}

/// Is how to copy, also with an instance of a pool.
#[derive(Args)]
pub struct CpFlags {
    /// Keep the numbers of users and groups
    #[arg(short, long)]
    archive: bool,
    /// Follow a link that is the source
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Say nothing about what was left out
    #[arg(short, long)]
    quiet: bool,
}

impl CpFlags {
    /// Gives what the two halves of a copy need to know.
    pub fn options(&self) -> CopyOptions {
        CopyOptions { archive: self.archive, follow: self.follow_link }
    }

    /// Whether nobody wants to hear what was left out.
    pub fn quiet(&self) -> bool {
        self.quiet
    }

    /// Says how much was not copied, where that is wanted.
    pub fn tell_left_out(&self, count: u64) {
        if !self.quiet {
            left_out(count);
        }
    }
}

/// Copies.
pub fn run(root: Option<PathBuf>, args: CpArgs) -> Result<ExitCode, CliError> {
    let engine = Engine::open(root)?;
    let (from, to) = (CopyEnd::parse(&args.source), CopyEnd::parse(&args.destination));
    if to == CopyEnd::Stream && std::io::stdout().is_terminal() {
        return Err(CliError::message("an archive is not written to a terminal; redirect the output"));
    }
    let copied = copy(&engine, from, to, args.flags.options())?;
    args.flags.tell_left_out(copied.left_out);
    Ok(ExitCode::SUCCESS)
}

/// Says how much was not copied.
pub fn left_out(count: u64) {
    if count > 0 {
        note(&format!("note: {count} sockets and devices were left out"));
    }
}
