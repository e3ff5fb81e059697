//! Which cgroups the host has and whether limits can be set without root.

use std::path::Path;

use super::Fact;
use crate::cgroup::{Controller, Outlook, UNIFIED_FIX, controllers_fix, outlook};

/// The controllers behind the limits that people ask for.
const WANTED: [Controller; 5] =
    [Controller::Cpu, Controller::Cpuset, Controller::Io, Controller::Memory, Controller::Pids];
/// What gives a person a part of the hierarchy.
const PLACE_FIX: &str = "apt install dbus-user-session && sudo loginctl enable-linger $(id -un), then log in again";
const NAME: &str = "cgroups";

pub(super) fn fact() -> Fact {
    judge(&outlook())
}

fn judge(outlook: &Outlook) -> Fact {
    let (value, effect, fix) = match outlook {
        Outlook::NoHierarchy { hybrid } => (
            if *hybrid { "hybrid v1 and v2" } else { "v1 or none" }.to_owned(),
            "limits for memory, CPU, IO and processes cannot be set; everything else works".to_owned(),
            UNIFIED_FIX,
        ),
        Outlook::NoPlace { cgroup } => (
            format!("v2, {cgroup}"),
            "no part of the hierarchy is delegated to us: limits cannot be set".to_owned(),
            PLACE_FIX,
        ),
        Outlook::Place { cgroup, scope, controllers } => {
            let names = |list: &[Controller]| list.iter().map(|one| one.name()).collect::<Vec<_>>().join(" ");
            let how = if *scope { "a scope of systemd" } else { "delegated to us" };
            let value = format!("v2, {cgroup} ({how}), controllers: {}", names(controllers));
            let lacking: Vec<Controller> = WANTED.into_iter().filter(|one| !controllers.contains(one)).collect();
            if lacking.is_empty() {
                return Fact::fine(NAME, value);
            }
            let path = Path::new("/sys/fs/cgroup").join(cgroup.trim_start_matches('/'));
            let fix = controllers_fix(&path, &lacking.iter().map(|one| one.name()).collect::<Vec<_>>());
            let effect = format!("limits for {} cannot be set", names(&lacking).replace(' ', ", "));
            return Fact::lacking(NAME, value, false, &effect, &fix);
        }
    };
    Fact::lacking(NAME, value, false, &effect, fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_is_not_delegated() {
        let place = |controllers: &[Controller]| Outlook::Place {
            cgroup: "/user.slice".to_owned(),
            scope: true,
            controllers: controllers.to_vec(),
        };
        assert_eq!(judge(&place(&WANTED)).missing, None);
        let partly = judge(&place(&[Controller::Memory, Controller::Pids])).missing.expect("something is missing");
        assert_eq!(partly.effect, "limits for cpu, cpuset, io cannot be set");
        assert!(judge(&Outlook::NoPlace { cgroup: "/".to_owned() }).missing.is_some());
        let first = judge(&Outlook::NoHierarchy { hybrid: true });
        assert!(first.missing.expect("no limits").effect.contains("everything else works"));
    }
}
