//! From the container's root to the process that was asked for: limits, groups, ids, capabilities.
//!
//! After this nothing can be regained. Every step reports its failure; none is skipped.

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::{Gid, Uid, setrlimit, umask};
use rustix::thread::{set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::fault::Fault;
use super::listener::Announcement;
use super::scheduling::schedule;
use crate::caps::{CapSet, CapabilitySets};
use crate::failure::{LaunchFailure, Stage};
use crate::plan::ProcessPlan;
use crate::seccomp;
use crate::sys::{self, SysError};

const STAGE: Stage = Stage::Identity;

/// Becomes root of the user namespace, where it has one, for the set-up.
pub(crate) fn become_root(has_root_user: bool, has_root_group: bool) -> Result<(), LaunchFailure> {
    if has_root_group {
        set_all_gids(0)?;
    }
    if has_root_user {
        set_all_uids(0)?;
    }
    Ok(())
}

/// Sets the limits. Above the caller's own hard limit the kernel refuses, and so do we (A34).
pub(crate) fn limit(process: &ProcessPlan) -> Result<(), LaunchFailure> {
    for (resource, limit) in &process.rlimits {
        setrlimit(*resource, *limit).fault(STAGE, "set limit", format!("{resource:?}"))?;
    }
    Ok(())
}

/// Becomes the process' user with exactly its groups and capabilities.
///
/// Without no_new_privs the filter has to be loaded while CAP_SYS_ADMIN is still there; it then sees
/// the rest of this function.
pub(crate) fn assume(process: &ProcessPlan, listener: Option<&Announcement<'_>>) -> Result<(), LaunchFailure> {
    schedule(&process.scheduling)?;
    let (mut sets, _lost) = process.capabilities.grantable(CapSet::held().map_err(unkept)?);
    if process.uid != 0 {
        // All that is effective after execve; anything more would only help this process to reach
        // directories and programs that are closed to its user.
        sets.effective = sets.ambient;
    }
    sets.limit_bounding().map_err(unkept)?;
    if process.no_new_privileges {
        set_no_new_privs(true).fault(STAGE, "set", "no_new_privs")?;
    } else {
        load_filters(process, listener)?;
    }
    set_groups(process)?;
    CapabilitySets::keep_across_setuid().map_err(unkept)?;
    set_all_gids(process.gid)?;
    set_all_uids(process.uid)?;
    umask(Mode::from_raw_mode(process.umask));
    sets.apply().map_err(unkept)
}

/// Loads the filters that the process keeps, as the last step before `execve` with no_new_privs.
pub(crate) fn load_filters(process: &ProcessPlan, listener: Option<&Announcement<'_>>) -> Result<(), LaunchFailure> {
    let (stage, what) = (Stage::Seccomp, "seccomp filter");
    let Some((last, others)) = process.filters.split_last() else {
        return Ok(());
    };
    // How a listener is waited for concerns the one that has it.
    let plain = process.filter_flags & !seccomp::FILTER_FLAG_WAIT_KILLABLE_RECV;
    for program in others {
        sys::load_filter(program, plain).fault(stage, "load", what)?;
    }
    match listener {
        None => sys::load_filter(last, process.filter_flags).fault(stage, "load", what),
        Some(listener) => {
            let notify = sys::load_listener(last, process.filter_flags).fault(stage, "load", what)?;
            listener.send(&notify)
        }
    }
}

fn set_groups(process: &ProcessPlan) -> Result<(), LaunchFailure> {
    if process.keep_groups {
        return Ok(());
    }
    let groups: Vec<Gid> = process.groups.iter().map(|group| Gid::from_raw(*group)).collect();
    match set_thread_groups(&groups) {
        // With one id the groups of the host stay, shown as nobody's; giving them up could open
        // what a negative ACL closes (CVE-2014-8989), so the kernel denies it to everybody.
        Err(Errno::PERM) if process.setgroups_denied && process.groups.iter().all(|group| *group == process.gid) => {
            Ok(())
        }
        result => result.fault(STAGE, "set groups", format!("{:?}", process.groups)),
    }
}

fn set_all_gids(gid: u32) -> Result<(), LaunchFailure> {
    let gid = Gid::from_raw(gid);
    set_thread_res_gid(gid, gid, gid).fault(STAGE, "set group", gid.as_raw())
}

fn set_all_uids(uid: u32) -> Result<(), LaunchFailure> {
    let uid = Uid::from_raw(uid);
    set_thread_res_uid(uid, uid, uid).fault(STAGE, "set user", uid.as_raw())
}

fn unkept(error: SysError) -> LaunchFailure {
    LaunchFailure { stage: STAGE, op: error.op.to_owned(), target: error.target, errno: error.errno }
}
