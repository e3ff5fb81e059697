//! What the launching process itself opens for a container, because the container's root may not.
//!
//! Root of the host makes device nodes and reaches directories that the container's ids do not, and
//! only the owner of a filesystem may show it through another id map. All of it is detached mounts,
//! handed to the child as descriptors.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::thread::{CapabilitySet, capabilities};

use super::fault::Fault;
use super::mounting::clone_tree;
use super::nodes::make_nodes;
use super::{Launched, channel, close_in_child, open_namespace};
use crate::failure::{LaunchFailure, Stage};
use crate::idmap::{self, IdMap};
use crate::plan::{MountOwners, MountSource, Plan};
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
                    // What is mounted for this container alone is not here yet: the child looks again.
                    Err(failure) if [libc::EPERM, libc::ENOENT].contains(&failure.errno) => None,
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
