//! What a container changed: its writable layer compared with the layers below.
//!
//! The upper directory of the overlay may be in use while it is read, so it is walked by one name at
//! a time that is never followed (A42). Docker's words: A added, C changed, D deleted. A directory
//! that was copied up only because something in it changed is not listed for itself.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::lookup::{self, Found};
use crate::unpack::{is_opaque, quote};

/// More changes than any container makes that a person wants to read about.
const CHANGES_MAX: usize = 1 << 20;
/// Each level holds descriptors of every layer; a process may have 1024.
const DEPTH_MAX: usize = 200;

/// Why changes cannot be listed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each text says what the variant means")]
pub enum DiffError {
    #[error("cannot {op} {path}")]
    Io {
        op: &'static str,
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("there are more than {CHANGES_MAX} changes")]
    TooMany,
    #[error("{path} is nested too deep")]
    TooDeep { path: String },
}

/// What happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub enum Change {
    /// The image has nothing there.
    #[serde(rename = "A")]
    Added,
    /// The image has something else there.
    #[serde(rename = "C")]
    Changed,
    /// It is gone.
    #[serde(rename = "D")]
    Deleted,
}

impl Change {
    /// Docker's letter.
    pub fn letter(self) -> char {
        match self {
            Change::Added => 'A',
            Change::Changed => 'C',
            Change::Deleted => 'D',
        }
    }
}

/// Lists what `upper` changes of the merged `lower` layers (bottom first), by absolute path, sorted.
/// What `leave_out` knows (relative to the root) is not looked at. Directories are listed as docker
/// does: one whose content changed is itself changed.
pub fn changes(
    lower: &[PathBuf],
    upper: &Path,
    leave_out: &dyn Fn(&[u8], &Stat) -> bool,
) -> Result<Vec<(Change, Vec<u8>)>, DiffError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = fs::openat(CWD, upper, flags, Mode::empty()).map_err(|errno| failed("open", b"/", errno))?;
    let below = lookup::root(lower).map_err(|errno| failed("open", b"/", errno))?;
    let mut found = Diff { changes: Vec::new(), leave_out };
    found.directory(&top, Some(&below), b"", DEPTH_MAX)?;
    found.changes.sort_by(|a, b| a.1.cmp(&b.1));
    Ok(found.changes)
}

/// Shows what is in a directory that may be in use: each name, its path from the root and what it is.
pub(crate) fn entries(
    here: &OwnedFd,
    path: &[u8],
    mut see: impl FnMut(&std::ffi::CStr, &[u8], &Stat) -> Result<(), DiffError>,
) -> Result<(), DiffError> {
    let mut entries = Dir::read_from(here).map_err(|errno| failed("list", path, errno))?;
    while let Some(entry) = entries.read() {
        let entry = entry.map_err(|errno| failed("list", path, errno))?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let path = [path, b"/", name.to_bytes()].concat();
        match fs::statat(here, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {}
            other => see(name, &path, &other.map_err(|errno| failed("examine", &path, errno))?)?,
        }
    }
    Ok(())
}

struct Diff<'a> {
    changes: Vec<(Change, Vec<u8>)>,
    leave_out: &'a dyn Fn(&[u8], &Stat) -> bool,
}

impl Diff<'_> {
    fn directory(
        &mut self,
        here: &OwnedFd,
        below: Option<&[OwnedFd]>,
        path: &[u8],
        depth_left: usize,
    ) -> Result<(), DiffError> {
        let depth_left = depth_left.checked_sub(1).ok_or_else(|| DiffError::TooDeep { path: quote(path) })?;
        let opaque = is_opaque(here.as_fd());
        let opaque =
            opaque.map_err(|source| DiffError::Io { op: "examine", path: quote(path), source })? && !path.is_empty();
        if let (true, Some(below)) = (opaque, below) {
            self.hidden(here, below, path)?;
        }
        entries(here, path, |name, path, stat| {
            if (self.leave_out)(path, stat) {
                return Ok(());
            }
            let old = match below {
                Some(below) => lookup::find(below, name.to_bytes()).map_err(|errno| failed("examine", path, errno))?,
                None => Found::Nothing,
            };
            self.entry(here, name, path, stat, old, depth_left)
        })
    }

    fn entry(
        &mut self,
        here: &OwnedFd,
        name: &std::ffi::CStr,
        path: &[u8],
        stat: &Stat,
        old: Found,
        depth_left: usize,
    ) -> Result<(), DiffError> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let is_there = !matches!(old, Found::Nothing);
        if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
            return if is_there { self.add(Change::Deleted, path) } else { Ok(()) };
        }
        let change = if is_there { Change::Changed } else { Change::Added };
        if kind != FileType::Directory {
            return self.add(change, path);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let inside = match fs::openat(here, name, flags, Mode::empty()) {
            // Something else by now.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            other => other.map_err(|errno| failed("open", path, errno))?,
        };
        let below = match &old {
            Found::Directory(merged) => Some(merged.as_slice()),
            _ => None,
        };
        let same = below
            .and_then(<[OwnedFd]>::first)
            .and_then(|old| fs::fstat(old).ok())
            .is_some_and(|old| (old.st_mode, old.st_uid, old.st_gid) == (stat.st_mode, stat.st_uid, stat.st_gid));
        let before = self.changes.len();
        self.directory(&inside, below, path, depth_left)?;
        // Copied up for a mount point of ours, or for something that is as it was.
        if same && self.changes.len() == before {
            return Ok(());
        }
        self.add(change, path)
    }

    /// Lists what an opaque directory hides and does not have itself.
    fn hidden(&mut self, here: &OwnedFd, below: &[OwnedFd], path: &[u8]) -> Result<(), DiffError> {
        for layer in below {
            let mut entries = Dir::read_from(layer).map_err(|errno| failed("list", path, errno))?;
            while let Some(entry) = entries.read() {
                let entry = entry.map_err(|errno| failed("list", path, errno))?;
                let name = entry.file_name();
                if name == c"." || name == c".." {
                    continue;
                }
                let gone = matches!(fs::statat(here, name, AtFlags::SYMLINK_NOFOLLOW), Err(Errno::NOENT));
                let full = [path, b"/", name.to_bytes()].concat();
                let old = lookup::find(below, name.to_bytes()).map_err(|errno| failed("examine", &full, errno))?;
                let known = self.changes.iter().rev().any(|(_, other)| *other == full);
                if gone && !known && !matches!(old, Found::Nothing) {
                    self.add(Change::Deleted, &full)?;
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, change: Change, path: &[u8]) -> Result<(), DiffError> {
        if self.changes.len() >= CHANGES_MAX {
            return Err(DiffError::TooMany);
        }
        self.changes.push((change, path.to_vec()));
        Ok(())
    }
}

pub(crate) fn failed(op: &'static str, path: &[u8], errno: Errno) -> DiffError {
    DiffError::Io { op, path: quote(path), source: errno.into() }
}
