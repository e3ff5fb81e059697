//! The `coracle` command line: one binary with several faces, chosen by its name or first argument.

mod cli;
mod engine;
mod env;
mod hello;
mod oci;
mod report;

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

/// The name under which other people's tools drive the runtime.
const OCI_NAME: &str = "coracle-oci";

/// The hidden argument that lists the failpoints of a build that has them.
const LIST_FAILPOINTS: &str = "--list-failpoints";

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    env::arm_failpoint();
    let program = args.first().map(Path::new).and_then(Path::file_name).unwrap_or_default();
    if program.as_encoded_bytes().ends_with(OCI_NAME.as_bytes()) {
        return oci::main(args);
    }
    let first = args.get(1).map(OsString::as_os_str);
    if first == Some(OsStr::new(engine::hello::INSIDE_ARGUMENT)) {
        return hello::main();
    }
    if first == Some(OsStr::new(coracle_shim::KEEPER_ARGUMENT)) {
        return ended(coracle_shim::keep(args.get(2..).unwrap_or_default()).is_ok());
    }
    if first == Some(OsStr::new(engine::networks::holder::HOLDER_ARGUMENT)) {
        return ended(engine::networks::holder::main().is_ok());
    }
    if first == Some(OsStr::new(engine::networks::link::LINK_ARGUMENT)) {
        return ended(engine::networks::link::main().is_ok());
    }
    if first == Some(OsStr::new(coracle_shim::disk::GUARD_ARGUMENT)) {
        return match coracle_shim::disk::guard(args.get(2..).unwrap_or_default()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    if let Some(ended) = first.and_then(|first| of_session(first, args.get(2..).unwrap_or_default())) {
        return ended;
    }
    if cfg!(debug_assertions) && first == Some(OsStr::new(LIST_FAILPOINTS)) {
        coracle_runtime::failpoint::NAMES.iter().for_each(|name| cli::error::line(name));
        return ExitCode::SUCCESS;
    }
    cli::main(args)
}

/// Runs what an SSH session consists of.
fn of_session(argument: &OsStr, args: &[OsString]) -> Option<ExitCode> {
    use engine::provider::moved::{self, GIVE_ARGUMENT, TAKE_ARGUMENT};
    use engine::provider::ssh::{
        self, COPY_ARGUMENT, DIAL_ARGUMENT, FILES_ARGUMENT, PROGRAM_ARGUMENT, SESSION_ARGUMENT,
    };
    let done = match argument.to_str()? {
        GIVE_ARGUMENT => return Some(ended(moved::giver(args).is_ok())),
        TAKE_ARGUMENT => return Some(ended(moved::taker(args).is_ok())),
        SESSION_ARGUMENT => ssh::session(),
        FILES_ARGUMENT => ssh::files(args),
        COPY_ARGUMENT => ssh::copy(args).map(cli::left_out),
        DIAL_ARGUMENT => ssh::dial(args),
        PROGRAM_ARGUMENT => match ssh::program(args) {
            Ok(words) => return Some(cli::main(words)),
            Err(error) => Err(error),
        },
        _ => return None,
    };
    Some(done.map_or_else(|error| cli::error::CliError::from(error).report(), |()| ExitCode::SUCCESS))
}

fn ended(well: bool) -> ExitCode {
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
