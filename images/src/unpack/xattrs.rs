//! Which extended attributes of an archive are set.
//!
//! `user.*` and `security.capability`; everything else describes another host (SELinux, IMA, ACLs
//! by id) or is for its administrator. `user.overlay.*` are overlayfs's own marks: planted in a
//! layer they would hide or redirect files of the layers below (T24).

use std::os::fd::BorrowedFd;

use rustix::fs::{self, XattrFlags};
use rustix::io::Errno;

use crate::limits;

const CAPABILITY: &[u8] = b"security.capability";
const USER_PREFIX: &[u8] = b"user.";
const OVERLAY_PREFIX: &[u8] = b"user.overlay.";

/// Sets what may be set and returns how many were left out.
pub(super) fn set(file: BorrowedFd<'_>, xattrs: &[(Vec<u8>, Vec<u8>)]) -> Result<u64, Errno> {
    let mut dropped = 0;
    for (name, value) in xattrs {
        if !is_allowed(name) {
            dropped += 1;
            continue;
        }
        match fs::fsetxattr(file, name.as_slice(), value, XattrFlags::empty()) {
            Ok(()) => {}
            // The filesystem has no attributes or no room for this one, or it is a capability
            // that is malformed or belongs to another user namespace (T23).
            Err(Errno::NOTSUP | Errno::PERM | Errno::INVAL | Errno::RANGE | Errno::TOOBIG | Errno::NOSPC) => dropped += 1,
            Err(errno) => return Err(errno),
        }
    }
    Ok(dropped)
}

/// Copies what [`set`] may set from one directory to another.
pub(crate) fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    // Names of 64 attributes; more than fit are not worth having on a directory.
    let mut names = [0u8; 4096];
    let length = match fs::flistxattr(from, &mut names) {
        Ok(length) => length,
        Err(Errno::NOTSUP | Errno::RANGE) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    for name in names[..length].split(|byte| *byte == 0).filter(|name| is_allowed(name)) {
        let mut value = vec![0u8; limits::XATTR_VALUE_BYTES_MAX];
        let length = fs::fgetxattr(from, name, &mut value)?;
        value.truncate(length);
        set(to, &[(name.to_vec(), value)])?;
    }
    Ok(())
}

fn is_allowed(name: &[u8]) -> bool {
    let is_user = name.starts_with(USER_PREFIX) && name.len() > USER_PREFIX.len();
    (name == CAPABILITY || is_user) && !name.starts_with(OVERLAY_PREFIX) && !name.contains(&0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t24_t25_filter() {
        for good in ["user.a", "user.overlayfs", "security.capability"] {
            assert!(is_allowed(good.as_bytes()), "{good}");
        }
        for bad in [
            "user.",
            "user",
            "user.overlay.opaque",
            "user.overlay.redirect",
            "user.overlay.overlay.opaque",
            "trusted.overlay.opaque",
            "trusted.x",
            "security.selinux",
            "security.ima",
            "system.posix_acl_access",
            "security.capability.x",
            "user.a\0b",
            "",
        ] {
            assert!(!is_allowed(bad.as_bytes()), "{bad}");
        }
    }
}
