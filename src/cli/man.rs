//! `coracle man`: one manual page a command, made from the definitions of the arguments.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::error::{CliError, line};

/// Write the manual pages into a directory
#[derive(Args)]
#[command(after_help = "coracle man ~/.local/share/man/man1 && man coracle-run")]
pub struct ManArgs {
    /// The directory; it is made where it does not exist
    directory: PathBuf,
}

/// Says that a page could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write manual pages into {directory}")]
pub struct ManError {
    directory: PathBuf,
    source: std::io::Error,
}

/// Writes `coracle.1`, `coracle-run.1` and so on, and names them.
pub fn run(args: &ManArgs, command: clap::Command) -> Result<ExitCode, CliError> {
    let fail = |source| ManError { directory: args.directory.clone(), source };
    fs_err::create_dir_all(&args.directory).map_err(fail)?;
    let mut command = command.disable_help_subcommand(true);
    command.build();
    pages(&command, &args.directory).map_err(fail)?;
    Ok(ExitCode::SUCCESS)
}

fn pages(command: &clap::Command, directory: &Path) -> std::io::Result<()> {
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        pages(inner, directory)?;
    }
    let page = clap_mangen::Man::new(command.clone());
    let path = directory.join(page.get_filename());
    let mut text = Vec::new();
    page.render(&mut text)?;
    fs_err::write(&path, text)?;
    line(&path.display().to_string());
    Ok(())
}
