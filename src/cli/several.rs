//! Commands that do one thing to several containers: each that worked is printed, each that did not is
//! said, and the exit code tells whether all did.

use std::process::ExitCode;

use super::error::{CliError, line};

/// Does `work` to each; the names of those for which it worked go to standard output.
pub fn each(containers: &[String], mut work: impl FnMut(&str) -> Result<(), CliError>) -> Result<ExitCode, CliError> {
    let mut failed = None;
    for wanted in containers {
        match work(wanted) {
            Ok(()) => line(wanted),
            // The last one is reported by the caller's caller.
            Err(error) => {
                if let Some(earlier) = failed.replace(error) {
                    let _ = CliError::report(&earlier);
                }
            }
        }
    }
    failed.map_or(Ok(ExitCode::SUCCESS), Err)
}

/// Gives the exit code of a container to which somebody was attached; success for one who left.
pub fn exit(code: Option<i32>) -> ExitCode {
    code.map_or(ExitCode::SUCCESS, |code| ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}
