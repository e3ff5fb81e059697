//! The lock of a container: who holds it looks after the container.

use std::os::fd::AsFd;
use std::path::Path;

use fs_err::File;
use fs_err::os::unix::fs::OpenOptionsExt;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::ContainerError;

pub(super) fn lock(path: &Path) -> Result<File, ContainerError> {
    let file = open_lock(path)?;
    set_lock(&file).map_err(|source| ContainerError::Lock { path: path.to_owned(), source })?;
    Ok(file)
}

pub(super) fn open_existing_lock(directory: &Path) -> Result<File, std::io::Error> {
    fs_err::OpenOptions::new().read(true).write(true).open(directory.join("lock"))
}

pub(super) fn open_lock(path: &Path) -> Result<File, std::io::Error> {
    fs_err::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

pub(super) fn try_lock(file: File) -> Option<File> {
    set_lock(&file).ok().map(|()| file)
}

/// A lock of the open file description (fcntl_locking(2), Linux 3.15): it goes over to forked children,
/// the kernel ends it with its last holder, and unlike flock(2) others can ask for it without taking it.
fn set_lock(file: &File) -> Result<(), Errno> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&whole_file())).map(drop)
}

/// Says whether somebody holds a lock, without taking it.
pub fn is_locked(file: impl AsFd) -> bool {
    let mut lock = whole_file();
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock)).is_ok() && i32::from(lock.l_type) != libc::F_UNLCK
}

fn whole_file() -> libc::flock {
    /// F_WRLCK has the type of another field in libc.
    const WRITE_LOCK: i16 = 1;
    libc::flock { l_type: WRITE_LOCK, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 }
}

pub(super) fn wait_for_lock(file: &File) -> Result<(), ContainerError> {
    let wait = fcntl(file, FcntlArg::F_OFD_SETLKW(&whole_file()));
    wait.map(drop).map_err(|source| ContainerError::Lock { path: file.path().to_owned(), source })
}
