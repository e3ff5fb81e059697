//! Device nodes and the terminal of a container.
//!
//! Nodes are the host's own, bound onto empty files of a tmpfs that only this mount namespace has; each is
//! proven by its device number. Their mounts are read-only, which still lets programs write to the
//! devices but keeps a container from changing the host's inode (its mode, its owner).

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, fstatfs, major, minor, mkdirat, openat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use rustix::thread::{CapabilitySet, capabilities};

use super::fault::Fault;
use super::inside::{Inside, Shape};
use super::mounting::attach;
use super::nodes::make_node;
use crate::failure::{LaunchFailure, Stage};
use crate::plan::{DeviceNode, flags};
use crate::sys::{MountAttr, mount_setattr};

const STAGE: Stage = Stage::Devices;

/// `DEVPTS_SUPER_MAGIC` of linux/magic.h.
const DEVPTS_MAGIC: u64 = 0x1cd1;
/// Device numbers of the host's null device and of every /dev/ptmx.
const NULL_DEVICE: (u32, u32) = (1, 3);
const PTMX_DEVICE: (u32, u32) = (5, 2);

/// Links that programs expect (runtime-spec, "Dev symbolic links", and /dev/ptmx).
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Fills a new /dev, by its descriptor.
pub(crate) fn fill(
    dev: &OwnedFd,
    nodes: &[DeviceNode],
    made: &BTreeMap<PathBuf, OwnedFd>,
) -> Result<(), LaunchFailure> {
    for node in nodes {
        match add_node(dev, node, made) {
            Err(failure) if node.optional && failure.errno == libc::ENOENT => {}
            result => result?,
        }
    }
    for (name, target) in LINKS {
        symlinkat(target, dev, name).fault(STAGE, "link /dev to", name)?;
    }
    Ok(())
}

/// Makes the devices that are not in /dev.
pub(crate) fn add_elsewhere(
    nodes: &[DeviceNode],
    made: &BTreeMap<PathBuf, OwnedFd>,
    inside: Inside<'_>,
) -> Result<(), LaunchFailure> {
    for node in nodes {
        let path = node.path();
        let shown = path.display();
        if let Some(tree) = made.get(&path) {
            // As mknod(2) would: what is there already is not replaced, but for the place of the run before.
            let is_other = |there| {
                let empty = fstat(&there).is_ok_and(|stat| {
                    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_size == 0
                });
                !empty && prove(&there, node.character, (node.major, node.minor)).is_err()
            };
            if inside.find(&path).is_ok_and(is_other) {
                return Err(Errno::EXIST).fault(STAGE, "make", &shown);
            }
            let place = inside.mount_point(&path, Shape::File).fault(STAGE, "make", &shown)?;
            attach(tree, &place).fault(STAGE, "mount", &shown)?;
            continue;
        }
        let (parent, name) = (path.parent().unwrap_or(&path), path.file_name().unwrap_or_default());
        let parent = inside.mount_point(parent, Shape::Directory).fault(STAGE, "make directory of", &shown)?;
        match make_node(parent.as_fd(), Path::new(name), node, (node.uid, node.gid)) {
            Err(Errno::PERM) => {
                return Err(LaunchFailure::rule(STAGE, format!("device {shown}"), "is not below /dev"));
            }
            // From the run before, if it is the same.
            Err(Errno::EXIST) => {
                let there = openat(&parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
                let there = there.fault(STAGE, "open", &shown)?;
                prove(&there, node.character, (node.major, node.minor)).fault(STAGE, "trust device", &shown)?;
            }
            result => result.fault(STAGE, "make", &shown)?,
        }
    }
    Ok(())
}

fn add_node(dev: &OwnedFd, node: &DeviceNode, made: &BTreeMap<PathBuf, OwnedFd>) -> Result<(), LaunchFailure> {
    let host = node.path();
    let shown = host.display();
    if let Some(tree) = made.get(&host) {
        let place = place_below(dev, &node.name).fault(STAGE, "make", &shown)?;
        return attach(tree, &place).fault(STAGE, "mount", &shown);
    }
    if node.asked && make_in_dev(dev, node).fault(STAGE, "make", &shown)? {
        return Ok(());
    }
    let tree = clone_device(&host, node.character, (node.major, node.minor))?;
    let place = place_below(dev, &node.name).fault(STAGE, "make", &shown)?;
    attach(&tree, &place).fault(STAGE, "mount", &shown)
}

/// A private read-only mount of a device node of the host, proven to be that device.
fn clone_device(host: &Path, character: bool, number: (u32, u32)) -> Result<OwnedFd, LaunchFailure> {
    let shown = host.display();
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    let tree = open_tree(CWD, host, flags).fault(STAGE, "open device", &shown)?;
    prove(&tree, character, number).fault(STAGE, "trust device", &shown)?;
    let attr = MountAttr {
        set: flags::RDONLY | flags::NOSUID | flags::NOEXEC,
        propagation: flags::PRIVATE,
        ..MountAttr::default()
    };
    mount_setattr(tree.as_fd(), false, &attr).fault(STAGE, "restrict device", &shown)?;
    Ok(tree)
}

/// `ENODEV` unless the descriptor is this device.
fn prove(fd: &OwnedFd, character: bool, number: (u32, u32)) -> Result<(), Errno> {
    let stat = fstat(fd)?;
    let kind = if character { FileType::CharacterDevice } else { FileType::BlockDevice };
    let fits = FileType::from_raw_mode(stat.st_mode) == kind && (major(stat.st_rdev), minor(stat.st_rdev)) == number;
    if fits { Ok(()) } else { Err(Errno::NODEV) }
}

/// Makes a device itself, with its own owner and mode: only root of the host can, false for others.
fn make_in_dev(dev: &OwnedFd, node: &DeviceNode) -> Result<bool, Errno> {
    let held = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    if !held.contains(CapabilitySet::MKNOD) {
        return Ok(false);
    }
    let name = Path::new(node.name.file_name().ok_or(Errno::INVAL)?);
    let directory = directory_below(dev, &node.name)?;
    match make_node(directory.as_fd(), name, node, (node.uid, node.gid)) {
        // In a user namespace nobody can.
        Err(Errno::PERM) => Ok(false),
        result => result.map(|()| true),
    }
}

/// An empty file below /dev, with its directories. The tmpfs holds nothing but what we made.
fn place_below(dev: &OwnedFd, name: &Path) -> Result<OwnedFd, Errno> {
    empty_file(&directory_below(dev, name)?, name.file_name().ok_or(Errno::INVAL)?)
}

/// The directory that a path below /dev is in, made with its parents.
fn directory_below(dev: &OwnedFd, name: &Path) -> Result<OwnedFd, Errno> {
    let mut place = dev.try_clone().map_err(|_| Errno::MFILE)?;
    let mut names = name.components().peekable();
    while let Some(component) = names.next() {
        let Component::Normal(name) = component else {
            return Err(Errno::INVAL);
        };
        if names.peek().is_none() {
            break;
        }
        match mkdirat(&place, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        place = openat(&place, name, flags, Mode::empty())?;
    }
    Ok(place)
}

fn empty_file(dir: &OwnedFd, name: &std::ffi::OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    drop(openat(dir, name.as_bytes(), flags, Mode::from_raw_mode(0o644))?);
    openat(dir, name.as_bytes(), OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// The host's null device as a place of which mounts are made, proven by its number (A06).
pub(crate) fn open_null() -> Result<OwnedFd, LaunchFailure> {
    let null = super::inside::open_host(Path::new("/dev/null")).fault(STAGE, "open", "/dev/null")?;
    prove(&null, true, NULL_DEVICE).fault(STAGE, "trust device", "/dev/null")?;
    Ok(null)
}

/// The two sides of a new terminal.
#[derive(Debug)]
pub(crate) struct Terminal {
    pub(crate) master: OwnedFd,
    pub(crate) peer: OwnedFd,
}

/// Opens a terminal of this devpts and nobody else's: both sides come from one descriptor (A07).
pub(crate) fn open_terminal(ptmx: &OwnedFd, size: Option<(u16, u16)>) -> Result<Terminal, LaunchFailure> {
    let shown = "ptmx";
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    unlockpt(ptmx).fault(STAGE, "unlock", shown)?;
    let peer = ioctl_tiocgptpeer(ptmx, flags).fault(STAGE, "open terminal of", shown)?;
    if let Some((rows, columns)) = size {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(ptmx, size).fault(STAGE, "size terminal of", shown)?;
    }
    let master = ptmx.try_clone().map_err(|_| Errno::MFILE).fault(STAGE, "keep", shown)?;
    Ok(Terminal { master, peer })
}

/// Opens the multiplexer of a devpts, given the directory it is mounted on.
pub(crate) fn open_ptmx(devpts: impl AsFd) -> Result<OwnedFd, LaunchFailure> {
    let shown = "/dev/pts/ptmx";
    if fstatfs(&devpts).fault(STAGE, "stat", "/dev/pts")?.f_type as u64 != DEVPTS_MAGIC {
        return Err(LaunchFailure::rule(STAGE, "/dev/pts", "is not a devpts"));
    }
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let ptmx = openat(devpts, "ptmx", flags, Mode::empty()).fault(STAGE, "open", shown)?;
    prove(&ptmx, true, PTMX_DEVICE).fault(STAGE, "trust device", shown)?;
    Ok(ptmx)
}

/// Shows the terminal as /dev/console.
pub(crate) fn bind_console(dev: &OwnedFd, terminal: &Terminal) -> Result<(), LaunchFailure> {
    let shown = "/dev/console";
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(&terminal.peer, "", flags).fault(STAGE, "open terminal for", shown)?;
    let place = place_below(dev, Path::new("console")).fault(STAGE, "make", shown)?;
    attach(&tree, &place).fault(STAGE, "mount", shown)
}
