//! A scope for one container alone, as `--systemd-cgroup` asks for it.

use std::os::fd::OwnedFd;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, pidfd_send_signal, set_parent_process_death_signal, waitid};

use super::super::apply::{apply, fields};
use super::super::dbus::{Connection, Value};
use super::super::error::{CgroupError, NoPlace, SystemdError};
use super::super::hierarchy::Host;
use super::super::place::{drop_undelegated, none, restrict_devices};
use super::super::settings::Settings;
use super::super::{Cgroup, Kind, LimitState, Made, Request};
use super::{Unit, addresses, path_of, properties, start};
use crate::sys::{CloneOptions, clone_process};

/// A process that keeps a new scope alive until the container's own is in it. Dropping it ends it.
#[derive(Debug)]
pub(in crate::cgroup) struct Holder {
    pid: i32,
    pidfd: OwnedFd,
}

impl Holder {
    fn start() -> Result<Self, SystemdError> {
        let parent = rustix::process::getpid();
        let cloned = clone_process(&CloneOptions::default(), || {
            // If its parent is gone already, it is nobody's.
            let tied = set_parent_process_death_signal(Some(Signal::KILL)).is_ok();
            while tied && rustix::process::getppid() == Some(parent) {
                nix::unistd::pause();
            }
            0
        });
        let cloned = cloned.map_err(|errno| SystemdError::Holder(errno.into()))?;
        Ok(Self { pid: cloned.pid, pidfd: cloned.pidfd })
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It may be gone already; nothing else can go wrong with a child of ours.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let wait = || waitid(WaitId::PidFd(std::os::fd::AsFd::as_fd(&self.pidfd)), WaitIdOptions::EXITED);
        let _ = rustix::io::retry_on_intr(wait);
    }
}

/// Has systemd make the scope that `linux.cgroupsPath` names.
pub(in crate::cgroup) fn make(
    host: &Host,
    request: &Request<'_>,
    mut wanted: Settings,
    limits: Vec<LimitState>,
) -> Result<Made, CgroupError> {
    let made =
        names(host, request).and_then(|(slice, name)| Ok((started(host, request, &slice, &name, &wanted)?, name)));
    let (holder, name) = match made {
        Ok(made) => made,
        // Who names systemd wants its scope, with limits or without.
        Err(error) if !request.best_effort => {
            let fields = if wanted.list.is_empty() { "linux.cgroupsPath".to_owned() } else { fields(&wanted.list) };
            return Err(CgroupError::Unenforceable { fields, source: not_delegated(host, error) });
        }
        Err(error) => return none(not_delegated(host, error), request, &wanted, limits),
    };
    let unit = Unit { name, uid: host.uid, root: host.root };
    let finished = finish(host, request, &mut wanted, limits, &holder);
    match finished {
        Ok((path, limits)) => {
            let cgroup = Cgroup {
                path,
                kind: Kind::Systemd,
                unit: Some(unit),
                limits: limits.clone(),
                holder: Some(holder.into()),
            };
            Ok(Made { cgroup: Some(cgroup), limits })
        }
        Err(error) => {
            drop(holder);
            // An empty scope goes by itself; this only makes it sooner.
            let _ = unit.forget();
            Err(error)
        }
    }
}

fn finish(
    host: &Host,
    request: &Request<'_>,
    wanted: &mut Settings,
    mut limits: Vec<LimitState>,
    holder: &Holder,
) -> Result<(std::path::PathBuf, Vec<LimitState>), CgroupError> {
    let Some(directory) = path_of(host, holder.pid) else {
        let source = rustix::io::Errno::NOENT.into();
        return Err(CgroupError::File { op: "find", path: host.mount.clone(), source });
    };
    limits.extend(drop_undelegated(&directory, wanted, request.best_effort)?);
    limits.extend(apply(&directory, wanted, request.best_effort)?);
    restrict_devices(&directory, request, host.root)?;
    Ok((directory.path().to_owned(), limits))
}

fn started(
    host: &Host,
    request: &Request<'_>,
    slice: &str,
    name: &str,
    wanted: &Settings,
) -> Result<Holder, SystemdError> {
    let mut connection = Connection::open(&addresses(host.uid, host.root))?;
    let holder = Holder::start()?;
    let pid = Pid::from_raw(holder.pid).map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs());
    let mut list = vec![
        ("Description", Value::Text(format!("coracle container {}", request.id))),
        ("PIDs", Value::Numbers(vec![pid])),
        ("Slice", Value::Text(slice.to_owned())),
        ("Delegate", Value::Bool(true)),
        // Nothing stops it at shutdown but its own manager.
        ("DefaultDependencies", Value::Bool(false)),
        ("CollectMode", Value::Text("inactive-or-failed".to_owned())),
    ];
    list.extend(properties::of(wanted));
    start(&mut connection, name, &list)?;
    Ok(holder)
}

fn not_delegated(host: &Host, error: SystemdError) -> NoPlace {
    NoPlace::NotDelegated { cgroup: host.own.clone(), source: Some(Box::new(error)) }
}

/// The slice and the scope: `slice:prefix:name`, or names of our own where nothing was asked.
fn names(host: &Host, request: &Request<'_>) -> Result<(String, String), SystemdError> {
    let default = if host.root { "system.slice" } else { "user.slice" };
    let Some(path) = request.path.filter(|path| !path.is_empty()) else {
        return Ok((default.to_owned(), format!("coracle-{}.scope", request.id)));
    };
    let refuse = || SystemdError::Path(path.to_owned());
    let [slice, prefix, name] = *path.split(':').collect::<Vec<_>>() else { return Err(refuse()) };
    // systemd's own grammar for names of units, without templates (systemd.unit(5)).
    let clean = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b":-_.\\".contains(&byte));
    let slice = if slice.is_empty() { default } else { slice };
    if name.is_empty() || !clean(name) || !clean(prefix) || !clean(slice) || !slice.ends_with(".slice") {
        return Err(refuse());
    }
    let scope = if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") };
    Ok((slice.to_owned(), scope))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request has a path and limits, and no annotations that could become properties (CVE-2024-3154).
    #[test]
    fn a20_names_of_units_are_checked() {
        let host = Host { mount: "/x".into(), own: "/".into(), uid: 1000, root: false, systemd: true };
        let named =
            |path| names(&host, &Request { kind: Kind::Systemd, id: "c1", path, resources: None, best_effort: false });
        let pair = |slice: &str, scope: &str| (slice.to_owned(), scope.to_owned());
        assert_eq!(named(None).unwrap(), pair("user.slice", "coracle-c1.scope"));
        assert_eq!(named(Some("my.slice:libpod:abc")).unwrap(), pair("my.slice", "libpod-abc.scope"));
        assert_eq!(named(Some("::abc")).unwrap(), pair("user.slice", "abc.scope"));
        for bad in [
            "abc",
            "a:b:c",
            "a.slice:b",
            "a.slice:b:",
            "a.slice:b:c/d",
            "a.slice:b:c:d",
            "a.slice:\n:c",
            "a.slice:\":c",
            "a.slice:b:c' ExecStartPre=x",
            "a.slice:b:c\0",
        ] {
            assert!(named(Some(bad)).is_err(), "{bad}");
        }
    }
}
