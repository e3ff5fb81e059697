//! A terminal between a session and a program: the session holds the outer side.
//!
//! It is raw from the start, because the instance has a terminal of its own that echoes and edits; this one only
//! carries bytes and the size of the window.

use std::io::Result;
use std::os::fd::OwnedFd;

use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize};
use tokio::net::unix::pipe::{Receiver, Sender};

/// The outer side.
#[derive(Debug)]
pub struct Terminal(OwnedFd);

impl Terminal {
    /// Makes a terminal; gives the program's side too.
    pub fn open(columns: u32, rows: u32) -> Result<(Self, OwnedFd)> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let outer = openpt(flags)?;
        grantpt(&outer)?;
        unlockpt(&outer)?;
        let inner = ioctl_tiocgptpeer(&outer, flags)?;
        let mut modes = tcgetattr(&inner)?;
        modes.make_raw();
        tcsetattr(&inner, OptionalActions::Now, &modes)?;
        rustix::io::ioctl_fionbio(&outer, true)?;
        let terminal = Self(outer);
        terminal.resize(columns, rows);
        Ok((terminal, inner))
    }

    /// Gives what the program writes, which ends with an error when the last holder of its side has gone, and a way to
    /// it. What tokio calls a pipe is any descriptor that does not block.
    pub fn streams(&self) -> Result<(Receiver, Sender)> {
        let (from, to) = (self.0.try_clone()?, self.0.try_clone()?);
        Ok((Receiver::from_owned_fd_unchecked(from)?, Sender::from_owned_fd_unchecked(to)?))
    }

    /// Sets the size; the kernel tells the program's side.
    pub fn resize(&self, columns: u32, rows: u32) {
        let cells = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
        let size = Winsize { ws_row: cells(rows), ws_col: cells(columns), ws_xpixel: 0, ws_ypixel: 0 };
        let _ = tcsetwinsize(&self.0, size);
    }
}
