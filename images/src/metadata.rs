//! What a file has besides its name and content: owner, mode, modification time, attributes.
//!
//! Everything goes to a descriptor or to a name that is not followed.

use std::os::fd::BorrowedFd;

use rustix::fs::{self, AtFlags, Gid, Mode, Stat, Timespec, Timestamps, UTIME_OMIT, Uid};
use rustix::io::Errno;
use rustix::path::Arg;

use crate::unpack::copy_xattrs;

/// Gives `to` the owner, attributes, mode and time of `from`. The order matters: chown(2) takes
/// away capabilities and the setuid bit.
pub(crate) fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    let (wanted, present) = (fs::fstat(from)?, fs::fstat(to)?);
    if (wanted.st_uid, wanted.st_gid) != (present.st_uid, present.st_gid) {
        fs::fchown(to, Some(Uid::from_raw(wanted.st_uid)), Some(Gid::from_raw(wanted.st_gid)))?;
    }
    copy_xattrs(from, to)?;
    if essence(&wanted) == essence(&present) {
        return Ok(());
    }
    fs::fchmod(to, Mode::from_raw_mode(wanted.st_mode))?;
    fs::futimens(to, &modification_time(&wanted))
}

/// Sets owner and time of `name` in `parent`, even when it is a symbolic link.
pub(crate) fn set_by_name(
    parent: BorrowedFd<'_>,
    name: impl Arg + Copy,
    owner: Option<(u32, u32)>,
    times: &Timestamps,
) -> Result<(), Errno> {
    if let Some((uid, gid)) = owner {
        fs::chownat(parent, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    fs::utimensat(parent, name, times, AtFlags::SYMLINK_NOFOLLOW)
}

/// Only a modification time; the kernel cuts it to what the filesystem can hold.
pub(crate) fn modified_at(seconds: i64, nanoseconds: i64) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanoseconds },
    }
}

/// The modification time that `stat` tells.
pub(crate) fn modification_time(stat: &Stat) -> Timestamps {
    modified_at(stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0))
}

fn essence(stat: &Stat) -> (u32, u32, u32, i64, u64) {
    (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_mtime, stat.st_mtime_nsec)
}
