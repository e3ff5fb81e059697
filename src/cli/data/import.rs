//! `coracle import`.

use std::io::{IsTerminal, Read};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use coracle_images::Platform;

use super::super::error::{CliError, line};
use super::super::progress::Bars;
use crate::engine::Engine;
use crate::engine::author::{self, AuthorOptions};

/// Make an image of a tar archive of a root filesystem
#[derive(Args)]
pub struct ImportArgs {
    /// Apply an instruction of a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// What it is about
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// Platform of what is in it, OS/ARCH[/VARIANT] [default: this machine's]
    #[arg(long)]
    platform: Option<Platform>,
    /// Say nothing but the image's id
    #[arg(short, long)]
    quiet: bool,
    /// File, or - for standard input; plain, gzip or zstd
    source: String,
    /// Name of the image
    name: Option<String>,
}

/// Imports, and prints the image's id.
pub fn run(root: Option<PathBuf>, args: ImportArgs) -> Result<ExitCode, CliError> {
    if args.source.starts_with("http://") || args.source.starts_with("https://") {
        return Err(CliError::message("importing from a URL is not implemented; fetch the file first"));
    }
    let input: Box<dyn Read> = if args.source == "-" {
        if std::io::stdin().is_terminal() {
            return Err(CliError::message("an archive is not read from a terminal"));
        }
        Box::new(std::io::stdin().lock())
    } else {
        Box::new(fs_err::File::open(&args.source)?)
    };
    let engine = Engine::open(root)?;
    let bars = if args.quiet { Bars::quiet() } else { Bars::new() };
    let options = AuthorOptions { name: args.name, author: None, message: args.message, changes: args.change };
    line(&author::import(&engine, input, args.platform.as_ref(), &options, &bars)?);
    Ok(ExitCode::SUCCESS)
}
