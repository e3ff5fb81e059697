//! What the server may ask the kernel for. It reads what the container sends, so it is to have nothing that it does not
//! need: no program, no process, no socket, no namespace, no mount, no signal to others.

use std::io::{Error, Result};

use coracle_runtime::seccomp::{Program, allow_only, compile};
use rustix::thread::set_no_new_privs;

/// Everything that answering requests takes, and what threads, memory and their end do.
const CALLS: &str = "
    read write writev pread64 pwrite64 preadv pwritev lseek close fcntl dup
    openat newfstatat fstat statx statfs fstatfs getdents64 readlinkat readlink fchdir
    mknodat mkdirat symlinkat linkat unlinkat renameat renameat2
    fchmod fchmodat fchmodat2 chmod fchown fchownat utimensat ftruncate fallocate fsync fdatasync umask
    getxattr fgetxattr lgetxattr llistxattr fsetxattr lsetxattr lremovexattr setfsuid setfsgid
    poll ppoll futex clock_gettime clock_nanosleep nanosleep sched_yield restart_syscall getrandom gettid getpid
    brk mmap mremap mprotect munmap madvise sigaltstack rt_sigprocmask rt_sigaction rt_sigreturn tgkill
    set_robust_list rseq exit exit_group
";

/// Is the filter, ready for every thread of every server.
#[derive(Debug)]
pub struct Filter(Vec<Program>);

impl Filter {
    /// Compiles it, once for a guard's life.
    pub fn new() -> Result<Self> {
        Ok(Self(compile(&allow_only(CALLS)).map_err(Error::other)?))
    }

    /// Puts the calling thread under it for good; a refused call gives EPERM.
    pub fn install(&self) -> Result<()> {
        set_no_new_privs(true)?;
        coracle_runtime::seccomp::install(&self.0, 0).map_err(Error::other)
    }
}
