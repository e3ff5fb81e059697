//! clone3(2), the way coracle makes processes.

use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::io::Errno;

use super::last_errno;

/// Flags of clone3(2): namespaces to create, and `CLONE_PARENT`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct CloneFlags(u64);

impl CloneFlags {
    /// The child becomes a sibling of the caller.
    pub(crate) const PARENT: Self = Self(libc::CLONE_PARENT.unsigned_abs() as u64);
    pub(crate) const USER: Self = Self(libc::CLONE_NEWUSER.unsigned_abs() as u64);
    pub(crate) const MOUNT: Self = Self(libc::CLONE_NEWNS.unsigned_abs() as u64);
    pub(crate) const PID: Self = Self(libc::CLONE_NEWPID.unsigned_abs() as u64);
    pub(crate) const IPC: Self = Self(libc::CLONE_NEWIPC.unsigned_abs() as u64);
    pub(crate) const UTS: Self = Self(libc::CLONE_NEWUTS.unsigned_abs() as u64);
    pub(crate) const NET: Self = Self(libc::CLONE_NEWNET.unsigned_abs() as u64);
    pub(crate) const CGROUP: Self = Self(libc::CLONE_NEWCGROUP.unsigned_abs() as u64);

    /// Made by unshare(2) and setns(2), because its clocks are set in between.
    pub(crate) const TIME: Self = Self(0x80);

    pub(crate) fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(crate) fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// How a process is cloned.
#[derive(Debug, Default)]
pub(crate) struct CloneOptions<'a> {
    pub(crate) flags: CloneFlags,
    /// A cgroup v2 directory in which the child is born (Linux 5.7).
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
}

/// A child as its parent sees it.
#[derive(Debug)]
pub(crate) struct Cloned {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
}

/// The child could not be set up or panicked; its parent learns the reason another way.
pub(super) const EXIT_BROKEN: i32 = 255;

/// The flag of clone3(2) that reads the `cgroup` field; libc's constant does not fit its own type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// clone3(2), Linux 5.3: runs `child` in a copy of this process, which ends with `child`'s result.
///
/// Refuses with `EDEADLK` when the caller has threads: a copy of a lock held by another thread would
/// never open. `EPERM` and `ENOSPC` mean that user namespaces are switched off or used up, `EBUSY`
/// and `EOPNOTSUPP` come from the cgroup.
pub(crate) fn clone_process(options: &CloneOptions<'_>, child: impl FnOnce() -> i32) -> Result<Cloned, Errno> {
    if !is_single_threaded() {
        return Err(Errno::DEADLK);
    }
    let mut pidfd: RawFd = -1;
    let mut flags = options.flags.0 | libc::CLONE_PIDFD.unsigned_abs() as u64;
    if options.cgroup.is_some() {
        flags |= CLONE_INTO_CGROUP;
    }
    let sibling = options.flags.contains(CloneFlags::PARENT);
    let args = libc::clone_args {
        flags,
        pidfd: (&raw mut pidfd) as u64,
        child_tid: 0,
        parent_tid: 0,
        // A sibling inherits the signal of the caller's own creation; the kernel wants 0 here.
        exit_signal: if sibling { 0 } else { libc::SIGCHLD.unsigned_abs().into() },
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: options.cgroup.map_or(0, |fd| fd.as_raw_fd().unsigned_abs().into()),
    };
    // SAFETY: without CLONE_VM the child gets a copy of the address space and goes on with this very
    // stack, as after fork(2); `args` and `pidfd` live until the call returns. The process has one
    // thread, so no lock of the allocator is held by anybody else.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    match pid {
        -1 => Err(last_errno()),
        0 => {
            let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(EXIT_BROKEN);
            // SAFETY: _exit takes any number, does not return and runs nothing of the parent's.
            unsafe { libc::_exit(code) }
        }
        pid => {
            // SAFETY: the kernel stored a new descriptor that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned { pid: i32::try_from(pid).map_err(|_| Errno::RANGE)?, pidfd })
        }
    }
}

/// Whether this process has one thread. Unknown (no /proc) counts as yes.
///
/// A thread that was joined is listed until the kernel has buried it (pthread_join(3) waits for the
/// memory only), so a second one is given that moment.
pub(crate) fn is_single_threaded() -> bool {
    /// Links of /proc/self/task in a process with one thread: two of its own, one per thread.
    const LINKS_OF_ONE_THREAD: u64 = 3;
    const LOOKS: u32 = 100;
    const PAUSE: std::time::Duration = std::time::Duration::from_millis(1);
    let is_alone = || rustix::fs::stat("/proc/self/task").map_or(true, |stat| stat.st_nlink <= LINKS_OF_ONE_THREAD);
    (0..LOOKS).any(|look| {
        if look > 0 {
            std::thread::sleep(PAUSE);
        }
        is_alone()
    })
}

/// fork(2): runs `child` in a copy of this process and returns its number.
///
/// For processes whose filter refuses clone3. Refuses with `EDEADLK` when the caller has threads.
pub(crate) fn fork_process(child: impl FnOnce() -> i32) -> Result<i32, Errno> {
    if !is_single_threaded() {
        return Err(Errno::DEADLK);
    }
    // SAFETY: the process has one thread, so the child may use everything it inherits.
    match unsafe { libc::fork() } {
        -1 => Err(last_errno()),
        0 => {
            let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(EXIT_BROKEN);
            // SAFETY: _exit takes any number, does not return and runs nothing of the parent's.
            unsafe { libc::_exit(code) }
        }
        pid => Ok(pid),
    }
}

/// _exit(2): ends this process without running anything that was set up for its parent's end.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes any number, does not return and runs nothing of the parent's.
    unsafe { libc::_exit(code) }
}
