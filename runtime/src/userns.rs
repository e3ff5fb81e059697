//! Work inside a user namespace without a container: unpacking layers and removing what they own.

mod ahead;

pub(crate) use ahead::Made;
pub use ahead::{Ahead, Maker};

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{DumpableBehavior, WaitId, WaitIdOptions, set_dumpable_behavior, waitid};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space, set_thread_groups};

use crate::failure::{LaunchFailure, Stage};
use crate::idmap::{self, IdMap};
use crate::launch::Exit;
use crate::launch::channel::{self, Message};
use crate::launch::close_in_child;
use crate::launch::fault::Fault;
use crate::launch::open_namespace;
use crate::launch::program::follow_parent;
use crate::sys::{self, CloneFlags, CloneOptions, Cloned, SignalSet, clone_process, default_child_signal, send_signal};

/// The signals that people and supervisors end a command with.
const FORWARDED: [i32; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];
/// Exit code of a child whose set-up failed without a word.
const EXIT_BROKEN: i32 = 255;

/// Runs `work` in a child that has every capability in a new user namespace with this map.
///
/// Returns its exit code, 128 + n when a signal ended it. SIGTERM, SIGINT, SIGHUP and SIGQUIT sent to
/// the caller meanwhile reach the child. The child dies with the caller. The caller must be
/// single-threaded; `work` may start threads.
pub fn run_in(map: &IdMap, work: impl FnOnce() -> i32) -> Result<i32, LaunchFailure> {
    run_while(map, work, accompany)
}

/// Like [`run_in`], and runs `beside` on a thread of the caller while the child works.
///
/// The child has a copy of everything that `beside` holds; it has to close what must be closed.
pub fn run_beside<T: Send>(
    map: &IdMap,
    work: impl FnOnce() -> i32,
    beside: impl FnOnce() -> T + Send,
) -> Result<(i32, T), LaunchFailure> {
    run_while(map, work, |cloned, watched| {
        std::thread::scope(|scope| {
            let beside = scope.spawn(beside);
            let code = accompany(cloned, watched)?;
            match beside.join() {
                Ok(given) => Ok((code, given)),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    })
}

/// Starts `work` in a child and does `meanwhile` once the child is ready, which waits for its end.
fn run_while<T>(
    map: &IdMap,
    work: impl FnOnce() -> i32,
    meanwhile: impl FnOnce(&Cloned, SignalSet) -> Result<T, LaunchFailure>,
) -> Result<T, LaunchFailure> {
    default_child_signal();
    // What is still buffered would otherwise be printed by both.
    let _ = std::io::stdout().flush();
    let (ours, theirs) = channel::pair().fault(Stage::Prepare, "make", "channel")?;
    let mut watched = FORWARDED.to_vec();
    watched.push(libc::SIGCHLD);
    let watched = SignalSet::of(&watched);
    // Blocked before the child exists, so that no signal falls between the two.
    let before = watched.block();
    let options = CloneOptions { flags: CloneFlags::USER, cgroup: None };
    let cloned = clone_process(&options, || {
        close_in_child(&ours);
        if let Err(failure) = begin(&theirs) {
            let _ = channel::send(&theirs, &Message::Failure(failure));
            return EXIT_BROKEN;
        }
        drop(theirs);
        before.block_only();
        let code = work();
        let _ = std::io::stdout().flush();
        code
    });
    let result = cloned.fault(Stage::Namespaces, "create", "user namespace").and_then(|cloned| {
        let finished = introduce(map, &cloned, &ours).and_then(|()| meanwhile(&cloned, watched));
        if finished.is_err() {
            // It may be gone already; waiting is what counts.
            let _ = send_signal(cloned.pid, libc::SIGKILL);
            let _ = ended(&cloned, WaitIdOptions::EXITED);
        }
        finished
    });
    before.block_only();
    result
}

fn begin(channel: &std::os::fd::OwnedFd) -> Result<(), LaunchFailure> {
    follow_parent(true)?;
    match channel::receive(channel).fault(Stage::Ids, "hear from", "launcher")? {
        Some(Message::Mapped) => {}
        _ => return Err(LaunchFailure::rule(Stage::Ids, "launcher", "went away")),
    }
    settle()?;
    follow_parent(true)?;
    channel::send(channel, &Message::Ready).fault(Stage::Ids, "tell", "launcher")
}

/// Maps the child's ids and hears that it is ready.
fn introduce(map: &IdMap, cloned: &Cloned, ours: &std::os::fd::OwnedFd) -> Result<(), LaunchFailure> {
    idmap::write(cloned.pid, map)?;
    match channel::send(ours, &Message::Mapped) {
        Ok(()) | Err(Errno::PIPE) => {}
        Err(errno) => return Err(errno).fault(Stage::Ids, "tell", "child"),
    }
    match channel::receive(ours).fault(Stage::Ids, "hear from", "child")? {
        Some(Message::Ready) => Ok(()),
        Some(Message::Failure(failure)) => Err(failure),
        _ => Err(LaunchFailure::rule(Stage::Ids, "child", "ended without a word")),
    }
}

/// Waits for the child's end and passes signals on.
fn accompany(cloned: &Cloned, watched: SignalSet) -> Result<i32, LaunchFailure> {
    loop {
        if let Some(exit) = ended(cloned, WaitIdOptions::EXITED | WaitIdOptions::NOHANG)? {
            return Ok(exit.status());
        }
        match watched.wait_with_origin() {
            (libc::SIGCHLD, _) => {}
            // The terminal has told the whole foreground group already.
            (_, sys::Origin::Kernel) => {}
            (number, sys::Origin::Process) => drop(send_signal(cloned.pid, number)),
        }
    }
}

fn ended(cloned: &Cloned, options: WaitIdOptions) -> Result<Option<Exit>, LaunchFailure> {
    let wait = || waitid(WaitId::PidFd(cloned.pidfd.as_fd()), options);
    let status = rustix::io::retry_on_intr(wait).fault(Stage::Ids, "wait for", "child")?;
    Ok(status.map(|status| Exit { code: status.exit_status().unwrap_or(0), signal: status.terminating_signal() }))
}

/// Makes a user namespace with this map, in which nobody lives yet.
///
/// It exists as long as the descriptor, a process or a namespace in it does. The caller is
/// single-threaded.
pub fn create(map: &IdMap) -> Result<OwnedFd, LaunchFailure> {
    make(|pid| idmap::write(pid, map).and_then(|()| open_namespace(pid, "user")))
}

/// Makes a user namespace and runs `work` while a process waits in it.
fn make<T>(work: impl FnOnce(i32) -> Result<T, LaunchFailure>) -> Result<T, LaunchFailure> {
    default_child_signal();
    let (ours, theirs) = channel::pair().fault(Stage::Prepare, "make", "channel")?;
    let cloned = clone_process(&CloneOptions { flags: CloneFlags::USER, cgroup: None }, || {
        close_in_child(&ours);
        // It lives until its parent has what it wants, or is gone.
        let _ = channel::receive(&theirs);
        0
    })
    .fault(Stage::Namespaces, "create", "user namespace")?;
    drop(theirs);
    let done = work(cloned.pid);
    drop(ours);
    // It ends by itself; all that matters is that no zombie stays.
    let _ = ended(&cloned, WaitIdOptions::EXITED);
    done
}

/// Gives the calling process every capability in a user namespace that it owns. There is no way back.
pub fn enter(userns: BorrowedFd<'_>) -> Result<(), LaunchFailure> {
    move_into_link_name_space(userns, Some(LinkNameSpaceType::User)).fault(
        Stage::Namespaces,
        "join",
        "user namespace",
    )?;
    settle()
}

/// Drops the caller's other groups and keeps its ids: what it makes belongs to the caller, whatever
/// number that has inside, while its capabilities reach every mapped id.
fn settle() -> Result<(), LaunchFailure> {
    match set_thread_groups(&[]) {
        // Denied for good where one id is mapped.
        Ok(()) | Err(Errno::PERM) => {}
        Err(errno) => return Err(errno).fault(Stage::Identity, "set groups", "[]"),
    }
    // A change of credentials closes /proc/self to ourselves, which std and the archivers use.
    set_dumpable_behavior(DumpableBehavior::Dumpable).fault(Stage::Identity, "open", "/proc/self")
}
