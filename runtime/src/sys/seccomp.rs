//! seccomp(2) without the no_new_privs that seccompiler's own loader forces on the process.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use seccompiler::sock_filter;

use super::last_errno;

/// seccomp(2) SECCOMP_SET_MODE_FILTER, Linux 3.17.
///
/// Needs no_new_privs or CAP_SYS_ADMIN, else `EACCES`. `EINVAL` for a program the kernel refuses.
pub(crate) fn load_filter(program: &[sock_filter], flags: u32) -> Result<(), Errno> {
    call(program, flags).map(drop)
}

/// The same with a descriptor for what the filter asks about, SECCOMP_FILTER_FLAG_NEW_LISTENER (Linux 5.0).
///
/// `EBUSY` when an earlier filter has one. The descriptor closes on `execve`.
pub(crate) fn load_listener(program: &[sock_filter], flags: u32) -> Result<OwnedFd, Errno> {
    const NEW_LISTENER: u32 = 1 << 3;
    let number = RawFd::try_from(call(program, flags | NEW_LISTENER)?).map_err(|_| Errno::BADF)?;
    // SAFETY: with this flag the kernel returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn call(program: &[sock_filter], flags: u32) -> Result<libc::c_long, Errno> {
    let head = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::INVAL)?,
        filter: program.as_ptr().cast::<libc::sock_filter>().cast_mut(),
    };
    // SAFETY: both `sock_filter` types are the kernel's struct of the same layout; the kernel only
    // reads `head` and `len` instructions behind `filter`, which live through the call.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const head) };
    if result == -1 { Err(last_errno()) } else { Ok(result) }
}
