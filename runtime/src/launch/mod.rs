//! Turns a plan into a running process in its own namespaces.
//!
//! The parent is single-threaded, decides and compiles everything first, and clones once with every
//! namespace. The child applies the plan, reports a failure as fixed-form data and leaves only by
//! `_exit` or `execve`.

pub(crate) mod channel;
mod child;
mod confining;
mod copyup;
pub(crate) mod devices;
pub(crate) mod fault;
mod home;
mod identity;
pub(crate) mod inside;
pub(crate) mod join;
pub(crate) mod listener;
pub(crate) mod mounting;
mod nest;
mod nodes;
mod options;
pub(crate) mod program;
mod reaper;
pub(crate) mod rootfs;
mod running;
pub(crate) mod scheduling;
mod sources;

pub use nest::Nest;
pub use options::{Gate, LaunchOptions, Namespaces, OnMapped, OnNamespaces, Rootfs, Stdio};
pub use running::{Exit, Running, open_gate, signal_process};

pub(crate) use child::send_master;
pub(crate) use identity::{become_root, limit};
pub(crate) use rootfs::{mount_root, take_root};

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};

use crate::failpoint;
use crate::failure::{LaunchFailure, Stage};
use crate::hooks::{self, Moment, Subject};
use crate::idmap::{self, IdMap};
use crate::memory;
use crate::plan::{self, Plan};
use crate::sys::{CloneFlags, CloneOptions, Cloned, clone_process};
use crate::userns::{Ahead, Made};
use channel::Message;
use child::Child;
use fault::Fault;
use join::Joined;
use listener::Listener;
use program::Hold;

/// Starts the container's first process.
///
/// With [`Gate::Immediate`] it returns once `execve` has succeeded; otherwise when everything but
/// the gate, the filter and `execve` is done. On failure nothing is left running.
pub fn launch(options: LaunchOptions<'_>) -> Result<Running, LaunchFailure> {
    let mut options = options;
    crate::sys::default_child_signal();
    let mut plan = plan::plan(options.spec, options.idmap.as_ref())?;
    plan.process.add_filter(options.spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref()))?;
    check_terminal(&plan, &options)?;
    memory::step();
    let hold = match &options.gate {
        Gate::Immediate => Hold::Nothing,
        Gate::Wait => Hold::Parent,
        Gate::Socket(path) => Hold::Socket(gate_socket(path)?),
    };
    let (ours, theirs) = channel::pair().fault(Stage::Prepare, "make", "channel")?;
    let subject = Subject::new(options.id, options.spec, options.bundle);
    let hooks = options.spec.hooks().as_ref();
    let state = || subject.state("creating", 0);
    let listener = plan.process.listener.as_ref().map(|plan| Listener::connect(plan, state())).transpose()?;
    let sources = sources::open(&plan, options.bundle)?;
    let mount_namespace =
        plan.namespaces.mount.as_ref().map(|path| join::open_one(CloneFlags::MOUNT, path)).transpose()?;
    let child = Child {
        plan: &plan,
        mount_namespace: mount_namespace.as_ref(),
        sources: &sources,
        subject: &subject,
        hooks,
        listener: listener.as_ref(),
        rootfs: &options.rootfs,
        bundle: options.bundle,
        stdio: options.stdio,
        hold,
        keep_fds: options.keep_fds,
        die_with_parent: options.die_with_parent,
        init_reaper: options.init_reaper,
        no_pivot: options.no_pivot,
    };
    let joined = join::open_all(&plan.namespaces.join)?;
    let origin = Origin::of(options.nest.as_ref(), options.ahead.take(), &plan)?;
    let cloned = create(&plan, &joined, (options.cgroup, &origin), child, &ours, theirs)?;
    let launched = Launched { cloned, channel: ours };
    let callbacks = (options.on_mapped.take(), options.on_namespaces.take());
    let finished = launched.accompany(&plan, &joined, (&origin, callbacks), |pid| {
        hooks::run(hooks, Moment::Prestart, &subject, pid)?;
        hooks::run(hooks, Moment::CreateRuntime, &subject, pid)
    });
    let result = finished.and_then(|(userns, console)| launched.conclude(&options.gate, userns, console));
    result.inspect_err(|_| {
        launched.abandon();
        if let Gate::Socket(path) = &options.gate {
            // The failure that is being reported matters more than a socket left behind.
            let _ = fs_err::remove_file(path);
        }
    })
}

fn check_terminal(plan: &Plan, options: &LaunchOptions<'_>) -> Result<(), LaunchFailure> {
    match (plan.process.terminal, &options.stdio) {
        (true, Stdio::Console) | (false, Stdio::Inherit | Stdio::Fds(_)) => Ok(()),
        (true, _) => Err(LaunchFailure::rule(Stage::Plan, "process.terminal", "needs somebody to take the terminal")),
        (false, _) => {
            Err(LaunchFailure::rule(Stage::Plan, "process.terminal", "is not set, and a terminal was asked for"))
        }
    }
}

/// Where the container's user namespace comes from.
enum Origin<'a> {
    /// It is made in the caller's, with the child.
    Caller,
    /// It is made in another one.
    Nest(&'a Nest<'a>),
    /// It is there, and its ids are on their way.
    Ahead(Made),
}

impl<'a> Origin<'a> {
    fn of(nest: Option<&'a Nest<'a>>, ahead: Option<Ahead>, plan: &Plan) -> Result<Self, LaunchFailure> {
        let alone = plan.namespaces.creates_user() && plan.namespaces.join.is_empty();
        match (nest, ahead, &plan.idmap) {
            (Some(nest), ..) => Ok(Self::Nest(nest)),
            (None, Some(ahead), Some(map)) if alone => Ok(ahead.take(map)?.map_or(Self::Caller, Self::Ahead)),
            _ => Ok(Self::Caller),
        }
    }

    /// Gives the ids to a process that waits in it.
    fn give_ids(&self, pid: i32, map: &IdMap) -> Result<(), LaunchFailure> {
        match self {
            Self::Caller => {
                memory::step();
                idmap::write(pid, map)?;
                memory::step();
                Ok(())
            }
            // Whoever cloned it did that.
            Self::Nest(_) => Ok(()),
            Self::Ahead(made) => made.wait_for_ids(pid, map),
        }
    }
}

/// Clones the child: directly, or through an intermediate one that joins namespaces first.
fn create(
    plan: &Plan,
    joined: &[Joined],
    (cgroup, origin): (Option<std::os::fd::BorrowedFd<'_>>, &Origin<'_>),
    child: Child<'_>,
    ours: &OwnedFd,
    theirs: OwnedFd,
) -> Result<Cloned, LaunchFailure> {
    // The time namespace is made by the child itself, because its clocks are set first.
    let mut flags = plan.namespaces.create.without(CloneFlags::TIME);
    if matches!(origin, Origin::Ahead(_)) {
        flags = flags.without(CloneFlags::USER);
    }
    let options = CloneOptions { flags, cgroup };
    // Everything is planned and compiled.
    memory::step();
    if joined.is_empty() && matches!(origin, Origin::Caller) {
        let cloned = clone_process(&options, || {
            close_in_child(ours);
            child::run(child, theirs)
        });
        return cloned.fault(Stage::Namespaces, "create", "namespaces");
    }
    let creates_user = plan.namespaces.creates_user();
    let map = match (origin, &plan.idmap) {
        (Origin::Nest(nest), Some(map)) => Some(nest.translate(map)?),
        _ => None,
    };
    let enter = || {
        match origin {
            Origin::Caller => {}
            Origin::Nest(nest) => nest::enter(nest.user)?,
            Origin::Ahead(made) => nest::enter(made.user.as_fd())?,
        }
        join::enter_early(joined, creates_user)
    };
    join::clone_inside(
        (enter, |pid| map.as_ref().map_or(Ok(()), |map| idmap::write(pid, map))),
        &options,
        ours,
        theirs,
        |channel| match join::enter_late(joined, creates_user) {
            Ok(()) => child::run(child, channel),
            Err(failure) => program::report(&channel, failure),
        },
    )
}

/// The parent's end must not stay open in the child: it would never see its parent's end.
pub(crate) fn close_in_child(ours: &OwnedFd) {
    use std::os::fd::AsRawFd;
    let number = ours.as_raw_fd().unsigned_abs();
    // Nothing else has this number yet, so it cannot fail; the owner is never dropped in a child.
    let _ = crate::sys::close_from(number, number);
}

/// A socket that exists until the container has started.
fn gate_socket(path: &Path) -> Result<OwnedFd, LaunchFailure> {
    use std::os::fd::AsRawFd;
    let at = |errno: Errno, op: &str| LaunchFailure::new(Stage::Prepare, op, path.display(), errno);
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(|errno| at(errno, "make socket for"))?;
    // By its directory's descriptor, because a socket address has room for 107 bytes only.
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(at(Errno::INVAL, "bind gate"));
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let dir = rustix::fs::open(parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| at(errno, "open directory of gate"))?;
    let short = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
    let address = SocketAddrUnix::new(&short).map_err(|errno| at(errno, "name gate"))?;
    bind(&socket, &address).map_err(|errno| at(errno, "bind gate"))?;
    /// One starter is enough; others are told that they are late.
    const STARTERS: i32 = 1;
    listen(&socket, STARTERS).map_err(|errno| at(errno, "listen at gate"))?;
    Ok(socket)
}

/// A child on its way.
pub(crate) struct Launched {
    pub(crate) cloned: Cloned,
    pub(crate) channel: OwnedFd,
}

impl Launched {
    /// Maps the ids and lets the caller work on the namespaces while the child mounts.
    fn accompany(
        &self,
        plan: &Plan,
        joined: &[Joined],
        (origin, (on_mapped, on_namespaces)): (&Origin<'_>, (Option<OnMapped<'_>>, Option<OnNamespaces<'_>>)),
        run_hooks: impl FnOnce(i32) -> Result<(), LaunchFailure>,
    ) -> Result<(OwnedFd, Option<OwnedFd>), LaunchFailure> {
        let pid = self.cloned.pid;
        if let Some(map) = &plan.idmap {
            failpoint::pass(Stage::Ids, "cloned")?;
            origin.give_ids(pid, map)?;
            failpoint::pass(Stage::Ids, "uidmap_done")?;
        }
        // Before the child goes on: it hides then, and its /proc entries with it.
        let user = namespace_of(plan, joined, pid, CloneFlags::USER, "user")?;
        let net = match &on_namespaces {
            Some(_) => Some(namespace_of(plan, joined, pid, CloneFlags::NET, "net")?),
            None => None,
        };
        if let Some(work) = on_mapped {
            work(pid)?;
        }
        self.say(&Message::Mapped)?;
        if let (Some(work), Some(net)) = (on_namespaces, &net) {
            let namespaces = Namespaces { pid, pidfd: self.cloned.pidfd.as_fd(), user: user.as_fd(), net: net.as_fd() };
            work(&namespaces)?;
            memory::step();
        }
        let mut console = None;
        if plan.hooks_before_root {
            console = self.until_mounted()?;
            run_hooks(pid)?;
        }
        self.say(&Message::Proceed)?;
        Ok((user, console))
    }

    /// Waits until the child has mounted everything; gives its terminal.
    fn until_mounted(&self) -> Result<Option<OwnedFd>, LaunchFailure> {
        let mut console = None;
        loop {
            match channel::receive(&self.channel).fault(Stage::Prepare, "hear from", "child")? {
                Some(Message::Failure(failure)) => return Err(failure),
                Some(Message::Console(master)) => console = Some(master),
                Some(Message::Mounted) => return Ok(console),
                Some(_) => return Err(Errno::PROTO).fault(Stage::Prepare, "understand", "child"),
                None => return Err(LaunchFailure::rule(Stage::Prepare, "child", "ended without a word")),
            }
        }
    }

    /// Tells the child to go on. A child that is gone has said why, which is read later.
    pub(crate) fn say(&self, message: &Message) -> Result<(), LaunchFailure> {
        match channel::send(&self.channel, message) {
            Err(Errno::PIPE | Errno::CONNRESET) => Ok(()),
            result => result.fault(Stage::Prepare, "tell", "child"),
        }
    }

    /// Follows the child to its gate or its program.
    pub(crate) fn conclude(
        &self,
        gate: &Gate,
        userns: OwnedFd,
        console: Option<OwnedFd>,
    ) -> Result<Running, LaunchFailure> {
        let mut console = console;
        let waiting = loop {
            match channel::receive(&self.channel).fault(Stage::Prepare, "hear from", "child")? {
                Some(Message::Failure(failure)) => return Err(failure),
                Some(Message::Console(master)) => console = Some(master),
                Some(Message::Ready) => break true,
                Some(_) => return Err(Errno::PROTO).fault(Stage::Prepare, "understand", "child"),
                None => break false,
            }
        };
        if !waiting && *gate != Gate::Immediate {
            return Err(LaunchFailure::rule(Stage::Gate, "container", "ended before it was started"));
        }
        let copy = |fd: &OwnedFd| fd.try_clone().map_err(|_| Errno::MFILE).fault(Stage::Prepare, "keep", "child");
        let channel = if waiting && *gate == Gate::Wait { Some(copy(&self.channel)?) } else { None };
        Ok(Running { pid: self.cloned.pid, pidfd: copy(&self.cloned.pidfd)?, userns, console, channel })
    }

    /// Kills and reaps a child whose launch failed.
    pub(crate) fn abandon(&self) {
        use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
        // It may be gone already; waiting is what counts.
        let _ = pidfd_send_signal(&self.cloned.pidfd, Signal::KILL);
        let wait = || waitid(WaitId::PidFd(self.cloned.pidfd.as_fd()), WaitIdOptions::EXITED);
        let _ = rustix::io::retry_on_intr(wait);
    }
}

/// A namespace of the child: its own, the one it joined, or ours.
fn namespace_of(
    plan: &Plan,
    joined: &[Joined],
    pid: i32,
    kind: CloneFlags,
    name: &str,
) -> Result<OwnedFd, LaunchFailure> {
    if plan.namespaces.create.contains(kind) {
        return open_namespace(pid, name);
    }
    match joined.iter().find(|joined| joined.kind == kind) {
        Some(joined) => joined.namespace.try_clone().map_err(|_| Errno::MFILE).fault(Stage::Namespaces, "keep", name),
        None => open_namespace(rustix::process::getpid().as_raw_pid(), name),
    }
}

/// Opens a namespace of a process.
pub(crate) fn open_namespace(pid: i32, name: &str) -> Result<OwnedFd, LaunchFailure> {
    let path = format!("/proc/{pid}/ns/{name}");
    rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).fault(Stage::Namespaces, "open", &path)
}
