//! A launched process as its parent sees it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use crate::failure::{LaunchFailure, Stage};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The exit code, when it exited by itself.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
}

impl Exit {
    /// What a shell would report: the code, or 128 + the signal.
    pub fn status(&self) -> i32 {
        self.signal.map_or(self.code, |signal| 128 + signal)
    }
}

/// A launched process. Dropping it leaves the process alone.
#[derive(Debug)]
pub struct Running {
    /// Its number in the caller's pid namespace.
    pub pid: i32,
    /// The process itself.
    pub pidfd: OwnedFd,
    /// Its user namespace, for cleaning up what it leaves behind (see `userns::enter`).
    pub userns: OwnedFd,
    /// The master side of its terminal, with [`super::Stdio::Console`].
    pub console: Option<OwnedFd>,
    /// The child's side of the launch; `None` once the program runs or someone else opens the gate.
    pub(crate) channel: Option<OwnedFd>,
}

impl Running {
    /// Opens a [`super::Gate::Wait`] and returns when the program runs.
    pub fn start(&mut self) -> Result<(), LaunchFailure> {
        match self.channel.take() {
            Some(_channel) => Err(LaunchFailure::rule(Stage::Gate, self.pid, "not finished yet")),
            None => Err(LaunchFailure::rule(Stage::Gate, self.pid, "is already started")),
        }
    }

    /// Waits for its end and reaps it; only the launching process can.
    pub fn wait(&self) -> Result<Exit, Errno> {
        loop {
            match waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED) {
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
                Ok(None) => return Err(Errno::CHILD),
                Ok(Some(status)) => {
                    return Ok(Exit {
                        code: status.exit_status().unwrap_or(0),
                        signal: status.terminating_signal(),
                    });
                }
            }
        }
    }

    /// Sends a signal to it.
    pub fn signal(&self, signal: Signal) -> Result<(), Errno> {
        pidfd_send_signal(&self.pidfd, signal)
    }
}

/// Opens a [`super::Gate::Socket`] and returns when the program runs.
pub fn open_gate(path: &Path) -> Result<(), LaunchFailure> {
    Err(LaunchFailure::rule(Stage::Gate, path.display(), "not finished yet"))
}
