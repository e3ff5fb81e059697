//! `kill`: a signal to a container, or to everything in it.

use std::process::ExitCode;

use coracle_runtime::container::{Id, Identity, IdentityError, State, Status};
use coracle_shim::parse_signal;
use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};

use super::arguments::{Given, Grammar, Words, switch};
use super::error::OciError;
use super::{Context, delete, processes};

/// `kill`.
pub const KILL: Grammar = Grammar {
    name: "kill",
    about: "Send a signal to a container, by name or number",
    flags: &[&[
        switch("all", "To all processes, not only the first").short('a'),
        switch("regex", "To every running container whose id fits the regular expression").short('r'),
    ]],
    words: Words::IdAnd(" ID [SIGNAL]"),
};

const SIGNAL_DEFAULT: &str = "SIGTERM";

/// Runs `kill`.
pub fn kill(context: &Context, given: &Given) -> Result<ExitCode, OciError> {
    let (pattern, all) = (given.id()?, given.has("all"));
    let name = given.word(1)?.unwrap_or_else(|| SIGNAL_DEFAULT.to_owned());
    let signal = parse_signal(&name).and_then(Signal::from_named_raw).ok_or_else(|| OciError::Signal(name.clone()))?;
    if !given.has("regex") {
        return kill_one(context, pattern.parse()?, all, signal);
    }
    let mut ended = Ok(ExitCode::SUCCESS);
    for id in delete::fitting(context, &pattern)? {
        // Those that are gone have nothing to be told; the others all are, whatever one of them says.
        match kill_one(context, id, all, signal) {
            Ok(_) | Err(OciError::Status { status: Status::Stopped, .. }) => {}
            Err(error) => ended = ended.and(Err(error)),
        }
    }
    ended
}

fn kill_one(context: &Context, id: Id, all: bool, signal: Signal) -> Result<ExitCode, OciError> {
    let container = context.place.container(&id)?;
    let state = container.state()?;
    let status = container.status(state.as_ref())?;
    let Some(state) = state.filter(|_| status != Status::Stopped) else {
        return Err(OciError::Status { verb: "signal", id, status });
    };
    // The first process last: while it lives, the namespace keeps its number.
    if all {
        signal_others(&state, signal)?;
    }
    let sent = match state.init.open()? {
        Some(pidfd) => pidfd_send_signal(&pidfd, signal),
        None => Err(Errno::SRCH),
    };
    match sent {
        Ok(()) => Ok(ExitCode::SUCCESS),
        // It may end because the others did.
        Err(Errno::SRCH) if all => Ok(ExitCode::SUCCESS),
        Err(Errno::SRCH) => Err(OciError::Status { verb: "signal", id, status: Status::Stopped }),
        Err(source) => Err(OciError::Kill { id, source }),
    }
}

/// Signals every process but the first.
fn signal_others(state: &State, signal: Signal) -> Result<(), OciError> {
    if let Some(cgroup) = state.cgroup()? {
        if signal == Signal::KILL {
            return Ok(cgroup.kill()?);
        }
        for pid in cgroup.processes()?.into_iter().filter(|pid| *pid != state.init.pid) {
            signal_one(Identity::of(pid), signal);
        }
        return Ok(());
    }
    for process in processes::in_namespace(&state.init).into_iter().filter(|process| process.pid != state.init.pid) {
        signal_one(Ok(process), signal);
    }
    Ok(())
}

/// It may have ended meanwhile, which is what the caller wants.
fn signal_one(process: Result<Identity, IdentityError>, signal: Signal) {
    if let Ok(Some(pidfd)) = process.and_then(|process| process.open()) {
        let _ = pidfd_send_signal(&pidfd, signal);
    }
}
