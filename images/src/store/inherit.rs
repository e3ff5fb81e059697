//! Directories that a layer does not list but has files in.
//!
//! Many builders write `tmp/x` without an entry for `tmp`. Unpacked alone, such a layer gets a `tmp`
//! of its own, and overlayfs shows the owner, mode and time of the topmost directory: the 1777 of
//! the base image would be gone. So what a layer did not say about a directory is taken from the
//! layers below, once an image says which those are. Layers are shared: should two images put the
//! same layer on bases that differ in such a directory, the later one decides.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, CWD, Mode, OFlags};
use rustix::io::Errno;

use super::target::implicit_path;
use super::{Image, Store, StoreError};
use crate::unpack::is_opaque;
use crate::{limits, metadata};

const DIRECTORY_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Store {
    /// Completes the directories of an image's layers in every space where all of them are.
    pub(super) fn inherit_everywhere(&self, image: &Image) -> Result<(), StoreError> {
        let root = self.layers_root();
        let failed = |source| StoreError::Io { op: "list", path: root.clone(), source };
        for space in fs_err::read_dir(&root).map_err(failed)? {
            let space = space.map_err(failed)?.path();
            if image.layers.iter().all(|layer| fs::lstat(space.join(layer.diff_id.hex())).is_ok()) {
                inherit(&space, image)?;
            }
        }
        Ok(())
    }
}

/// Completes the directories of an image's layers in one space, from the bottom up, so that what
/// one layer inherited the next can inherit.
pub(super) fn inherit(space: &Path, image: &Image) -> Result<(), StoreError> {
    for (at, layer) in image.layers.iter().enumerate() {
        let list = read_list(&implicit_path(space, &layer.diff_id))?;
        let paths = list.split(|byte| *byte == 0);
        // The list ends with a NUL.
        for path in paths.take(list.iter().filter(|byte| **byte == 0).count()) {
            let target = space.join(layer.diff_id.hex());
            let below = image.layers[..at].iter().rev().map(|layer| space.join(layer.diff_id.hex()));
            match inherit_directory(&target, below, path) {
                // Another user namespace's layers; they are completed from inside it.
                Ok(()) | Err(Errno::PERM | Errno::ACCESS) => {}
                Err(errno) => return Err(StoreError::Io { op: "complete", path: target, source: errno.into() }),
            }
        }
    }
    Ok(())
}

fn read_list(path: &Path) -> Result<Vec<u8>, StoreError> {
    let failed = |source| StoreError::Io { op: "read", path: path.to_path_buf(), source };
    let file = match fs_err::File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut list = Vec::new();
    file.take(limits::DIRECTORY_NOTES_BYTES_MAX as u64).read_to_end(&mut list).map_err(failed)?;
    Ok(list)
}

fn inherit_directory(target: &Path, below: impl Iterator<Item = impl AsRef<Path>>, path: &[u8]) -> Result<(), Errno> {
    let Seen { found: Some(target), hides_below: false } = look(target, path)? else { return Ok(()) };
    for layer in below {
        let seen = look(layer.as_ref(), path)?;
        if let Some(source) = seen.found {
            return metadata::copy(source.as_fd(), target.as_fd());
        }
        if seen.hides_below {
            return Ok(());
        }
    }
    Ok(())
}

/// What a layer has at a path.
struct Seen {
    found: Option<OwnedFd>,
    /// The layers below do not show through there.
    hides_below: bool,
}

/// Looks for the directory `path` in one layer, as overlayfs would: without following links.
fn look(layer: &Path, path: &[u8]) -> Result<Seen, Errno> {
    let mut here = fs::openat(CWD, layer, DIRECTORY_FLAGS, Mode::empty())?;
    let mut hides_below = is_opaque_directory(here.as_fd())?;
    for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
        here = match fs::openat(&here, name, DIRECTORY_FLAGS, Mode::empty()) {
            Ok(directory) => directory,
            Err(Errno::NOENT) => return Ok(Seen { found: None, hides_below }),
            // A whiteout, a file or a link in its place.
            Err(Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => return Ok(Seen { found: None, hides_below: true }),
            Err(errno) => return Err(errno),
        };
        hides_below |= is_opaque_directory(here.as_fd())?;
    }
    Ok(Seen { found: Some(here), hides_below })
}

fn is_opaque_directory(directory: BorrowedFd<'_>) -> Result<bool, Errno> {
    is_opaque(directory).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}
