//! Network devices.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use super::last_errno;

/// netdevice(7) SIOCGIFFLAGS and SIOCSIFFLAGS: switches the loopback device on.
///
/// `socket` is any socket of the network namespace, over which the caller has CAP_NET_ADMIN.
pub(crate) fn raise_loopback(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: an ifreq is plain bytes, for which zero is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(*b"lo") {
        *place = byte.cast_signed();
    }
    // SAFETY: the request is a whole ifreq that outlives the call; the kernel writes its flags.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) } == -1 {
        return Err(last_errno());
    }
    // SAFETY: SIOCGIFFLAGS has just filled this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let up = i16::try_from(libc::IFF_UP).map_err(|_| Errno::INVAL)?;
    request.ifr_ifru.ifru_flags = flags | up;
    // SAFETY: as above; the kernel only reads it.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } {
        -1 => Err(last_errno()),
        _ => Ok(()),
    }
}
