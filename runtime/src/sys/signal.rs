//! Signals by number, realtime ones included.

use std::mem::MaybeUninit;

use rustix::io::Errno;

use super::last_errno;

/// The highest signal number of Linux.
const SIGNAL_MAX: i32 = 64;

/// signal(2): gives every signal its default action, so that a container does not inherit the ones
/// this process ignores (Rust ignores SIGPIPE, nohup ignores SIGHUP).
pub(crate) fn reset_signals() {
    for number in 1..=SIGNAL_MAX {
        // SAFETY: SIG_DFL installs no handler. Numbers that cannot be changed (SIGKILL, SIGSTOP,
        // glibc's own two) are refused without an effect.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
}

/// A set of signals, realtime ones included.
#[derive(Clone, Copy)]
pub(crate) struct SignalSet(libc::sigset_t);

impl SignalSet {
    pub(crate) fn empty() -> Self {
        let mut set = MaybeUninit::uninit();
        // SAFETY: sigemptyset initialises the whole set it is given.
        Self(unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            set.assume_init()
        })
    }

    pub(crate) fn full() -> Self {
        let mut set = MaybeUninit::uninit();
        // SAFETY: sigfillset initialises the whole set it is given.
        Self(unsafe {
            libc::sigfillset(set.as_mut_ptr());
            set.assume_init()
        })
    }

    pub(crate) fn of(numbers: &[i32]) -> Self {
        let mut set = Self::empty();
        for number in numbers {
            // SAFETY: the set is initialised; an unknown number is refused without an effect.
            unsafe { libc::sigaddset(&raw mut set.0, *number) };
        }
        set
    }

    /// sigprocmask(2): blocks exactly these and returns what was blocked before.
    pub(crate) fn block_only(self) -> Self {
        let mut before = Self::empty();
        // SAFETY: both sets are initialised; SIG_SETMASK with a valid set cannot fail.
        unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const self.0, &raw mut before.0) };
        before
    }

    /// sigprocmask(2): blocks these too and returns what was blocked before.
    pub(crate) fn block(self) -> Self {
        let mut before = Self::empty();
        // SAFETY: both sets are initialised; SIG_BLOCK with a valid set cannot fail.
        unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const self.0, &raw mut before.0) };
        before
    }

    /// sigwaitinfo(2): waits for one of these, which must be blocked, and returns its number.
    pub(crate) fn wait(self) -> i32 {
        loop {
            // SAFETY: the set is initialised; a null siginfo is allowed.
            let number = unsafe { libc::sigwaitinfo(&raw const self.0, std::ptr::null_mut()) };
            // Only an interruption by an unblocked signal fails.
            if number > 0 {
                return number;
            }
        }
    }
}

/// kill(2).
pub(crate) fn send_signal(pid: i32, number: i32) -> Result<(), Errno> {
    // SAFETY: kill takes any numbers and touches no memory.
    match unsafe { libc::kill(pid, number) } {
        -1 => Err(last_errno()),
        _ => Ok(()),
    }
}
