//! mount_setattr(2), the one call of the mount API that rustix lacks.

use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use super::last_errno;

/// What changes on a mount. Flags are `MOUNT_ATTR_*`, propagation is `MS_PRIVATE` and its like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct MountAttr {
    pub(crate) set: u64,
    pub(crate) clear: u64,
    pub(crate) propagation: u64,
}

/// `struct mount_attr` of linux/mount.h, version 0.
#[repr(C)]
struct RawMountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// mount_setattr(2), Linux 5.12, on the mount that `fd` is the root of.
///
/// `EPERM` when a flag is to be cleared that the mount's own user namespace locked.
pub(crate) fn mount_setattr(fd: BorrowedFd<'_>, recursive: bool, attr: &MountAttr) -> Result<(), Errno> {
    let raw = RawMountAttr { attr_set: attr.set, attr_clr: attr.clear, propagation: attr.propagation, userns_fd: 0 };
    call(fd, recursive, &raw)
}

/// mount_setattr(2) with MOUNT_ATTR_IDMAP: shows the owners of a detached mount through the map of `userns`.
///
/// `EPERM` without CAP_SYS_ADMIN in the user namespace of the filesystem itself, `EINVAL` for a
/// filesystem that cannot do it.
pub(crate) fn map_owners(fd: BorrowedFd<'_>, recursive: bool, userns: BorrowedFd<'_>) -> Result<(), Errno> {
    const MOUNT_ATTR_IDMAP: u64 = 0x10_0000;
    let number = userns.as_raw_fd().unsigned_abs().into();
    let raw = RawMountAttr { attr_set: MOUNT_ATTR_IDMAP, attr_clr: 0, propagation: 0, userns_fd: number };
    call(fd, recursive, &raw)
}

fn call(fd: BorrowedFd<'_>, recursive: bool, raw: &RawMountAttr) -> Result<(), Errno> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the empty path is a static C string, and `raw` lives through the call with the size
    // that is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(raw),
            size_of::<RawMountAttr>(),
        )
    };
    if result == -1 { Err(last_errno()) } else { Ok(()) }
}
