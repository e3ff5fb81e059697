//! Removes trees that hold anything: files of other ids, unreadable directories, any depth.
//!
//! It works by directory descriptors only, never follows a link, needs no recursion and a bounded
//! number of descriptors: what lies too deep is moved up and removed from there. A process that
//! swaps directories for links meanwhile can make it fail, not make it leave the tree (A47).
//! Files of subordinate ids can only be removed from inside the user namespace that maps them.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{self, AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

/// Directories open at once; deeper ones are moved up. Far below the usual limit of 1024.
const OPEN_DEPTH_MAX: usize = 48;
/// How often the top directory is gone through: once, and again for what was moved up or
/// appeared meanwhile. One pass flattens 48 levels, so this is enough for any path Linux can make
/// through one archive and ends against a process that keeps adding files.
const PASSES_MAX: usize = 10_000;
/// Names of directories that were moved up.
const MOVED_PREFIX: &str = ".coracle-removing-";

/// Removes the file or tree `path`. That it does not exist is fine.
///
/// # Errors
/// The errno of the first removal that failed; what could be removed is gone.
pub fn remove_tree(path: &Path) -> Result<(), std::io::Error> {
    let name = path.file_name().ok_or(Errno::INVAL)?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = match fs::openat(CWD, parent, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    Ok(remove_at(parent.as_fd(), name.as_bytes())?)
}

/// Removes `name` in `parent`, whatever it is. That it does not exist is fine.
pub(crate) fn remove_at(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    let mut moved = 0;
    for _ in 0..PASSES_MAX {
        match fs::unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(errno) => return Err(errno),
        }
        match fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
            Err(errno) => return Err(errno),
        }
        if let Some(top) = open_writable(parent, name)? {
            empty(&top, &mut moved)?;
        }
    }
    Err(Errno::NOTEMPTY)
}

struct Level {
    fd: OwnedFd,
    entries: Dir,
    name: CString,
}

/// Removes what is in `top`; leaves directories there that were moved up from below.
fn empty(top: &OwnedFd, moved: &mut u64) -> Result<(), Errno> {
    let mut levels = vec![Level {
        fd: rustix::io::fcntl_dupfd_cloexec(top, 0)?,
        entries: Dir::read_from(top)?,
        name: CString::default(),
    }];
    loop {
        let depth = levels.len();
        let Some(level) = levels.last_mut() else { return Ok(()) };
        let Some(entry) = level.entries.read() else {
            let done = levels.pop().map(|level| level.name).unwrap_or_default();
            if let Some(parent) = levels.last() {
                match fs::unlinkat(&parent.fd, &done, AtFlags::REMOVEDIR) {
                    // Filled or swapped meanwhile: the next pass sees what is there then.
                    Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
                    Err(errno) => return Err(errno),
                }
            }
            continue;
        };
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        if entry.file_type() != FileType::Directory {
            match fs::unlinkat(&level.fd, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => continue,
                Err(Errno::ISDIR) => {}
                Err(errno) => return Err(errno),
            }
        }
        let name = name.to_owned();
        if depth >= OPEN_DEPTH_MAX {
            move_up(level.fd.as_fd(), &name, top.as_fd(), moved)?;
            continue;
        }
        let Some(fd) = open_writable(level.fd.as_fd(), name.as_bytes())? else { continue };
        levels.push(Level { entries: Dir::read_from(&fd)?, fd, name });
    }
}

fn move_up(from: BorrowedFd<'_>, name: &CString, top: BorrowedFd<'_>, moved: &mut u64) -> Result<(), Errno> {
    // Renaming a directory rewrites its "..", which needs write permission in it.
    drop(open_writable(from, name.as_bytes())?);
    loop {
        let new_name = format!("{MOVED_PREFIX}{moved}");
        *moved += 1;
        match fs::renameat_with(from, name, top, &new_name, fs::RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            Err(Errno::NOENT) => return Ok(()),
            other => return other,
        }
    }
}

/// Opens a directory so that its entries can be changed; `None` when it is gone or something else.
pub(crate) fn open_writable(parent: BorrowedFd<'_>, name: &[u8]) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || fs::openat(parent, name, flags, Mode::empty());
    let fd = match open() {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        Err(Errno::ACCESS) => {
            let path_flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let found = fs::openat(parent, name, path_flags, Mode::empty())?;
            make_writable_by_path(&found)?;
            open()?
        }
        other => other?,
    };
    let mode = fs::fstat(&fd)?.st_mode;
    if mode & 0o700 != 0o700 {
        // Not ours to change means: not ours to empty either, or root's, who needs no permission.
        match fs::fchmod(&fd, Mode::RWXU) {
            Ok(()) | Err(Errno::PERM) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(Some(fd))
}

/// chmod of an `O_PATH` descriptor, which fchmod(2) refuses: its link in /proc is that very inode.
fn make_writable_by_path(found: &OwnedFd) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;
    let link = format!("/proc/self/fd/{}", found.as_raw_fd());
    fs::chmodat(CWD, link, Mode::RWXU, AtFlags::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use fs_err as fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a47_unreadable_and_deep() {
        let dir = tempfile::tempdir().expect("temp dir");
        let victim = dir.path().join("victim");
        let canary = dir.path().join("canary");
        fs::create_dir(&canary).expect("mkdir");
        fs::write(canary.join("f"), "x").expect("write");
        fs::create_dir_all(victim.join("a/b")).expect("mkdir");
        fs::write(victim.join("a/b/f"), "x").expect("write");
        fs::os::unix::fs::symlink(&canary, victim.join("a/link")).expect("symlink");
        fs::set_permissions(victim.join("a/b"), PermissionsExt::from_mode(0o000)).expect("chmod");
        fs::set_permissions(victim.join("a"), PermissionsExt::from_mode(0o500)).expect("chmod");
        make_deep(&victim, 700);
        remove_tree(&victim).expect("removal");
        assert!(!victim.exists());
        assert!(canary.join("f").exists());
        remove_tree(&victim).expect("removing nothing is fine");
    }

    #[test]
    fn removes_a_link_not_its_target() {
        let dir = tempfile::tempdir().expect("temp dir");
        fs::create_dir(dir.path().join("target")).expect("mkdir");
        fs::os::unix::fs::symlink("target", dir.path().join("link")).expect("symlink");
        remove_tree(&dir.path().join("link")).expect("removal");
        assert!(dir.path().join("target").is_dir());
        assert!(!dir.path().join("link").is_symlink());
    }

    fn make_deep(top: &Path, depth: usize) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let mut here = super::fs::openat(CWD, top, flags, Mode::empty()).expect("open");
        for _ in 0..depth {
            super::fs::mkdirat(&here, "a-rather-long-name-of-a-directory", Mode::RWXU).expect("mkdir");
            here = super::fs::openat(&here, "a-rather-long-name-of-a-directory", flags, Mode::empty()).expect("open");
        }
    }
}
