//! `coracle pool cp`: files between an instance, wherever it is, and this machine.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Args;
use coracle_scheduler::client::{Pool, PoolError};
use coracle_scheduler::ssh::{ClientError, Ends, Request};

use super::ssh;
use crate::cli::CpFlags;
use crate::cli::error::CliError;
use crate::engine::EngineError;
use crate::engine::transfer::{CopyEnd, FarCopy};

/// Copy files between an instance and this machine
///
/// Docker's rules: a directory goes into one that exists, SOURCE/. only what is in it; - is a tar
/// archive on standard input or output. The instance may be stopped.
#[derive(Args)]
pub struct CpArgs {
    #[command(flatten)]
    flags: CpFlags,
    /// INSTANCE:PATH, PATH or -
    source: String,
    /// INSTANCE:PATH, PATH or -
    destination: String,
}

/// Copies.
pub fn cp(pool: Pool, args: &CpArgs) -> Result<ExitCode, CliError> {
    let (from, to) = (CopyEnd::parse(&args.source), CopyEnd::parse(&args.destination));
    if to == CopyEnd::Stream && std::io::stdout().is_terminal() {
        return Err(CliError::message("an archive is not written to a terminal; redirect the output"));
    }
    let name = [&from, &to].into_iter().find_map(|end| match end {
        CopyEnd::Container { container, .. } => Some(container.clone()),
        _ => None,
    });
    let found = name.map(|name| pool.find("/v1/instances", "instance", &name)).transpose()?;
    let mut copy = FarCopy::begin(&from, &to, args.flags.options(), args.flags.quiet()).map_err(EngineError::from)?;
    let text = |field: &str| found.as_ref().and_then(|found| found[field].as_str()).unwrap_or_default().to_owned();
    let provider = found.as_ref().and_then(|found| found["alloc"]["provider"].as_str());
    let provider = provider.ok_or_else(|| CliError::message(format!("instance {} is nowhere", text("name"))))?;
    let request = Request {
        login: text("name"),
        host: text("id"),
        authority: ssh::authority(&pool, provider)?,
        words: vec![serde_json::to_string(&copy.order)?],
        copy: true,
        interactive: !matches!(from, CopyEnd::Container { .. }),
        terminal: None,
    };
    let ends = Ends { input: copy.input.take(), output: copy.output.take() };
    let code = pool.exec(&format!("/v1/instances/{}/streams", text("id")), &request, ends);
    pool.end();
    let own = copy.end();
    match (code, own) {
        // The far half has said why.
        (Ok(code @ 1..), _) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))),
        // Our own half took no more.
        (Ok(_) | Err(PoolError::Session(ClientError::Own(_))), Err(error)) => Err(EngineError::from(error).into()),
        (code, own) => {
            code?;
            args.flags.tell_left_out(own.map_or(0, |copied| copied.left_out));
            Ok(ExitCode::SUCCESS)
        }
    }
}
