//! Where a layer is unpacked until it may get its name.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{self, CWD, Mode, OFlags};
use rustix::io::Errno;

use super::{PRIVATE_DIRECTORY, StoreError, create_private, sync_directory};
use crate::digest::Digest;
use crate::removal::remove_tree;

/// Layers on their way in; nothing with this name is ever used.
const UNPACKING_PREFIX: &str = ".unpacking-";
/// Layers on their way out.
pub(super) const REMOVING_PREFIX: &str = ".removing-";
/// Lists of directories that inherit.
pub(super) const IMPLICIT_PREFIX: &str = ".implicit-";

/// The place of one layer, used under the layer's lock.
#[derive(Debug)]
pub(super) struct Target {
    space: PathBuf,
    unpacking: PathBuf,
    removing: PathBuf,
    implicit: PathBuf,
    published: PathBuf,
}

/// Where the list of directories that a layer does not list itself is kept.
pub(super) fn implicit_path(space: &Path, diff_id: &Digest) -> PathBuf {
    space.join(format!("{IMPLICIT_PREFIX}{}", diff_id.hex()))
}

impl Target {
    /// Names the place of `diff_id` in the directory of a space.
    pub fn new(space: &Path, diff_id: &Digest) -> Target {
        Target {
            space: space.to_path_buf(),
            unpacking: space.join(format!("{UNPACKING_PREFIX}{}", diff_id.hex())),
            removing: space.join(format!("{REMOVING_PREFIX}{}", diff_id.hex())),
            implicit: implicit_path(space, diff_id),
            published: space.join(diff_id.hex()),
        }
    }

    /// Whether the layer is complete.
    pub fn is_published(&self) -> bool {
        fs::lstat(&self.published).is_ok()
    }

    /// Makes an empty directory, in place of what killed pulls and collections left.
    pub fn prepare(&self) -> Result<OwnedFd, StoreError> {
        let failed = |op, source| StoreError::Io { op, path: self.unpacking.clone(), source };
        for left_over in [&self.unpacking, &self.removing, &self.implicit] {
            remove_tree(left_over).map_err(|source| failed("remove", source))?;
        }
        let make = || -> Result<OwnedFd, Errno> {
            fs::mkdirat(CWD, &self.unpacking, PRIVATE_DIRECTORY)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let directory = fs::openat(CWD, &self.unpacking, flags, Mode::empty())?;
            // Below a setgid directory everything would get that directory's group.
            fs::fchown(&directory, None, Some(rustix::process::getegid()))?;
            fs::fchmod(&directory, PRIVATE_DIRECTORY)?;
            Ok(directory)
        };
        make().map_err(|errno| failed("create", errno.into()))
    }

    /// Syncs the layer and gives it its name. `implicit` names the directories that are to inherit.
    pub fn publish(&self, implicit: &[u8]) -> Result<(), StoreError> {
        let failed = |source| StoreError::Io { op: "write", path: self.implicit.clone(), source };
        create_private(&self.implicit)?.write_all(implicit).map_err(failed)?;
        let sync = || -> Result<(), Errno> {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let space = fs::openat(CWD, &self.space, flags, Mode::empty())?;
            // One call for the whole tree instead of one for each of its files.
            fs::syncfs(space.as_fd())
        };
        sync().map_err(|errno| StoreError::Io { op: "sync", path: self.unpacking.clone(), source: errno.into() })?;
        fs_err::rename(&self.unpacking, &self.published).map_err(|source| StoreError::Io {
            op: "publish",
            path: self.published.clone(),
            source,
        })?;
        sync_directory(&self.space)
    }

    /// Removes what was unpacked. Whatever cannot be removed is the next locker's.
    pub fn discard(&self) {
        let _ = remove_tree(&self.unpacking);
        let _ = remove_tree(&self.implicit);
    }
}
