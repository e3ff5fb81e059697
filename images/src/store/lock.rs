//! Locks between processes: flock(2) on small files in `images/locks/`.
//!
//! A lock dies with its process, so there is nothing to clean up after a kill. Order, to exclude
//! deadlock: `store` before a blob before a layer before `index`. Lock files are removed only by the
//! garbage collector, which then holds `store` exclusively.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{self, CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::StoreError;

/// A lock that is held until this is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: OwnedFd,
}

/// Who else may hold the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Share {
    /// Others that share it.
    Shared,
    /// Nobody.
    Exclusive,
}

/// Waits for a lock; calls `waiting` once if it is not free.
pub(super) fn acquire(path: &Path, share: Share, waiting: impl FnOnce()) -> Result<Lock, StoreError> {
    if let Some(lock) = try_acquire(path, share)? {
        return Ok(lock);
    }
    waiting();
    let blocking = match share {
        Share::Shared => FlockOperation::LockShared,
        Share::Exclusive => FlockOperation::LockExclusive,
    };
    loop {
        let file = open(path)?;
        match fs::flock(&file, blocking) {
            Ok(()) if is_current(&file, path) => return Ok(Lock { _file: file }),
            // Somebody removed the file before we had the lock, or a signal came.
            Ok(()) | Err(Errno::INTR) => {}
            Err(errno) => return Err(failed(path, errno)),
        }
    }
}

/// Takes a lock that is free; `None` when it is not.
pub(super) fn try_acquire(path: &Path, share: Share) -> Result<Option<Lock>, StoreError> {
    let attempt = match share {
        Share::Shared => FlockOperation::NonBlockingLockShared,
        Share::Exclusive => FlockOperation::NonBlockingLockExclusive,
    };
    loop {
        let file = open(path)?;
        match fs::flock(&file, attempt) {
            Ok(()) if is_current(&file, path) => return Ok(Some(Lock { _file: file })),
            Ok(()) | Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(errno) => return Err(failed(path, errno)),
        }
    }
}

fn open(path: &Path) -> Result<OwnedFd, StoreError> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(CWD, path, flags, Mode::RUSR | Mode::WUSR).map_err(|errno| failed(path, errno))
}

/// Whether the file that is locked is the one that others will find.
fn is_current(file: &OwnedFd, path: &Path) -> bool {
    let (Ok(held), Ok(found)) = (fs::fstat(file), fs::stat(path)) else { return false };
    (held.st_dev, held.st_ino) == (found.st_dev, found.st_ino)
}

fn failed(path: &Path, errno: Errno) -> StoreError {
    StoreError::Io { op: "lock", path: PathBuf::from(path), source: errno.into() }
}
