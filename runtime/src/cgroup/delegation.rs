//! Which part of the hierarchy is ours, and what its children may be limited by.
//!
//! In this order: the place this process was put into by an earlier step; a cgroup that somebody gave
//! us on purpose (a Slurm step, a service with Delegate=yes, a chown), because containers must not
//! leave it; systemd's scope; any other cgroup we can write.
//! A cgroup whose children have controllers holds no processes itself (cgroups(7), "no internal
//! processes"), so ours live in a child of their own, [`LEAF`].

use std::io;
use std::thread::sleep;
use std::time::Duration;

use rustix::io::Errno;

use super::directory::Directory;
use super::error::{CgroupError, NoPlace, SystemdError};
use super::hierarchy::Host;
use super::settings::Controller;
use super::systemd;

/// Where the processes that look after containers are, next to the containers' cgroups.
pub(super) const LEAF: &str = "coracle.supervisor";
/// Rounds of moving processes away: each may find those that were forked during the last.
const MOVE_ROUNDS_MAX: u32 = 10;
/// The pause before the third one; before each further one it is twice as long, a quarter of a second in all. The kernel
/// leaves a process that is ending where it is, says that it was moved, and counts it until it has freed its memory.
const MOVE_PAUSE: Duration = Duration::from_millis(1);

/// Whether systemd may be asked for a scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    Ask,
    Never,
}

/// Finds the directory in which containers get theirs.
pub(super) fn base(host: &Host, scope: Scope) -> Result<Directory, NoPlace> {
    if let Some(base) = given(host) {
        return Ok(base);
    }
    let own = host.own_directory();
    let refused = match scope {
        Scope::Never => None,
        Scope::Ask => match systemd::scope(host) {
            Ok(base) => return Ok(base),
            Err(error) => Some(error),
        },
    };
    not_by_systemd(host, own, refused)
}

/// The place that is ours without asking anybody, because this process was put there to divide it.
pub(super) fn given(host: &Host) -> Option<Directory> {
    let own = host.own_directory();
    supervised(host).or_else(|| is_given(host, &own).then_some(own))
}

/// Root can write everywhere, which does not make a place its own on a host that systemd runs.
fn not_by_systemd(host: &Host, own: Directory, refused: Option<SystemdError>) -> Result<Directory, NoPlace> {
    if own.is_ours() && !(host.root && host.systemd) {
        return Ok(own);
    }
    Err(NoPlace::NotDelegated { cgroup: host.own.clone(), source: refused.map(Box::new) })
}

/// The parent of our leaf, if we are in one.
fn supervised(host: &Host) -> Option<Directory> {
    let (parent, name) = host.own.rsplit_once('/')?;
    let parent = host.directory(parent);
    (name == LEAF && parent.is_ours()).then_some(parent)
}

/// Whether somebody made this cgroup for its processes to divide.
fn is_given(host: &Host, own: &Directory) -> bool {
    if !own.is_ours() {
        return false;
    }
    // systemd marks what it delegates (systemd.resource-control(5)); all that its user manager makes
    // is ours to write, and not all of it is ours to divide.
    let mut value = [0_u8; 1];
    let marked = ["user.delegate", "trusted.delegate"]
        .iter()
        .any(|name| rustix::fs::getxattr(own.path(), *name, &mut value).is_ok_and(|_| value == *b"1"));
    let managed = host.own.split('/').any(|part| part == format!("user@{}.service", host.uid));
    let manager_itself = host.own.ends_with(".service") && host.own.contains("/user@");
    (marked && !manager_itself) || !host.systemd || (!host.root && !managed)
}

/// Makes controllers available to the children of `base`: all of `needed`, and whatever else there is.
pub(super) fn enable(base: &Directory, needed: &[Controller]) -> Result<(), CgroupError> {
    let enabled = base.enabled();
    let missing: Vec<Controller> = needed.iter().copied().filter(|one| !enabled.contains(one)).collect();
    for controller in missing {
        let line = format!("+{}", controller.name());
        if let Err(error) = write_subtree(base, &line) {
            return Err(file(base, "enable controllers in", error));
        }
    }
    for controller in base.controllers() {
        if !enabled.contains(&controller) && !needed.contains(&controller) {
            // Without one that nobody asked for, only its numbers are missing in the statistics.
            let _ = base.write("cgroup.subtree_control", &format!("+{}", controller.name()));
        }
    }
    Ok(())
}

/// Enables one controller; moves the processes of `base` out of the way where they are in it.
fn write_subtree(base: &Directory, line: &str) -> io::Result<()> {
    for round in 0..MOVE_ROUNDS_MAX {
        if round > 1 {
            sleep(MOVE_PAUSE * (1 << (round - 2)));
        }
        match base.write("cgroup.subtree_control", line) {
            Err(error) if is(&error, Errno::BUSY) => move_all(base)?,
            result => return result,
        }
    }
    Err(Errno::BUSY.into())
}

/// Moves every process of `base` into the leaf.
fn move_all(base: &Directory) -> io::Result<()> {
    let leaf = base.child(LEAF);
    leaf.make()?;
    for pid in base.processes()? {
        match leaf.write("cgroup.procs", &pid.to_string()) {
            // One that has ended is out of the way.
            Err(error) if is(&error, Errno::SRCH) => {}
            result => result?,
        }
    }
    Ok(())
}

/// Moves this process into the leaf of `base`, so that a new child may be cloned into another one.
pub(super) fn enter_leaf(base: &Directory) -> io::Result<()> {
    let leaf = base.child(LEAF);
    leaf.make()?;
    leaf.write("cgroup.procs", "0")
}

pub(super) fn is(error: &io::Error, errno: Errno) -> bool {
    Errno::from_io_error(error) == Some(errno)
}

fn file(directory: &Directory, op: &'static str, source: io::Error) -> CgroupError {
    if is(&source, Errno::BUSY) || is(&source, Errno::PERM) {
        return CgroupError::Busy { cgroup: directory.path().to_owned() };
    }
    CgroupError::File { op, path: directory.path().to_owned(), source }
}
