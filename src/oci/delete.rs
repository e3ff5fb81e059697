//! `delete`: the end of a container's state.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use coracle_runtime::container::{ContainerError, Id, Lock, State, Status};
use coracle_runtime::hooks::{self, Moment};
use coracle_runtime::memory;
use oci_spec::runtime::Hooks;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};

use super::Context;
use super::arguments::{Given, Grammar, Words, switch};
use super::create::subject;
use super::error::OciError;

/// How long a killed process may take to go away: uninterruptible I/O ends at some time, or never.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// `delete`.
pub const DELETE: Grammar = Grammar {
    name: "delete",
    about: "Remove the state of a container that has ended",
    flags: &[&[
        switch("force", "Kill what still runs; a missing container is no error").short('f'),
        switch("regex", "Remove every container whose id fits the regular expression"),
    ]],
    words: Words::Id,
};

/// Runs `delete`.
pub fn delete(context: &Context, given: &Given) -> Result<ExitCode, OciError> {
    let (pattern, force) = (given.id()?, given.has("force"));
    if given.has("regex") {
        for id in fitting(context, &pattern)? {
            delete_one(context, id, force)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    delete_one(context, pattern.parse()?, force)
}

/// A compiled pattern for names of 64 letters is small.
const PATTERN_BYTES_MAX: usize = 1 << 20;

/// Lists the containers whose ids fit a regular expression.
///
/// # Errors
/// What is not an expression, and a list that cannot be read.
pub fn fitting(context: &Context, pattern: &str) -> Result<Vec<Id>, OciError> {
    let fits = regex::RegexBuilder::new(pattern).size_limit(PATTERN_BYTES_MAX).build();
    let fits = fits.map_err(|_| OciError::Pattern(pattern.to_owned()))?;
    let ids = context.place.open()?.map(|root| root.ids()).transpose()?.unwrap_or_default();
    Ok(ids.into_iter().filter(|id| fits.is_match(id.as_str())).collect())
}

fn delete_one(context: &Context, id: Id, force: bool) -> Result<ExitCode, OciError> {
    let container = match context.place.container(&id) {
        Err(OciError::Container(ContainerError::Missing { .. })) if force => {
            return Ok(ExitCode::SUCCESS);
        }
        other => other?,
    };
    let lock = container.lock()?;
    let state = match container.state() {
        // Nobody can say which process it was about; the rest must be removable all the same.
        Err(ContainerError::Damaged { .. }) if force => None,
        other => other?,
    };
    match container.status(state.as_ref())? {
        Status::Stopped => remove(context, lock)?,
        // We hold the lock, so nobody is creating it any more. As for a created one, which runc
        // removes as well: a container whose program never ran has nothing to lose.
        Status::Creating | Status::Created => kill_and_remove(context, lock, state.as_ref())?,
        _ if force => kill_and_remove(context, lock, state.as_ref())?,
        status => {
            return Err(OciError::Status { verb: "delete", id, status });
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Removes the state of a container whose first process is gone.
///
/// Then its poststop hooks run; what they do wrong is only logged (runtime-spec, "Lifecycle").
pub fn remove(context: &Context, lock: Lock<'_>) -> Result<(), OciError> {
    let state = lock.container().state().ok().flatten();
    if let Some(cgroup) = state.as_ref().map(State::cgroup).transpose()?.flatten() {
        // Where the container has no pid namespace of its own, others may have outlived the first process.
        cgroup.kill()?;
        cgroup.remove()?;
    }
    memory::step();
    lock.remove()?;
    let Some(state) = state else { return Ok(()) };
    let subject = subject(&state);
    for hook in Moment::Poststop.of(state.hooks.as_ref()) {
        let mut one = Hooks::default();
        one.set_poststop(Some(vec![hook.clone()]));
        if let Err(failure) = hooks::run(Some(&one), Moment::Poststop, &subject, 0) {
            context.journal.warn(&failure.to_string());
        }
    }
    Ok(())
}

/// Kills the first process, and with it everything in its pid namespace, and removes the state.
pub fn kill_and_remove(context: &Context, lock: Lock<'_>, state: Option<&State>) -> Result<(), OciError> {
    let container = lock.container();
    if let Some(state) = state
        && let Some(pidfd) = state.init.open()?
    {
        let id = container.id();
        // What stands still is not killed before it goes on, in older kernels.
        if let Some(cgroup) = state.cgroup()?.filter(|cgroup| cgroup.is_frozen().unwrap_or(false)) {
            cgroup.kill()?;
            cgroup.thaw()?;
        }
        match pidfd_send_signal(&pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(source) => {
                return Err(OciError::Kill { id: id.clone(), source });
            }
        }
        wait_for_end(&pidfd, id)?;
    }
    remove(context, lock)
}

fn wait_for_end(pidfd: &std::os::fd::OwnedFd, id: &Id) -> Result<(), OciError> {
    let deadline = Instant::now() + KILL_DEADLINE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or_default();
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => {
                return Err(OciError::Unkillable { id: id.clone(), seconds: KILL_DEADLINE.as_secs() });
            }
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(source) => {
                return Err(OciError::Kill { id: id.clone(), source });
            }
        }
    }
}
