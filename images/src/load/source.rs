//! The files of an image archive or layout directory, by name.
//!
//! An archive is gone through once to learn where its members are, and then read in any order. What
//! cannot be read in any order (a pipe, a compressed archive) is first copied to a nameless file of
//! the store.

use std::collections::HashMap;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{self, CWD, FileType, Mode, OFlags};

use super::LoadError;
use crate::decompression::{Decoder, SNIFF_BYTES, sniff};
use crate::layer::Compression;
use crate::store::Store;
use crate::unpack::{Archive, Kind};

/// Most members of an archive: 500 layers with three files each, and room for many images.
const MEMBERS_MAX: usize = 100_000;
/// Longest chain of links between members; old versions of Docker link equal layers.
const LINKS_MAX: usize = 8;
/// Where standard input is found.
const STDIN: &str = "/dev/stdin";

/// Where files are read from.
pub(super) struct Source {
    path: PathBuf,
    content: Content,
}

enum Content {
    Directory,
    Archive { file: Arc<OwnedFd>, members: HashMap<Vec<u8>, Member> },
}

enum Member {
    File {
        offset: u64,
        size_bytes: u64,
    },
    /// The full name of another member.
    Link(Vec<u8>),
}

/// Part of a file; reads by position, so several can be open.
pub(super) struct Window {
    file: Arc<OwnedFd>,
    offset: u64,
    left: u64,
}

impl Source {
    /// Opens a directory or an archive.
    pub fn open(path: &Path, store: &Store) -> Result<Source, LoadError> {
        let failed = |source| LoadError::Io { op: "open", path: path.to_path_buf(), source };
        if fs_err::metadata(path).map_err(failed)?.is_dir() {
            return Ok(Source { path: path.to_path_buf(), content: Content::Directory });
        }
        let file = if path == Path::new(STDIN) {
            // Opening it anew may not be allowed, and it may not be at its start.
            io::stdin().as_fd().try_clone_to_owned().map_err(failed)?
        } else {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY;
            fs::openat(CWD, path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?
        };
        let file = Arc::new(seekable(file, store).map_err(failed)?);
        let members = list(&file, path)?;
        Ok(Source { path: path.to_path_buf(), content: Content::Archive { file, members } })
    }

    /// Whether there is a file of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.open_member(name).is_ok()
    }

    /// Reads a small file.
    pub fn read(&self, name: &str, max_bytes: u64) -> Result<Vec<u8>, LoadError> {
        let window = self.open_member(name)?;
        if window.left > max_bytes {
            return Err(LoadError::TooLarge { name: name.to_owned(), max_bytes });
        }
        let mut bytes = Vec::new();
        let mut window = window;
        window.read_to_end(&mut bytes).map_err(|source| self.failed("read", source))?;
        Ok(bytes)
    }

    /// Opens a file by its name.
    pub fn open_member(&self, name: &str) -> Result<Window, LoadError> {
        let missing = || LoadError::Missing { name: name.to_owned() };
        let clean = clean(b"", name.as_bytes()).ok_or_else(missing)?;
        match &self.content {
            Content::Directory => self.open_in_directory(&clean).map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => missing(),
                _ => self.failed("open", source),
            }),
            Content::Archive { file, members } => {
                let mut name = &clean;
                for _ in 0..LINKS_MAX {
                    match members.get(name) {
                        Some(Member::File { offset, size_bytes }) => {
                            return Ok(Window { file: Arc::clone(file), offset: *offset, left: *size_bytes });
                        }
                        Some(Member::Link(target)) => name = target,
                        None => break,
                    }
                }
                Err(missing())
            }
        }
    }

    fn open_in_directory(&self, name: &[u8]) -> io::Result<Window> {
        use std::os::unix::ffi::OsStrExt;
        let path = self.path.join(std::ffi::OsStr::from_bytes(name));
        // A fifo must not make us wait.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = fs::openat(CWD, path, flags, Mode::empty())?;
        let stat = fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::ErrorKind::NotFound.into());
        }
        let left = u64::try_from(stat.st_size).unwrap_or(0);
        Ok(Window { file: Arc::new(file), offset: 0, left })
    }

    fn failed(&self, op: &'static str, source: io::Error) -> LoadError {
        LoadError::Io { op, path: self.path.clone(), source }
    }
}

impl Window {
    /// How many bytes are left.
    pub fn size_bytes(&self) -> u64 {
        self.left
    }

    /// The same file from a later byte on.
    pub fn skip_to(&self, offset: u64) -> Window {
        let skipped = offset.min(self.left);
        Window { file: Arc::clone(&self.file), offset: self.offset + skipped, left: self.left - skipped }
    }

    /// How the content is compressed, by its first bytes.
    pub fn sniff(&self) -> io::Result<Compression> {
        let mut start = Vec::new();
        self.skip_to(0).take(SNIFF_BYTES as u64).read_to_end(&mut start)?;
        Ok(sniff(&start))
    }
}

impl Read for Window {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = rustix::io::pread(&self.file, &mut buffer[..want], self.offset)?;
        if read == 0 && want > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.offset += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

/// The file itself when it is a plain archive on disk, or a nameless decompressed copy.
fn seekable(file: OwnedFd, store: &Store) -> io::Result<OwnedFd> {
    let stat = fs::fstat(&file)?;
    let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    let mut reader = BufReader::new(fs_err::File::from_parts(file.into(), "archive"));
    let start = io::BufRead::fill_buf(&mut reader)?;
    let compression = sniff(start);
    if is_file && compression == Compression::Plain {
        return Ok(reader.into_inner().into_parts().0.into());
    }
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    let copy = fs::openat(CWD, store.images().join("partial"), flags, Mode::RUSR | Mode::WUSR)?;
    let mut copy = std::fs::File::from(copy);
    io::copy(&mut Decoder::new(compression, reader)?, &mut copy)?;
    Ok(copy.into())
}

/// Learns where the members of an archive are. Of two with the same name the later one counts.
fn list(file: &Arc<OwnedFd>, path: &Path) -> Result<HashMap<Vec<u8>, Member>, LoadError> {
    let damaged = |source| LoadError::Archive { path: path.to_path_buf(), source };
    let stat = fs::fstat(file).map_err(|errno| LoadError::Io {
        op: "examine",
        path: path.to_path_buf(),
        source: errno.into(),
    })?;
    let left = u64::try_from(stat.st_size).unwrap_or(0);
    let mut archive =
        Archive::new(BufReader::with_capacity(1 << 18, Window { file: Arc::clone(file), offset: 0, left }));
    let mut members = HashMap::new();
    while let Some(entry) = archive.next_entry().map_err(damaged)? {
        let Some(name) = clean(b"", &entry.path) else { continue };
        let directory = name.iter().rposition(|byte| *byte == b'/').map_or(&b""[..], |slash| &name[..slash]);
        let member = match entry.kind {
            Kind::File if entry.sparse.is_none() => {
                Some(Member::File { offset: archive.offset(), size_bytes: entry.size_bytes })
            }
            Kind::Symlink => clean(directory, &entry.link).map(Member::Link),
            Kind::HardLink => clean(b"", &entry.link).map(Member::Link),
            _ => None,
        };
        if let Some(member) = member {
            members.insert(name, member);
        }
        if members.len() > MEMBERS_MAX {
            return Err(LoadError::TooManyMembers { path: path.to_path_buf() });
        }
    }
    Ok(members)
}

/// Joins and normalises names; `None` for those that lead out.
fn clean(directory: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    let base = if name.starts_with(b"/") { &b""[..] } else { directory };
    for part in base.split(|byte| *byte == b'/').chain(name.split(|byte| *byte == b'/')) {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join(&b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside() {
        let check = |directory: &str, name: &str, expect: Option<&str>| {
            let cleaned = clean(directory.as_bytes(), name.as_bytes());
            assert_eq!(cleaned.as_deref(), expect.map(str::as_bytes), "{directory} {name}");
        };
        check("", "./manifest.json", Some("manifest.json"));
        check("abc", "../def/layer.tar", Some("def/layer.tar"));
        check("abc", "/def/layer.tar", Some("def/layer.tar"));
        check("abc", "../../etc/passwd", None);
        check("", "../x", None);
        check("", "", None);
    }
}
