//! Reaches paths below the container's root through its descriptor and nothing else.
//!
//! Every lookup is openat2(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS): a symbolic link of the image,
//! absolute or full of `..`, ends inside the root. What is missing is made one component at a time
//! below a directory that was found that way, so nothing is ever made outside.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2, readlinkat};
use rustix::io::Errno;

/// Dangling links followed while making a path; the kernel's own bound.
const LINKS_MAX: usize = 40;

const SEARCH: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// The root directory of a container, before or after it became `/`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inside<'a> {
    root: BorrowedFd<'a>,
}

/// What a mount point has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Directory,
    /// Anything but a directory: a mount covers it without opening it.
    File,
}

impl<'a> Inside<'a> {
    pub(crate) fn new(root: &'a OwnedFd) -> Self {
        Self { root: root.as_fd() }
    }

    /// Finds what a path names, links followed.
    pub(crate) fn find(&self, path: &Path) -> Result<OwnedFd, Errno> {
        self.open(path, SEARCH, ResolveFlags::empty())
    }

    /// Finds a path of which no component is a link; `ELOOP` when one is.
    pub(crate) fn find_plain(&self, path: &Path) -> Result<OwnedFd, Errno> {
        self.open(path, SEARCH, ResolveFlags::NO_SYMLINKS)
    }

    /// Opens a path for reading or writing.
    pub(crate) fn open(&self, path: &Path, flags: OFlags, extra: ResolveFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | extra;
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        loop {
            match openat2(self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                // A rename somewhere raced with `..`; the kernel asks for another try.
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return result,
            }
        }
    }

    /// Finds a mount point, or makes it with its parents.
    ///
    /// `ENOTDIR` and `EISDIR` when something of the other shape is in the way, `ELOOP` for links
    /// that never end.
    pub(crate) fn mount_point(&self, path: &Path, shape: Shape) -> Result<OwnedFd, Errno> {
        match self.find(path) {
            Ok(found) => check_shape(found, shape),
            Err(Errno::NOENT) => self.make(path, shape, LINKS_MAX),
            Err(errno) => Err(errno),
        }
    }

    /// Finds or makes a directory below the root of which no component is a link.
    pub(crate) fn plain_directory(&self, path: &Path) -> Result<OwnedFd, Errno> {
        match self.find_plain(path) {
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
            Ok(found) => return check_shape(found, Shape::Directory),
        }
        let mut place = self.find(Path::new("."))?;
        for name in names(path) {
            place = match mkdirat(&place, name, Mode::from_raw_mode(DIRECTORY_MODE)) {
                Ok(()) | Err(Errno::EXIST) => open_child(&place, name)?,
                Err(errno) => return Err(errno),
            };
        }
        check_shape(place, Shape::Directory)
    }

    /// Makes what is missing of `path`, following dangling links within the root.
    fn make(&self, path: &Path, shape: Shape, links_left: usize) -> Result<OwnedFd, Errno> {
        let parts: Vec<&OsStr> = parts(path);
        let mut walked = PathBuf::new();
        for (index, part) in parts.iter().enumerate() {
            let parent = walked.clone();
            walked.push(part);
            match self.find(&walked) {
                Ok(_) => continue,
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
            let parent_fd = self.find(&parent)?;
            if let Some(target) = read_link(&parent_fd, part)? {
                let left = links_left.checked_sub(1).ok_or(Errno::LOOP)?;
                let mut redirected = if target.is_absolute() { target } else { parent.join(target) };
                redirected.extend(&parts[index + 1..]);
                return self.make(&redirected, shape, left);
            }
            let last = index + 1 == parts.len();
            make_one(&parent_fd, part, if last { shape } else { Shape::Directory })?;
        }
        check_shape(self.find(path)?, shape)
    }
}

/// Docker makes mount points with these modes.
const DIRECTORY_MODE: u32 = 0o755;
const FILE_MODE: u32 = 0o644;

fn make_one(parent: &OwnedFd, name: &OsStr, shape: Shape) -> Result<(), Errno> {
    let made = match shape {
        Shape::Directory => mkdirat(parent, name, Mode::from_raw_mode(DIRECTORY_MODE)),
        Shape::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            openat(parent, name, flags, Mode::from_raw_mode(FILE_MODE)).map(drop)
        }
    };
    match made {
        // Somebody in a shared volume was faster; what is there now is judged by its descriptor.
        Err(Errno::EXIST) => Ok(()),
        result => result,
    }
}

fn read_link(parent: &OwnedFd, name: &OsStr) -> Result<Option<PathBuf>, Errno> {
    match readlinkat(parent, name, Vec::new()) {
        Ok(target) => Ok(Some(PathBuf::from(OsStr::from_bytes(target.as_bytes())))),
        Err(Errno::NOENT | Errno::INVAL) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn open_child(parent: &OwnedFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    openat2(parent, name, SEARCH | OFlags::DIRECTORY, Mode::empty(), resolve)
}

fn check_shape(found: OwnedFd, shape: Shape) -> Result<OwnedFd, Errno> {
    match (is_directory(&found)?, shape) {
        (true, Shape::Directory) | (false, Shape::File) => Ok(found),
        (true, Shape::File) => Err(Errno::ISDIR),
        (false, Shape::Directory) => Err(Errno::NOTDIR),
    }
}

/// Whether a descriptor is a directory.
pub(crate) fn is_directory(fd: impl AsFd) -> Result<bool, Errno> {
    Ok(FileType::from_raw_mode(fstat(fd)?.st_mode) == FileType::Directory)
}

/// The names of a path without `/` and `.`; `..` stays, for the kernel to resolve.
fn parts(path: &Path) -> Vec<&OsStr> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name),
            Component::ParentDir => Some(OsStr::new("..")),
            _ => None,
        })
        .collect()
}

fn names(path: &Path) -> impl Iterator<Item = &OsStr> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name),
        _ => None,
    })
}

/// Opens a path of the host as a place, without reading it.
pub(crate) fn open_host(path: &Path) -> Result<OwnedFd, Errno> {
    openat(CWD, path, SEARCH, Mode::empty())
}
