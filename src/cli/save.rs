//! `coracle save`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use coracle_images::SaveFormat;

use super::error::CliError;
use crate::engine::Engine;

/// Write images to an archive or a layout directory
#[derive(Args)]
pub struct SaveArgs {
    /// Write to FILE or directory instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Format of the result
    #[arg(long, value_enum, default_value = "docker-archive")]
    format: FormatArg,
    /// Images, by name or id
    #[arg(required = true)]
    images: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FormatArg {
    DockerArchive,
    OciArchive,
    OciDir,
}

/// Writes the images.
pub fn run(root: Option<PathBuf>, args: SaveArgs) -> Result<ExitCode, CliError> {
    let engine = Engine::open(root)?;
    if args.output.is_none() {
        if args.format == FormatArg::OciDir {
            return Err(CliError::message("a directory needs --output"));
        }
        if std::io::stdout().is_terminal() {
            return Err(CliError::message("an archive is not written to a terminal; use --output or redirect"));
        }
    }
    let format = match args.format {
        FormatArg::DockerArchive => SaveFormat::DockerArchive,
        FormatArg::OciArchive => SaveFormat::OciArchive,
        FormatArg::OciDir => SaveFormat::OciDir,
    };
    engine.save(&args.images, format, args.output.as_deref())?;
    Ok(ExitCode::SUCCESS)
}
