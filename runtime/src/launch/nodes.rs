//! Device nodes that root of the host makes for a container whose own root may not.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, chownat, makedev, mknodat, open};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::fault::Fault;
use super::mounting::create;
use super::{Launched, Message, channel, close_in_child};
use crate::failure::{LaunchFailure, Stage};
use crate::idmap::IdMap;
use crate::plan::{DeviceNode, Plan, flags};
use crate::sys::{CloneFlags, CloneOptions, MountAttr, clone_process, mount_setattr};

const STAGE: Stage = Stage::Devices;

/// Makes the devices that were asked for in a filesystem of the host's own root, and gives a detached mount of each.
pub(crate) fn make_nodes(plan: &Plan) -> Result<BTreeMap<PathBuf, OwnedFd>, LaunchFailure> {
    let asked: Vec<&DeviceNode> = plan.asked_devices().collect();
    if asked.is_empty() {
        return Ok(BTreeMap::new());
    }
    let attr = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let place = create(STAGE, "tmpfs", "tmpfs", &[], attr, "tmpfs for devices")?;
    for (number, node) in asked.iter().enumerate() {
        let ids =
            |id: u32, map: fn(&IdMap, u32) -> Option<u32>| plan.idmap.as_ref().map_or(Some(id), |own| map(own, id));
        let (Some(uid), Some(gid)) = (ids(node.uid, IdMap::host_uid), ids(node.gid, IdMap::host_gid)) else {
            let shown = node.path().display().to_string();
            return Err(LaunchFailure::rule(STAGE, shown, "its owner is not in the container's id map"));
        };
        let made = make_node(place.as_fd(), Path::new(&number.to_string()), node, (uid, gid));
        made.fault(STAGE, "make", node.path().display())?;
    }
    let trees = match asked.iter().enumerate().map(|(number, _)| clone_one(place.as_fd(), number)).collect() {
        // Before Linux 6.15 only what is mounted somewhere can be cloned.
        Err(Errno::INVAL) => clone_elsewhere(&place, asked.len())?,
        trees => trees.fault(STAGE, "open", "devices")?,
    };
    Ok(asked.into_iter().map(DeviceNode::path).zip(trees).collect())
}

fn clone_one(place: BorrowedFd<'_>, number: usize) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(place, number.to_string(), flags)
}

/// Clones the nodes where their filesystem is mounted: in a mount namespace that a helper has to itself.
fn clone_elsewhere(place: &OwnedFd, count: usize) -> Result<Vec<OwnedFd>, LaunchFailure> {
    let (ours, theirs) = channel::pair().fault(Stage::Prepare, "make", "channel")?;
    let options = CloneOptions { flags: CloneFlags::MOUNT, cgroup: None };
    let cloned = clone_process(&options, || {
        close_in_child(&ours);
        let sent = mount_alone(place).and_then(|()| {
            (0..count).try_for_each(|number| {
                let tree = clone_one(place.as_fd(), number).fault(STAGE, "open", "devices")?;
                channel::send(&theirs, &Message::Tree(tree)).fault(STAGE, "send", "devices")
            })
        });
        sent.map_or_else(
            |failure| {
                let _ = channel::send(&theirs, &Message::Failure(failure));
                1
            },
            |()| 0,
        )
    });
    let helper = Launched { cloned: cloned.fault(Stage::Namespaces, "create", "mount namespace")?, channel: ours };
    drop(theirs);
    let trees = (0..count).map(|_| match channel::receive(&helper.channel).fault(STAGE, "receive", "devices")? {
        Some(Message::Tree(tree)) => Ok(tree),
        Some(Message::Failure(failure)) => Err(failure),
        _ => Err(LaunchFailure::rule(STAGE, "devices".to_owned(), "the process that mounts them ended")),
    });
    let trees = trees.collect();
    helper.abandon();
    trees
}

/// Mounts a filesystem over this namespace's root, out of everybody's sight.
fn mount_alone(place: &OwnedFd) -> Result<(), LaunchFailure> {
    let top = open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).fault(STAGE, "open", "/")?;
    let private = MountAttr { propagation: flags::PRIVATE, ..MountAttr::default() };
    mount_setattr(top.as_fd(), true, &private).fault(STAGE, "make private", "/")?;
    move_mount(place, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).fault(STAGE, "mount", "tmpfs for devices")
}

/// mknod(2) with the owner and mode that were asked for.
pub(crate) fn make_node(
    directory: BorrowedFd<'_>,
    name: &Path,
    node: &DeviceNode,
    (uid, gid): (u32, u32),
) -> Result<(), Errno> {
    let kind = if node.character { FileType::CharacterDevice } else { FileType::BlockDevice };
    mknodat(directory, name, kind, Mode::from_raw_mode(node.mode), makedev(node.major, node.minor))?;
    chownat(directory, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::SYMLINK_NOFOLLOW)
}
