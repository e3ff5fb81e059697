//! What the container's process is: program, ids, limits, capabilities, filter.

use std::ffi::CString;
use std::path::PathBuf;

use oci_spec::runtime::{LinuxSeccomp, PosixRlimitType, Process};
use rustix::process::{Resource, Rlimit};

use super::{Scheduling, refuse};
use crate::caps::CapabilitySets;
use crate::failure::{LaunchFailure, Stage};
use crate::idmap::IdMap;
use crate::seccomp::{self, Program};

/// One process, ready to become.
#[derive(Debug)]
pub(crate) struct ProcessPlan {
    pub(crate) args: Vec<CString>,
    pub(crate) env: Vec<CString>,
    pub(crate) cwd: PathBuf,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups: exactly these.
    pub(crate) groups: Vec<u32>,
    /// With one mapped id the kernel denies setgroups for good (user_namespaces(7)); of a user
    /// namespace that is joined we do not know the map.
    pub(crate) setgroups_denied: bool,
    /// The caller's own supplementary groups stay, which is what a shared directory of a group needs.
    pub(crate) keep_groups: bool,
    pub(crate) umask: u32,
    pub(crate) rlimits: Vec<(Resource, Rlimit)>,
    pub(crate) oom_score_adj: Option<i32>,
    pub(crate) capabilities: CapabilitySets,
    pub(crate) no_new_privileges: bool,
    pub(crate) filters: Vec<Program>,
    pub(crate) filter_flags: u32,
    /// Who answers for the last filter.
    pub(crate) listener: Option<ListenerPlan>,
    pub(crate) scheduling: Scheduling,
    pub(crate) terminal: bool,
    /// Rows and columns.
    pub(crate) console_size: Option<(u16, u16)>,
}

/// A seccomp agent and what it is told besides the container's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListenerPlan {
    pub(crate) path: PathBuf,
    pub(crate) metadata: String,
}

/// What a process gets when its specification has no umask.
const UMASK_DEFAULT: u32 = 0o022;
/// The kernel's range of oom_score_adj.
const OOM_SCORE_ADJ: std::ops::RangeInclusive<i32> = -1000..=1000;

/// Makes the plan of a process. `idmap` is the map of its user namespace, if it is known.
pub(crate) fn plan(process: &Process, idmap: Option<&IdMap>) -> Result<ProcessPlan, LaunchFailure> {
    refuse_unsupported(process)?;
    let args = process.args().as_deref().unwrap_or_default();
    if args.is_empty() || args[0].is_empty() {
        return Err(LaunchFailure::rule(Stage::Plan, "process.args", "names no program"));
    }
    let user = process.user();
    check_ids(process, idmap)?;
    let umask = user.umask().unwrap_or(UMASK_DEFAULT);
    if umask > 0o777 {
        return Err(refuse("process.user.umask", "is larger than 0777"));
    }
    if let Some(score) = process.oom_score_adj()
        && !OOM_SCORE_ADJ.contains(&score)
    {
        return Err(refuse("process.oomScoreAdj", "is not between -1000 and 1000"));
    }
    Ok(ProcessPlan {
        args: strings(args, "process.args")?,
        env: strings(process.env().as_deref().unwrap_or_default(), "process.env")?,
        cwd: cwd(process)?,
        uid: user.uid(),
        gid: user.gid(),
        groups: groups(process, idmap)?,
        setgroups_denied: idmap.is_some_and(IdMap::is_single),
        keep_groups: false,
        umask,
        rlimits: rlimits(process)?,
        oom_score_adj: process.oom_score_adj(),
        capabilities: CapabilitySets::from_spec(process.capabilities().as_ref())
            .map_err(|error| refuse("process.capabilities", &error.to_string()))?,
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        filters: Vec::new(),
        filter_flags: 0,
        listener: None,
        scheduling: Scheduling::of_process(process)?,
        terminal: process.terminal().unwrap_or(false),
        console_size: console_size(process)?,
    })
}

impl ProcessPlan {
    /// Compiles the container's system call filter into the plan.
    pub(crate) fn add_filter(&mut self, profile: Option<&LinuxSeccomp>) -> Result<(), LaunchFailure> {
        let Some(profile) = profile else {
            return Ok(());
        };
        self.filters = seccomp::compile(profile)
            .map_err(|error| LaunchFailure::rule(Stage::Plan, "linux.seccomp", &error.to_string()))?;
        self.filter_flags = seccomp::flags(profile);
        let path = profile.listener_path().clone().filter(|path| !path.as_os_str().is_empty());
        self.listener =
            path.map(|path| ListenerPlan { path, metadata: profile.listener_metadata().clone().unwrap_or_default() });
        if self.listener.as_ref().is_some_and(|listener| !listener.path.is_absolute()) {
            return Err(refuse("linux.seccomp.listenerPath", "is not absolute"));
        }
        Ok(())
    }
}

fn refuse_unsupported(process: &Process) -> Result<(), LaunchFailure> {
    let asked = [
        ("process.apparmorProfile", process.apparmor_profile().as_ref().is_some_and(|name| !name.is_empty())),
        ("process.selinuxLabel", process.selinux_label().as_ref().is_some_and(|label| !label.is_empty())),
    ];
    match asked.iter().find(|(_, asked)| *asked) {
        Some((field, _)) => Err(refuse(field, "is not supported")),
        None => Ok(()),
    }
}

fn check_ids(process: &Process, idmap: Option<&IdMap>) -> Result<(), LaunchFailure> {
    let user = process.user();
    // 4294967295 means "leave it" to the kernel: the process would stay root (CVE-2026-46680).
    if user.uid() == u32::MAX || user.gid() == u32::MAX {
        return Err(refuse("process.user", "4294967295 is not an id"));
    }
    let Some(idmap) = idmap else { return Ok(()) };
    if idmap.host_uid(user.uid()).is_none() {
        return Err(refuse("process.user", &format!("user {} is not in the container's id map", user.uid())));
    }
    if idmap.host_gid(user.gid()).is_none() {
        return Err(refuse("process.user", &format!("group {} is not in the container's id map", user.gid())));
    }
    Ok(())
}

fn groups(process: &Process, idmap: Option<&IdMap>) -> Result<Vec<u32>, LaunchFailure> {
    let field = "process.user.additionalGids";
    let mut groups = process.user().additional_gids().clone().unwrap_or_default();
    groups.sort_unstable();
    groups.dedup();
    if groups.contains(&u32::MAX) {
        return Err(refuse(field, "4294967295 is not an id"));
    }
    let strange = groups.iter().find(|group| idmap.is_some_and(|map| map.host_gid(**group).is_none()));
    match strange {
        Some(group) => Err(refuse(field, &format!("group {group} is not in the container's id map"))),
        None => Ok(groups),
    }
}

fn cwd(process: &Process) -> Result<PathBuf, LaunchFailure> {
    let cwd = process.cwd();
    if cwd.as_os_str().is_empty() {
        return Ok(PathBuf::from("/"));
    }
    if !cwd.is_absolute() {
        return Err(refuse("process.cwd", "is not absolute"));
    }
    if cwd.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(refuse("process.cwd", "contains a NUL byte"));
    }
    Ok(cwd.clone())
}

fn strings(list: &[String], field: &str) -> Result<Vec<CString>, LaunchFailure> {
    list.iter().map(|text| CString::new(text.as_str()).map_err(|_| refuse(field, "contains a NUL byte"))).collect()
}

fn console_size(process: &Process) -> Result<Option<(u16, u16)>, LaunchFailure> {
    let Some(size) = process.console_size() else {
        return Ok(None);
    };
    let side = |value: u64| u16::try_from(value).map_err(|_| refuse("process.consoleSize", "is larger than 65535"));
    Ok(Some((side(size.height())?, side(size.width())?)))
}

fn rlimits(process: &Process) -> Result<Vec<(Resource, Rlimit)>, LaunchFailure> {
    let mut limits: Vec<(Resource, Rlimit)> = Vec::new();
    for limit in process.rlimits().iter().flatten() {
        let name = limit.typ().to_string();
        let resource = resource(limit.typ()).ok_or_else(|| refuse(&name, "is not supported"))?;
        if limits.iter().any(|(known, _)| *known == resource) {
            return Err(refuse("process.rlimits", &format!("names {name} twice")));
        }
        if limit.soft() > limit.hard() {
            return Err(refuse("process.rlimits", &format!("{name} has a soft limit above its hard limit")));
        }
        // The kernel's RLIM_INFINITY is all ones, for rustix the absence of a number.
        let value = |number: u64| (number != u64::MAX).then_some(number);
        limits.push((resource, Rlimit { current: value(limit.soft()), maximum: value(limit.hard()) }));
    }
    Ok(limits)
}

fn resource(typ: PosixRlimitType) -> Option<Resource> {
    Some(match typ {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    })
}
