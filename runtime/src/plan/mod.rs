//! From a specification to a list of operations: pure functions, plain data, no system calls.
//!
//! Whatever a specification asks for and we cannot do is refused here by name, before anything is
//! created. `launch` walks the lists and decides nothing.

mod confine;
pub(crate) mod flags;
mod mounts;
mod namespaces;
mod process;
mod scheduling;

pub(crate) use confine::Confinement;
pub use confine::IPC_SYSCTLS;
pub(crate) use mounts::{DeviceNode, MountOwners, MountSource, MountStep, fit_ids, may_cover};
pub(crate) use namespaces::NamespacePlan;
pub(crate) use process::{ListenerPlan, ProcessPlan, plan as plan_process};
pub(crate) use scheduling::Scheduling;

use oci_spec::runtime::{LinuxIdMapping, Spec};

use crate::caps::{CapSet, Capability};
use crate::failure::{LaunchFailure, Stage};
use crate::hooks::Moment;
use crate::idmap::IdMap;
use crate::sys::CloneFlags;

/// Everything the child does, in order of the fields.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) namespaces: NamespacePlan,
    /// The ids of a new user namespace; `None` when none is created.
    pub(crate) idmap: Option<IdMap>,
    /// Lines for the clocks of a new time namespace.
    pub(crate) time_offsets: Vec<String>,
    /// Propagation of the whole tree before the root is mounted, as `MS_*`.
    pub(crate) root_propagation: u64,
    pub(crate) mounts: Vec<MountStep>,
    /// Devices outside of /dev, which only root of the host can make.
    pub(crate) devices_elsewhere: Vec<DeviceNode>,
    pub(crate) confinement: Confinement,
    pub(crate) root_readonly: bool,
    /// Whether hooks run between the mounts and the change of the root.
    pub(crate) hooks_before_root: bool,
    pub(crate) process: ProcessPlan,
}

impl Plan {
    /// The devices that the specification asks for.
    pub(crate) fn asked_devices(&self) -> impl Iterator<Item = &DeviceNode> {
        let in_dev = self.mounts.iter().filter_map(|step| match &step.source {
            MountSource::Devices { nodes, .. } => Some(nodes),
            _ => None,
        });
        in_dev.flatten().chain(&self.devices_elsewhere).filter(|node| node.asked)
    }
}

/// Makes the plan of a container. `idmap` wins over the mappings of the specification.
pub(crate) fn plan(spec: &Spec, idmap: Option<&IdMap>) -> Result<Plan, LaunchFailure> {
    let process = spec.process().as_ref().ok_or_else(|| refuse("process", "is missing"))?;
    let linux = spec.linux().as_ref().ok_or_else(|| refuse("linux", "is missing"))?;
    refuse_unsupported(spec)?;
    let namespaces = namespaces::plan(linux.namespaces().as_deref().unwrap_or_default())?;
    let idmap = if namespaces.creates_user() {
        Some(match idmap {
            Some(map) => map.clone(),
            None => map_of_spec(linux)?,
        })
    } else {
        None
    };
    let mut mounts = mounts::plan(spec.mounts().as_deref().unwrap_or_default())?;
    let devices_elsewhere = mounts::add_devices(&mut mounts, linux.devices().as_deref().unwrap_or_default())?;
    if let Some(map) = &idmap {
        fit_ids(&mut mounts, map);
    }
    let mut process = process::plan(process, idmap.as_ref())?;
    process.setgroups_denied |= namespaces.joins(CloneFlags::USER);
    process.scheduling.add_container(linux)?;
    process.keep_groups =
        spec.annotations().as_ref().is_some_and(|map| map.get(KEEP_GROUPS).is_some_and(|on| on == "1"));
    crate::hooks::check(spec.hooks().as_ref())?;
    let root_propagation = flags::root_propagation(linux.rootfs_propagation().as_deref())?;
    if namespaces.mount.is_some() {
        check_joined_mounts(&process, &mounts, root_propagation)?;
    }
    Ok(Plan {
        root_propagation,
        mounts,
        devices_elsewhere,
        time_offsets: namespaces::time_offsets(linux, &namespaces)?,
        confinement: confine::plan(spec, linux, &namespaces)?,
        hooks_before_root: [Moment::Prestart, Moment::CreateRuntime, Moment::CreateContainer]
            .into_iter()
            .any(|moment| !moment.of(spec.hooks().as_ref()).is_empty()),
        root_readonly: spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false),
        process,
        namespaces,
        idmap,
    })
}

/// What a container in a mount namespace of others cannot have: a way to their root, and mounts that are not copied.
pub(crate) fn check_joined_mounts(
    process: &ProcessPlan,
    mounts: &[MountStep],
    root_propagation: u64,
) -> Result<(), LaunchFailure> {
    let sets = &process.capabilities;
    let any = [sets.effective, sets.permitted, sets.inheritable, sets.ambient].into_iter();
    if any.fold(sets.bounding, CapSet::union).contains(Capability::CAP_SYS_ADMIN) {
        return Err(refuse(
            "process.capabilities",
            "CAP_SYS_ADMIN opens the whole of a mount namespace that is joined",
        ));
    }
    let unbindable = |bits: u64| bits & libc::MS_UNBINDABLE != 0;
    let kept = mounts.iter().find(|step| unbindable(step.attr.propagation | step.recursive_attr.propagation));
    match kept {
        Some(step) => Err(refuse(&step.destination.display().to_string(), UNBINDABLE)),
        None if unbindable(root_propagation) => Err(refuse("linux.rootfsPropagation", UNBINDABLE)),
        None => Ok(()),
    }
}

const UNBINDABLE: &str = "what is unbindable cannot go along into a mount namespace that is joined";

/// crun's annotation, which podman sets for `--group-add keep-groups`.
const KEEP_GROUPS: &str = "run.oci.keep_original_groups";

/// A field that is not as it must be.
fn refuse(field: &str, statement: &str) -> LaunchFailure {
    LaunchFailure::rule(Stage::Plan, field, statement)
}

/// Fields that would change what the container is, and that we do not implement.
fn refuse_unsupported(spec: &Spec) -> Result<(), LaunchFailure> {
    let linux = spec.linux().as_ref();
    let asked = [
        ("linux.netDevices", linux.is_some_and(|linux| filled(linux.net_devices().as_ref().map(|map| map.len())))),
        ("linux.intelRdt", linux.is_some_and(|linux| linux.intel_rdt().is_some())),
        ("linux.mountLabel", linux.is_some_and(|linux| filled(linux.mount_label().as_ref().map(String::len)))),
        ("vm", spec.vm().is_some()),
    ];
    match asked.iter().find(|(_, asked)| *asked) {
        Some((field, _)) => Err(refuse(field, "is not supported")),
        None => Ok(()),
    }
}

fn filled(length: Option<usize>) -> bool {
    length.unwrap_or(0) > 0
}

fn map_of_spec(linux: &oci_spec::runtime::Linux) -> Result<IdMap, LaunchFailure> {
    let ranges = |list: &Option<Vec<LinuxIdMapping>>| mounts::ranges(list.as_deref().unwrap_or_default());
    let map = IdMap { uids: ranges(linux.uid_mappings()), gids: ranges(linux.gid_mappings()) };
    map.check().map_err(|error| refuse("linux.uidMappings and gidMappings", &error.to_string()))?;
    Ok(map)
}

#[cfg(test)]
mod tests;
