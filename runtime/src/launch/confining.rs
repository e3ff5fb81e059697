//! Hides paths, makes paths read-only, sets sysctls and names, while the host's tree is still there
//! to take the covers from.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, fstatfs, openat2};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::devices::open_null;
use super::fault::Fault;
use super::inside::{Inside, is_directory};
use super::mounting::{PROC_MAGIC, attach, empty_directory};
use crate::failure::{LaunchFailure, Stage};
use crate::plan::{Confinement, flags};
use crate::sys::{MountAttr, mount_setattr};

const STAGE: Stage = Stage::Confine;

/// Applies everything but the root's own read-only flag.
pub(crate) fn confine(plan: &Confinement, proc: Option<&OwnedFd>, inside: Inside<'_>) -> Result<(), LaunchFailure> {
    if let Some(name) = &plan.hostname {
        rustix::system::sethostname(name.as_bytes()).fault(STAGE, "set host name to", name)?;
    }
    if let Some(name) = &plan.domainname {
        rustix::system::setdomainname(name.as_bytes()).fault(STAGE, "set domain name to", name)?;
    }
    // Before /proc/sys becomes read-only.
    for (path, value) in &plan.sysctls {
        write_sysctl(proc, path, value)?;
    }
    for path in &plan.readonly {
        make_readonly(path, inside)?;
    }
    mask_all(plan, inside)
}

/// Writes through our own procfs; no link and no other filesystem on the way (A10).
fn write_sysctl(proc: Option<&OwnedFd>, path: &Path, value: &str) -> Result<(), LaunchFailure> {
    let shown = path.display();
    let proc = proc.ok_or(Errno::NODEV).fault(STAGE, "write sysctl without an own /proc", &shown)?;
    if fstatfs(proc).fault(STAGE, "stat", "/proc")?.f_type as u64 != PROC_MAGIC {
        return Err(LaunchFailure::rule(STAGE, "/proc", "is not a procfs"));
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let path = Path::new("sys").join(path);
    let file = openat2(proc, &path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty(), resolve).fault(
        STAGE,
        "open sysctl",
        &shown,
    )?;
    rustix::io::write(&file, value.as_bytes()).fault(STAGE, "write sysctl", &shown)?;
    Ok(())
}

/// Finds a path to cover. Absent is fine; reached by a link is not (C20).
fn find(path: &Path, inside: Inside<'_>) -> Result<Option<OwnedFd>, LaunchFailure> {
    match inside.find_plain(path) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => Ok(None),
        Err(Errno::LOOP) if path.starts_with("/proc") => {
            Err(LaunchFailure::rule(STAGE, path.display(), "must not be a symbolic link"))
        }
        // Elsewhere the link's own target is the path to protect.
        Err(Errno::LOOP) => match inside.find(path) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => Ok(None),
            Err(errno) => Err(errno).fault(STAGE, "find", path.display()),
        },
        Err(errno) => Err(errno).fault(STAGE, "find", path.display()),
    }
}

fn make_readonly(path: &Path, inside: Inside<'_>) -> Result<(), LaunchFailure> {
    let Some(found) = find(path, inside)? else {
        return Ok(());
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(&found, "", flags).fault(STAGE, "open to make read-only", path.display())?;
    let attr = MountAttr { set: flags::RDONLY, ..MountAttr::default() };
    mount_setattr(tree.as_fd(), true, &attr).fault(STAGE, "make read-only", path.display())?;
    attach(&tree, &found).fault(STAGE, "make read-only", path.display())
}

/// Covers files by the null device and directories by one shared empty directory.
fn mask_all(plan: &Confinement, inside: Inside<'_>) -> Result<(), LaunchFailure> {
    let mut null = None;
    let mut empty: Option<OwnedFd> = None;
    for path in &plan.masked {
        let Some(found) = find(path, inside)? else {
            continue;
        };
        let cover = if is_directory(&found).fault(STAGE, "stat", path.display())? {
            match &empty {
                Some(first) => clone_of(first).fault(STAGE, "open cover for", path.display())?,
                None => {
                    let first = empty_directory()?;
                    attach(&first, &found).fault(STAGE, "mask", path.display())?;
                    empty = Some(first);
                    continue;
                }
            }
        } else {
            if null.is_none() {
                null = Some(open_null()?);
            }
            let source = null.as_ref().ok_or(Errno::NODEV).fault(STAGE, "mask", path.display())?;
            let cover = clone_of(source).fault(STAGE, "open cover for", path.display())?;
            restrict(&cover).fault(STAGE, "restrict cover for", path.display())?;
            cover
        };
        attach(&cover, &found).fault(STAGE, "mask", path.display())?;
    }
    Ok(())
}

/// Read-only, so that nobody changes the mode of the host's null device through a mask.
fn restrict(cover: &OwnedFd) -> Result<(), Errno> {
    let attr = MountAttr {
        set: flags::RDONLY | flags::NOSUID | flags::NOEXEC,
        propagation: flags::PRIVATE,
        ..MountAttr::default()
    };
    mount_setattr(cover.as_fd(), false, &attr)
}

fn clone_of(mount: &OwnedFd) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(mount, "", flags)
}
