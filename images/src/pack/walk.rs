//! The walk through the tree.

use std::collections::HashMap;
use std::ffi::CStr;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, major, minor};
use rustix::io::Errno;
use tar::EntryType;

use super::PackError;
use super::writer::{ArchiveWriter, Entry};
use crate::unpack::{self, quote, read_xattrs};

/// Each level holds two descriptors; a process may have 1024 of them almost everywhere.
const DEPTH_MAX: usize = 400;
/// One read of a file.
const PIECE_BYTES: usize = 128 << 10;
/// Names of files with several names that are remembered; beyond, such files are written twice. At
/// most 100 MB of names.
const LINKS_MAX: usize = 1 << 20;
/// `PROC_SUPER_MAGIC` and `SYSFS_MAGIC` of linux/magic.h.
const KERNEL_FILESYSTEMS: [u64; 2] = [0x9fa0, 0x6265_6572];

/// What kind of tree it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// As it looks.
    Plain,
    /// The upper directory of an overlay, written as a layer of an image: what hides something below
    /// becomes a whiteout (OCI image specification, "Whiteouts").
    Layer,
}

/// How a tree is written.
#[derive(Clone, Copy)]
pub struct PackOptions<'a> {
    /// The name of its top in the archive; empty for a tree whose top has no name.
    pub name: &'a [u8],
    /// What kind of tree it is.
    pub style: Style,
    /// Whether what is mounted inside is written too; else its mount points are, empty.
    pub cross_mounts: bool,
    /// The owner of everything, instead of each file's own.
    pub owner: Option<(u32, u32)>,
    /// Leaves out what has this path below the top.
    pub leave_out: &'a dyn Fn(&[u8]) -> bool,
}

/// What was written, and what was not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PackReport {
    /// Entries of the archive.
    pub entries: u64,
    /// Sockets, which no archive has.
    pub sockets: u64,
    /// Files that changed their length while they were read.
    pub changed: u64,
}

/// Writes `top`, a descriptor of anything opened with `O_PATH`, and what is below it.
///
/// # Errors
/// The archive is of no use then.
pub fn pack(top: OwnedFd, options: &PackOptions<'_>, out: &mut dyn Write) -> Result<PackReport, PackError> {
    let mut packer = Packer {
        writer: ArchiveWriter::new(out),
        options,
        links: HashMap::new(),
        report: PackReport::default(),
        buffer: vec![0; PIECE_BYTES],
    };
    packer.tree(top)?;
    let Packer { writer, report, .. } = packer;
    writer.finish().map_err(|source| PackError::Write { source })?;
    Ok(report)
}

struct Packer<'a> {
    writer: ArchiveWriter<'a>,
    options: &'a PackOptions<'a>,
    /// The first name of each file with several.
    links: HashMap<(u64, u64), Vec<u8>>,
    report: PackReport,
    buffer: Vec<u8>,
}

/// A directory that is being listed.
struct Level {
    fd: OwnedFd,
    entries: Dir,
    /// Below the top; empty for the top itself.
    path: Vec<u8>,
}

impl Packer<'_> {
    fn tree(&mut self, top: OwnedFd) -> Result<(), PackError> {
        let stat = fs::fstat(&top).map_err(|errno| failed("examine", b"", errno))?;
        let mut levels: Vec<Level> = self.entry(&top, b"", &stat)?.into_iter().collect();
        while let Some(level) = levels.last_mut() {
            let Some(entry) = level.entries.read() else {
                levels.pop();
                continue;
            };
            let entry = entry.map_err(|errno| failed("list", &level.path, errno))?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let path = join(&level.path, name.to_bytes());
            if (self.options.leave_out)(&path) {
                continue;
            }
            let found = match self.open(level.fd.as_fd(), name) {
                // Gone, or moved away, since it was listed.
                Err(Errno::NOENT) => continue,
                Err(Errno::XDEV) => {
                    self.mount_point(level.fd.as_fd(), name, &path)?;
                    continue;
                }
                other => other.map_err(|errno| failed("open", &path, errno))?,
            };
            let stat = fs::fstat(&found).map_err(|errno| failed("examine", &path, errno))?;
            let below = self.entry(&found, &path, &stat)?;
            if let Some(below) = below {
                if levels.len() >= DEPTH_MAX {
                    return Err(PackError::TooDeep { path: quote(&path) });
                }
                levels.push(below);
            }
        }
        Ok(())
    }

    fn open(&self, parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut how = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        if !self.options.cross_mounts {
            how |= ResolveFlags::NO_XDEV;
        }
        loop {
            match fs::openat2(parent, name, flags, Mode::empty(), how) {
                // One name without "..": only a signal or a mount going on at this moment.
                Err(Errno::INTR | Errno::AGAIN) => {}
                other => return other,
            }
        }
    }

    /// Writes one thing; gives the directory that has to be gone through next.
    fn entry(&mut self, found: &OwnedFd, path: &[u8], stat: &Stat) -> Result<Option<Level>, PackError> {
        let is_hidden = path.is_empty() && self.options.name.is_empty();
        let kind = FileType::from_raw_mode(stat.st_mode);
        let name = self.name(path, kind == FileType::Directory);
        match kind {
            FileType::Directory => {
                let level = open_level(found, path)?;
                if !is_hidden {
                    self.put(&name, EntryType::Directory, b"", stat, Some(level.fd.as_fd()))?;
                }
                if self.is_opaque(&level)? {
                    let mark = join(name.strip_suffix(b"/").unwrap_or(&name), b".wh..wh..opq");
                    let mark = mark.strip_prefix(b"./").unwrap_or(&mark).to_vec();
                    self.put(&mark, EntryType::Regular, b"", &whiteout(stat), None)?;
                }
                if !path.is_empty() && is_of_kernel(level.fd.as_fd()) {
                    return Ok(None);
                }
                return Ok(Some(level));
            }
            FileType::RegularFile if !self.linked(&name, stat)? => self.file(found, path, &name, stat)?,
            FileType::Symlink if !self.linked(&name, stat)? => {
                let target = fs::readlinkat(found, "", Vec::new()).map_err(|errno| failed("read", path, errno))?;
                self.put(&name, EntryType::Symlink, target.as_bytes(), stat, None)?;
            }
            FileType::Fifo => self.put(&name, EntryType::Fifo, b"", stat, None)?,
            FileType::CharacterDevice if self.options.style == Style::Layer && stat.st_rdev == 0 => {
                let (directory, last) = split(&name);
                let mark = join(directory, &[b".wh.", last].concat());
                self.put(&mark, EntryType::Regular, b"", &whiteout(stat), None)?;
            }
            FileType::CharacterDevice => self.put(&name, EntryType::Char, b"", stat, None)?,
            FileType::BlockDevice => self.put(&name, EntryType::Block, b"", stat, None)?,
            FileType::Socket => self.report.sockets += 1,
            _ => {}
        }
        Ok(None)
    }

    /// Writes a second name of a file as a link to the first.
    fn linked(&mut self, name: &[u8], stat: &Stat) -> Result<bool, PackError> {
        if stat.st_nlink < 2 {
            return Ok(false);
        }
        let key = (stat.st_dev, stat.st_ino);
        if let Some(first) = self.links.get(&key).cloned() {
            self.put(name, EntryType::Link, &first, stat, None)?;
            return Ok(true);
        }
        if self.links.len() < LINKS_MAX {
            self.links.insert(key, name.to_vec());
        }
        Ok(false)
    }

    fn file(&mut self, found: &OwnedFd, path: &[u8], name: &[u8], stat: &Stat) -> Result<(), PackError> {
        let mut file = reopen(found).map_err(|errno| failed("open", path, errno))?;
        let size_bytes = u64::try_from(stat.st_size).unwrap_or(0);
        self.put(name, EntryType::Regular, b"", stat, Some(file.as_fd()))?;
        let mut left = size_bytes;
        while left > 0 {
            match file.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(length) => left = self.writer.body(&self.buffer[..length]).map_err(writing)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(PackError::Read { op: "read", path: quote(path), source }),
            }
        }
        self.report.changed += u64::from(left > 0);
        self.writer.end_body().map_err(writing)
    }

    /// Writes the place where something is mounted, as the tree itself may have it: empty.
    fn mount_point(&mut self, parent: BorrowedFd<'_>, name: &CStr, path: &[u8]) -> Result<(), PackError> {
        let mut stat = match fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(()),
            other => other.map_err(|errno| failed("examine", path, errno))?,
        };
        stat.st_size = 0;
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let name = self.name(path, is_directory);
        let kind = if is_directory { EntryType::Directory } else { EntryType::Regular };
        self.put(&name, kind, b"", &stat, None)?;
        self.writer.end_body().map_err(writing)
    }

    fn put(
        &mut self,
        name: &[u8],
        kind: EntryType,
        link: &[u8],
        stat: &Stat,
        attributes: Option<BorrowedFd<'_>>,
    ) -> Result<(), PackError> {
        let xattrs = attributes.map(read_xattrs).transpose();
        let xattrs = xattrs.map_err(|errno| failed("read attributes of", name, errno))?.unwrap_or_default();
        let (uid, gid) = self.options.owner.unwrap_or((stat.st_uid, stat.st_gid));
        let size_bytes = if kind == EntryType::Regular { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 };
        self.report.entries += 1;
        let entry = Entry {
            kind,
            path: name,
            link,
            mode: stat.st_mode,
            uid,
            gid,
            mtime_s: stat.st_mtime,
            size_bytes,
            device: (major(stat.st_rdev), minor(stat.st_rdev)),
            xattrs,
        };
        self.writer.entry(&entry).map_err(writing)
    }

    /// Names a thing in the archive.
    fn name(&self, path: &[u8], is_directory: bool) -> Vec<u8> {
        let mut name = match (self.options.name, path) {
            (b"", b"") => b".".to_vec(),
            (top, b"") => top.to_vec(),
            (top, path) => join(top, path),
        };
        if is_directory {
            name.push(b'/');
        }
        name
    }

    fn is_opaque(&self, level: &Level) -> Result<bool, PackError> {
        if self.options.style != Style::Layer {
            return Ok(false);
        }
        let opaque = unpack::is_opaque(level.fd.as_fd());
        opaque.map_err(|source| PackError::Read { op: "examine", path: quote(&level.path), source })
    }
}

/// Opens for reading what an `O_PATH` descriptor is, which has been looked at: its link in /proc is
/// that very inode, whatever its name means by now.
fn reopen(found: &OwnedFd) -> Result<std::fs::File, Errno> {
    let link = format!("/proc/self/fd/{}", found.as_raw_fd());
    fs::openat(CWD, link, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())
        .map(Into::into)
}

fn open_level(found: &OwnedFd, path: &[u8]) -> Result<Level, PackError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let describe = |errno| failed("open", path, errno);
    let fd = fs::openat(found, c".", flags, Mode::empty()).map_err(describe)?;
    let entries = Dir::read_from(&fd).map_err(describe)?;
    Ok(Level { fd, entries, path: path.to_vec() })
}

/// Whether the kernel makes the files up while they are read.
fn is_of_kernel(directory: BorrowedFd<'_>) -> bool {
    fs::fstatfs(directory).is_ok_and(|stat| KERNEL_FILESYSTEMS.contains(&(stat.f_type as u64)))
}

/// Whiteouts have no content and no particular mode.
fn whiteout(stat: &Stat) -> Stat {
    let mut mark = *stat;
    (mark.st_mode, mark.st_size) = (0o100_000, 0);
    mark
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

fn failed(op: &'static str, path: &[u8], errno: Errno) -> PackError {
    let path = if path.is_empty() { b"the tree" } else { path };
    PackError::Read { op, path: quote(path), source: errno.into() }
}

fn writing(source: io::Error) -> PackError {
    PackError::Write { source }
}
