//! A copy of this process for work that must not happen in it.

use std::io::Result;
use std::os::fd::{AsFd, OwnedFd};

use rustix::process::{WaitId, WaitIdOptions, waitid};

use crate::launch::Exit;
use crate::sys::{CloneOptions, clone_process};

/// Is a child that was forked.
#[derive(Debug)]
pub struct Forked {
    /// Its number; stays its own until [`Self::wait`].
    pub pid: i32,
    /// The same process, immune to reuse of the number.
    pub pidfd: OwnedFd,
}

/// Runs `work` in a copy of this process (clone3(2) without namespaces); its result is the exit code.
///
/// The copy has every descriptor. `EDEADLK` when the caller has threads; `work` may start some.
pub fn fork(work: impl FnOnce() -> i32) -> Result<Forked> {
    let cloned = clone_process(&CloneOptions::default(), work)?;
    Ok(Forked { pid: cloned.pid, pidfd: cloned.pidfd })
}

impl Forked {
    /// Waits until it has ended and reaps it.
    pub fn wait(&self) -> Result<Exit> {
        let wait = || waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
        let status = rustix::io::retry_on_intr(wait)?;
        Ok(Exit {
            code: status.as_ref().and_then(|status| status.exit_status()).unwrap_or(0),
            signal: status.and_then(|status| status.terminating_signal()),
        })
    }
}
