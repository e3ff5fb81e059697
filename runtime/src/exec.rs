//! Runs a further process in a running container.
//!
//! An intermediate child hides itself (A03), joins every namespace of the container that is not our
//! own already, and clones the real one as a child of the caller. Ids are checked against the map
//! that the kernel itself shows for the container.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType, LinuxSeccomp, Process};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, stat};
use rustix::io::Errno;
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use crate::failure::{LaunchFailure, Stage};
use crate::hooks::Subject;
use crate::idmap::{IdMap, read_map};
use crate::launch::channel;
use crate::launch::devices::{open_ptmx, open_terminal};
use crate::launch::fault::Fault;
use crate::launch::join::clone_inside;
use crate::launch::listener::Listener;
use crate::launch::program::{self, Departure, Hold, Streams, follow_parent, set_streams};
use crate::launch::scheduling::{bind_first, bind_last};
use crate::launch::{Gate, Launched, Running, Stdio, become_root, limit, open_namespace, send_master, take_root};
use crate::plan::{ProcessPlan, check_joined_mounts, plan_process};
use crate::sys::{CloneOptions, default_child_signal};

/// Everything about one more process in a container.
pub struct ExecOptions<'a> {
    /// The container's init as the caller sees it.
    pub pid: i32,
    /// The same process; the caller has checked that it is the container it means.
    pub pidfd: BorrowedFd<'a>,
    /// What to run.
    pub process: &'a Process,
    /// The container's system call filter.
    pub seccomp: Option<&'a LinuxSeccomp>,
    /// What the container's specification gives all its processes: personality and memory policy.
    pub linux: Option<&'a Linux>,
    /// The container, for its seccomp agent.
    pub subject: Option<&'a Subject>,
    /// Standard streams.
    pub stdio: Stdio<'a>,
    /// Descriptors that the program keeps under their numbers.
    pub keep_fds: &'a [RawFd],
    /// Kills the process when the caller dies.
    pub die_with_parent: bool,
    /// The cgroup (v2) in which the process is born.
    pub cgroup: Option<BorrowedFd<'a>>,
}

impl<'a> ExecOptions<'a> {
    /// An exec with nothing but the necessary.
    pub fn new(pid: i32, pidfd: BorrowedFd<'a>, process: &'a Process) -> Self {
        Self {
            pid,
            pidfd,
            process,
            seccomp: None,
            linux: None,
            subject: None,
            stdio: Stdio::Inherit,
            keep_fds: &[],
            die_with_parent: false,
            cgroup: None,
        }
    }
}

/// The namespaces that a container may have of its own, by their names in /proc/PID/ns.
const KINDS: [(&str, ThreadNameSpaceType); 8] = [
    ("user", ThreadNameSpaceType::USER),
    ("mnt", ThreadNameSpaceType::MOUNT),
    ("pid_for_children", ThreadNameSpaceType::PROCESS_ID),
    ("ipc", ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION),
    ("uts", ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME),
    ("net", ThreadNameSpaceType::NETWORK),
    ("cgroup", ThreadNameSpaceType::CONTROL_GROUP),
    ("time_for_children", ThreadNameSpaceType::TIME),
];

/// Joins the container's namespaces and runs the process; returns once `execve` has succeeded.
///
/// On failure nothing is left running.
pub fn exec(options: ExecOptions<'_>) -> Result<Running, LaunchFailure> {
    default_child_signal();
    let separate = separate_namespaces(options.pid)?;
    let idmap = if separate.contains(ThreadNameSpaceType::USER) { Some(map_of(options.pid)?) } else { None };
    let mut process = plan_process(options.process, idmap.as_ref())?;
    process.add_filter(options.seccomp)?;
    if let Some(linux) = options.linux {
        process.scheduling.add_container(linux)?;
    }
    if process.terminal != matches!(options.stdio, Stdio::Console) {
        return Err(LaunchFailure::rule(Stage::Plan, "process.terminal", "does not fit the standard streams"));
    }
    let root = own_root(&options, &process)?;
    let userns = open_namespace(options.pid, "user")?;
    let state = || options.subject.map_or(serde_json::Value::Null, |subject| subject.state("running", options.pid));
    let listener = process.listener.as_ref().map(|plan| Listener::connect(plan, state())).transpose()?;
    let (ours, theirs) = channel::pair().fault(Stage::Prepare, "make", "channel")?;
    // From inside the cgroup namespace nobody can be cloned into its cgroups: nsdelegate says ENOENT.
    let late = separate & ThreadNameSpaceType::CONTROL_GROUP;
    let enter = || {
        // Whoever lives there sees this process from the moment it joins (A03).
        program::hide()?;
        bind_first(&process.scheduling)?;
        join(&options, separate - late)
    };
    let cloned = clone_inside(
        (enter, |_| Ok(())),
        &CloneOptions { flags: crate::sys::CloneFlags::default(), cgroup: options.cgroup },
        &ours,
        theirs,
        |channel| match join(&options, late) {
            Ok(()) => run(&options, (&process, root.as_ref()), idmap.as_ref(), listener.as_ref(), channel),
            Err(failure) => program::report(&channel, failure),
        },
    )?;
    let launched = Launched { cloned, channel: ours };
    launched.conclude(&Gate::Immediate, userns, None).inspect_err(|_| launched.abandon())
}

/// The root of a container that lives in a mount namespace of others: joining that one leads to theirs.
fn own_root(options: &ExecOptions<'_>, process: &ProcessPlan) -> Result<Option<OwnedFd>, LaunchFailure> {
    let namespaces = options.linux.and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
    let joins_mounts = |one: &LinuxNamespace| one.typ() == LinuxNamespaceType::Mount && one.path().is_some();
    if !namespaces.iter().any(joins_mounts) {
        return Ok(None);
    }
    check_joined_mounts(process, &[], 0)?;
    let path = format!("/proc/{}/root", options.pid);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(&path, flags, Mode::empty()).fault(Stage::Rootfs, "open", &path)?;
    // While it lives its number is nobody else's.
    let mut polled = [PollFd::new(&options.pidfd, PollFlags::IN)];
    match poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
        Ok(0) => Ok(Some(root)),
        Ok(_) => Err(Errno::SRCH).fault(Stage::Namespaces, "find root of process", options.pid),
        Err(errno) => Err(errno).fault(Stage::Namespaces, "find root of process", options.pid),
    }
}

fn join(options: &ExecOptions<'_>, kinds: ThreadNameSpaceType) -> Result<(), LaunchFailure> {
    if kinds.is_empty() {
        return Ok(());
    }
    let joined = move_into_thread_name_spaces(options.pidfd, kinds);
    joined.fault(Stage::Namespaces, "join namespaces of process", options.pid)
}

/// The kinds of namespace in which the container differs from us; joining an own one is an error.
fn separate_namespaces(pid: i32) -> Result<ThreadNameSpaceType, LaunchFailure> {
    let mut separate = ThreadNameSpaceType::empty();
    for (name, kind) in KINDS {
        let identity = |whose: String| -> Result<(u64, u64), LaunchFailure> {
            let path = format!("/proc/{whose}/ns/{name}");
            let stat = stat(&path).fault(Stage::Namespaces, "stat", &path)?;
            Ok((stat.st_dev, stat.st_ino))
        };
        match (identity(pid.to_string()), identity("self".to_owned())) {
            (Ok(theirs), Ok(own)) if theirs == own => {}
            (Ok(_), Ok(_)) => separate |= kind,
            // A kernel without this kind.
            (Err(failure), _) if failure.errno == libc::ENOENT && Path::new(&format!("/proc/{pid}/ns")).exists() => {}
            (Err(failure), _) | (_, Err(failure)) => return Err(failure),
        }
    }
    Ok(separate)
}

fn map_of(pid: i32) -> Result<IdMap, LaunchFailure> {
    let read = |file: &str| {
        read_map(Path::new(&format!("/proc/{pid}/{file}")))
            .map_err(|error| LaunchFailure::rule(Stage::Ids, file, &error.to_string()))
    };
    Ok(IdMap { uids: read("uid_map")?, gids: read("gid_map")? })
}

/// Runs in the container, in the child that becomes the process.
fn run(
    options: &ExecOptions<'_>,
    (process, root): (&ProcessPlan, Option<&OwnedFd>),
    idmap: Option<&IdMap>,
    listener: Option<&Listener>,
    channel: OwnedFd,
) -> i32 {
    let settled = root.map_or(Ok(()), take_root).and_then(|()| settle(options, process, idmap, &channel));
    if let Err(failure) = settled {
        return program::report(&channel, failure);
    }
    let departure = Departure {
        process,
        hooks: &[],
        subject: None,
        listener,
        hold: Hold::Nothing,
        keep_fds: options.keep_fds,
        die_with_parent: options.die_with_parent,
        init_reaper: false,
    };
    program::depart(&departure, channel)
}

fn settle(
    options: &ExecOptions<'_>,
    process: &ProcessPlan,
    idmap: Option<&IdMap>,
    channel: &OwnedFd,
) -> Result<(), LaunchFailure> {
    follow_parent(options.die_with_parent)?;
    bind_last(&process.scheduling)?;
    become_root(
        idmap.is_some_and(|map| map.host_uid(0).is_some()),
        idmap.is_some_and(|map| map.host_gid(0).is_some()),
    )?;
    program::hide()?;
    let streams = match options.stdio {
        Stdio::Inherit => {
            return set_streams(&Streams::Keep, process.uid).and_then(|()| limit(process));
        }
        Stdio::Fds(fds) => {
            return set_streams(&Streams::Fds(fds), process.uid).and_then(|()| limit(process));
        }
        Stdio::Console => {
            // Of the container's making; only the descriptor that is proven to be devpts is used.
            let devpts = rustix::fs::openat2(
                rustix::fs::CWD,
                "/dev/pts",
                rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
                rustix::fs::Mode::empty(),
                rustix::fs::ResolveFlags::NO_SYMLINKS,
            )
            .fault(Stage::Devices, "open", "/dev/pts")?;
            let ptmx = open_ptmx(devpts.as_fd())?;
            let terminal = open_terminal(&ptmx, process.console_size)?;
            send_master(channel, &terminal)?;
            terminal
        }
    };
    set_streams(&Streams::Terminal(&streams), process.uid)?;
    limit(process)
}

/// Whether an exec failed because the container is gone.
pub fn is_gone(failure: &LaunchFailure) -> bool {
    failure.stage == Stage::Namespaces
        && [Errno::SRCH, Errno::NOENT].iter().any(|errno| errno.raw_os_error() == failure.errno)
}
