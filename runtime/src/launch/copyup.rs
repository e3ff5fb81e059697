//! Fills an empty volume with what the image has at its mount point (Docker's VOLUME).
//!
//! Both sides are walked by descriptor without following links. Anything that the volume cannot hold
//! (sockets, device nodes) is left out.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat,
    copy_file_range, fchmod, fgetxattr, flistxattr, fsetxattr, fstat, mkdirat, mkfifoat, openat, readlinkat, statat,
    symlinkat, utimensat,
};
use rustix::io::{Errno, read, write};

/// Deeper trees do not fit into a path (PATH_MAX / 2), and each level holds two descriptors.
const DEPTH_MAX: usize = 200;
/// One read of a file that cannot be copied inside the kernel.
const CHUNK_BYTES: usize = 64 << 10;
/// The kernel's XATTR_SIZE_MAX and XATTR_LIST_MAX.
const XATTR_BYTES_MAX: usize = 64 << 10;

const READ_DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Copies the directory `image` into the directory `volume` if that is empty.
pub(crate) fn fill(image: &OwnedFd, volume: &OwnedFd) -> Result<(), Errno> {
    let is_dir = |fd: &OwnedFd| fstat(fd).map(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
    if !is_dir(image)? || !is_dir(volume)? {
        return Ok(());
    }
    let from = openat(image, ".", READ_DIR, Mode::empty())?;
    let to = openat(volume, ".", READ_DIR, Mode::empty())?;
    if entries(&to)?.next().is_some() {
        return Ok(());
    }
    copy_directory(&from, &to, DEPTH_MAX)?;
    copy_attributes(&from, &to, &fstat(&from)?)
}

fn entries(dir: &OwnedFd) -> Result<impl Iterator<Item = Result<Box<CStr>, Errno>>, Errno> {
    let names = Dir::read_from(dir)?.map(|entry| entry.map(|entry| Box::from(entry.file_name())));
    Ok(names.filter(|name: &Result<Box<CStr>, Errno>| !matches!(name, Ok(name) if name.to_bytes() == b"." || name.to_bytes() == b"..")))
}

fn copy_directory(from: &OwnedFd, to: &OwnedFd, depth_left: usize) -> Result<(), Errno> {
    let depth_left = depth_left.checked_sub(1).ok_or(Errno::NAMETOOLONG)?;
    for name in entries(from)? {
        copy_entry(from, to, &name?, depth_left)?;
    }
    Ok(())
}

fn copy_entry(from: &OwnedFd, to: &OwnedFd, name: &CStr, depth_left: usize) -> Result<(), Errno> {
    let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            mkdirat(to, name, Mode::RWXU)?;
            let source = openat(from, name, READ_DIR, Mode::empty())?;
            let copy = openat(to, name, READ_DIR, Mode::empty())?;
            copy_directory(&source, &copy, depth_left)?;
            copy_attributes(&source, &copy, &stat)
        }
        FileType::RegularFile => {
            let source = openat(
                from,
                name,
                OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let copy = openat(to, name, flags, Mode::RUSR | Mode::WUSR)?;
            copy_bytes(&source, &copy)?;
            copy_attributes(&source, &copy, &stat)
        }
        FileType::Symlink => {
            symlinkat(readlinkat(from, name, Vec::new())?.as_c_str(), to, name)?;
            own_by_name(to, name, &stat)
        }
        FileType::Fifo => {
            mkfifoat(to, name, Mode::RUSR | Mode::WUSR)?;
            chmodat(to, name, Mode::from_raw_mode(stat.st_mode & 0o777), AtFlags::empty())?;
            own_by_name(to, name, &stat)
        }
        _ => Ok(()),
    }
}

fn copy_bytes(from: &OwnedFd, to: &OwnedFd) -> Result<(), Errno> {
    loop {
        match copy_file_range(from, None, to, None, usize::MAX >> 1) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {
                break;
            }
            Err(errno) => return Err(errno),
        }
    }
    let mut chunk = vec![0_u8; CHUNK_BYTES];
    loop {
        let length = read(from, &mut chunk)?;
        if length == 0 {
            return Ok(());
        }
        let mut rest = &chunk[..length];
        while !rest.is_empty() {
            rest = &rest[write(to, rest)?..];
        }
    }
}

fn copy_attributes(from: &OwnedFd, to: &OwnedFd, stat: &Stat) -> Result<(), Errno> {
    let (uid, gid) = owner(stat);
    rustix::fs::fchown(to, Some(uid), Some(gid)).or_else(forgive_owner)?;
    copy_xattrs(from, to)?;
    // After the owner, because a change of owner clears the setuid bits.
    fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    rustix::fs::futimens(to, &times(stat))
}

fn own_by_name(dir: &OwnedFd, name: &CStr, stat: &Stat) -> Result<(), Errno> {
    let (uid, gid) = owner(stat);
    chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).or_else(forgive_owner)?;
    utimensat(dir, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)
}

/// A volume on a filesystem of one owner (NFS, FUSE) keeps its owner.
fn forgive_owner(errno: Errno) -> Result<(), Errno> {
    match errno {
        Errno::PERM | Errno::INVAL | Errno::OPNOTSUPP => Ok(()),
        errno => Err(errno),
    }
}

fn owner(stat: &Stat) -> (Uid, Gid) {
    (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid))
}

fn times(stat: &Stat) -> Timestamps {
    let time =
        |seconds: i64, nanoseconds: u64| Timespec { tv_sec: seconds, tv_nsec: i64::try_from(nanoseconds).unwrap_or(0) };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

/// Copies what a user may set; overlayfs' own marks stay behind.
fn copy_xattrs(from: impl AsFd, to: impl AsFd) -> Result<(), Errno> {
    let mut names = vec![0_u8; XATTR_BYTES_MAX];
    let length = match flistxattr(&from, &mut names) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    let mut value = Vec::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let wanted =
            name == b"security.capability" || name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
        if !wanted {
            continue;
        }
        value.resize(XATTR_BYTES_MAX, 0);
        let length = fgetxattr(&from, name, &mut value)?;
        match fsetxattr(&to, name, &value[..length], XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
