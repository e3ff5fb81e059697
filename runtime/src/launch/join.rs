//! Joins namespaces that exist already, by way of an intermediate child.
//!
//! The launching process never changes its own namespaces. The intermediate child joins, clones the
//! real one as its sibling (CLONE_PARENT), hands its pidfd back and ends.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, fstatfs};
use rustix::io::Errno;
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::channel::{self, Message};
use super::close_in_child;
use super::fault::Fault;
use super::program::{hide, report};
use crate::failure::{LaunchFailure, Stage};
use crate::sys::{CloneFlags, CloneOptions, Cloned, clone_process};

const STAGE: Stage = Stage::Namespaces;

/// `NSFS_MAGIC` of linux/magic.h.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// One namespace to join.
#[derive(Debug)]
pub(crate) struct Joined {
    pub(crate) namespace: OwnedFd,
    pub(crate) kind: CloneFlags,
    path: PathBuf,
}

/// Opens namespaces by path, without waiting on a fifo and without trusting that they are any.
pub(crate) fn open_all(list: &[(CloneFlags, PathBuf)]) -> Result<Vec<Joined>, LaunchFailure> {
    list.iter().map(|(kind, path)| open_one(*kind, path)).collect()
}

pub(crate) fn open_one(kind: CloneFlags, path: &Path) -> Result<Joined, LaunchFailure> {
    let shown = path.display();
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let namespace = rustix::fs::open(path, flags, Mode::empty()).fault(STAGE, "open namespace", &shown)?;
    if fstatfs(&namespace).fault(STAGE, "stat", &shown)?.f_type as u64 != NSFS_MAGIC {
        return Err(LaunchFailure::rule(STAGE, shown, "is not a namespace"));
    }
    Ok(Joined { namespace, kind, path: path.to_owned() })
}

/// Whether a namespace is entered by the child itself: from inside a cgroup namespace that does not contain
/// us, nobody can be cloned into its cgroups (ENOENT where cgroup2 has nsdelegate). Below a user namespace of
/// its own the child could not enter it any more.
fn is_late(joined: &Joined, creates_user: bool) -> bool {
    joined.kind == CloneFlags::CGROUP && !creates_user
}

/// Enters what is left for the child.
pub(crate) fn enter_late(list: &[Joined], creates_user: bool) -> Result<(), LaunchFailure> {
    list.iter().filter(|joined| is_late(joined, creates_user)).try_for_each(enter)
}

/// Enters what is not left for the child; the kernel checks that each is of its kind.
pub(crate) fn enter_early(list: &[Joined], creates_user: bool) -> Result<(), LaunchFailure> {
    // Whoever lives in a joined pid namespace sees the child from its birth (A03). One with a new
    // user namespace cannot hide before its ids are mapped, and is of no use to them until then.
    if !creates_user && list.iter().any(|joined| joined.kind == CloneFlags::PID) {
        hide()?;
    }
    list.iter().filter(|joined| !is_late(joined, creates_user)).try_for_each(enter)
}

pub(crate) fn enter(joined: &Joined) -> Result<(), LaunchFailure> {
    move_into_link_name_space(joined.namespace.as_fd(), link_type(joined.kind)).fault(
        STAGE,
        "join namespace",
        joined.path.display(),
    )
}

fn link_type(kind: CloneFlags) -> Option<LinkNameSpaceType> {
    let kinds = [
        (CloneFlags::USER, LinkNameSpaceType::User),
        (CloneFlags::MOUNT, LinkNameSpaceType::Mount),
        (CloneFlags::PID, LinkNameSpaceType::ProcessID),
        (CloneFlags::IPC, LinkNameSpaceType::InterProcessCommunication),
        (CloneFlags::UTS, LinkNameSpaceType::HostNameAndNISDomainName),
        (CloneFlags::NET, LinkNameSpaceType::Network),
        (CloneFlags::CGROUP, LinkNameSpaceType::ControlGroup),
        (CloneFlags::TIME, LinkNameSpaceType::Time),
    ];
    kinds.into_iter().find(|(flag, _)| *flag == kind).map(|(_, link)| link)
}

/// Clones `child` from a process that has run `enter`, and runs `settle` there with the child's number.
pub(crate) fn clone_inside(
    (enter, settle): (impl FnOnce() -> Result<(), LaunchFailure>, impl FnOnce(i32) -> Result<(), LaunchFailure>),
    options: &CloneOptions<'_>,
    ours: &OwnedFd,
    theirs: OwnedFd,
    child: impl FnOnce(OwnedFd) -> i32,
) -> Result<Cloned, LaunchFailure> {
    // A channel of its own: the real child may speak on the other one before this one has ended.
    let (answer, tell) = channel::pair().fault(Stage::Prepare, "make", "channel")?;
    let intermediate = clone_process(&CloneOptions::default(), || {
        close_in_child(ours);
        close_in_child(&answer);
        if let Err(failure) = enter() {
            return report(&tell, failure);
        }
        let flags = options.flags.with(CloneFlags::PARENT);
        let cloned = clone_process(&CloneOptions { flags, cgroup: options.cgroup }, || child(theirs));
        match cloned.fault(STAGE, "create", "namespaces") {
            Ok(cloned) => match settle(cloned.pid) {
                Ok(()) => i32::from(channel::send(&tell, &Message::Process(cloned.pidfd)).is_err()),
                Err(failure) => {
                    // It waits for its parent, and nobody else knows of it yet.
                    let _ = pidfd_send_signal(&cloned.pidfd, Signal::KILL);
                    report(&tell, failure)
                }
            },
            Err(failure) => report(&tell, failure),
        }
    })
    .fault(STAGE, "create", "process")?;
    let pidfd = first_answer(&answer);
    let wait = || waitid(WaitId::PidFd(intermediate.pidfd.as_fd()), WaitIdOptions::EXITED);
    // It ends by itself; all that matters is that no zombie stays.
    let _ = rustix::io::retry_on_intr(wait);
    let pidfd = pidfd?;
    let pid = number_of(&pidfd).fault(STAGE, "find", "process").inspect_err(|_| {
        // Nobody else can end it.
        let _ = pidfd_send_signal(&pidfd, Signal::KILL);
    })?;
    Ok(Cloned { pid, pidfd })
}

fn first_answer(answer: &OwnedFd) -> Result<OwnedFd, LaunchFailure> {
    match channel::receive(answer).fault(STAGE, "hear from", "child")? {
        Some(Message::Process(pidfd)) => Ok(pidfd),
        Some(Message::Failure(failure)) => Err(failure),
        _ => Err(LaunchFailure::rule(STAGE, "child", "ended without a word")),
    }
}

/// The number of a process in our own namespace.
fn number_of(pidfd: &OwnedFd) -> Result<i32, Errno> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let text = fs_err::read_to_string(path).map_err(|_| Errno::SRCH)?;
    let number = text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    number.filter(|pid: &i32| *pid > 0).ok_or(Errno::SRCH)
}
