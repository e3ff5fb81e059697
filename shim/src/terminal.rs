//! The person's own terminal: raw while a container has it, and given back as it was.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Result;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

/// Is a terminal in raw mode; dropping it restores the mode it had.
#[derive(Debug)]
pub struct RawTerminal {
    terminal: OwnedFd,
    before: Termios,
}

impl RawTerminal {
    /// Makes a terminal raw; None when `fd` is no terminal.
    pub fn enter(fd: BorrowedFd<'_>) -> Result<Option<Self>> {
        let Ok(before) = tcgetattr(fd) else {
            return Ok(None);
        };
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(fd, OptionalActions::Now, &raw)?;
        Ok(Some(Self { terminal: fd.try_clone_to_owned().map_err(|_| rustix::io::Errno::MFILE)?, before }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}

/// Gives the container's terminal the size of the person's; without one it keeps what it has.
pub fn copy_size(from: impl AsFd, to: impl AsFd) {
    if let Ok(size) = tcgetwinsize(from) {
        let _ = tcsetwinsize(to, size);
    }
}
