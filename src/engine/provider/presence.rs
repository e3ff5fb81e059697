//! Whether an agent works here: at most one does, and its file says which process it is.

use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use fs_err::File;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

const FILE: &str = "agent.lock";
/// An agent that does not end in this time is killed; its instances do not mind.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a killed agent may still seem to be here: what it was just starting holds its lock until it is another program.
const AFTERGLOW: Duration = Duration::from_secs(1);
/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(20);

/// Says why there is no working agent, or why there is one.
#[derive(Debug, thiserror::Error)]
pub enum PresenceError {
    #[error("an agent works here already")]
    Taken,
    #[error("cannot look for the agent")]
    File(#[from] std::io::Error),
    #[error("the agent does not end")]
    Undying,
}

/// Is held while an agent works.
pub struct Presence {
    _file: File,
}

fn open(folder: &Path) -> std::io::Result<File> {
    fs_err::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(folder.join(FILE))
}

impl Presence {
    /// Becomes the agent that works here.
    pub fn take(folder: &Path) -> Result<Self, PresenceError> {
        let mut file = open(folder)?;
        let start = Instant::now();
        loop {
            match flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::AGAIN) if start.elapsed() < AFTERGLOW => std::thread::sleep(LOOK),
                Err(Errno::AGAIN) => return Err(PresenceError::Taken),
                Err(error) => return Err(std::io::Error::from(error).into()),
            }
        }
        file.set_len(0)?;
        write!(file, "{}", std::process::id())?;
        Ok(Self { _file: file })
    }

    /// Tells whether one works here.
    pub fn is_here(folder: &Path) -> bool {
        let Ok(file) = File::open(folder.join(FILE)) else { return false };
        flock(file.as_fd(), FlockOperation::NonBlockingLockShared).is_err()
    }

    /// Ends the one that works here, if any.
    pub fn end(folder: &Path) -> Result<(), PresenceError> {
        let start = Instant::now();
        while Self::is_here(folder) {
            let text = fs_err::read_to_string(folder.join(FILE))?;
            let pid = text.trim().parse().ok().and_then(Pid::from_raw);
            // The number was written by who holds the lock; the descriptor keeps it from meaning another process,
            // and the lock is asked for once more after it was opened.
            if let Some(Ok(pidfd)) = pid.map(|pid| pidfd_open(pid, PidfdFlags::empty()))
                && Self::is_here(folder)
            {
                let signal = if start.elapsed() < PATIENCE { Signal::TERM } else { Signal::KILL };
                let _ = pidfd_send_signal(pidfd, signal);
            }
            if start.elapsed() > PATIENCE * 2 {
                return Err(PresenceError::Undying);
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}

/// Keeps this process's memory out of core files and away from this user's other programs (PR_SET_DUMPABLE(2const)).
pub fn hide_memory() -> std::io::Result<()> {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    // Asked for once while it can be: before Linux 6.4 it is in /proc/self/auxv, which such a process may not read, and
    // rustix panics.
    let _ = rustix::param::page_size();
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?)
}
