//! What can go wrong with a cgroup, and what mends it.

use std::io;
use std::path::{Path, PathBuf};

use super::dbus::BusError;
use super::settings::Refusal;

/// No directory was found in which cgroups could be made.
#[derive(Debug, thiserror::Error)]
pub enum NoPlace {
    /// Version 1, or both versions.
    #[error("this host has no unified cgroup hierarchy (v2) at /sys/fs/cgroup")]
    NoHierarchy,
    /// There is one, and no part of it is ours.
    #[error("no part of the cgroup hierarchy is delegated to us, neither {cgroup} nor a systemd user scope")]
    NotDelegated {
        /// Where we are.
        cgroup: String,
        /// Why systemd did not help, where it was asked.
        source: Option<Box<SystemdError>>,
    },
    /// The caller does not want cgroups.
    #[error("cgroups are disabled")]
    Disabled,
    /// The path that was asked for cannot be made.
    #[error("cannot make cgroup {path}")]
    Path {
        /// The directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// systemd could not be asked, or refused.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// The bus could not be reached.
    #[error("cannot speak with systemd")]
    Bus(#[from] BusError),
    /// systemd ended the job otherwise than with success.
    #[error("systemd could not start {unit}: {result}")]
    Job {
        /// The unit.
        unit: String,
        /// systemd's word for it, e.g. `failed` or `timeout`.
        result: String,
    },
    /// The scope is there, and this process did not get into it.
    #[error("cannot enter cgroup {path}")]
    Enter {
        /// The directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// `linux.cgroupsPath` has another form than `slice:prefix:name`.
    #[error("cgroupsPath {0:?} is not of the form slice:prefix:name")]
    Path(String),
    /// The process that keeps a new scope alive could not be made.
    #[error("cannot make a process for the new scope")]
    Holder(#[source] io::Error),
}

/// A cgroup could not be made, changed or read.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// Limits were asked for and there is no cgroup to put them on.
    #[error("cannot enforce {fields}")]
    Unenforceable {
        /// What was asked, comma-separated.
        fields: String,
        /// Why there is none.
        source: NoPlace,
    },
    /// Controllers that the limits need are not delegated.
    #[error("cannot enforce {fields}: {cgroup} has no controller {controllers}")]
    Controllers {
        /// What was asked, comma-separated.
        fields: String,
        /// Their names, comma-separated.
        controllers: String,
        /// Where they are missing.
        cgroup: PathBuf,
    },
    /// Nothing in cgroup v2 does this.
    #[error("cannot enforce {0}")]
    Refused(Refusal),
    /// Other processes are where they keep controllers from being enabled.
    #[error("cannot enable controllers in {cgroup}: processes of others are in it")]
    Busy {
        /// The cgroup.
        cgroup: PathBuf,
    },
    /// The kernel refused a value.
    #[error("cannot set {field}: write {value:?} to {file}")]
    Set {
        /// The field of `linux.resources`.
        field: String,
        /// The value.
        value: String,
        /// The file.
        file: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel has no file for a limit.
    #[error("cannot enforce {field}: this kernel has no {file}: no such file or directory")]
    NoFile {
        /// The field of `linux.resources`.
        field: String,
        /// The file.
        file: PathBuf,
    },
    /// Processors or memory nodes that are not there for us.
    #[error("cannot enforce {field} = {asked}: only {effective} can be had")]
    Cpuset {
        /// The field of `linux.resources`.
        field: String,
        /// What was asked.
        asked: String,
        /// What the kernel would give.
        effective: String,
    },
    /// More is in use than the new limit allows, and `checkBeforeUpdate` is set.
    #[error("memory.limit {limit} is below what is in use, {used_bytes} bytes")]
    InUse {
        /// The new limit.
        limit: i64,
        /// memory.current.
        used_bytes: u64,
    },
    /// Making, reading, changing or removing a directory or file of it failed.
    #[error("cannot {op} {path}")]
    File {
        /// What was tried.
        op: &'static str,
        /// Where.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It did not become what it should in time.
    #[error("{path} did not {what} within {limit_ms} ms")]
    Late {
        /// The cgroup.
        path: PathBuf,
        /// What was waited for.
        what: &'static str,
        /// How long.
        limit_ms: u64,
    },
    /// systemd could not change or stop the unit.
    #[error("cannot {op} {unit}")]
    Unit {
        /// What was tried.
        op: &'static str,
        /// The unit.
        unit: String,
        /// Why not.
        source: SystemdError,
    },
}

/// The exact lines that make systemd delegate every controller we have limits for.
pub const DELEGATE_FIX: &str = "sudo mkdir -p /etc/systemd/system/user@.service.d && printf '[Service]\\nDelegate=cpu cpuset io memory pids\\n' | sudo tee /etc/systemd/system/user@.service.d/delegate.conf && sudo systemctl daemon-reload && sudo systemctl restart user@$(id -u).service";
/// The kernel command line that leaves no version 1.
pub const UNIFIED_FIX: &str = "boot with systemd.unified_cgroup_hierarchy=1";
/// What gives a cgroup the controllers that it lacks: systemd's drop-in below a user manager, else a line
/// in its parent.
pub fn controllers_fix(cgroup: &Path, lacking: &[&str]) -> String {
    let managed = cgroup.components().any(|part| part.as_os_str().to_string_lossy().starts_with("user@"));
    match cgroup.parent() {
        Some(parent) if !managed => {
            let wanted: Vec<String> = lacking.iter().map(|name| format!("+{name}")).collect();
            format!("sudo sh -c 'echo {} > {}'", wanted.join(" "), parent.join("cgroup.subtree_control").display())
        }
        _ => format!("{DELEGATE_FIX} (this ends the user's services)"),
    }
}

const BEST_EFFORT: &str = "or run with --limits=best-effort";

impl NoPlace {
    /// What mends it, as a command where there is one.
    pub fn fix(&self) -> Option<String> {
        match self {
            Self::NoHierarchy => Some(format!("{UNIFIED_FIX}, {BEST_EFFORT}")),
            Self::NotDelegated { .. } => Some(format!(
                "log in with a systemd user session (apt install dbus-user-session; sudo loginctl enable-linger $(id -un)), \
                 or let an administrator give this user a cgroup of its own, {BEST_EFFORT}"
            )),
            Self::Disabled | Self::Path { .. } => None,
        }
    }
}

impl CgroupError {
    /// What mends it, as a command where there is one.
    pub fn fix(&self) -> Option<String> {
        match self {
            Self::Unenforceable { source, .. } => source.fix(),
            Self::Controllers { cgroup, controllers, .. } => {
                let fix = controllers_fix(cgroup, &controllers.split(", ").collect::<Vec<_>>());
                Some(format!("{fix}, {BEST_EFFORT}"))
            }
            Self::Busy { .. } => Some(format!(
                "start it in a cgroup of its own: systemd-run --user --scope -p Delegate=yes COMMAND, {BEST_EFFORT}"
            )),
            _ => None,
        }
    }
}
