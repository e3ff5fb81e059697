//! Merges unpacked layers into one plain directory, for hosts that refuse overlayfs.
//!
//! The result is what a mount of the layers would show: 0/0 character devices hide names of the
//! layers below, `user.overlay.opaque=y` hides a directory's lower content, and where the kinds
//! differ the upper entry replaces the lower one. Layers are applied from the bottom up, so each
//! step only has to know the tree so far. Sockets and devices are left out, as unpacking does.
//!
//! Layers are hostile. Everything below the roots is reached by one name at a time that is never
//! followed, and nothing that exists is written to: it is removed and made anew, or it is a
//! directory. Two directories are open per layer, whatever the depth; the way back up is `..`,
//! which has to be the directory that we came from.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::contents::Copier;
use crate::lookup::{self, LookupError};
use crate::removal::{open_writable, remove_at};
use crate::unpack::{clear_xattrs, is_opaque, quote};
use crate::{limits, metadata};

/// Why layers cannot be merged. The directory they were to be merged into is then of no use.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each text says what the variant means")]
pub enum FlattenError {
    #[error("cannot {op} {}", path.display())]
    Root {
        op: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot {op} {path} of layer {}", layer.display())]
    Entry {
        op: &'static str,
        path: String,
        layer: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot merge layers into {}: it is not empty", path.display())]
    NotEmpty { path: PathBuf },
    #[error("too many directories in layer {}", layer.display())]
    TooManyDirectories { layer: PathBuf },
    #[error(transparent)]
    Lookup(#[from] LookupError),
}

const DIRECTORY_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Where the files of the current layer with several links are linked as well, by device and
/// inode: an index on disk, because in memory a hostile layer could make it as large as it likes.
const LINKS_NAME: &CStr = c".coracle-flatten-links";

/// Merges `layers`, bottom to top, into the existing empty directory `into`, which gets the owner,
/// mode and time of the topmost layer's root.
///
/// # Errors
/// When `into` is not empty, a layer cannot be read, or the copy cannot be written. The errno is
/// in the source, the path of the entry in the text.
pub fn flatten(layers: &[PathBuf], into: &Path) -> Result<(), FlattenError> {
    let root = open_root(into)?;
    let failed = |source: Errno| FlattenError::Root { op: "read", path: into.to_path_buf(), source: source.into() };
    for entry in Dir::read_from(&root).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            return Err(FlattenError::NotEmpty { path: into.to_path_buf() });
        }
    }
    // overlayfs takes no notice of the mark on a root, so the store leaves out what it hides.
    let mut bottom = 0;
    for (at, layer) in layers.iter().enumerate() {
        let failed = |source| FlattenError::Root { op: "examine", path: layer.clone(), source };
        if is_opaque(open_root(layer)?.as_fd()).map_err(failed)? {
            bottom = at;
        }
    }
    let mut copier = Copier::new();
    for layer in &layers[bottom..] {
        let source = open_root(layer)?;
        let failed =
            |source: Errno| FlattenError::Root { op: "merge", path: into.to_path_buf(), source: source.into() };
        let here = reopen_for_merge(&root).and_then(|target| Here::new(source, target)).map_err(failed)?;
        let (above, path, pending) = (Vec::new(), Vec::new(), Vec::new());
        Merge { layer, copier: &mut copier, root: root.as_fd(), here, above, path, pending, links: None }.run()?;
    }
    Ok(())
}

/// Copies what an image with these layers, bottom to top, has at the directory `path` into the
/// existing empty directory `into`, which gets that directory's owner, mode and time. Links on the
/// way are followed inside the image (A45). `false` when the image has no directory there.
///
/// # Errors
/// As [`flatten`].
pub fn copy_up(layers: &[PathBuf], path: &Path, into: &Path) -> Result<bool, FlattenError> {
    let Some(merged) = lookup::open_directory(layers, path)? else { return Ok(false) };
    let root = open_root(into)?;
    let failed = |source: Errno| FlattenError::Root { op: "fill", path: into.to_path_buf(), source: source.into() };
    let mut copier = Copier::new();
    for source in merged.into_iter().rev() {
        let here = reopen_for_merge(&root).and_then(|target| Here::new(source, target)).map_err(failed)?;
        let (above, names, pending) = (Vec::new(), Vec::new(), Vec::new());
        let root = root.as_fd();
        Merge { layer: path, copier: &mut copier, root, here, above, path: names, pending, links: None }.run()?;
    }
    Ok(true)
}

/// The directory that is being merged.
struct Here {
    source: OwnedFd,
    target: OwnedFd,
    identity: Identity,
    /// Where its names in [`Merge::pending`] begin.
    pending_from: usize,
}

/// Device and inode of source and target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    source: (u64, u64),
    target: (u64, u64),
}

/// A directory above the one that is being merged; it is not open.
struct Above {
    identity: Identity,
    pending_from: usize,
    path_length: usize,
}

/// One layer on its way into the target.
struct Merge<'a> {
    layer: &'a Path,
    copier: &'a mut Copier,
    /// Of the target.
    root: BorrowedFd<'a>,
    here: Here,
    above: Vec<Above>,
    /// From the root to `here`, for errors.
    path: Vec<u8>,
    /// Names of directories yet to be merged, each followed by a NUL: those of `here` last.
    pending: Vec<u8>,
    /// The directory [`LINKS_NAME`], made when first needed.
    links: Option<OwnedFd>,
}

impl Merge<'_> {
    fn run(mut self) -> Result<(), FlattenError> {
        self.list()?;
        loop {
            if let Some(name) = self.take_pending() {
                self.descend(&name).map_err(|errno| self.failed("merge directory", &name, errno))?;
                push(&mut self.path, &name);
                self.list()?;
            } else if !self.above.is_empty() {
                self.ascend().map_err(|errno| self.failed("complete directory", c"", errno))?;
            } else {
                return self.finish().map_err(|errno| self.failed("complete directory", c"", errno));
            }
        }
    }

    /// Merges everything in the current directory but its directories, which are noted for later.
    fn list(&mut self) -> Result<(), FlattenError> {
        let mut entries = Dir::read_from(&self.here.source).map_err(|errno| self.failed("list", c"", errno))?;
        while let Some(entry) = entries.read() {
            let entry = entry.map_err(|errno| self.failed("list", c"", errno))?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            if self.above.is_empty() && name == LINKS_NAME {
                return Err(self.failed("merge", name, Errno::EXIST));
            }
            if entry.file_type() == FileType::Directory {
                self.note(name)?;
                continue;
            }
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            let stat =
                fs::statat(&self.here.source, name, flags).map_err(|errno| self.failed("examine", name, errno))?;
            match FileType::from_raw_mode(stat.st_mode) {
                // Not every filesystem tells the kind in the listing.
                FileType::Directory => self.note(name)?,
                kind => self.place(name, kind, &stat).map_err(|errno| self.failed("copy", name, errno))?,
            }
        }
        Ok(())
    }

    fn note(&mut self, name: &CStr) -> Result<(), FlattenError> {
        if self.pending.len() > limits::DIRECTORY_NOTES_BYTES_MAX {
            return Err(FlattenError::TooManyDirectories { layer: self.layer.to_path_buf() });
        }
        self.pending.extend_from_slice(name.to_bytes_with_nul());
        Ok(())
    }

    fn take_pending(&mut self) -> Option<CString> {
        let names = self.pending.get(self.here.pending_from..)?.strip_suffix(b"\0")?;
        let length = names.iter().rev().take_while(|byte| **byte != 0).count();
        let name = CString::new(&names[names.len() - length..]).ok()?;
        self.pending.truncate(self.pending.len() - length - 1);
        Some(name)
    }

    /// Goes into the directory `name`, which hides or merges with what the target has there.
    fn descend(&mut self, name: &CStr) -> Result<(), Errno> {
        let source = fs::openat(&self.here.source, name, DIRECTORY_FLAGS, Mode::empty())?;
        let parent = self.here.target.as_fd();
        if is_opaque(source.as_fd()).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))? {
            remove_at(parent, name.to_bytes())?;
        }
        let make = || fs::mkdirat(parent, name, Mode::RWXU);
        let open = || open_writable(parent, name.to_bytes());
        let is_taken = match make() {
            Err(Errno::EXIST) => true,
            made => made.map(|()| false)?,
        };
        let mut target = open()?;
        match &target {
            // Attributes of the topmost directory count.
            Some(present) if is_taken => clear_xattrs(present.as_fd())?,
            Some(_) => {}
            None => {
                remove_at(parent, name.to_bytes())?;
                make()?;
                target = open()?;
            }
        }
        let target = target.ok_or(Errno::STALE)?;
        let above =
            Above { identity: self.here.identity, pending_from: self.here.pending_from, path_length: self.path.len() };
        self.here = Here { pending_from: self.pending.len(), ..Here::new(source, target)? };
        self.above.push(above);
        Ok(())
    }

    /// Completes the current directory and goes back to the one above it.
    fn ascend(&mut self) -> Result<(), Errno> {
        let Some(above) = self.above.last() else { return Ok(()) };
        // Before the mode is set, which may forbid even that.
        let up = |from: &OwnedFd| fs::openat(from, c"..", DIRECTORY_FLAGS, Mode::empty());
        let parent = Here::new(up(&self.here.source)?, up(&self.here.target)?)?;
        if parent.identity != above.identity {
            return Err(Errno::STALE);
        }
        metadata::copy(self.here.source.as_fd(), self.here.target.as_fd())?;
        self.here = Here { pending_from: above.pending_from, ..parent };
        self.path.truncate(above.path_length);
        self.above.pop();
        Ok(())
    }

    fn finish(&mut self) -> Result<(), Errno> {
        if self.links.take().is_some() {
            remove_at(self.here.target.as_fd(), LINKS_NAME.to_bytes())?;
        }
        metadata::copy(self.here.source.as_fd(), self.here.target.as_fd())
    }

    /// Puts something that is no directory into the target.
    fn place(&mut self, name: &CStr, kind: FileType, stat: &Stat) -> Result<(), Errno> {
        if !matches!(kind, FileType::RegularFile | FileType::Symlink | FileType::Fifo) {
            // A whiteout, or something that is left out and hides what is below nevertheless.
            return remove_at(self.here.target.as_fd(), name.to_bytes());
        }
        let has_links = stat.st_nlink > 1;
        if has_links && self.link_again(name, stat)? {
            return Ok(());
        }
        match kind {
            FileType::RegularFile => {
                let source = open(self.here.source.as_fd(), name)?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let target = self.create(name, |parent| fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR))?;
                self.copier.copy(source.as_fd(), target.as_fd(), stat)?;
                metadata::copy(source.as_fd(), target.as_fd())?;
            }
            FileType::Fifo => {
                let source = open(self.here.source.as_fd(), name)?;
                self.create(name, |parent| fs::mknodat(parent, name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0))?;
                let target = open(self.here.target.as_fd(), name)?;
                metadata::copy(source.as_fd(), target.as_fd())?;
            }
            _ => {
                let link = fs::readlinkat(&self.here.source, name, Vec::new())?;
                self.create(name, |parent| fs::symlinkat(&link, parent, name))?;
                let owner = Some((stat.st_uid, stat.st_gid));
                metadata::set_by_name(self.here.target.as_fd(), name, owner, &metadata::modification_time(stat))?;
            }
        }
        if has_links { self.remember_link(name, stat) } else { Ok(()) }
    }

    /// Runs `make`; when the name is taken, removes what is there and runs `make` again.
    fn create<T>(&self, name: &CStr, make: impl Fn(BorrowedFd<'_>) -> Result<T, Errno>) -> Result<T, Errno> {
        let parent = self.here.target.as_fd();
        match make(parent) {
            Err(Errno::EXIST) => {}
            other => return other,
        }
        remove_at(parent, name.to_bytes())?;
        make(parent)
    }

    /// Links `name` to the copy of the same file under another name; `false` when there is none.
    fn link_again(&self, name: &CStr, stat: &Stat) -> Result<bool, Errno> {
        let Some(links) = &self.links else { return Ok(false) };
        let key = link_key(stat);
        match self.create(name, |parent| fs::linkat(links, &key, parent, name, AtFlags::empty())) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            // As many links as the filesystem allows: the next copy takes over.
            Err(Errno::MLINK) => fs::unlinkat(links, &key, AtFlags::empty()).map(|()| false),
            Err(errno) => Err(errno),
        }
    }

    fn remember_link(&mut self, name: &CStr, stat: &Stat) -> Result<(), Errno> {
        let links = match self.links.take() {
            Some(links) => links,
            None => {
                fs::mkdirat(self.root, LINKS_NAME, Mode::RWXU)?;
                fs::openat(self.root, LINKS_NAME, DIRECTORY_FLAGS, Mode::empty())?
            }
        };
        let linked = fs::linkat(&self.here.target, name, &links, link_key(stat), AtFlags::empty());
        self.links = Some(links);
        match linked {
            // A filesystem without hard links gets copies (link(2)).
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::MLINK) => Ok(()),
            other => other,
        }
    }

    fn failed(&self, op: &'static str, name: &CStr, errno: Errno) -> FlattenError {
        let mut path = self.path.clone();
        push(&mut path, name);
        let path = if path.is_empty() { b"the root" } else { path.as_slice() };
        FlattenError::Entry { op, path: quote(path), layer: self.layer.to_path_buf(), source: errno.into() }
    }
}

impl Here {
    fn new(source: OwnedFd, target: OwnedFd) -> Result<Here, Errno> {
        let inode = |fd: &OwnedFd| fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
        let identity = Identity { source: inode(&source)?, target: inode(&target)? };
        Ok(Here { source, target, identity, pending_from: 0 })
    }
}

/// Opens a file or fifo without ever waiting for a writer (fifo(7)).
fn open(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(parent, name, flags, Mode::empty())
}

fn open_root(path: &Path) -> Result<OwnedFd, FlattenError> {
    fs::openat(CWD, path, DIRECTORY_FLAGS, Mode::empty()).map_err(|errno| FlattenError::Root {
        op: "open",
        path: path.to_path_buf(),
        source: errno.into(),
    })
}

/// Another descriptor of the target's root, to which the next layer may add.
fn reopen_for_merge(root: &OwnedFd) -> Result<OwnedFd, Errno> {
    fs::fchmod(root, Mode::RWXU)?;
    clear_xattrs(root.as_fd())?;
    rustix::io::fcntl_dupfd_cloexec(root, 0)
}

fn link_key(stat: &Stat) -> String {
    format!("{:x}-{:x}", stat.st_dev, stat.st_ino)
}

fn push(path: &mut Vec<u8>, name: &CStr) {
    if !path.is_empty() && !name.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name.to_bytes());
}
