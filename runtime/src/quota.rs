//! Limits that filesystems keep: project quotas of ext4 and XFS, quota groups of btrfs.
//!
//! A directory that was given a project passes it on to everything made in it, and inside of a user namespace
//! nobody can change it (linux/fs/file_attr.c); outside, the owner can. Limits are set by an administrator.

use std::os::fd::AsFd;

use rustix::io::Errno;

use crate::sys;

/// FS_XFLAG_PROJINHERIT of linux/fs.h.
const INHERITED: u32 = 0x200;
/// The kernel's unit of limits.
const BLOCK_BYTES: u64 = 1024;

fn errno(error: nix::errno::Errno) -> Errno {
    Errno::from_raw_os_error(error as i32)
}

/// Gives the project of a file, and whether what is made in it gets the same.
pub fn project(file: impl AsFd) -> Result<(u32, bool), Errno> {
    let found = sys::attributes(file.as_fd()).map_err(errno)?;
    Ok((found.project, found.flags & INHERITED != 0))
}

/// Gives an empty directory, and all that will be made in it, to a project.
pub fn set_project(dir: impl AsFd, project: u32) -> Result<(), Errno> {
    let found = sys::attributes(dir.as_fd()).map_err(errno)?;
    let wanted = sys::FsXattr { flags: found.flags | INHERITED, project, ..found };
    sys::set_attributes(dir.as_fd(), &wanted).map_err(errno)
}

/// Sets a project's limits on the filesystem of a file, as root. On XFS project 0 has everybody's default.
pub fn set_project_limit(file: impl AsFd, project: u32, bytes: u64, inodes: u64) -> Result<(), Errno> {
    sys::set_project_limit(file.as_fd(), project, bytes / BLOCK_BYTES, inodes).map_err(errno)
}

/// Names a quota group by its level and number, as btrfs tools print it.
pub fn group(level: u16, number: u64) -> u64 {
    (u64::from(level) << 48) | number
}

/// Has btrfs count, as root; that it does so already is no error.
pub fn enable_groups(file: impl AsFd) -> Result<(), Errno> {
    sys::enable_group_quota(file.as_fd()).map_err(errno)
}

/// Makes a quota group with a limit, as root; one that is there gets the limit.
pub fn make_group(file: impl AsFd, group: u64, bytes: u64) -> Result<(), Errno> {
    match sys::create_group(file.as_fd(), group).map_err(errno) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    sys::limit_group(file.as_fd(), group, bytes).map_err(errno)
}

/// Makes a subvolume in a directory that belongs to a quota group; its owner needs no privilege.
pub fn make_subvolume(dir: impl AsFd, name: &str, group: u64) -> Result<(), Errno> {
    sys::create_subvolume(dir.as_fd(), name.as_bytes(), group).map_err(errno)
}
