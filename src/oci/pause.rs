//! `pause` and `resume`: a container stands still, and goes on.

use std::process::ExitCode;

use clap::Args;
use coracle_runtime::container::{Id, Status};

use super::Context;
use super::error::OciError;

/// Stop all processes of a container where they are
#[derive(Args)]
pub struct PauseArgs {
    /// The container's id
    id: String,
}

/// Let the processes of a paused container go on
#[derive(Args)]
pub struct ResumeArgs {
    /// The container's id
    id: String,
}

/// Runs `pause`.
pub fn pause(context: &Context, args: &PauseArgs) -> Result<ExitCode, OciError> {
    set_frozen(context, &args.id, true)
}

/// Runs `resume`.
pub fn resume(context: &Context, args: &ResumeArgs) -> Result<ExitCode, OciError> {
    set_frozen(context, &args.id, false)
}

fn set_frozen(context: &Context, id: &str, frozen: bool) -> Result<ExitCode, OciError> {
    let id: Id = id.parse()?;
    let verb = if frozen { "pause" } else { "resume" };
    let container = context.place.container(&id)?;
    let _lock = container.lock()?;
    let state = container.state()?;
    let status = container.status(state.as_ref())?;
    let fits = if frozen { matches!(status, Status::Running | Status::Created) } else { status == Status::Paused };
    let Some(state) = state.filter(|_| fits) else {
        return Err(OciError::Status { verb, id, status });
    };
    let cgroup = state.cgroup()?.ok_or(OciError::NoCgroup { verb, id })?;
    if frozen {
        cgroup.freeze()?
    } else {
        cgroup.thaw()?
    }
    Ok(ExitCode::SUCCESS)
}
