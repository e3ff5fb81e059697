//! One directory of the hierarchy and its files.
//!
//! The kernel makes the files, never we: nothing here creates or truncates one. A cgroup filesystem
//! has no symbolic links, so paths are safe in it; whoever takes a path from a file calls
//! [`Directory::checked`].

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags, accessat, fstatfs, open, statfs};

use super::settings::Controller;

/// `CGROUP2_SUPER_MAGIC` of linux/magic.h.
const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// The longest file that is read: cgroup.procs with every number of the largest pid space.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Whether a path lies on a mounted unified hierarchy.
pub(super) fn is_unified(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.f_type as u64 == CGROUP2_MAGIC)
}

/// A directory of a cgroup filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Directory {
    path: PathBuf,
}

impl Directory {
    pub(super) fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// A directory that a state file names: it must be one of a unified hierarchy.
    pub(super) fn checked(path: &Path) -> io::Result<OwnedFd> {
        let fd = open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        if fstatfs(&fd)?.f_type as u64 != CGROUP2_MAGIC {
            return Err(rustix::io::Errno::NOTSUP.into());
        }
        Ok(fd)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn child(&self, name: &str) -> Self {
        Self { path: self.path.join(name) }
    }

    pub(super) fn exists(&self) -> bool {
        self.path.is_dir()
    }

    pub(super) fn has(&self, file: &str) -> bool {
        self.path.join(file).exists()
    }

    /// Errors are the kernel's own, because who looks at them needs the number.
    pub(super) fn read(&self, file: &str) -> io::Result<String> {
        let mut text = String::new();
        let file = open(self.path.join(file), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        std::fs::File::from(file).take(FILE_BYTES_MAX).read_to_string(&mut text)?;
        Ok(text)
    }

    /// Writes one value in one write(2), which is how the kernel takes it.
    pub(super) fn write(&self, file: &str, value: &str) -> io::Result<()> {
        let file = open(self.path.join(file), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::write(&file, value.as_bytes())?;
        Ok(())
    }

    /// Makes it; it may be there already.
    pub(super) fn make(&self) -> io::Result<()> {
        match self.make_new() {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            result => result,
        }
    }

    /// Makes it; it must not be there yet.
    pub(super) fn make_new(&self) -> io::Result<()> {
        const MODE: u32 = 0o755;
        Ok(rustix::fs::mkdir(&self.path, Mode::from_raw_mode(MODE))?)
    }

    /// Removes it; the kernel says `EBUSY` while processes or children are in it.
    pub(super) fn remove(&self) -> io::Result<()> {
        Ok(rustix::fs::rmdir(&self.path)?)
    }

    /// Whether we may make cgroups in it and move processes among them (cgroup-v2.rst, delegation).
    pub(super) fn is_ours(&self) -> bool {
        let writable = |path: &Path| accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS).is_ok();
        writable(&self.path)
            && writable(&self.path.join("cgroup.procs"))
            && writable(&self.path.join("cgroup.subtree_control"))
    }

    /// The controllers that its children may have.
    pub(super) fn controllers(&self) -> Vec<Controller> {
        self.list("cgroup.controllers")
    }

    /// The controllers that its children do have.
    pub(super) fn enabled(&self) -> Vec<Controller> {
        self.list("cgroup.subtree_control")
    }

    fn list(&self, file: &str) -> Vec<Controller> {
        let text = self.read(file).unwrap_or_default();
        text.split_ascii_whitespace().filter_map(Controller::from_name).collect()
    }

    /// The processes in it, without those of its children; a number that we cannot see is 0.
    pub(super) fn processes(&self) -> io::Result<Vec<i32>> {
        Ok(self.read("cgroup.procs")?.lines().filter_map(|line| line.trim().parse().ok()).collect())
    }

    /// A value in a file of `key value` lines.
    pub(super) fn keyed(&self, file: &str, key: &str) -> io::Result<Option<u64>> {
        let text = self.read(file)?;
        let lines = text.lines().filter_map(|line| line.split_once(' '));
        Ok(lines.filter(|(name, _)| *name == key).find_map(|(_, value)| value.trim().parse().ok()))
    }
}
