//! Walks the mount steps of a plan, by descriptors only.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, fstat, fstatfs};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::copyup;
use super::devices;
use super::fault::Fault;
use super::inside::{Inside, Shape, is_directory};
use crate::failure::{LaunchFailure, Stage};
use crate::plan::{MountSource, MountStep, flags};
use crate::sys::{MountAttr, mount_setattr};

/// `PROC_SUPER_MAGIC` of linux/magic.h.
pub(crate) const PROC_MAGIC: u64 = 0x9fa0;
const STAGE: Stage = Stage::Mounts;

/// What later steps need of the mounts.
#[derive(Debug, Default)]
pub(crate) struct Mounted {
    /// A procfs that nobody else can have touched.
    pub(crate) proc: Option<OwnedFd>,
    /// The container's own /dev.
    pub(crate) dev: Option<OwnedFd>,
    /// The container's own devpts.
    pub(crate) devpts: Option<OwnedFd>,
    /// Mounts that become read-only when nothing is made on them any more.
    pub(crate) read_only_later: Vec<OwnedFd>,
}

impl Mounted {
    /// Makes read-only what had to be filled first.
    pub(crate) fn finish(&mut self) -> Result<(), LaunchFailure> {
        for tree in self.read_only_later.drain(..) {
            let attr = MountAttr { set: flags::RDONLY, ..MountAttr::default() };
            mount_setattr(tree.as_fd(), false, &attr).fault(STAGE, "set flags of", "read-only mount")?;
        }
        Ok(())
    }
}

/// Opens the host side of every bind mount, as the caller and before anything is covered.
///
/// What the launching process opened already is taken from it.
pub(crate) fn open_sources(
    steps: &[MountStep],
    opened: &[Option<OwnedFd>],
    bundle: &Path,
) -> Result<Vec<Option<OwnedFd>>, LaunchFailure> {
    let open = |(number, step): (usize, &MountStep)| match (&step.source, opened.get(number)) {
        (MountSource::Bind { path, .. }, Some(Some(tree))) => {
            let copy = tree.try_clone().map_err(|_| Errno::MFILE);
            copy.map(Some).fault(STAGE, "keep mount source", path.display())
        }
        (MountSource::Bind { path, recursive }, _) => clone_tree(&bundle.join(path), *recursive).map(Some),
        _ => Ok(None),
    };
    steps.iter().enumerate().map(open).collect()
}

/// A private copy of the mount at a path of the host, with what is mounted below it.
pub(crate) fn clone_tree(path: &Path, recursive: bool) -> Result<OwnedFd, LaunchFailure> {
    let base = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let flags = if recursive { base | OpenTreeFlags::AT_RECURSIVE } else { base };
    match open_tree(CWD, path, flags) {
        // Mounts below that this namespace inherited are locked to what they cover, so a copy
        // without them is refused; with them it shows no more than the host shows.
        Err(Errno::INVAL) if !recursive => open_tree(CWD, path, base | OpenTreeFlags::AT_RECURSIVE),
        result => result,
    }
    .fault(STAGE, "open mount source", path.display())
}

/// Makes every mount below the root.
pub(crate) fn mount_all(
    steps: &[MountStep],
    sources: Vec<Option<OwnedFd>>,
    nodes: &BTreeMap<PathBuf, OwnedFd>,
    inside: Inside<'_>,
) -> Result<Mounted, LaunchFailure> {
    let mut mounted = Mounted::default();
    for (step, source) in steps.iter().zip(sources) {
        mount_one(step, source, nodes, inside, &mut mounted)?;
    }
    Ok(mounted)
}

fn mount_one(
    step: &MountStep,
    source: Option<OwnedFd>,
    nodes: &BTreeMap<PathBuf, OwnedFd>,
    inside: Inside<'_>,
    mounted: &mut Mounted,
) -> Result<(), LaunchFailure> {
    let wanted = step.attr.set | step.recursive_attr.set;
    // What is still to be filled becomes read-only when every mount is done.
    let late = wanted & flags::RDONLY != 0 && may_be_filled(&step.source);
    let now = if late { wanted & !flags::RDONLY } else { wanted };
    let fresh_attr = MountAttrFlags::from_bits_retain(u32::try_from(now).unwrap_or(0));
    let shown = step.destination.display();
    let (tree, is_bound) = match (&step.source, source) {
        (MountSource::Bind { .. }, Some(tree)) => (tree, true),
        (MountSource::Bind { path, .. }, None) => {
            return Err(Errno::BADF).fault(STAGE, "open mount source", path.display());
        }
        (MountSource::New { kind, source, data }, _) => {
            (new_mount(kind, source.as_deref(), data, fresh_attr, step)?, false)
        }
        (MountSource::Devices { data, .. }, _) => (new_mount("tmpfs", None, data, fresh_attr, step)?, false),
        (MountSource::Proc { data }, _) => fresh_or_host("proc", data, "/proc", fresh_attr, step)?,
        (MountSource::Sys { data }, _) => fresh_or_host("sysfs", data, "/sys", fresh_attr, step)?,
        (MountSource::Cgroup { data }, _) => (cgroup(data, fresh_attr, step)?, false),
    };
    if is_bound {
        set_attributes(&tree, step)?;
    } else {
        set_propagation(&tree, step)?;
    }
    let shape = if is_directory(&tree).fault(STAGE, "stat", step.destination.display())? {
        Shape::Directory
    } else {
        Shape::File
    };
    let target = target(step, shape, inside)?;
    if step.copy_up {
        copyup::fill(&target, &tree).fault(STAGE, "copy the image's files to", step.destination.display())?;
    }
    attach(&tree, &target).fault(STAGE, "mount on", step.destination.display())?;
    if step.plain {
        prove(step, &tree, inside)?;
    }
    // Only now: before Linux 6.15 nothing can be mounted on what is not attached itself.
    if let MountSource::Devices { nodes: wanted, .. } = &step.source {
        devices::fill(&tree, wanted, nodes)?;
    }
    if late {
        mounted.read_only_later.push(tree.try_clone().map_err(|_| Errno::MFILE).fault(STAGE, "keep", shown)?);
    }
    remember(step, tree, is_bound, mounted);
    Ok(())
}

/// Whether files or further mount points are made on it after it is mounted.
fn may_be_filled(source: &MountSource) -> bool {
    match source {
        MountSource::New { kind, .. } => matches!(kind.as_str(), "tmpfs" | "ramfs"),
        MountSource::Devices { .. } => true,
        _ => false,
    }
}

fn remember(step: &MountStep, tree: OwnedFd, is_bound: bool, mounted: &mut Mounted) {
    match &step.source {
        MountSource::Proc { .. } if !is_bound => mounted.proc = Some(tree),
        MountSource::Devices { .. } => mounted.dev = Some(tree),
        MountSource::New { kind, .. } if kind == "devpts" => mounted.devpts = Some(tree),
        _ => {}
    }
}

/// Finds or makes the mount point.
fn target(step: &MountStep, shape: Shape, inside: Inside<'_>) -> Result<OwnedFd, LaunchFailure> {
    let shown = step.destination.display();
    if step.plain && shape == Shape::Directory {
        return match inside.plain_directory(&step.destination) {
            Err(Errno::LOOP | Errno::NOTDIR) => Err(LaunchFailure::rule(STAGE, shown, "must be an ordinary directory")),
            result => result.fault(STAGE, "make mount point", shown),
        };
    }
    let found = inside.mount_point(&step.destination, shape).fault(STAGE, "make mount point", &shown)?;
    // A link of the image may lead here although the name did not (A15).
    let is_proc = fstatfs(&found).fault(STAGE, "stat", &shown)?.f_type as u64 == PROC_MAGIC;
    if is_proc && !crate::plan::may_cover(&step.destination) {
        return Err(LaunchFailure::rule(STAGE, shown, "nothing may be mounted below /proc"));
    }
    Ok(found)
}

/// Puts a detached mount on a directory or file.
pub(crate) fn attach(tree: &OwnedFd, target: &OwnedFd) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, "", target, "", flags)
}

/// Makes sure that the name still leads to what was just mounted.
fn prove(step: &MountStep, tree: &OwnedFd, inside: Inside<'_>) -> Result<(), LaunchFailure> {
    let shown = step.destination.display();
    let named = inside.find_plain(&step.destination).fault(STAGE, "find", &shown)?;
    let (named, own) = (fstat(&named).fault(STAGE, "stat", &shown)?, fstat(tree).fault(STAGE, "stat", &shown)?);
    if (named.st_dev, named.st_ino) == (own.st_dev, own.st_ino) {
        return Ok(());
    }
    Err(LaunchFailure::rule(STAGE, shown, "was replaced while it was being mounted"))
}

/// Makes a new filesystem, not yet attached.
fn new_mount(
    kind: &str,
    source: Option<&str>,
    data: &[(String, Option<String>)],
    attr: MountAttrFlags,
    step: &MountStep,
) -> Result<OwnedFd, LaunchFailure> {
    let shown = format!("{kind} for {}", step.destination.display());
    create(STAGE, kind, source.unwrap_or(kind), data, attr, &shown)
}

/// Makes a new filesystem; `shown` names it in failures.
pub(crate) fn create(
    stage: Stage,
    kind: &str,
    source: &str,
    data: &[(String, Option<String>)],
    attr: MountAttrFlags,
    shown: &str,
) -> Result<OwnedFd, LaunchFailure> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).fault(stage, "open filesystem", shown)?;
    let explained = |errno: Errno, op: &str| LaunchFailure::new(stage, op, explain(&context, shown), errno);
    fsconfig_set_string(&context, "source", source).map_err(|errno| explained(errno, "set source of"))?;
    for (key, value) in data {
        match value {
            Some(value) => fsconfig_set_string(&context, key.as_str(), value.as_str()),
            None => fsconfig_set_flag(&context, key.as_str()),
        }
        .map_err(|errno| explained(errno, &format!("set option {key} of")))?;
    }
    fsconfig_create(&context).map_err(|errno| explained(errno, "create"))?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attr).map_err(|errno| explained(errno, "mount"))
}

/// The name of a filesystem, with what the kernel wrote into its context about a failure.
pub(crate) fn explain(context: &OwnedFd, shown: &str) -> String {
    /// Enough for the kernel's longest sentence.
    const SENTENCE_MAX: usize = 512;
    let mut bytes = [0_u8; SENTENCE_MAX];
    match rustix::io::read(context, &mut bytes) {
        Ok(length) if length > 2 => {
            let text = String::from_utf8_lossy(&bytes[..length]);
            // "e overlay: ..." : a letter for the severity comes first.
            format!("{shown} ({})", text.trim_end().get(2..).unwrap_or_default())
        }
        _ => shown.to_owned(),
    }
}

/// A new procfs or sysfs; the host's where the kernel refuses a new one: it grants one only if the
/// caller sees the whole of it, and sysfs only together with an own network namespace.
fn fresh_or_host(
    kind: &str,
    data: &[(String, Option<String>)],
    host: &str,
    attr: MountAttrFlags,
    step: &MountStep,
) -> Result<(OwnedFd, bool), LaunchFailure> {
    match new_mount(kind, None, data, attr, step) {
        Err(failure) if failure.errno == libc::EPERM => {
            if let Some((word, _)) = data.first() {
                let statement =
                    format!("the kernel allows none but the host's own {kind}, which has no option {word:?}");
                return Err(LaunchFailure::rule(STAGE, step.destination.display(), &statement));
            }
            let tree = clone_tree(Path::new(host), true)?;
            // Everything below the host's tree follows the same flags: its cgroups, its debugfs.
            let all = MountAttr { set: step.attr.set, ..step.recursive_attr };
            mount_setattr(tree.as_fd(), true, &all).fault(STAGE, "restrict", host)?;
            Ok((tree, true))
        }
        result => Ok((result?, false)),
    }
}

/// The unified hierarchy as the container's own cgroup namespace shows it.
///
/// Where the kernel refuses (no own cgroup namespace, or the host has no unified hierarchy) an empty
/// read-only tmpfs takes its place: never the host's tree, through which limits could be lifted
/// (CVE-2023-25809). On a hybrid host this shows cgroup2 without controllers, which is the truth.
fn cgroup(data: &[(String, Option<String>)], attr: MountAttrFlags, step: &MountStep) -> Result<OwnedFd, LaunchFailure> {
    match new_mount("cgroup2", None, data, attr, step) {
        Err(failure) if [libc::EPERM, libc::EBUSY, libc::ENODEV].contains(&failure.errno) => {
            new_mount("tmpfs", None, &empty_tmpfs(), attr | MountAttrFlags::MOUNT_ATTR_RDONLY, step)
        }
        result => result,
    }
}

/// Room for nothing: one inode for the root, and the kernel counts from two.
pub(crate) fn empty_tmpfs() -> [(String, Option<String>); 3] {
    [("mode", "555"), ("nr_inodes", "2"), ("size", "4k")].map(|(key, value)| (key.to_owned(), Some(value.to_owned())))
}

/// A tmpfs without room, read-only and not attached.
pub(crate) fn empty_directory() -> Result<OwnedFd, LaunchFailure> {
    let attr = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    create(Stage::Confine, "tmpfs", "tmpfs", &empty_tmpfs(), attr, "tmpfs for masked directories")
}

/// Lets a new mount be shared or forbids to bind it; it is private without a word, and has nobody to be a slave of.
fn set_propagation(tree: &OwnedFd, step: &MountStep) -> Result<(), LaunchFailure> {
    let wanted = [step.attr.propagation, step.recursive_attr.propagation];
    for propagation in wanted.into_iter().filter(|one| one & (libc::MS_SHARED | libc::MS_UNBINDABLE) != 0) {
        let attr = MountAttr { propagation, ..MountAttr::default() };
        mount_setattr(tree.as_fd(), false, &attr).fault(STAGE, "set propagation of", step.destination.display())?;
    }
    Ok(())
}

/// Restricts a bound tree: first everything, then its top.
///
/// Only bits that are set or cleared are touched, so flags that the source's own namespace locked
/// stay. A wish to clear one of those is dropped, which leaves the mount stricter than asked, and so
/// is a wish for another access time setting, which is always locked and restricts nobody.
fn set_attributes(tree: &OwnedFd, step: &MountStep) -> Result<(), LaunchFailure> {
    for (recursive, attr) in [(true, step.recursive_attr), (false, step.attr)] {
        if attr == MountAttr::default() {
            continue;
        }
        match mount_setattr(tree.as_fd(), recursive, &attr) {
            Err(Errno::PERM) if attr.clear != 0 => {
                let kept = MountAttr { clear: 0, set: attr.set & !flags::ATIME, ..attr };
                mount_setattr(tree.as_fd(), recursive, &kept)
            }
            result => result,
        }
        .fault(STAGE, "set flags of mount", step.destination.display())?;
    }
    Ok(())
}
