//! cgroup v2: where a container's limits, its accounts and the switch that ends all of it are.
//!
//! A limit that was asked for is enforced, or the call fails and says which controller is missing and
//! what mends it; with `best_effort` the answer says per limit why not. Nothing is half applied: a
//! cgroup whose limits could not all be set is removed again. Version 1 is never written.

mod apply;
mod control;
mod dbus;
mod delegation;
mod devices;
mod directory;
mod error;
mod hierarchy;
mod outlook;
mod place;
mod settings;
mod stats;
mod systemd;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

pub use dbus::BusError;
pub use error::{CgroupError, DELEGATE_FIX, NoPlace, SystemdError, UNIFIED_FIX, controllers_fix};
pub use outlook::{Outlook, outlook};
pub use settings::{Controller, Refusal};
pub use stats::{CpuStats, HugetlbStats, IoStats, MemoryStats, PidsStats, Pressure, Stats};

use directory::Directory;

#[cfg(test)]
mod tests;

/// Who makes the cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// We do, in the first place that is ours: a delegated cgroup, else a scope of systemd.
    Auto,
    /// systemd does: one scope for this container alone (`slice:prefix:name`).
    Systemd,
    /// We do, at a path.
    Cgroupfs,
    /// Nobody: limits are ignored, because the caller has said so.
    Disabled,
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Who makes it.
    pub kind: Kind,
    /// The container's id.
    pub id: &'a str,
    /// `linux.cgroupsPath`.
    pub path: Option<&'a str>,
    /// `linux.resources`.
    pub resources: Option<&'a LinuxResources>,
    /// Whether limits that cannot be enforced are only reported.
    pub best_effort: bool,
}

/// One limit and whether it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitState {
    /// The field of `linux.resources`, e.g. `memory.limit`.
    pub name: String,
    /// What was written or would have been.
    pub asked: String,
    /// Whether the kernel enforces it.
    pub enforced: bool,
    /// Why not.
    pub why: Option<String>,
}

/// A container's cgroup; it can be kept in a state file and used again by another process.
///
/// Dropping it leaves the cgroup alone.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cgroup {
    path: PathBuf,
    kind: Kind,
    /// The scope that is this container's alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unit: Option<systemd::Unit>,
    #[serde(default)]
    limits: Vec<LimitState>,
    /// Keeps a scope of systemd alive until the container's first process is in it.
    #[serde(skip)]
    holder: Option<Arc<systemd::Holder>>,
}

/// What [`make`] gives: a cgroup where there can be one, and what became of each limit.
#[derive(Debug)]
pub struct Made {
    /// None where there is no place for one, and then no limit is enforced.
    pub cgroup: Option<Cgroup>,
    /// Every limit that was asked for.
    pub limits: Vec<LimitState>,
}

/// Makes a cgroup and sets its limits.
pub fn make(request: &Request<'_>) -> Result<Made, CgroupError> {
    place::make(hierarchy::Host::detect().as_ref(), request)
}

/// What becomes of limits where there is no cgroup to put them on.
pub fn unenforced(resources: &LinuxResources, why: &str) -> Vec<LimitState> {
    apply::all_unenforced(&settings::settings(resources), why)
}

impl Cgroup {
    /// Makes a cgroup and sets its limits; `None` where none can be had and no limit was asked for.
    pub fn create(request: &Request<'_>) -> Result<Option<Self>, CgroupError> {
        Ok(make(request)?.cgroup)
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The unit of systemd that holds this container alone.
    pub fn unit(&self) -> Option<&str> {
        self.unit.as_ref().map(systemd::Unit::name)
    }

    /// What became of each limit that was asked for when it was made or changed.
    pub fn limits(&self) -> &[LimitState] {
        &self.limits
    }

    /// The directory for `CLONE_INTO_CGROUP`; moves this process to where it may clone from, if need be.
    pub fn fd(&self) -> Result<OwnedFd, CgroupError> {
        let fd = Directory::checked(&self.path).map_err(|source| self.failed("open", source))?;
        if let Some(host) = hierarchy::Host::detect() {
            place::approach(&host, &self.directory());
        }
        Ok(fd)
    }

    /// To be called when the container's first process is in it: lets go of what kept the place.
    pub fn settle(&mut self) {
        self.holder = None;
    }

    fn directory(&self) -> Directory {
        Directory::new(&self.path)
    }

    fn failed(&self, op: &'static str, source: std::io::Error) -> CgroupError {
        CgroupError::File { op, path: self.path.clone(), source }
    }
}
