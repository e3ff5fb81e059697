//! Unpacks a layer archive into a directory, entry by entry, by descriptors.
//!
//! The archive is hostile (security.md section 2). What it may do is change files below the root
//! that it is given; what it may not do is reach anything else, use more memory than a few fixed
//! buffers, or leave marks of overlayfs that it did not earn as whiteouts. The result is a layer
//! for overlayfs with `userxattr`: 0/0 character devices hide names of lower layers and
//! `user.overlay.opaque` hides a directory's lower content.

mod archive;
mod directories;
mod error;
mod extract;
mod header;
mod ids;
mod pax;
mod place;
mod sparse;
mod tree;
mod xattrs;

use std::io::{self, BufRead};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, Timestamps, Uid};
use rustix::io::Errno;

pub(crate) use archive::{Archive, drain};
pub(crate) use error::quote;
pub use error::{ArchiveProblem, EntryProblem, UnpackError};
pub use extract::{Destination, ExtractOptions, TOP, extract};
pub use header::Kind;
pub(crate) use tree::OPAQUE_XATTR;
pub(crate) use xattrs::{clear as clear_xattrs, copy as copy_xattrs, read as read_xattrs};

use crate::layer::Ownership;
use crate::limits::{self, Limits};
use crate::metadata;
use archive::Entry;
use directories::{Metadata, Notes};
use ids::Ids;
use pax::Timestamp;
use place::{Place, Target};
use tree::{Tree, failure, join};

/// What was unpacked, and what was left out on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UnpackReport {
    /// Entries of the archive.
    pub entries: u64,
    /// Sum of the file sizes.
    pub bytes: u64,
    /// Device nodes, which nobody may make without being root; `/dev` of a container is its own.
    pub devices_skipped: u64,
    /// Extended attributes that are neither `user.*` nor `security.capability`, that imitate
    /// overlayfs, or that the filesystem refused.
    pub xattrs_dropped: u64,
    /// Bookkeeping entries of AUFS.
    pub ignored: u64,
}

/// What came of unpacking.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Unpacked {
    /// Counts.
    pub report: UnpackReport,
    /// Directories that the archive does not list, the root among them, each followed by a NUL.
    /// Their owner, mode and time are to be taken from the layers below.
    pub implicit: Vec<u8>,
}

/// How a layer is unpacked.
#[derive(Debug, Clone)]
pub struct UnpackOptions<'a> {
    /// What happens to owners.
    pub ownership: Ownership,
    /// Bounds.
    pub limits: &'a Limits,
}

/// Mode of directories that the archive does not list, the root included.
const IMPLICIT_DIRECTORY_MODE: u32 = 0o755;

/// Unpacks the archive in `reader` into the empty directory `root` and reads the stream to its
/// end. Nothing is synced.
///
/// # Errors
/// The tree is incomplete after an error and is to be removed.
pub fn unpack_layer(reader: impl BufRead, root: OwnedFd, options: &UnpackOptions<'_>) -> Result<Unpacked, UnpackError> {
    let mut archive = Archive::new(reader);
    let mut extractor = Extractor {
        tree: Tree::new(root),
        ids: Ids::current()?,
        notes: Notes::default(),
        report: UnpackReport::default(),
        options,
        is_layer: true,
    };
    extractor.note_implicit(b"")?;
    while let Some(entry) = archive.next_entry()? {
        extractor.apply(&entry, &mut archive)?;
    }
    drain(archive.into_inner()).map_err(|source| UnpackError::Read { source })?;
    extractor.finish()
}

struct Extractor<'a> {
    tree: Tree,
    ids: Ids,
    notes: Notes,
    report: UnpackReport,
    options: &'a UnpackOptions<'a>,
    /// Else an archive of files, which has no whiteouts and whose directories it lists.
    is_layer: bool,
}

impl Extractor<'_> {
    fn apply<R: BufRead>(&mut self, entry: &Entry, archive: &mut Archive<R>) -> Result<(), UnpackError> {
        self.count(entry)?;
        let place = if self.is_layer { place::of_entry(&entry.path)? } else { place::of_file(&entry.path)? };
        let refuse = |problem| UnpackError::Entry { path: quote(&entry.path), problem };
        match place.target {
            Target::Ignored => {
                self.report.ignored += 1;
                return Ok(());
            }
            // AUFS made whiteouts as hard links of one file.
            Target::Whiteout | Target::Opaque if !matches!(entry.kind, Kind::File | Kind::HardLink) => {
                return Err(refuse(EntryProblem::Whiteout));
            }
            Target::Whiteout => self.tree.hide(&place.directory, &place.name)?,
            Target::Opaque => self.tree.hide_all(&place.directory)?,
            Target::Root if entry.kind != Kind::Directory => return Err(refuse(EntryProblem::Root)),
            Target::Root => self.directory(entry, &place)?,
            Target::Entry => match entry.kind {
                Kind::File => self.file(entry, &place, archive)?,
                Kind::Directory => self.directory(entry, &place)?,
                Kind::Symlink => self.symlink(entry, &place)?,
                Kind::HardLink => self.hard_link(entry, &place)?,
                Kind::Fifo => self.fifo(entry, &place)?,
                Kind::CharDevice | Kind::BlockDevice => self.device(entry)?,
            },
        }
        for path in self.tree.take_implicit() {
            self.note_implicit(&path)?;
        }
        Ok(())
    }

    fn count(&mut self, entry: &Entry) -> Result<(), UnpackError> {
        self.report.entries += 1;
        if self.report.entries > self.options.limits.layer_entries_max {
            return Err(UnpackError::TooManyEntries { max: self.options.limits.layer_entries_max });
        }
        let max = self.options.limits.layer_unpacked_bytes_max;
        let bytes = self.report.bytes.checked_add(entry.size_bytes).filter(|bytes| *bytes <= max);
        self.report.bytes = bytes.ok_or(UnpackError::TooManyBytes { max })?;
        self.report.xattrs_dropped += entry.xattrs_dropped;
        Ok(())
    }

    fn file<R: BufRead>(&mut self, entry: &Entry, place: &Place, archive: &mut Archive<R>) -> Result<(), UnpackError> {
        let owner = self.owner(entry)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = self.tree.create(&place.directory, &place.name, "create file", |parent| {
            fs::openat(parent, &place.name, flags, Mode::RUSR | Mode::WUSR)
        })?;
        write_body(archive, &file, entry)?;
        let describe = |op| move |errno| failure(op, &entry.path, errno);
        if let Some((uid, gid)) = owner {
            fs::fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                .map_err(describe("change the owner of"))?;
        }
        self.report.xattrs_dropped +=
            xattrs::set(file.as_fd(), &entry.xattrs).map_err(describe("set attributes of"))?;
        fs::fchmod(&file, Mode::from_raw_mode(entry.mode)).map_err(describe("change the mode of"))?;
        fs::futimens(&file, &times(entry.mtime)).map_err(describe("set the time of"))
    }

    fn directory(&mut self, entry: &Entry, place: &Place) -> Result<(), UnpackError> {
        if entry.size_bytes > 0 || entry.sparse.is_some() {
            return Err(UnpackError::Entry { path: quote(&entry.path), problem: EntryProblem::DirectoryBody });
        }
        let owner = self.owner(entry)?;
        let path = match place.target {
            Target::Root => Vec::new(),
            _ => {
                self.tree.make_directory(&place.directory, &place.name)?;
                join(&place.directory, &place.name)
            }
        };
        if !entry.xattrs.is_empty() {
            let describe = |errno| failure("set attributes of", &entry.path, errno);
            let fd = self.tree.open_existing_directory(&path).map_err(describe)?;
            self.report.xattrs_dropped += xattrs::set(fd.as_fd(), &entry.xattrs).map_err(describe)?;
        }
        self.notes.add(&path, Metadata { is_implicit: false, mode: entry.mode, owner, mtime: entry.mtime })
    }

    fn symlink(&mut self, entry: &Entry, place: &Place) -> Result<(), UnpackError> {
        let target = &entry.link;
        if target.is_empty() || target.len() > limits::LINK_TARGET_BYTES_MAX || target.contains(&0) {
            return Err(UnpackError::Entry { path: quote(&entry.path), problem: EntryProblem::LinkTarget });
        }
        let owner = self.owner(entry)?;
        self.tree.create(&place.directory, &place.name, "create symbolic link", |parent| {
            fs::symlinkat(target.as_slice(), parent, &place.name)
        })?;
        // Attributes of links are neither user.* nor capabilities, by the kernel's rules.
        self.report.xattrs_dropped += entry.xattrs.len() as u64;
        let parent = self.tree.directory(&place.directory)?;
        metadata::set_by_name(parent, place.name.as_slice(), owner, &times(entry.mtime))
            .map_err(|errno| failure("set the owner and time of", &entry.path, errno))
    }

    /// Metadata of a hard link is that of its target, which the target's own entry has set.
    fn hard_link(&mut self, entry: &Entry, place: &Place) -> Result<(), UnpackError> {
        let refuse = |problem| UnpackError::Entry { path: quote(&entry.path), problem };
        let (directory, name) =
            if self.is_layer { place::of_hard_link(&entry.link) } else { place::of_plain_link(&entry.link) }
                .map_err(refuse)?;
        let found = match self.tree.existing(&directory, &name) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Err(refuse(EntryProblem::HardLinkTarget)),
            other => other.map_err(|errno| failure("open the target of", &entry.path, errno))?,
        };
        let (from, target) = found;
        let stat = fs::fstat(&target).map_err(|errno| failure("examine the target of", &entry.path, errno))?;
        if !matches!(FileType::from_raw_mode(stat.st_mode), FileType::RegularFile | FileType::Symlink) {
            return Err(refuse(EntryProblem::HardLinkTarget));
        }
        let parent = self.tree.directory(&place.directory)?;
        match fs::statat(parent, &place.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(present) if (present.st_dev, present.st_ino) == (stat.st_dev, stat.st_ino) => return Ok(()),
            _ => {}
        }
        self.tree.create(&place.directory, &place.name, "create hard link", |parent| {
            fs::linkat(&from, &name, parent, &place.name, AtFlags::empty())
        })
    }

    fn fifo(&mut self, entry: &Entry, place: &Place) -> Result<(), UnpackError> {
        let owner = self.owner(entry)?;
        self.tree.create(&place.directory, &place.name, "create fifo", |parent| {
            fs::mknodat(parent, &place.name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
        })?;
        let describe = |errno| failure("set the mode of", &entry.path, errno);
        let parent = self.tree.directory(&place.directory)?;
        // Opening for reading without blocking never waits for a writer (fifo(7)).
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fifo = fs::openat(parent, &place.name, flags, Mode::empty()).map_err(describe)?;
        if let Some((uid, gid)) = owner {
            fs::fchown(&fifo, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).map_err(describe)?;
        }
        self.report.xattrs_dropped += entry.xattrs.len() as u64;
        fs::fchmod(&fifo, Mode::from_raw_mode(entry.mode)).map_err(describe)?;
        fs::futimens(&fifo, &times(entry.mtime)).map_err(describe)
    }

    fn device(&mut self, entry: &Entry) -> Result<(), UnpackError> {
        let (major, minor) = entry.device;
        if u32::try_from(major).is_err() || u32::try_from(minor).is_err() {
            return Err(UnpackError::Entry { path: quote(&entry.path), problem: EntryProblem::DeviceRange });
        }
        self.report.devices_skipped += 1;
        Ok(())
    }

    fn owner(&self, entry: &Entry) -> Result<Option<(u32, u32)>, UnpackError> {
        self.ids.owner(self.options.ownership, &entry.path, entry.uid, entry.gid)
    }

    fn note_implicit(&mut self, path: &[u8]) -> Result<(), UnpackError> {
        if !self.is_layer {
            return Ok(());
        }
        let owner = self.ids.owner(self.options.ownership, path, 0, 0)?;
        let (mode, mtime) = (IMPLICIT_DIRECTORY_MODE, Timestamp::default());
        let metadata = Metadata { is_implicit: true, mode, owner, mtime };
        self.notes.add(path, metadata)
    }

    /// Gives directories their owner, mode and time.
    fn finish(self) -> Result<Unpacked, UnpackError> {
        let tree = &self.tree;
        let mut implicit = Vec::new();
        self.notes.for_each(|path, metadata| {
            let fd = match tree.open_existing_directory(path) {
                Ok(fd) => fd,
                // Something else has taken its place later in the archive.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
                Err(errno) => return Err(failure("open", path, errno)),
            };
            if metadata.is_implicit {
                implicit.extend_from_slice(path);
                implicit.push(0);
            }
            set_directory(fd.as_fd(), metadata).map_err(|errno| failure("set owner, mode and time of", path, errno))
        })?;
        Ok(Unpacked { report: self.report, implicit })
    }
}

fn set_directory(fd: BorrowedFd<'_>, metadata: &Metadata) -> Result<(), Errno> {
    if let Some((uid, gid)) = metadata.owner {
        fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    fs::fchmod(fd, Mode::from_raw_mode(metadata.mode))?;
    fs::futimens(fd, &times(metadata.mtime))
}

fn write_body<R: BufRead>(archive: &mut Archive<R>, file: &OwnedFd, entry: &Entry) -> Result<(), UnpackError> {
    let describe = |errno| failure("write", &entry.path, errno);
    let Some(map) = &entry.sparse else {
        let mut write = || archive.read_body(u64::MAX, |piece| write_all(file, piece).map_err(describe));
        while write()? > 0 {}
        return Ok(());
    };
    fs::ftruncate(file, map.real_size_bytes).map_err(describe)?;
    for (offset, length) in &map.segments {
        fs::seek(file, fs::SeekFrom::Start(*offset)).map_err(describe)?;
        let mut left = *length;
        while left > 0 {
            left -= archive.read_body(left, |piece| write_all(file, piece).map_err(describe))?;
        }
    }
    Ok(())
}

fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(file, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn times(mtime: Timestamp) -> Timestamps {
    metadata::modified_at(mtime.seconds, mtime.nanoseconds.into())
}

/// Whether the root of an unpacked layer hides all layers below. overlayfs itself does not look at
/// that mark on the root of a layer.
pub(crate) fn is_opaque(directory: BorrowedFd<'_>) -> io::Result<bool> {
    let mut value = [0u8; 1];
    match fs::fgetxattr(directory, OPAQUE_XATTR, &mut value) {
        Ok(length) => Ok(length == 1 && value == *b"y"),
        Err(Errno::NODATA | Errno::NOTSUP | Errno::RANGE) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}
