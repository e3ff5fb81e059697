//! What the container's first process does between its creation and its program.
//!
//! It runs in a copy of the launching process: no thread, no logging, `_exit` only. Order matters
//! and is the order of the code: sources are opened as the caller, everything inside is made as root
//! of the user namespace, and covers are taken from the host's tree before that tree goes away.

use std::borrow::Cow;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::Path;

use oci_spec::runtime::Hooks;
use rustix::fs::{Mode, OFlags, fstatfs};
use rustix::net::{AddressFamily, SocketType, socket};
use rustix::process::umask;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::channel::{self, Message};
use super::devices::{self, Terminal};
use super::fault::Fault;
use super::inside::{Inside, Shape};
use super::join::Joined;
use super::listener::Listener;
use super::mounting::{self, Mounted, PROC_MAGIC};
use super::options::{Rootfs, Stdio};
use super::program::{self, Departure, Hold, Streams, follow_parent, hide, set_streams, show};
use super::sources::Sources;
use super::{confining, identity, rootfs};
use crate::failpoint;
use crate::failure::{LaunchFailure, Stage};
use crate::hooks::{self, Moment, Subject};
use crate::idmap::{IdMap, read_map};
use crate::memory;
use crate::plan::{MountStep, Plan, fit_ids, flags};
use crate::sys::{CloneFlags, MountAttr, mount_setattr, raise_loopback};

/// Everything the child needs, opened and decided by its parent.
pub(crate) struct Child<'a> {
    pub(crate) plan: &'a Plan,
    /// Where it ends up when everything is made.
    pub(crate) mount_namespace: Option<&'a Joined>,
    pub(crate) subject: &'a Subject,
    pub(crate) hooks: Option<&'a Hooks>,
    pub(crate) sources: &'a Sources,
    pub(crate) listener: Option<&'a Listener>,
    pub(crate) rootfs: &'a Rootfs,
    pub(crate) bundle: &'a Path,
    pub(crate) stdio: Stdio<'a>,
    pub(crate) hold: Hold,
    pub(crate) keep_fds: &'a [RawFd],
    pub(crate) die_with_parent: bool,
    pub(crate) init_reaper: bool,
    pub(crate) no_pivot: bool,
}

/// Runs in the child; its result is the exit code of a child that gave up.
pub(crate) fn run(child: Child<'_>, channel: OwnedFd) -> i32 {
    let terminal = match build(&child, &channel) {
        Ok(terminal) => terminal,
        Err(failure) => return program::report(&channel, failure),
    };
    let process = &child.plan.process;
    let streams = match (&child.stdio, &terminal) {
        (_, Some(terminal)) => Streams::Terminal(terminal),
        (Stdio::Fds(fds), None) => Streams::Fds(*fds),
        _ => Streams::Keep,
    };
    if let Err(failure) = set_streams(&streams, process.uid) {
        return program::report(&channel, failure);
    }
    let departure = Departure {
        process,
        hooks: Moment::StartContainer.of(child.hooks),
        subject: Some(child.subject),
        listener: child.listener,
        hold: child.hold,
        keep_fds: child.keep_fds,
        die_with_parent: child.die_with_parent,
        init_reaper: child.init_reaper,
    };
    program::depart(&departure, channel)
}

/// Builds the container around this process. Everything opened here is closed on return.
fn build(child: &Child<'_>, channel: &OwnedFd) -> Result<Option<Terminal>, LaunchFailure> {
    let plan = child.plan;
    follow_parent(child.die_with_parent)?;
    expect(channel, Stage::Ids, |message| matches!(message, Message::Mapped))?;
    let joined = joined_map(plan)?;
    let idmap = plan.idmap.as_ref().or(joined.as_ref());
    // While our own /proc files still belong to the caller.
    set_oom_score(plan.process.oom_score_adj)?;
    // Processes of a namespace that is joined must not look into this one. In new namespaces there
    // are none, and the network helper has to reach them through /proc until it is ready.
    let joins = !plan.namespaces.join.is_empty() || child.mount_namespace.is_some();
    if joins {
        hide()?;
    }
    umask(Mode::empty());
    let owns_namespace = plan.namespaces.creates_user();
    rootfs::detach_propagation(plan.root_propagation, owns_namespace)?;
    let mounts = fitting_mounts(plan, joined.as_ref());
    let sources = mounting::open_sources(&mounts, &child.sources.binds, child.bundle)?;
    let has = |id: fn(&IdMap) -> Option<u32>| idmap.is_some_and(|map| id(map).is_some());
    identity::become_root(has(|map| map.host_uid(0)), has(|map| map.host_gid(0)))?;
    if !joins {
        // A change of ids closes /proc again.
        show()?;
    }
    if plan.namespaces.create.contains(CloneFlags::NET) {
        let socket = socket(AddressFamily::INET, SocketType::DGRAM, None).fault(Stage::Network, "make", "socket")?;
        raise_loopback(socket.as_fd()).fault(Stage::Network, "switch on", "lo")?;
    }
    if plan.namespaces.create.contains(CloneFlags::TIME) {
        make_time_namespace(&plan.time_offsets)?;
    }
    let root = rootfs::mount_root(child.rootfs)?;
    let inside = Inside::new(&root);
    let mut mounted = mounting::mount_all(&mounts, sources, &child.sources.nodes, inside)?;
    memory::step();
    devices::add_elsewhere(&plan.devices_elsewhere, &child.sources.nodes, inside)?;
    let terminal = open_terminal(child, &mounted, channel)?;
    if plan.hooks_before_root {
        channel::send(channel, &Message::Mounted).fault(Stage::Hooks, "tell", "launcher")?;
        expect(channel, Stage::Hooks, |message| matches!(message, Message::Proceed))?;
        hooks::run(child.hooks, Moment::CreateContainer, child.subject, rustix::process::getpid().as_raw_pid())?;
    }
    mounted.finish()?;
    failpoint::pass(Stage::Mounts, "mounts_done")?;
    confining::confine(&plan.confinement, mounted.proc.as_ref(), inside)?;
    make_working_directory(&plan.process.cwd, inside)?;
    if plan.root_readonly {
        let attr = MountAttr { set: flags::RDONLY, ..MountAttr::default() };
        mount_setattr(root.as_fd(), false, &attr).fault(Stage::Rootfs, "make read-only", "root")?;
    }
    rootfs::enter(&root, child.no_pivot)?;
    failpoint::pass(Stage::Rootfs, "pivoted")?;
    rootfs::share(&root, plan.root_propagation)?;
    if let Some(joined) = child.mount_namespace {
        rootfs::carry_into(joined)?;
    }
    if !plan.hooks_before_root {
        expect(channel, Stage::Network, |message| matches!(message, Message::Proceed))?;
    }
    memory::step();
    identity::limit(&plan.process)?;
    Ok(terminal)
}

/// Makes a time namespace, sets its clocks, and enters it (time_namespaces(7)).
///
/// Its clocks can be set until somebody lives in it, which a process that is cloned with it does.
fn make_time_namespace(offsets: &[String]) -> Result<(), LaunchFailure> {
    let fault = |result: Result<(), rustix::io::Errno>, op: &str| result.fault(Stage::Namespaces, op, "time namespace");
    fault(unshare_time(), "create")?;
    if !offsets.is_empty() {
        let path = "/proc/self/timens_offsets";
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::open(path, flags, Mode::empty()).fault(Stage::Namespaces, "open", path)?;
        for line in offsets {
            rustix::io::write(&file, line.as_bytes()).fault(Stage::Namespaces, "write", path)?;
        }
    }
    let path = "/proc/self/ns/time_for_children";
    let own = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let own = own.fault(Stage::Namespaces, "open", path)?;
    fault(move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::Time)), "enter")
}

fn unshare_time() -> Result<(), rustix::io::Errno> {
    let flags = nix::sched::CloneFlags::from_bits_retain(CLONE_NEWTIME);
    nix::sched::unshare(flags).map_err(|errno| rustix::io::Errno::from_raw_os_error(errno as i32))
}

/// linux/sched.h
const CLONE_NEWTIME: i32 = 0x80;

/// The map of a user namespace that was joined: only who is inside can read it.
fn joined_map(plan: &Plan) -> Result<Option<IdMap>, LaunchFailure> {
    if !plan.namespaces.joins(CloneFlags::USER) {
        return Ok(None);
    }
    let read = |path: &str| {
        read_map(Path::new(path)).map_err(|error| LaunchFailure::rule(Stage::Ids, path, &error.to_string()))
    };
    Ok(Some(IdMap { uids: read("/proc/self/uid_map")?, gids: read("/proc/self/gid_map")? }))
}

fn fitting_mounts<'a>(plan: &'a Plan, joined: Option<&IdMap>) -> Cow<'a, [MountStep]> {
    let mut mounts = Cow::Borrowed(plan.mounts.as_slice());
    if let Some(map) = joined {
        fit_ids(mounts.to_mut(), map);
    }
    mounts
}

/// Waits for one message of the parent. A parent that is gone ends the launch.
pub(crate) fn expect(channel: &OwnedFd, stage: Stage, fits: fn(&Message) -> bool) -> Result<(), LaunchFailure> {
    match channel::receive(channel).fault(stage, "hear from", "launcher")? {
        Some(message) if fits(&message) => Ok(()),
        _ => Err(LaunchFailure::rule(stage, "launcher", "went away during the launch")),
    }
}

fn open_terminal(child: &Child<'_>, mounted: &Mounted, channel: &OwnedFd) -> Result<Option<Terminal>, LaunchFailure> {
    if !matches!(child.stdio, Stdio::Console) {
        return Ok(None);
    }
    let devpts = mounted.devpts.as_ref().ok_or_else(|| {
        LaunchFailure::rule(Stage::Devices, "terminal", "needs a devpts of the container's own at /dev/pts")
    })?;
    let ptmx = devices::open_ptmx(devpts)?;
    let terminal = devices::open_terminal(&ptmx, child.plan.process.console_size)?;
    if let Some(dev) = &mounted.dev {
        devices::bind_console(dev, &terminal)?;
    }
    send_master(channel, &terminal)?;
    Ok(Some(terminal))
}

/// Hands the master side of a terminal to the launching process.
pub(crate) fn send_master(channel: &OwnedFd, terminal: &Terminal) -> Result<(), LaunchFailure> {
    let copy = terminal.master.try_clone().map_err(|_| rustix::io::Errno::MFILE);
    let copy = copy.fault(Stage::Devices, "copy", "terminal")?;
    channel::send(channel, &Message::Console(copy)).fault(Stage::Devices, "hand over", "terminal")
}

/// Sets the score through a file proven to be procfs (A10). Lowering it is not ours to grant: a
/// value below the current one is left as it is.
fn set_oom_score(score: Option<i32>) -> Result<(), LaunchFailure> {
    let Some(score) = score else { return Ok(()) };
    let shown = "/proc/self/oom_score_adj";
    let file = rustix::fs::open(shown, OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty()).fault(
        Stage::Prepare,
        "open",
        shown,
    )?;
    if fstatfs(&file).fault(Stage::Prepare, "stat", shown)?.f_type as u64 != PROC_MAGIC {
        return Err(LaunchFailure::rule(Stage::Prepare, shown, "is not in a procfs"));
    }
    match rustix::io::write(&file, score.to_string().as_bytes()) {
        Err(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) => Ok(()),
        result => result.map(drop).fault(Stage::Prepare, "write", shown),
    }
}

/// Docker makes the working directory that an image names and does not have. Where that is
/// impossible, entering it fails later and says so.
fn make_working_directory(cwd: &Path, inside: Inside<'_>) -> Result<(), LaunchFailure> {
    match inside.mount_point(cwd, Shape::Directory) {
        Ok(_) => Ok(()),
        Err(rustix::io::Errno::ROFS | rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) => Ok(()),
        Err(errno) => Err(errno).fault(Stage::WorkingDirectory, "make", cwd.display()),
    }
}
