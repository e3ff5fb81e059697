//! Signals by number, realtime ones included.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

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

/// signal(2): gives SIGCHLD its default action. A caller that ignored it would never learn how its
/// children ended.
pub(crate) fn default_child_signal() {
    // SAFETY: SIG_DFL installs no handler.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Who sent a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The kernel itself: a key of the terminal, for example.
    Kernel,
    /// A process, by kill(2) and its like.
    Process,
}

/// A set of signals, realtime ones included.
#[derive(Clone, Copy)]
pub(crate) struct SignalSet(libc::sigset_t);

impl SignalSet {
    pub(crate) fn empty() -> Self {
        let mut set = MaybeUninit::uninit();
        // SAFETY: it writes the set it is given and nothing else.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // SAFETY: sigemptyset has initialised the whole set.
        Self(unsafe { set.assume_init() })
    }

    pub(crate) fn full() -> Self {
        let mut set = MaybeUninit::uninit();
        // SAFETY: it writes the set it is given and nothing else.
        unsafe { libc::sigfillset(set.as_mut_ptr()) };
        // SAFETY: sigfillset has initialised the whole set.
        Self(unsafe { set.assume_init() })
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
        self.wait_with_origin().0
    }

    /// sigwaitinfo(2): waits for one of these, which must be blocked.
    pub(crate) fn wait_with_origin(self) -> (i32, Origin) {
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
        loop {
            // SAFETY: the set is initialised and `info` has room for what the kernel writes.
            let number = unsafe { libc::sigwaitinfo(&raw const self.0, info.as_mut_ptr()) };
            // Only an interruption by an unblocked signal fails.
            if number > 0 {
                // SAFETY: all zeroes is a valid siginfo, and the kernel has overwritten it.
                let code = unsafe { info.assume_init() }.si_code;
                let origin = if code == libc::SI_KERNEL { Origin::Kernel } else { Origin::Process };
                return (number, origin);
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

/// pidfd_send_signal(2), Linux 5.1: a signal by its number, realtime ones included. `ESRCH` when the
/// process is gone.
pub(crate) fn send_through(process: BorrowedFd<'_>, number: i32) -> Result<(), Errno> {
    let info: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: without a siginfo the call reads no memory; the descriptor is open as long as it is borrowed.
    match unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), number, info, 0) } {
        -1 => Err(last_errno()),
        _ => Ok(()),
    }
}
