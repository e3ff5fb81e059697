//! seccomp(2) without the no_new_privs that seccompiler's own loader forces on the process.

use rustix::io::Errno;
use seccompiler::sock_filter;

use super::last_errno;

/// seccomp(2) SECCOMP_SET_MODE_FILTER, Linux 3.17.
///
/// Needs no_new_privs or CAP_SYS_ADMIN, else `EACCES`. `EINVAL` for a program the kernel refuses.
pub(crate) fn load_filter(program: &[sock_filter], flags: u32) -> Result<(), Errno> {
    let head = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::INVAL)?,
        filter: program.as_ptr().cast::<libc::sock_filter>().cast_mut(),
    };
    // SAFETY: both `sock_filter` types are the kernel's struct of the same layout; the kernel only
    // reads `head` and `len` instructions behind `filter`, which live through the call.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const head) };
    if result == -1 { Err(last_errno()) } else { Ok(()) }
}
