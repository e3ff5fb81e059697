//! Which namespaces are created and which are joined.

use std::path::PathBuf;

use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType, LinuxTimeOffset};

use super::refuse;
use crate::failure::LaunchFailure;
use crate::sys::CloneFlags;

/// The namespaces of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NamespacePlan {
    pub(crate) create: CloneFlags,
    /// Namespaces joined by path, user first.
    pub(crate) join: Vec<(CloneFlags, PathBuf)>,
    /// A mount namespace to end up in; everything is made in a new one first.
    pub(crate) mount: Option<PathBuf>,
}

impl NamespacePlan {
    pub(crate) fn creates_user(&self) -> bool {
        self.create.contains(CloneFlags::USER)
    }

    pub(crate) fn joins(&self, kind: CloneFlags) -> bool {
        self.join.iter().any(|(joined, _)| *joined == kind)
    }

    /// Whether the container does not see the host's namespace of this kind.
    pub(crate) fn separates(&self, kind: CloneFlags) -> bool {
        self.create.contains(kind) || self.joins(kind)
    }
}

pub(super) fn plan(list: &[LinuxNamespace]) -> Result<NamespacePlan, LaunchFailure> {
    let mut plan = NamespacePlan::default();
    for namespace in list {
        let kind = kind(namespace.typ())?;
        if plan.separates(kind) {
            return Err(refuse("linux.namespaces", &format!("names {} twice", namespace.typ())));
        }
        match namespace.path() {
            Some(path) if !path.as_os_str().is_empty() && kind == CloneFlags::MOUNT => {
                plan.mount = Some(path.clone());
                plan.create = plan.create.with(kind);
            }
            Some(path) if !path.as_os_str().is_empty() => plan.join.push((kind, path.clone())),
            _ => plan.create = plan.create.with(kind),
        }
    }
    if !plan.create.contains(CloneFlags::MOUNT) {
        return Err(refuse("linux.namespaces", "has no mount namespace"));
    }
    // Joining the owner first is what gives the right to join the others.
    plan.join.sort_by_key(|(kind, _)| *kind != CloneFlags::USER);
    Ok(plan)
}

/// The clocks of a new time namespace with their offsets, as `/proc/PID/timens_offsets` takes them.
pub(super) fn time_offsets(linux: &Linux, namespaces: &NamespacePlan) -> Result<Vec<String>, LaunchFailure> {
    let mut clocks: Vec<(&String, &LinuxTimeOffset)> = linux.time_offsets().iter().flatten().collect();
    if !clocks.is_empty() && !namespaces.create.contains(CloneFlags::TIME) {
        return Err(refuse("linux.timeOffsets", "needs a new time namespace"));
    }
    clocks.sort_by_key(|(name, _)| name.as_str());
    clocks
        .into_iter()
        .map(|(name, offset)| {
            if !matches!(name.as_str(), "monotonic" | "boottime") {
                return Err(refuse("linux.timeOffsets", &format!("{name:?} is not a clock of a time namespace")));
            }
            let nanoseconds = offset.nanosecs().unwrap_or(0);
            if nanoseconds >= NANOSECONDS {
                return Err(refuse("linux.timeOffsets", "nanosecs is not below one second"));
            }
            Ok(format!("{name} {} {nanoseconds}\n", offset.secs().unwrap_or(0)))
        })
        .collect()
}

/// Of one second.
const NANOSECONDS: u32 = 1_000_000_000;

fn kind(typ: LinuxNamespaceType) -> Result<CloneFlags, LaunchFailure> {
    Ok(match typ {
        LinuxNamespaceType::Mount => CloneFlags::MOUNT,
        LinuxNamespaceType::Cgroup => CloneFlags::CGROUP,
        LinuxNamespaceType::Uts => CloneFlags::UTS,
        LinuxNamespaceType::Ipc => CloneFlags::IPC,
        LinuxNamespaceType::User => CloneFlags::USER,
        LinuxNamespaceType::Pid => CloneFlags::PID,
        LinuxNamespaceType::Network => CloneFlags::NET,
        LinuxNamespaceType::Time => CloneFlags::TIME,
    })
}
