//! A launched process as its parent sees it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use super::channel::{self, Message};
use super::fault::Fault;
use crate::failure::{LaunchFailure, Stage};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The exit code, when it exited by itself.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
}

/// Shells report a process that a signal ended as 128 + the signal.
const SIGNAL_STATUS: i32 = 128;

impl Exit {
    /// What a shell would report: the code, or 128 + the signal.
    pub fn status(&self) -> i32 {
        self.signal.map_or(self.code, |signal| SIGNAL_STATUS + signal)
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
            Some(channel) => start_through(&channel),
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
                    return Ok(Exit { code: status.exit_status().unwrap_or(0), signal: status.terminating_signal() });
                }
            }
        }
    }

    /// Sends a signal to it.
    pub fn signal(&self, signal: Signal) -> Result<(), Errno> {
        pidfd_send_signal(&self.pidfd, signal)
    }
}

/// Sends a signal by its number, realtime ones included, to the process of a pidfd.
///
/// # Errors
/// `ESRCH` when it is gone, `EINVAL` for what is no signal.
pub fn signal_process(process: impl AsFd, number: i32) -> Result<(), Errno> {
    crate::sys::send_through(process.as_fd(), number)
}

/// Opens a [`super::Gate::Socket`], removes it, and returns when the program runs.
pub fn open_gate(path: &Path) -> Result<(), LaunchFailure> {
    use std::os::fd::AsRawFd;
    let at = |errno: Errno, op: &str| LaunchFailure::new(Stage::Gate, op, path.display(), errno);
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(|errno| at(errno, "make socket for"))?;
    // Through a descriptor, because a socket address has room for 107 bytes only.
    let gate = rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| at(errno, "open gate"))?;
    let short = format!("/proc/self/fd/{}", gate.as_raw_fd());
    let address = SocketAddrUnix::new(&*short).map_err(|errno| at(errno, "name gate"))?;
    connect(&socket, &address).map_err(|errno| at(errno, "open gate"))?;
    start_through(&socket)?;
    match rustix::fs::unlink(path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(at(errno, "remove gate")),
    }
}

/// Says "start" and waits until the program runs or its child says why not.
fn start_through(channel: &OwnedFd) -> Result<(), LaunchFailure> {
    match channel::send(channel, &Message::Start) {
        // A child that is gone may have said why.
        Ok(()) | Err(Errno::PIPE) => {}
        Err(errno) => return Err(errno).fault(Stage::Gate, "start", "container"),
    }
    match channel::receive(channel).fault(Stage::Gate, "hear from", "container")? {
        Some(Message::Failure(failure)) => Err(failure),
        _ => Ok(()),
    }
}
