//! A limited filesystem in memory: a tmpfs in the container's own mount namespace.

use std::io::Result;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Gid, Mode, Uid, chmod, chown, mkdir};

use super::guard::{mount_at, mount_in};

/// The root, and what overlayfs makes in its work directory.
const OWN_INODES: u64 = 6;

/// Mounts it with the directories that overlayfs needs, which belong to the container's root.
pub fn mount_limited(mounts: &OwnedFd, mount_point: &Path, bytes: u64, inodes: u64) -> Result<()> {
    let inodes = inodes.saturating_add(OWN_INODES);
    mount_in(mounts, || {
        mount_at(mount_point, "tmpfs", &format!("size={bytes},nr_inodes={inodes},mode=700"))?;
        for (name, mode) in [("upper", 0o755), ("work", 0o700)] {
            let path = mount_point.join(name);
            mkdir(&path, Mode::RWXU)?;
            // The caller's umask must not decide what the container sees.
            chmod(&path, Mode::from_raw_mode(mode))?;
            // Where one id is mapped it is the caller's already.
            let _ = chown(&path, Some(Uid::ROOT), Some(Gid::ROOT));
        }
        Ok(())
    })
}
