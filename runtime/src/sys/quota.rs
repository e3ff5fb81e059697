//! Quotas of filesystems: project ids of directories, limits of projects, btrfs' quota groups.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// A directory's `struct fsxattr` of linux/fs.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct FsXattr {
    pub flags: u32,
    pub extent_bytes: u32,
    pub extents: u32,
    pub project: u32,
    pub cow_extent_bytes: u32,
    pub padding: [u8; 8],
}

/// `struct btrfs_ioctl_quota_ctl_args` of linux/btrfs.h.
#[repr(C)]
#[derive(Debug, Default)]
struct QuotaControl {
    command: u64,
    status: u64,
}

/// `struct btrfs_ioctl_qgroup_create_args`.
#[repr(C)]
#[derive(Debug, Default)]
struct GroupCreate {
    create: u64,
    group: u64,
}

/// `struct btrfs_ioctl_qgroup_limit_args`.
#[repr(C)]
#[derive(Debug, Default)]
struct GroupLimit {
    group: u64,
    flags: u64,
    referenced_bytes_max: u64,
    exclusive_bytes_max: u64,
    reserved: [u64; 2],
}

/// `struct btrfs_qgroup_inherit` with one group.
#[repr(C)]
#[derive(Debug, Default)]
struct Inherit {
    flags: u64,
    groups: u64,
    copies: [u64; 2],
    limit: [u64; 5],
    group: u64,
}

/// The bytes of a name in `struct btrfs_ioctl_vol_args_v2`, with its end.
const NAME_BYTES: usize = 4040;

/// `struct btrfs_ioctl_vol_args_v2`.
#[repr(C)]
struct Volume {
    fd: i64,
    transaction: u64,
    flags: u64,
    size: u64,
    inherit: u64,
    unused: [u64; 2],
    name: [u8; NAME_BYTES],
}

mod calls {
    use super::{FsXattr, GroupCreate, GroupLimit, QuotaControl, Volume};

    nix::ioctl_read!(get_attributes, b'X', 31, FsXattr);
    nix::ioctl_write_ptr!(set_attributes, b'X', 32, FsXattr);
    nix::ioctl_readwrite!(control_quota, 0x94, 40, QuotaControl);
    nix::ioctl_write_ptr!(create_group, 0x94, 42, GroupCreate);
    nix::ioctl_read!(limit_group, 0x94, 43, GroupLimit);
    nix::ioctl_write_ptr!(create_volume, 0x94, 24, Volume);
}

/// FS_IOC_FSGETXATTR.
pub(crate) fn attributes(file: BorrowedFd<'_>) -> Result<FsXattr, Errno> {
    let mut found = FsXattr::default();
    // SAFETY: the call writes one structure of this layout.
    unsafe { calls::get_attributes(file.as_raw_fd(), &raw mut found) }?;
    Ok(found)
}

/// FS_IOC_FSSETXATTR.
pub(crate) fn set_attributes(file: BorrowedFd<'_>, wanted: &FsXattr) -> Result<(), Errno> {
    // SAFETY: the call reads one structure of this layout.
    unsafe { calls::set_attributes(file.as_raw_fd(), wanted) }.map(drop)
}

/// quotactl_fd(2) with Q_SETQUOTA for a project; 0 is no limit. Blocks are of 1 KiB.
pub(crate) fn set_project_limit(file: BorrowedFd<'_>, project: u32, blocks: u64, inodes: u64) -> Result<(), Errno> {
    /// QCMD(Q_SETQUOTA, PRJQUOTA) of linux/quota.h.
    const COMMAND: libc::c_uint = (0x80_0008 << 8) | 2;
    /// QIF_LIMITS.
    const LIMITS: u32 = 1 | 4;
    let limit = libc::dqblk {
        dqb_bhardlimit: blocks,
        dqb_bsoftlimit: 0,
        dqb_curspace: 0,
        dqb_ihardlimit: inodes,
        dqb_isoftlimit: 0,
        dqb_curinodes: 0,
        dqb_btime: 0,
        dqb_itime: 0,
        dqb_valid: LIMITS,
    };
    // SAFETY: the call reads one `struct if_dqblk`, which is what libc calls dqblk, and keeps nothing.
    let result = unsafe { libc::syscall(libc::SYS_quotactl_fd, file.as_raw_fd(), COMMAND, project, &raw const limit) };
    Errno::result(result).map(drop)
}

/// BTRFS_IOC_QUOTA_CTL: starts counting.
pub(crate) fn enable_group_quota(file: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut control = QuotaControl { command: 1, status: 0 };
    // SAFETY: the call reads and writes one structure of this layout.
    unsafe { calls::control_quota(file.as_raw_fd(), &raw mut control) }.map(drop)
}

/// BTRFS_IOC_QGROUP_CREATE.
pub(crate) fn create_group(file: BorrowedFd<'_>, group: u64) -> Result<(), Errno> {
    let wanted = GroupCreate { create: 1, group };
    // SAFETY: the call reads one structure of this layout.
    unsafe { calls::create_group(file.as_raw_fd(), &raw const wanted) }.map(drop)
}

/// BTRFS_IOC_QGROUP_LIMIT: what may be referenced at most.
pub(crate) fn limit_group(file: BorrowedFd<'_>, group: u64, bytes: u64) -> Result<(), Errno> {
    /// BTRFS_QGROUP_LIMIT_MAX_RFER.
    const REFERENCED: u64 = 1;
    let mut limit = GroupLimit { group, flags: REFERENCED, referenced_bytes_max: bytes, ..GroupLimit::default() };
    // SAFETY: the call reads one structure of this layout, whatever its number says.
    unsafe { calls::limit_group(file.as_raw_fd(), &raw mut limit) }.map(drop)
}

/// BTRFS_IOC_SUBVOL_CREATE_V2: makes a subvolume that belongs to a group from its beginning.
pub(crate) fn create_subvolume(dir: BorrowedFd<'_>, name: &[u8], group: u64) -> Result<(), Errno> {
    /// BTRFS_SUBVOL_QGROUP_INHERIT.
    const INHERIT: u64 = 1 << 2;
    let inherit = Inherit { groups: 1, group, ..Inherit::default() };
    let mut volume = Volume {
        fd: 0,
        transaction: 0,
        flags: INHERIT,
        size: size_of::<Inherit>() as u64,
        inherit: (&raw const inherit).expose_provenance() as u64,
        unused: [0; 2],
        name: [0; NAME_BYTES],
    };
    // The last byte ends it.
    volume.name[..NAME_BYTES - 1].get_mut(..name.len()).ok_or(Errno::ENAMETOOLONG)?.copy_from_slice(name);
    // SAFETY: the call reads both structures, which live until it returns.
    unsafe { calls::create_volume(dir.as_raw_fd(), &raw const volume) }.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_the_kernels() {
        assert_eq!(size_of::<FsXattr>(), 28);
        assert_eq!(size_of::<GroupLimit>(), 48);
        assert_eq!(size_of::<Inherit>(), 80);
        assert_eq!(size_of::<Volume>(), 4096);
    }
}
