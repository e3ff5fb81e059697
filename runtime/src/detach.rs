//! A process that stays when its command returns: a session of its own, nobody's child, and no
//! descriptor but the ones it was given.

use std::os::fd::RawFd;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, chdir, setsid, umask, waitpid};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::sys;

/// The first descriptor that is no standard stream.
const FIRST_OTHER_FD: u32 = 3;

/// Runs `work` in a grandchild of this process that leads a session of its own; its result is its exit
/// code. Returns as soon as it exists.
///
/// It keeps the descriptors of `keep` under their numbers and has /dev/null for its standard streams;
/// its working directory is `/`, its umask 077. The caller is single-threaded (`EDEADLK` else) and does
/// not rely on any other descriptor in `work`.
pub fn detach(keep: &[RawFd], work: impl FnOnce() -> i32) -> Result<(), Errno> {
    let child = sys::fork_process(|| {
        let begun = setsid().map(drop).and_then(|()| {
            sys::fork_process(|| match settle(keep) {
                Ok(()) => work(),
                Err(_) => 1,
            })
        });
        i32::from(begun.is_err())
    })?;
    let child = Pid::from_raw(child).ok_or(Errno::SRCH)?;
    match rustix::io::retry_on_intr(|| waitpid(Some(child), WaitOptions::empty()))? {
        Some((_, status)) if status.exit_status() == Some(0) => Ok(()),
        // fork(2) has no other reason than a limit of processes or memory.
        _ => Err(Errno::AGAIN),
    }
}

/// Like [`detach`], but the work is done in a child of this process: one fork instead of two. For a caller that ends soon;
/// then the child is somebody else's.
///
/// # Errors
/// Those of fork(2); `EDEADLK` for a caller with threads.
pub fn detach_child(keep: &[RawFd], work: impl FnOnce() -> i32 + 'static) -> Result<(), Errno> {
    let work = Box::new(work);
    sys::fork_process(|| match setsid().map(drop).and_then(|()| settle(keep)) {
        Ok(()) => sys::end_in(work),
        Err(_) => 1,
    })
    .map(drop)
}

fn settle(keep: &[RawFd]) -> Result<(), Errno> {
    let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    drop(null);
    let mut kept: Vec<u32> = keep.iter().map(|number| number.unsigned_abs()).collect();
    kept.sort_unstable();
    let mut first = FIRST_OTHER_FD;
    for number in kept.into_iter().filter(|number| *number >= FIRST_OTHER_FD) {
        if number > first {
            sys::close_from(first, number - 1)?;
        }
        first = number + 1;
    }
    sys::close_from(first, u32::MAX)?;
    chdir("/")?;
    umask(Mode::from_raw_mode(0o077));
    Ok(())
}
