//! The last steps of a process: standard streams, working directory, gate, filter, `execve`.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use nix::unistd::execve;
use oci_spec::runtime::Hook;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags, ResolveFlags, accessat, fchown, openat2};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::net::{SocketFlags, accept_with};
use rustix::process::{
    DumpableBehavior, Signal, Uid, fchdir, getcwd, ioctl_tiocsctty, set_dumpable_behavior,
    set_parent_process_death_signal, setsid,
};

use super::channel::{self, Message};
use super::devices::Terminal;
use super::fault::Fault;
use super::listener::{Announcement, Listener};
use super::{home, identity, reaper};
use crate::failpoint;
use crate::failure::{LaunchFailure, Stage};
use crate::hooks::{self, Moment, Subject};
use crate::plan::ProcessPlan;
use crate::sys::{self, SignalSet};

/// Descriptors below this are the standard streams.
const FIRST_OTHER_FD: RawFd = 3;

/// What the standard streams become.
pub(crate) enum Streams<'a> {
    /// They stay what they are.
    Keep,
    /// These.
    Fds([BorrowedFd<'a>; 3]),
    /// A terminal, which becomes the controlling one.
    Terminal(&'a Terminal),
}

/// What holds a process back before `execve`.
pub(crate) enum Hold {
    Nothing,
    /// The launching process says when.
    Parent,
    /// Whoever connects to this socket says when.
    Socket(OwnedFd),
}

/// How a process goes from its set-up to its program.
pub(crate) struct Departure<'a> {
    pub(crate) process: &'a ProcessPlan,
    /// The startContainer hooks, and whom they are told about.
    pub(crate) hooks: &'a [Hook],
    pub(crate) subject: Option<&'a Subject>,
    /// Who answers for the filter.
    pub(crate) listener: Option<&'a Listener>,
    pub(crate) hold: Hold,
    pub(crate) keep_fds: &'a [RawFd],
    pub(crate) die_with_parent: bool,
    pub(crate) init_reaper: bool,
}

/// Keeps everybody but root of the host's namespace from looking into this process (A03).
pub(crate) fn hide() -> Result<(), LaunchFailure> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).fault(Stage::Identity, "hide", "process")
}

/// Lets processes of the same user reach this one's /proc entries again.
pub(crate) fn show() -> Result<(), LaunchFailure> {
    set_dumpable_behavior(DumpableBehavior::Dumpable).fault(Stage::Identity, "show", "process")
}

/// Asks the kernel to kill this process when its parent dies.
pub(crate) fn follow_parent(wanted: bool) -> Result<(), LaunchFailure> {
    if !wanted {
        return Ok(());
    }
    set_parent_process_death_signal(Some(Signal::KILL)).fault(Stage::Identity, "set", "parent death signal")
}

/// Starts a session of its own and puts the standard streams in place.
///
/// The session is new in every case: a terminal that was only passed on is never the controlling
/// one, so nothing can be typed into it (TIOCSTI, A16).
pub(crate) fn set_streams(streams: &Streams<'_>, owner: u32) -> Result<(), LaunchFailure> {
    let fault = |result: Result<(), Errno>, op: &str| result.fault(Stage::Devices, op, "standard streams");
    match setsid() {
        // Already a leader: pid 1 of a namespace that was joined, for example.
        Ok(_) | Err(Errno::PERM) => {}
        Err(errno) => return fault(Err(errno), "start session for"),
    }
    match streams {
        Streams::Keep => Ok(()),
        Streams::Fds(fds) => fault(duplicate(*fds), "set"),
        Streams::Terminal(terminal) => {
            let peer = terminal.peer.as_fd();
            fault(ioctl_tiocsctty(peer), "make the terminal control")?;
            fault(fchown(peer, Some(Uid::from_raw(owner)), None), "give the terminal of")?;
            fault(duplicate([peer; 3]), "set")
        }
    }
}

fn duplicate(fds: [BorrowedFd<'_>; 3]) -> Result<(), Errno> {
    // First out of the way: one of them may be what another is to become.
    let high = |fd: BorrowedFd<'_>| fcntl_dupfd_cloexec(fd, FIRST_OTHER_FD);
    let [stdin, stdout, stderr] = [high(fds[0])?, high(fds[1])?, high(fds[2])?];
    rustix::stdio::dup2_stdin(&stdin)?;
    rustix::stdio::dup2_stdout(&stdout)?;
    rustix::stdio::dup2_stderr(&stderr)
}

/// Leaves for the program, or says on the channel why that is impossible and ends.
///
/// It never returns: descriptors that callers still own are closed here, and must not be dropped.
pub(crate) fn depart(departure: &Departure<'_>, channel: OwnedFd) -> ! {
    let code = match departure.listener.map(Listener::announcement).transpose() {
        Ok(listener) => leave(departure, channel, listener.as_ref()),
        Err(failure) => report(&channel, failure),
    };
    sys::exit_now(code)
}

fn leave(departure: &Departure<'_>, mut channel: OwnedFd, listener: Option<&Announcement<'_>>) -> i32 {
    match prepare(departure, &mut channel, listener) {
        Ok(env) if departure.init_reaper => {
            reaper::run(channel, |channel| report(channel, go(departure, &env, listener)))
        }
        Ok(env) => report(&channel, go(departure, &env, listener)),
        Err(failure) => report(&channel, failure),
    }
}

/// The exit code of a child that gave up; its parent reads the reason from the channel.
const EXIT_GAVE_UP: i32 = 1;

/// Says why this process gives up. A parent that is gone needs no answer.
pub(crate) fn report(channel: &OwnedFd, failure: LaunchFailure) -> i32 {
    let _ = channel::send(channel, &Message::Failure(failure));
    EXIT_GAVE_UP
}

/// Everything before the filter; gives the program's environment.
fn prepare(
    departure: &Departure<'_>,
    channel: &mut OwnedFd,
    listener: Option<&Announcement<'_>>,
) -> Result<Vec<CString>, LaunchFailure> {
    let process = departure.process;
    let hold = match &departure.hold {
        Hold::Socket(socket) => Some(socket.as_raw_fd()),
        _ => None,
    };
    let agent = listener.map(|listener| listener.socket.as_raw_fd());
    // Closed now and not at execve: no path below may lead through a descriptor of the host (A02).
    close_others(departure.keep_fds, [Some(channel.as_raw_fd()), hold, agent])?;
    identity::assume(process, listener)?;
    failpoint::pass(Stage::Identity, "caps_dropped")?;
    // A change of ids switches both off (prctl(2)).
    hide()?;
    follow_parent(departure.die_with_parent)?;
    if departure.die_with_parent && has_hung_up(channel)? {
        return Err(LaunchFailure::rule(Stage::Identity, "launcher", "went away during the launch"));
    }
    enter_directory(&process.cwd)?;
    sys::reset_signals();
    if !matches!(departure.hold, Hold::Nothing) {
        check_program(process)?;
    }
    wait_at_gate(departure, channel)?;
    failpoint::pass(Stage::Gate, "ready_sent")?;
    let env = home::with_home(&process.env, process.uid);
    if let Some(subject) = departure.subject {
        let pid = rustix::process::getpid().as_raw_pid();
        hooks::run_with(departure.hooks, Moment::StartContainer, subject, pid, Some(&env))?;
    }
    Ok(env)
}

/// Whether the other side is gone: it may have died before the kernel was asked to watch it.
fn has_hung_up(channel: &OwnedFd) -> Result<bool, LaunchFailure> {
    let mut polled = [PollFd::new(channel, PollFlags::empty())];
    poll(&mut polled, Some(&Timespec::default())).fault(Stage::Identity, "watch", "launcher")?;
    Ok(polled[0].revents().contains(PollFlags::HUP))
}

/// Filter and `execve`. Returns only why that failed.
fn go(departure: &Departure<'_>, env: &[CString], listener: Option<&Announcement<'_>>) -> LaunchFailure {
    let process = departure.process;
    let ready = || {
        if process.no_new_privileges {
            identity::load_filters(process, listener)?;
            failpoint::pass(Stage::Seccomp, "seccomp_loaded")?;
        }
        for fd in departure.keep_fds {
            sys::set_inheritable(*fd).fault(Stage::Exec, "keep descriptor", fd)?;
        }
        SignalSet::empty().block_only();
        Ok(())
    };
    match ready() {
        Ok(()) => execute(process, env),
        Err(failure) => failure,
    }
}

fn wait_at_gate(departure: &Departure<'_>, channel: &mut OwnedFd) -> Result<(), LaunchFailure> {
    let at = |result: Result<(), Errno>, op: &str| result.fault(Stage::Gate, op, "starter");
    match &departure.hold {
        Hold::Nothing => return Ok(()),
        Hold::Parent => at(channel::send(&*channel, &Message::Ready), "tell")?,
        Hold::Socket(socket) => {
            at(channel::send(&*channel, &Message::Ready), "tell")?;
            let starter = accept_with(socket, SocketFlags::CLOEXEC).fault(Stage::Gate, "wait for", "starter")?;
            *channel = starter;
        }
    }
    match channel::receive(&*channel).fault(Stage::Gate, "hear from", "starter")? {
        Some(Message::Start) => Ok(()),
        _ => Err(LaunchFailure::rule(Stage::Gate, "starter", "went away without starting the container")),
    }
}

/// Closes every descriptor but the standard streams and these.
fn close_others(keep: &[RawFd], ours: [Option<RawFd>; 3]) -> Result<(), LaunchFailure> {
    let mut kept: Vec<u32> =
        keep.iter().copied().chain(ours.into_iter().flatten()).filter_map(|fd| u32::try_from(fd).ok()).collect();
    kept.sort_unstable();
    let mut next = FIRST_OTHER_FD.unsigned_abs();
    for fd in kept {
        if fd > next {
            sys::close_from(next, fd - 1).fault(Stage::Exec, "close", "descriptors")?;
        }
        next = next.max(fd.saturating_add(1));
    }
    sys::close_from(next, u32::MAX).fault(Stage::Exec, "close", "descriptors")
}

/// Enters the working directory as the process' own user, and proves that it is inside (A02, C04).
fn enter_directory(cwd: &Path) -> Result<(), LaunchFailure> {
    let shown = cwd.display();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let found = openat2(CWD, cwd, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS).fault(
        Stage::WorkingDirectory,
        "enter",
        &shown,
    )?;
    fchdir(&found).fault(Stage::WorkingDirectory, "enter", &shown)?;
    let now = getcwd(Vec::new()).fault(Stage::WorkingDirectory, "stay in", &shown)?;
    if now.as_bytes().first() != Some(&b'/') {
        return Err(LaunchFailure::rule(Stage::WorkingDirectory, shown, "is outside of the container"));
    }
    Ok(())
}

/// Where programs are looked for when the environment has no PATH.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Executes the program. Returns only why that failed.
fn execute(process: &ProcessPlan, env: &[CString]) -> LaunchFailure {
    match search::<Infallible>(process, env, |path| Err(try_execute(path, process, env))) {
        Ok(never) => match never {},
        Err(failure) => failure,
    }
}

/// Says whether there is a program that may be executed: who creates a container wants to know that
/// before it is started, as from runc and crun.
fn check_program(process: &ProcessPlan) -> Result<(), LaunchFailure> {
    search(process, &process.env, |path| accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS))
}

/// Tries the program, looked for in the container's own PATH, until one attempt succeeds.
fn search<T>(
    process: &ProcessPlan,
    env: &[CString],
    attempt: impl Fn(&CStr) -> Result<T, Errno>,
) -> Result<T, LaunchFailure> {
    let name = process.args.first().map_or(c"", CString::as_c_str);
    let shown = name.to_string_lossy();
    if name.to_bytes().contains(&b'/') {
        return attempt(name).fault(Stage::Exec, "execute", shown);
    }
    let mut verdict = Errno::NOENT;
    for candidate in candidates(name, env) {
        match attempt(&candidate) {
            Ok(done) => return Ok(done),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => {}
            // A later directory may have one that can be executed.
            Err(Errno::ACCESS) => verdict = Errno::ACCESS,
            Err(errno) => {
                return Err(LaunchFailure::new(Stage::Exec, "execute", candidate.to_string_lossy(), errno));
            }
        }
    }
    Err(LaunchFailure::new(Stage::Exec, "find in PATH and execute", shown, verdict))
}

/// execve(2) with the process' arguments; it only comes back with an error.
fn try_execute(path: &CStr, process: &ProcessPlan, env: &[CString]) -> Errno {
    match execve(path, &process.args, env) {
        Ok(never) => match never {},
        Err(errno) => Errno::from_raw_os_error(errno as i32),
    }
}

/// The paths that execvp(3) would try, the container's environment given.
fn candidates(name: &CStr, env: &[CString]) -> Vec<CString> {
    // As in every libc the first entry of a name counts.
    let path = env.iter().find_map(|entry| entry.to_bytes().strip_prefix(b"PATH="));
    path.unwrap_or(DEFAULT_PATH)
        .split(|byte| *byte == b':')
        .filter_map(|dir| {
            // An empty entry would mean the working directory; no image means that.
            (!dir.is_empty()).then(|| CString::new([dir, b"/", name.to_bytes()].concat()).ok())?
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_is_the_containers() {
        let env = |text: &str| vec![CString::new("A=1").expect("no NUL"), CString::new(text).expect("no NUL")];
        let paths = |env: &[CString]| -> Vec<String> {
            candidates(c"sh", env).iter().map(|path| path.to_string_lossy().into_owned()).collect()
        };
        assert_eq!(paths(&env("PATH=/a:/b/")), ["/a/sh", "/b//sh"]);
        assert_eq!(paths(&env("PATH=:/a::")), ["/a/sh"]);
        assert_eq!(paths(&env("PATH=")), Vec::<String>::new());
        assert_eq!(paths(&env("PATHS=/a")).len(), 6);
    }
}
