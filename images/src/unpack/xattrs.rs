//! Which extended attributes of an archive are set.
//!
//! `user.*` and `security.capability`; everything else describes another host (SELinux, IMA, ACLs
//! by id) or is for its administrator. `user.overlay.*` are overlayfs's own marks: planted in a
//! layer they would hide or redirect files of the layers below (T24).

use std::os::fd::BorrowedFd;

use rustix::fs::{self, XattrFlags};
use rustix::io::Errno;

use crate::limits;

/// Name and value.
pub(crate) type Attribute = (Vec<u8>, Vec<u8>);

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
            Err(Errno::NOTSUP | Errno::PERM | Errno::INVAL | Errno::RANGE | Errno::TOOBIG | Errno::NOSPC) => {
                dropped += 1
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(dropped)
}

/// Copies what [`set`] may set from one file or directory to another.
pub(crate) fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    for name in names(from)?.split(|byte| *byte == 0).filter(|name| is_allowed(name)) {
        let mut value = vec![0u8; limits::XATTR_VALUE_BYTES_MAX];
        let length = fs::fgetxattr(from, name, &mut value)?;
        value.truncate(length);
        set(to, &[(name.to_vec(), value)])?;
    }
    Ok(())
}

/// Reads what [`set`] may set.
pub(crate) fn read(from: BorrowedFd<'_>) -> Result<Vec<Attribute>, Errno> {
    let mut found = Vec::new();
    for name in names(from)?.split(|byte| *byte == 0).filter(|name| is_allowed(name)) {
        let mut value = vec![0u8; limits::XATTR_VALUE_BYTES_MAX];
        let length = match fs::fgetxattr(from, name, &mut value) {
            // Taken away since the names were listed.
            Err(Errno::NODATA) => continue,
            other => other?,
        };
        value.truncate(length);
        found.push((name.to_vec(), value));
    }
    Ok(found)
}

/// Removes what [`set`] may have set.
pub(crate) fn clear(file: BorrowedFd<'_>) -> Result<(), Errno> {
    for name in names(file)?.split(|byte| *byte == 0).filter(|name| is_allowed(name)) {
        fs::fremovexattr(file, name)?;
    }
    Ok(())
}

/// The names of all attributes, each followed by a NUL.
fn names(file: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    // Most files have none or one, and this is asked for every file of an image.
    let mut few = [0u8; 256];
    match fs::flistxattr(file, &mut few) {
        Ok(length) => return Ok(few[..length].to_vec()),
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        Err(Errno::RANGE) => {}
        Err(errno) => return Err(errno),
    }
    let mut names = vec![0u8; limits::XATTR_LIST_BYTES_MAX];
    let length = fs::flistxattr(file, &mut names)?;
    names.truncate(length);
    Ok(names)
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
