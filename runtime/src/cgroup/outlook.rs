//! What limits could be set here, found out without making anything.

use std::path::Path;

use super::delegation::{Scope, base, given};
use super::directory::is_unified;
use super::hierarchy::Host;
use super::settings::Controller;
use super::systemd;

/// Where a container's limits would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outlook {
    /// Version 1, or with `hybrid` both versions: everything but limits works.
    NoHierarchy {
        /// Whether version 2 is mounted beside version 1.
        hybrid: bool,
    },
    /// No part of the hierarchy is ours.
    NoPlace {
        /// Where we are.
        cgroup: String,
    },
    /// There is a place.
    Place {
        /// The directory, from the mount's root.
        cgroup: String,
        /// Whether systemd makes it when it is needed.
        scope: bool,
        /// What can be limited in it.
        controllers: Vec<Controller>,
    },
}

/// Looks at this host.
pub fn outlook() -> Outlook {
    match Host::detect() {
        Some(host) => look(&host),
        None => Outlook::NoHierarchy { hybrid: is_unified(Path::new("/sys/fs/cgroup/unified")) },
    }
}

fn look(host: &Host) -> Outlook {
    let given = given(host);
    if given.is_none()
        && let Some((cgroup, controllers)) = systemd::prospect(host)
    {
        return Outlook::Place { cgroup, scope: true, controllers };
    }
    if let Some(base) = given.or_else(|| base(host, Scope::Never).ok()) {
        let inside = base.path().strip_prefix(&host.mount).unwrap_or(base.path());
        let cgroup = Path::new("/").join(inside).display().to_string();
        let controllers = base.controllers();
        return Outlook::Place { cgroup, scope: false, controllers };
    }
    Outlook::NoPlace { cgroup: host.own.clone() }
}
