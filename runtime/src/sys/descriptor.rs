//! Descriptors by number: those that a program inherits, and the rest that it must not.

use std::os::fd::RawFd;

use rustix::io::Errno;

use super::last_errno;

/// fcntl(2) F_SETFD: lets a descriptor survive `execve`. `EBADF` when it is not open.
pub(crate) fn set_inheritable(fd: RawFd) -> Result<(), Errno> {
    // SAFETY: F_SETFD takes any number and touches no memory.
    match unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } {
        -1 => Err(last_errno()),
        _ => Ok(()),
    }
}

/// close_range(2), Linux 5.9: closes `first` to `last`, both included.
pub(crate) fn close_from(first: u32, last: u32) -> Result<(), Errno> {
    // SAFETY: the call touches no memory. Owners of closed descriptors are never dropped: it is
    // called only in a child that goes on to execve or _exit.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0_u32) } {
        -1 => Err(last_errno()),
        _ => Ok(()),
    }
}
