//! Files of an instance below its root: no link and no `..` leads out, and nothing but a file or a directory is opened.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, chmodat,
    chownat, fchmod, fchown, fstat, fstatfs, ftruncate, futimens, linkat, mkdirat, openat2, readlinkat, renameat_with,
    statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::{Errno, Result};

use super::packet::Attributes;

/// `PROC_SUPER_MAGIC` and `SYSFS_MAGIC` of linux/magic.h: what the kernel makes up belongs to the reader (O1).
const KERNEL_FILESYSTEMS: [u64; 2] = [0x9fa0, 0x6265_6572];
/// What a person may change of a file's mode.
const MODE_BITS: u32 = 0o7777;

/// The files of an instance.
pub struct Files {
    pub root: OwnedFd,
    /// Where relative paths begin.
    pub directory: Vec<u8>,
}

fn opened(at: impl AsFd, path: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        match openat2(at.as_fd(), path, flags | OFlags::CLOEXEC, mode, how) {
            // A rename somewhere raced with `..`; the kernel asks for another try.
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
}

impl Files {
    /// Gives a path from the root, without what is superfluous; links are not looked at.
    pub fn absolute(&self, path: &[u8]) -> Vec<u8> {
        let whole = if path.starts_with(b"/") { path.to_vec() } else { [&self.directory, &b"/"[..], path].concat() };
        let mut parts: Vec<&[u8]> = Vec::new();
        for part in whole.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        [b"/", parts.join(&b'/').as_slice()].concat()
    }

    fn find(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
        let path = if path.starts_with(b"/") { path.to_vec() } else { [&self.directory, &b"/"[..], path].concat() };
        opened(&self.root, &path, flags, Mode::empty())
    }

    /// Opens the directory in which something is, and gives its name there.
    fn parent(&self, path: &[u8]) -> Result<(OwnedFd, Vec<u8>)> {
        let trimmed = path.strip_suffix(b"/").unwrap_or(path);
        let (directory, name) = match trimmed.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (&trimmed[..=at], &trimmed[at + 1..]),
            None => (&b"."[..], trimmed),
        };
        if matches!(name, b"" | b"." | b"..") {
            return Err(Errno::INVAL);
        }
        Ok((self.find(directory, OFlags::PATH | OFlags::DIRECTORY)?, name.to_vec()))
    }

    /// Opens a file, which may be made.
    pub fn open(&self, path: &[u8], flags: OFlags, mode: u32) -> Result<OwnedFd> {
        let path = if path.starts_with(b"/") { path.to_vec() } else { [&self.directory, &b"/"[..], path].concat() };
        let mode = if flags.contains(OFlags::CREATE) { Mode::from_raw_mode(mode & MODE_BITS) } else { Mode::empty() };
        // A FIFO must not keep the session waiting; a terminal must not become its own.
        let file = opened(&self.root, &path, flags | OFlags::NONBLOCK | OFlags::NOCTTY, mode)?;
        if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
            return Err(Errno::OPNOTSUPP);
        }
        not_of_kernel(&file)?;
        Ok(file)
    }

    pub fn directory(&self, path: &[u8]) -> Result<OwnedFd> {
        self.find(path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    pub fn stat(&self, path: &[u8]) -> Result<Stat> {
        fstat(self.find(path, OFlags::PATH)?)
    }

    pub fn lstat(&self, path: &[u8]) -> Result<Stat> {
        fstat(self.find(path, OFlags::PATH | OFlags::NOFOLLOW)?)
    }

    pub fn remove(&self, path: &[u8], flags: AtFlags) -> Result<()> {
        let (directory, name) = self.parent(path)?;
        unlinkat(directory, name, flags)
    }

    pub fn make_directory(&self, path: &[u8], mode: Option<u32>) -> Result<()> {
        let (directory, name) = self.parent(path)?;
        mkdirat(directory, name, Mode::from_raw_mode(mode.unwrap_or(0o777) & MODE_BITS))
    }

    /// Renames; where something may be in the way it is replaced.
    pub fn rename(&self, from: &[u8], to: &[u8], replace: bool) -> Result<()> {
        let ((old, old_name), (new, new_name)) = (self.parent(from)?, self.parent(to)?);
        let flags = if replace { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        renameat_with(old, old_name, new, new_name, flags)
    }

    pub fn link(&self, from: &[u8], to: &[u8]) -> Result<()> {
        let ((old, old_name), (new, new_name)) = (self.parent(from)?, self.parent(to)?);
        linkat(old, old_name, new, new_name, AtFlags::empty())
    }

    pub fn symlink(&self, target: &[u8], path: &[u8]) -> Result<()> {
        let (directory, name) = self.parent(path)?;
        symlinkat(target, directory, name)
    }

    pub fn read_link(&self, path: &[u8]) -> Result<Vec<u8>> {
        let (directory, name) = self.parent(path)?;
        Ok(readlinkat(directory, name, Vec::new())?.into_bytes())
    }

    /// Changes what is known about a file by its path.
    pub fn change(&self, path: &[u8], wanted: &Attributes, follow: bool) -> Result<()> {
        if let Some(size) = wanted.size {
            ftruncate(self.open(path, OFlags::WRONLY, 0)?, size)?;
        }
        let found = self.find(path, if follow { OFlags::PATH } else { OFlags::PATH | OFlags::NOFOLLOW })?;
        not_of_kernel(&found)?;
        if let Some((uid, gid)) = wanted.owner {
            chownat(&found, "", Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::EMPTY_PATH)?;
        }
        let link = FileType::from_raw_mode(fstat(&found)?.st_mode) == FileType::Symlink;
        // What was only looked up is changed through the host's own /proc, which names exactly this file.
        let exactly = format!("/proc/self/fd/{}", found.as_raw_fd());
        if let Some(mode) = wanted.mode.filter(|_| !link) {
            chmodat(CWD, exactly.as_str(), Mode::from_raw_mode(mode & MODE_BITS), AtFlags::empty())?;
        }
        if let Some(times) = wanted.times.filter(|_| !link) {
            utimensat(CWD, exactly.as_str(), &timestamps(times), AtFlags::empty())?;
        }
        Ok(())
    }
}

/// Changes what is known about an open file.
pub fn change(file: &OwnedFd, wanted: &Attributes) -> Result<()> {
    if let Some(size) = wanted.size {
        ftruncate(file, size)?;
    }
    if let Some((uid, gid)) = wanted.owner {
        fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    if let Some(mode) = wanted.mode {
        fchmod(file, Mode::from_raw_mode(mode & MODE_BITS))?;
    }
    if let Some(times) = wanted.times {
        futimens(file, &timestamps(times))?;
    }
    Ok(())
}

/// Reads an entry of an open directory.
pub fn entry(directory: &OwnedFd, name: &[u8]) -> Result<Stat> {
    statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
}

fn timestamps((accessed, changed): (u32, u32)) -> Timestamps {
    let at = |seconds: u32| Timespec { tv_sec: seconds.into(), tv_nsec: 0 };
    Timestamps { last_access: at(accessed), last_modification: at(changed) }
}

fn not_of_kernel(file: &OwnedFd) -> Result<()> {
    let kind = u64::try_from(fstatfs(file)?.f_type).unwrap_or(0);
    if KERNEL_FILESYSTEMS.contains(&kind) { Err(Errno::PERM) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_leads_out() {
        let place = tempfile::tempdir().unwrap();
        let (root, secret) = (place.path().join("root"), place.path().join("secret"));
        fs_err::create_dir_all(root.join("home")).unwrap();
        fs_err::write(&secret, "host").unwrap();
        std::os::unix::fs::symlink("/secret", root.join("absolute")).unwrap();
        std::os::unix::fs::symlink("../../secret", root.join("home/up")).unwrap();
        std::os::unix::fs::symlink(format!("/proc/self/fd/{}", 0), root.join("magic")).unwrap();
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let root = rustix::fs::openat(CWD, &root, flags, Mode::empty()).unwrap();
        let files = Files { root, directory: b"/home".to_vec() };
        for bad in ["/absolute", "up", "../../secret", "/../secret", "/magic", "/home/../../secret"] {
            assert_eq!(files.open(bad.as_bytes(), OFlags::RDONLY, 0).unwrap_err(), Errno::NOENT, "{bad}");
            assert!(files.stat(bad.as_bytes()).is_err(), "{bad}");
        }
        // What a link names is made inside.
        files.open(b"up", OFlags::CREATE | OFlags::WRONLY, 0o600).unwrap();
        assert_eq!(fs_err::read_to_string(&secret).unwrap(), "host");
        assert!(place.path().join("root/secret").exists());
        assert_eq!(files.remove(b"..", AtFlags::empty()).unwrap_err(), Errno::INVAL);
        assert_eq!(files.absolute(b"./a//b/../c"), b"/home/a/c");
        assert_eq!(files.absolute(b"../../../.."), b"/");
    }
}
