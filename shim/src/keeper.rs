//! Ends a network helper when its container's watcher is gone, however it went.
//!
//! pasta has no notion of "my container ended" for a namespace without a name. The keeper is a second
//! process of this binary whose standard input is a pipe from the watcher: when the watcher ends, even
//! by SIGKILL, the pipe closes and the keeper ends the helper.

use std::io::{Read, Result};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The hidden first argument under which the binary becomes a keeper.
pub const KEEPER_ARGUMENT: &str = "__keep-helper";

/// Is the watcher's side of a keeper.
#[derive(Debug)]
pub struct Keeper {
    process: Child,
}

impl Keeper {
    /// Starts a keeper for a helper process of this user.
    pub fn start(helper: i32) -> Result<Self> {
        let process = Command::new("/proc/self/exe")
            .arg(KEEPER_ARGUMENT)
            .arg(helper.to_string())
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { process })
    }

    /// Ends the helper now and waits until that is done.
    pub fn finish(mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

/// Is the keeper's whole life: holds on to the helper, waits for the pipe to close, ends it.
pub fn keep(helper: &str) -> Result<()> {
    let pid = helper.parse().ok().and_then(Pid::from_raw).ok_or(rustix::io::Errno::INVAL)?;
    // The number is fresh: taken before anybody could have reaped the helper and given it away.
    let helper = pidfd_open(pid, PidfdFlags::empty())?;
    let mut end = Vec::new();
    let _ = std::io::stdin().lock().read_to_end(&mut end);
    match pidfd_send_signal(&helper, Signal::TERM) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
