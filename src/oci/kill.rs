//! `kill`: a signal to a container, or to everything in it.

use std::process::ExitCode;

use clap::Args;
use coracle_runtime::container::{Id, Identity, Status};
use coracle_shim::parse_signal;
use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};

use super::Context;
use super::error::OciError;

/// The most entries of /proc that are looked at: the kernel's largest pid_max.
const PROCESSES_MAX: usize = 1 << 22;

/// Send a signal to a container
#[derive(Args)]
pub struct KillArgs {
    /// To all processes, not only the first
    #[arg(short, long)]
    all: bool,
    /// The container's id
    id: String,
    /// By name or number
    #[arg(default_value = "SIGTERM")]
    signal: String,
}

/// Runs `kill`.
pub fn kill(context: &Context, args: &KillArgs) -> Result<ExitCode, OciError> {
    let id: Id = args.id.parse()?;
    let signal = parse_signal(&args.signal)
        .and_then(Signal::from_named_raw)
        .ok_or_else(|| OciError::Signal(args.signal.clone()))?;
    let container = context.place.container(&id)?;
    let state = container.state()?;
    let status = container.status(state.as_ref())?;
    let Some(state) = state.filter(|_| status != Status::Stopped) else {
        return Err(OciError::Status { verb: "signal", id, status });
    };
    // The first process last: while it lives, the namespace keeps its number.
    if args.all {
        signal_others(&state.init, signal);
    }
    let sent = match state.init.open()? {
        Some(pidfd) => pidfd_send_signal(&pidfd, signal),
        None => Err(Errno::SRCH),
    };
    match sent {
        Ok(()) => Ok(ExitCode::SUCCESS),
        // It may end because the others did.
        Err(Errno::SRCH) if args.all => Ok(ExitCode::SUCCESS),
        Err(Errno::SRCH) => Err(OciError::Status { verb: "signal", id, status: Status::Stopped }),
        Err(source) => Err(OciError::Kill { id, source }),
    }
}

/// Signals every other process of the container's pid namespace that can be found.
///
/// Where the container shares the caller's namespace only its first process is known to be its own.
fn signal_others(init: &Identity, signal: Signal) {
    let namespace = |pid: i32| fs_err::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let Some(wanted) = namespace(init.pid) else {
        return;
    };
    if fs_err::read_link("/proc/self/ns/pid").is_ok_and(|own| own == wanted) {
        return;
    }
    let Ok(entries) = fs_err::read_dir("/proc") else {
        return;
    };
    for entry in entries.take(PROCESSES_MAX).flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if pid == init.pid {
            continue;
        }
        // Opened first, looked at second: what was looked at is what gets the signal.
        let Ok(process) = Identity::of(pid) else {
            continue;
        };
        let Ok(Some(pidfd)) = process.open() else {
            continue;
        };
        if namespace(pid).as_ref() == Some(&wanted) && process.is_alive().unwrap_or(false) {
            // It may have ended meanwhile, which is what the caller wants.
            let _ = pidfd_send_signal(&pidfd, signal);
        }
    }
}
