//! `pause` and `resume`: a container stands still, and goes on.

use std::process::ExitCode;

use coracle_runtime::container::{Id, Status};

use super::Context;
use super::arguments::{Given, Grammar, Words};
use super::error::OciError;

/// `pause`.
pub const PAUSE: Grammar =
    Grammar { name: "pause", about: "Stop all processes of a container where they are", flags: &[], words: Words::Id };

/// `resume`.
pub const RESUME: Grammar =
    Grammar { name: "resume", about: "Let the processes of a paused container go on", flags: &[], words: Words::Id };

/// Runs `pause`.
pub fn pause(context: &Context, given: &Given) -> Result<ExitCode, OciError> {
    set_frozen(context, &given.id()?, true)
}

/// Runs `resume`.
pub fn resume(context: &Context, given: &Given) -> Result<ExitCode, OciError> {
    set_frozen(context, &given.id()?, false)
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
