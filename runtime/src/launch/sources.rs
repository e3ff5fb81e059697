//! What the launching process itself opens for a container, because the container's root may not.
//!
//! Root of the host makes device nodes and reaches directories that the container's ids do not, and
//! only the owner of a filesystem may show it through another id map. All of it is detached mounts,
//! handed to the child as descriptors.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid, chownat, makedev, mknodat};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, OpenTreeFlags, open_tree};
use rustix::thread::{CapabilitySet, capabilities};

use super::fault::Fault;
use super::mounting::{clone_tree, create};
use super::{Launched, channel, close_in_child, open_namespace};
use crate::failure::{LaunchFailure, Stage};
use crate::idmap::{self, IdMap};
use crate::plan::{DeviceNode, MountOwners, MountSource, Plan};
use crate::sys::{CloneFlags, CloneOptions, clone_process, map_owners};

/// Detached mounts for the child.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    /// For each mount step, where the launching process opened it.
    pub(crate) binds: Vec<Option<OwnedFd>>,
    /// Device nodes by their path in the container.
    pub(crate) nodes: BTreeMap<PathBuf, OwnedFd>,
}

/// Opens what the child could not.
pub(crate) fn open(plan: &Plan, bundle: &Path) -> Result<Sources, LaunchFailure> {
    let held = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    let crosses = plan.namespaces.creates_user() && held.contains(CapabilitySet::SYS_ADMIN);
    let mut sources = Sources::default();
    for step in &plan.mounts {
        let tree = match (&step.source, &step.owners) {
            (MountSource::Bind { path, recursive }, Some(owners)) => {
                let path = bundle.join(path);
                let tree = clone_tree(&path, *recursive)?;
                show_owners(&tree, owners, plan, &path)?;
                Some(tree)
            }
            (MountSource::Bind { path, recursive }, None) if crosses => {
                match clone_tree(&bundle.join(path), *recursive) {
                    // Root of a user namespace whose mount namespace is another's: the child is where it may.
                    Err(failure) if failure.errno == libc::EPERM => None,
                    tree => Some(tree?),
                }
            }
            _ => None,
        };
        sources.binds.push(tree);
    }
    if crosses && held.contains(CapabilitySet::MKNOD) {
        sources.nodes = make_nodes(plan)?;
    }
    Ok(sources)
}

/// Maps the owners of a tree; an error where the kernel refuses.
fn show_owners(tree: &OwnedFd, owners: &MountOwners, plan: &Plan, path: &Path) -> Result<(), LaunchFailure> {
    let stage = Stage::Mounts;
    let map = match owners.map.as_ref().or(plan.idmap.as_ref()) {
        Some(map) => map,
        None => return Err(LaunchFailure::rule(stage, path.display(), "idmap needs mappings or a user namespace")),
    };
    let userns = namespace_with(map)?;
    map_owners(tree.as_fd(), owners.recursive, userns.as_fd()).fault(stage, "map owners of", path.display())
}

/// A user namespace with this map, kept alive by its descriptor alone.
fn namespace_with(map: &IdMap) -> Result<OwnedFd, LaunchFailure> {
    let (ours, theirs) = channel::pair().fault(Stage::Prepare, "make", "channel")?;
    let options = CloneOptions { flags: CloneFlags::USER, cgroup: None };
    let cloned = clone_process(&options, || {
        close_in_child(&ours);
        // Until the other side has what it wants, or is gone.
        let _ = channel::receive(&theirs);
        0
    });
    let helper = Launched { cloned: cloned.fault(Stage::Namespaces, "create", "user namespace")?, channel: ours };
    let namespace = idmap::write(helper.cloned.pid, map).and_then(|()| open_namespace(helper.cloned.pid, "user"));
    helper.abandon();
    namespace
}

/// Makes the devices that were asked for in a filesystem of the host's own root. A kernel that cannot
/// clone parts of a detached filesystem (before 6.15) has the child bind the host's nodes.
fn make_nodes(plan: &Plan) -> Result<BTreeMap<PathBuf, OwnedFd>, LaunchFailure> {
    let stage = Stage::Devices;
    let mut nodes = BTreeMap::new();
    let asked: Vec<&DeviceNode> = plan.asked_devices().collect();
    if asked.is_empty() {
        return Ok(nodes);
    }
    let attr = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let place = create(stage, "tmpfs", "tmpfs", &[], attr, "tmpfs for devices")?;
    for (number, node) in asked.into_iter().enumerate() {
        let name = number.to_string();
        let ids =
            |id: u32, map: fn(&IdMap, u32) -> Option<u32>| plan.idmap.as_ref().map_or(Some(id), |own| map(own, id));
        let (Some(uid), Some(gid)) = (ids(node.uid, IdMap::host_uid), ids(node.gid, IdMap::host_gid)) else {
            let shown = node.path().display().to_string();
            return Err(LaunchFailure::rule(stage, shown, "its owner is not in the container's id map"));
        };
        make_node(place.as_fd(), Path::new(&name), node, (uid, gid)).fault(stage, "make", node.path().display())?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        match open_tree(&place, name.as_str(), flags) {
            Err(Errno::INVAL) => return Ok(BTreeMap::new()),
            tree => drop(nodes.insert(node.path(), tree.fault(stage, "open", node.path().display())?)),
        }
    }
    Ok(nodes)
}

/// mknod(2) with the owner and mode that were asked for.
pub(crate) fn make_node(
    directory: std::os::fd::BorrowedFd<'_>,
    name: &Path,
    node: &DeviceNode,
    (uid, gid): (u32, u32),
) -> Result<(), Errno> {
    let kind = if node.character { FileType::CharacterDevice } else { FileType::BlockDevice };
    mknodat(directory, name, kind, Mode::from_raw_mode(node.mode), makedev(node.major, node.minor))?;
    chownat(directory, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::SYMLINK_NOFOLLOW)
}
