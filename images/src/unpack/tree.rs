//! The one door into the tree that is being unpacked.
//!
//! Everything is reached from the root's descriptor: directories by
//! `openat2(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV)`, their entries by a single
//! name that is never followed. So no name and no link of an archive, and no process that moves
//! directories meanwhile, makes us touch anything outside (security.md T01-T08, A52).

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, Dev, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::error::{EntryProblem, UnpackError, quote};
use crate::{limits, removal};

/// Mode of directories until the end of the layer: we can always write into them.
const WORK_MODE: u32 = 0o700;
/// How often a resolution is tried again when the kernel saw a rename during `..` (EAGAIN); only
/// somebody else's renames cause it, so a few are plenty.
const RESOLVE_ATTEMPTS_MAX: u32 = 64;
/// The mark of overlayfs (mounted with `userxattr`) on a directory that hides what is below it.
pub(crate) const OPAQUE_XATTR: &str = "user.overlay.opaque";

/// A directory that exists now.
#[derive(Debug)]
struct Resolved {
    path: Vec<u8>,
    fd: OwnedFd,
}

/// The tree below one root directory.
#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
    /// The directory of the last entry; archives list directories one after the other.
    last: Option<Resolved>,
    /// Directories made without an entry of their own since the last call of `take_implicit`.
    implicit: Vec<Vec<u8>>,
    /// A tree that other things are in already: what is mounted in it belongs to it, directories and
    /// other things do not replace each other, and a device hides nothing.
    is_shared: bool,
}

/// What was at a name before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Before {
    Nothing,
    Whiteout,
    Directory,
    Other,
}

impl Tree {
    /// Takes an open root directory.
    pub fn new(root: OwnedFd) -> Tree {
        Tree { root, last: None, implicit: Vec::new(), is_shared: false }
    }

    /// Takes the root directory of a tree that is no layer.
    pub fn shared(root: OwnedFd) -> Tree {
        Tree { is_shared: true, ..Tree::new(root) }
    }

    /// Takes the list of directories that were made only because something is below them.
    pub fn take_implicit(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.implicit)
    }

    /// Finds the directory `path` (clean: no empty, `.` or `..` components), makes what is
    /// missing, and replaces whiteouts by opaque directories.
    pub fn directory(&mut self, path: &[u8]) -> Result<BorrowedFd<'_>, UnpackError> {
        if path.is_empty() {
            return Ok(self.root.as_fd());
        }
        if self.last.as_ref().is_none_or(|last| last.path != path) {
            let fd = match self.open_directory(path) {
                Ok(fd) => fd,
                Err(Errno::NOENT | Errno::NOTDIR) => self.make_directories(path)?,
                Err(errno) => return Err(failure("open", path, errno)),
            };
            self.last = Some(Resolved { path: path.to_vec(), fd });
        }
        self.known(path)
    }

    /// Opens `path` to read an existing directory's list or set its attributes.
    pub fn open_existing_directory(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let path = if path.is_empty() { b"." } else { path };
        resolve(self.root.as_fd(), path, flags, self.is_shared)
    }

    /// Finds something that already exists, without following it: `(its directory, itself)`.
    pub fn existing(&self, directory: &[u8], name: &[u8]) -> Result<(OwnedFd, OwnedFd), Errno> {
        let directory = if directory.is_empty() { b"." } else { directory };
        let directory = self.open_directory(directory)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = fs::openat(&directory, name, flags, Mode::empty())?;
        Ok((directory, found))
    }

    /// Makes room for something new at `name`. With `keep_directory` an existing directory stays.
    pub fn clear(&mut self, directory: &[u8], name: &[u8], keep_directory: bool) -> Result<Before, UnpackError> {
        let parent = self.known(directory)?;
        let describe = |errno| failure("replace", &join(directory, name), errno);
        let stat = match fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(Before::Nothing),
            Err(errno) => return Err(describe(errno)),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory if keep_directory => Ok(Before::Directory),
            FileType::Directory if self.is_shared => {
                Err(UnpackError::Entry { path: quote(&join(directory, name)), problem: EntryProblem::OverDirectory })
            }
            _ if self.is_shared && keep_directory => {
                Err(UnpackError::Entry { path: quote(&join(directory, name)), problem: EntryProblem::OverFile })
            }
            FileType::Directory => {
                removal::remove_at(parent, name).map_err(describe)?;
                self.last = None;
                Ok(Before::Directory)
            }
            kind => {
                fs::unlinkat(parent, name, AtFlags::empty()).map_err(describe)?;
                if kind == FileType::Symlink {
                    self.last = None;
                }
                Ok(if kind == FileType::CharacterDevice { Before::Whiteout } else { Before::Other })
            }
        }
    }

    /// Makes the directory `name`, or keeps the one that is there.
    pub fn make_directory(&mut self, directory: &[u8], name: &[u8]) -> Result<(), UnpackError> {
        let make = |parent: BorrowedFd<'_>| fs::mkdirat(parent, name, Mode::from_raw_mode(WORK_MODE));
        let describe = |errno| failure("create directory", &join(directory, name), errno);
        match make(self.directory(directory)?) {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(describe(errno)),
        }
        let before = self.clear(directory, name, true)?;
        if before == Before::Directory {
            return Ok(());
        }
        make(self.directory(directory)?).map_err(describe)?;
        if before == Before::Whiteout {
            set_opaque(self.directory(directory)?, name).map_err(describe)?;
        }
        Ok(())
    }

    /// Runs `make` in `directory`; when the name is taken, clears it and runs `make` again.
    pub fn create<T>(
        &mut self,
        directory: &[u8],
        name: &[u8],
        what: &'static str,
        make: impl Fn(BorrowedFd<'_>) -> Result<T, Errno>,
    ) -> Result<T, UnpackError> {
        let describe = |errno| failure(what, &join(directory, name), errno);
        match make(self.directory(directory)?) {
            Err(Errno::EXIST) => {}
            other => return other.map_err(describe),
        }
        self.clear(directory, name, false)?;
        make(self.directory(directory)?).map_err(describe)
    }

    /// Hides `name` of the layers below, and only of those.
    pub fn hide(&mut self, directory: &[u8], name: &[u8]) -> Result<(), UnpackError> {
        let parent = self.directory(directory)?;
        let describe = |errno| failure("create whiteout", &join(directory, name), errno);
        match make_whiteout(parent, name) {
            Err(Errno::EXIST) => {}
            other => return other.map_err(describe),
        }
        let stat = fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(describe)?;
        match FileType::from_raw_mode(stat.st_mode) {
            // The layer's own entry stays; only what is below a directory has to be hidden.
            FileType::Directory => set_opaque(parent, name).map_err(describe),
            _ => Ok(()),
        }
    }

    /// Hides everything that the layers below have in `directory`.
    pub fn hide_all(&mut self, directory: &[u8]) -> Result<(), UnpackError> {
        let fd = self.directory(directory)?;
        set_opaque(fd, b".").map_err(|errno| failure("mark opaque", directory, errno))
    }

    fn known(&self, directory: &[u8]) -> Result<BorrowedFd<'_>, UnpackError> {
        match &self.last {
            _ if directory.is_empty() => Ok(self.root.as_fd()),
            Some(last) if last.path == directory => Ok(last.fd.as_fd()),
            _ => Err(failure("open", directory, Errno::STALE)),
        }
    }

    /// Walks `path` one component at a time, following links inside the root by hand, and makes
    /// what is missing.
    fn make_directories(&mut self, path: &[u8]) -> Result<OwnedFd, UnpackError> {
        let refuse = |problem| UnpackError::Entry { path: quote(path), problem };
        let mut todo: VecDeque<Vec<u8>> = components(path).map(<[u8]>::to_vec).collect();
        let mut done: Vec<Vec<u8>> = Vec::new();
        let mut links_left = limits::SYMLINKS_FOLLOWED_MAX;
        let mut here = self.open_directory(b".").map_err(|errno| failure("open", path, errno))?;
        while let Some(name) = todo.pop_front() {
            if name == b".." {
                done.pop();
                here = self.reopen(&done, path)?;
                continue;
            }
            match step(here.as_fd(), &name).map_err(|errno| failure("open", path, errno))? {
                Step::Directory(fd) => here = fd,
                Step::Missing => {
                    here = make_and_open(here.as_fd(), &name, false)
                        .map_err(|errno| failure("create directory", path, errno))?;
                    done.push(name);
                    self.implicit.push(done.join(&b'/'));
                    continue;
                }
                Step::Whiteout if self.is_shared => return Err(refuse(EntryProblem::NotADirectory)),
                Step::Whiteout => {
                    here = make_and_open(here.as_fd(), &name, true)
                        .map_err(|errno| failure("create directory", path, errno))?;
                    done.push(name);
                    self.implicit.push(done.join(&b'/'));
                    continue;
                }
                Step::Link(target) => {
                    links_left = links_left.checked_sub(1).ok_or_else(|| refuse(EntryProblem::SymlinkLoop))?;
                    if target.starts_with(b"/") {
                        done.clear();
                        here = self.reopen(&done, path)?;
                    }
                    for part in components(&target).rev() {
                        todo.push_front(part.to_vec());
                    }
                    continue;
                }
                Step::Other => return Err(refuse(EntryProblem::NotADirectory)),
            }
            done.push(name);
        }
        Ok(here)
    }

    fn reopen(&self, done: &[Vec<u8>], path: &[u8]) -> Result<OwnedFd, UnpackError> {
        let joined = if done.is_empty() { b".".to_vec() } else { done.join(&b'/') };
        self.open_directory(&joined).map_err(|errno| failure("open", path, errno))
    }

    fn open_directory(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        resolve(self.root.as_fd(), path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, self.is_shared)
    }
}

/// One component of a walk.
#[derive(Debug)]
enum Step {
    Directory(OwnedFd),
    Missing,
    Whiteout,
    Link(Vec<u8>),
    Other,
}

fn step(here: BorrowedFd<'_>, name: &[u8]) -> Result<Step, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = match fs::openat(here, name, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(Step::Missing),
        Err(errno) => return Err(errno),
    };
    Ok(match FileType::from_raw_mode(fs::fstat(&fd)?.st_mode) {
        FileType::Directory => Step::Directory(fd),
        FileType::Symlink => Step::Link(fs::readlinkat(&fd, "", Vec::new())?.into_bytes()),
        FileType::CharacterDevice => Step::Whiteout,
        _ => Step::Other,
    })
}

fn make_and_open(here: BorrowedFd<'_>, name: &[u8], over_whiteout: bool) -> Result<OwnedFd, Errno> {
    if over_whiteout {
        fs::unlinkat(here, name, AtFlags::empty())?;
    }
    fs::mkdirat(here, name, Mode::from_raw_mode(WORK_MODE))?;
    if over_whiteout {
        set_opaque(here, name)?;
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(here, name, flags, Mode::empty())
}

fn make_whiteout(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    // Unprivileged since Linux 5.8: 0/0 is no device (mknod(2), overlayfs.rst).
    const WHITEOUT: Dev = 0;
    fs::mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), WHITEOUT)
}

/// Marks a directory as hiding the layers below.
fn set_opaque(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = fs::openat(parent, name, flags, Mode::empty())?;
    fs::fsetxattr(&fd, OPAQUE_XATTR, b"y", fs::XattrFlags::empty())
}

fn resolve(root: BorrowedFd<'_>, path: &[u8], flags: OFlags, cross_mounts: bool) -> Result<OwnedFd, Errno> {
    let mut how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    if !cross_mounts {
        how |= ResolveFlags::NO_XDEV;
    }
    for _ in 1..RESOLVE_ATTEMPTS_MAX {
        match fs::openat2(root, path, flags, Mode::empty(), how) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    fs::openat2(root, path, flags, Mode::empty(), how)
}

/// The components of a path that name something.
pub(super) fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".")
}

/// `directory/name`, or `name` in the root.
pub(super) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

/// What a failed call means for an entry: some errnos are the archive's fault.
pub(super) fn failure(op: &'static str, path: &[u8], errno: Errno) -> UnpackError {
    let problem = match errno {
        Errno::LOOP => EntryProblem::SymlinkLoop,
        Errno::NOTDIR => EntryProblem::NotADirectory,
        Errno::XDEV => EntryProblem::OtherFilesystem,
        Errno::NAMETOOLONG => EntryProblem::NameTooLong,
        errno => return UnpackError::Io { op, path: quote(path), source: io::Error::from(errno) },
    };
    UnpackError::Entry { path: quote(path), problem }
}
