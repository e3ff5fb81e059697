//! Docker's rules about the two paths of `cp`, for either side.
//!
//! The host's paths mean what they mean to the caller. A container's paths are resolved below its
//! root by openat2(2), so that no link and no `..` leads out, whoever changes them meanwhile.

use std::os::fd::{AsFd, OwnedFd};

use coracle_images::unpack::{Destination, Kind};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, fstat, fstatfs, openat, openat2, readlinkat, statat,
};
use rustix::io::Errno;

use super::{Root, TransferError, path_of, shown};

/// As many as the kernel follows.
const LINKS_MAX: usize = 40;
/// `PROC_SUPER_MAGIC` and `SYSFS_MAGIC` of linux/magic.h.
const KERNEL_FILESYSTEMS: [u64; 2] = [0x9fa0, 0x6265_6572];

/// Whose paths they are.
#[derive(Clone, Copy)]
pub enum Base<'a> {
    Host,
    Container(&'a Root),
}

/// A path as it was written, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Without what the fields below say; `.` or `/` when nothing is left.
    pub path: Vec<u8>,
    /// It ended with `/` or `/.`: it has to be a directory, and a link there is followed.
    pub directory: bool,
    /// It ended with `/.`: not the directory itself is meant but what is in it.
    pub contents: bool,
}

impl Asked {
    /// Takes a path apart.
    pub fn parse(text: &[u8]) -> Self {
        let (mut path, mut directory, mut contents) = (text, false, false);
        loop {
            if path.len() > 1 && path.ends_with(b"/") {
                directory = true;
                path = &path[..path.len() - 1];
            } else if path.ends_with(b"/.") || path == b"." {
                (directory, contents) = (true, true);
                if path == b"." {
                    break;
                }
                path = &path[..path.len() - 1];
            } else {
                break;
            }
        }
        let path = if path.is_empty() { b"/".to_vec() } else { path.to_vec() };
        Self { path, directory, contents }
    }

    /// Gives the last component; None for the root and what ends in dots.
    pub fn name(&self) -> Option<&[u8]> {
        let name = self.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        (!matches!(name, b"" | b"." | b"..")).then_some(name)
    }
}

impl Base<'_> {
    /// Opens a path; the last component is followed unless `flags` say otherwise.
    fn open(self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC;
        let Self::Container(root) = self else { return openat(CWD, path, flags, Mode::empty()) };
        let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let path = if path.is_empty() { b"." } else { path };
        loop {
            match openat2(root.fd.as_fd(), path, flags, Mode::empty(), how) {
                // A rename somewhere raced with `..`; the kernel asks for another try.
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return result,
            }
        }
    }

    /// Opens what is to be copied.
    pub fn source(self, asked: &Asked, follow: bool) -> Result<OwnedFd, TransferError> {
        let text = || shown(&asked.path);
        let nofollow = if follow || asked.directory { OFlags::empty() } else { OFlags::NOFOLLOW };
        let found = match self.open(&asked.path, OFlags::PATH | nofollow) {
            Err(Errno::NOENT) => return Err(TransferError::NoSource(text())),
            other => other.map_err(|errno| failed("open", &asked.path, errno))?,
        };
        if asked.directory && !is_directory(&found).map_err(|errno| failed("examine", &asked.path, errno))? {
            return Err(TransferError::NotADirectory(text()));
        }
        self.not_of_kernel(&found, &asked.path)?;
        Ok(found)
    }

    /// Decides where something of the kind `kind`, called `name`, goes.
    pub fn destination(
        self,
        asked: &Asked,
        kind: Kind,
        name: Option<&[u8]>,
        contents: bool,
    ) -> Result<Destination, TransferError> {
        let is_tree = kind == Kind::Directory;
        let path = self.settle(&asked.path)?;
        let text = || shown(&asked.path);
        let into = |directory: OwnedFd, name: &[u8]| -> Result<Destination, TransferError> {
            self.not_of_kernel(&directory, &asked.path)?;
            Ok(Destination { directory, name: Some(name.to_vec()) })
        };
        match self.open(&path, OFlags::PATH) {
            Ok(found) if is_directory(&found).map_err(|errno| failed("examine", &path, errno))? => {
                let name = if contents && is_tree { None } else { name };
                into(found, name.unwrap_or_default())
            }
            Ok(_) if is_tree => Err(TransferError::OverFile(text())),
            Ok(_) if asked.directory => Err(TransferError::NotADirectory(text())),
            Ok(_) => {
                let (parent, last) = split(&path);
                into(self.parent(parent)?, last)
            }
            Err(Errno::NOENT) if asked.directory && !is_tree => Err(TransferError::NoDirectory(text())),
            Err(Errno::NOENT) => {
                let (parent, last) = split(&path);
                if matches!(last, b"" | b"." | b"..") {
                    return Err(TransferError::NoDirectory(text()));
                }
                into(self.parent(parent)?, last)
            }
            Err(Errno::NOTDIR) => Err(TransferError::NotADirectory(text())),
            Err(errno) => Err(failed("open", &path, errno)),
        }
    }

    /// Opens the directory that an archive with names of its own goes into.
    pub fn directory(self, asked: &Asked) -> Result<Destination, TransferError> {
        let directory = match self.open(&asked.path, OFlags::PATH | OFlags::DIRECTORY) {
            Err(Errno::NOENT) => return Err(TransferError::NoDirectory(shown(&asked.path))),
            Err(Errno::NOTDIR) => return Err(TransferError::NotADirectory(shown(&asked.path))),
            other => other.map_err(|errno| failed("open", &asked.path, errno))?,
        };
        self.not_of_kernel(&directory, &asked.path)?;
        Ok(Destination { directory, name: None })
    }

    fn parent(self, parent: &[u8]) -> Result<OwnedFd, TransferError> {
        match self.open(parent, OFlags::PATH | OFlags::DIRECTORY) {
            Err(Errno::NOENT) => Err(TransferError::NoDirectory(shown(parent))),
            Err(Errno::NOTDIR) => Err(TransferError::NotADirectory(shown(parent))),
            other => other.map_err(|errno| failed("open", parent, errno)),
        }
    }

    /// Follows links at the end of a destination, also one that leads to nothing: docker writes there.
    fn settle(self, path: &[u8]) -> Result<Vec<u8>, TransferError> {
        let mut path = path.to_vec();
        for _ in 0..LINKS_MAX {
            let (parent, last) = split(&path);
            if last.is_empty() {
                return Ok(path);
            }
            let Ok(directory) = self.open(parent, OFlags::PATH | OFlags::DIRECTORY) else { return Ok(path) };
            let kind = statat(&directory, last, AtFlags::SYMLINK_NOFOLLOW).map(|stat| stat.st_mode);
            match kind.map(FileType::from_raw_mode) {
                Ok(FileType::Symlink) => {}
                _ => return Ok(path),
            }
            let Ok(target) = readlinkat(&directory, last, Vec::new()) else { return Ok(path) };
            let target = target.into_bytes();
            path = if target.starts_with(b"/") { target } else { [parent, b"/", &target].concat() };
        }
        Err(failed("open", &path, Errno::LOOP))
    }

    /// Refuses the inside of a container's /proc and /sys: names there mean something else to us.
    fn not_of_kernel(self, found: &OwnedFd, path: &[u8]) -> Result<(), TransferError> {
        let is_kernel = || fstatfs(found).is_ok_and(|stat| KERNEL_FILESYSTEMS.contains(&(stat.f_type as u64)));
        match self {
            Self::Container(_) if is_kernel() => Err(TransferError::Kernel(shown(path))),
            _ => Ok(()),
        }
    }
}

fn is_directory(found: &OwnedFd) -> Result<bool, Errno> {
    Ok(FileType::from_raw_mode(fstat(found)?.st_mode) == FileType::Directory)
}

/// Directory and last component; the directory of a bare name is `.`.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(0) => (b"/", &path[1..]),
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b".", path),
    }
}

fn failed(op: &'static str, path: &[u8], errno: Errno) -> TransferError {
    TransferError::Io { op, path: path_of(path).display().to_string(), source: errno.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_as_docker_reads_them() {
        let check = |text: &str, path: &str, directory: bool, contents: bool, name: Option<&str>| {
            let asked = Asked::parse(text.as_bytes());
            let expect = Asked { path: path.into(), directory, contents };
            assert_eq!(asked, expect, "{text}");
            assert_eq!(asked.name(), name.map(str::as_bytes), "{text}");
        };
        check("/a/b", "/a/b", false, false, Some("b"));
        check("/a/b/", "/a/b", true, false, Some("b"));
        check("/a/b/.", "/a/b", true, true, Some("b"));
        check("/a/b//./", "/a/b", true, true, Some("b"));
        check("a", "a", false, false, Some("a"));
        check(".", ".", true, true, None);
        check("./", ".", true, true, None);
        check("/", "/", false, false, None);
        check("/.", "/", true, true, None);
        check("..", "..", false, false, None);
        check("", "/", false, false, None);
        check("a.", "a.", false, false, Some("a."));
    }
}
