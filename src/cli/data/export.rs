//! `coracle export`.

use std::io::IsTerminal;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use fs_err::os::unix::fs::OpenOptionsExt;

use super::super::error::CliError;
use crate::engine::{Engine, transfer};

/// Write a container's root filesystem as a tar archive
///
/// What is mounted in it, volumes among them, is not written.
#[derive(Args)]
pub struct ExportArgs {
    /// Write to FILE instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Container, by name or id
    container: String,
}

/// Exports.
pub fn run(root: Option<PathBuf>, args: ExportArgs) -> Result<ExitCode, CliError> {
    let engine = Engine::open(root)?;
    let Some(path) = args.output else {
        if std::io::stdout().is_terminal() {
            return Err(CliError::message("an archive is not written to a terminal; use --output or redirect"));
        }
        let out = std::io::stdout().as_fd().try_clone_to_owned()?;
        transfer::export(&engine, &args.container, out)?;
        return Ok(ExitCode::SUCCESS);
    };
    // Under another name until it is whole; a pipe or device is written to.
    if fs_err::metadata(&path).is_ok_and(|meta| !meta.is_file()) {
        let out: OwnedFd = fs_err::OpenOptions::new().write(true).open(&path)?.into_parts().0.into();
        transfer::export(&engine, &args.container, out)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    let draft = path.with_file_name(name);
    let out = fs_err::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    let written = transfer::export(&engine, &args.container, out.into_parts().0.into());
    match written {
        Ok(_) => fs_err::rename(&draft, &path)?,
        Err(error) => {
            // The first failure is the one to tell.
            let _ = fs_err::remove_file(&draft);
            return Err(error.into());
        }
    }
    Ok(ExitCode::SUCCESS)
}
