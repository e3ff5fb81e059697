//! Starts a network helper and ends it when its container's watcher is gone, however it went.
//!
//! pasta has no notion of "my container ended" for a namespace without a name. The keeper is a second
//! process of this binary: it starts the helper and then reads a pipe from the watcher. When the watcher
//! ends, even by SIGKILL and even while the helper still starts, the pipe closes and the keeper ends the
//! helper. When the helper ends, so does the keeper, which is how the watcher hears of it. A helper in the
//! background that hangs is ended too, and started again where nobody else would.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Result, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, setsid, waitid};

use crate::stuck::{Counts, EVERY};

/// The hidden first argument under which the binary becomes a keeper.
pub const KEEPER_ARGUMENT: &str = "__keep-helper";
/// What the keeper says when the helper works.
const READY: &str = "ready";
/// Stands in the place of a pid file.
const STAYS: &str = "-";
/// What becomes of a helper that hangs.
const AGAIN: &str = "again";
const ONCE: &str = "once";
/// Old versions of pasta hang where they may not open a device; a start takes milliseconds.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// What is kept of a helper's complaint.
const COMPLAINT_BYTES_MAX: u64 = 16 * 1024;

/// Is a program that connects a network namespace.
#[derive(Debug, Clone, Copy)]
pub struct Helper<'a> {
    /// The program's path.
    pub program: &'a Path,
    /// What follows the program's name.
    pub arguments: &'a [String],
    /// Where it works.
    pub directory: &'a Path,
    /// Its standard input, for one that cannot open by itself what it needs.
    pub input: Option<BorrowedFd<'a>>,
    /// How it starts.
    pub manner: Manner<'a>,
    /// It is started again when it hangs; else whoever watches the keeper does that.
    pub again: bool,
}

/// Is how a helper says that it works.
#[derive(Debug, Clone, Copy)]
pub enum Manner<'a> {
    /// It puts itself into the background, and its process id into this file.
    Background(&'a Path),
    /// It stays, and writes something to its standard output.
    Foreground,
}

/// Is the watcher's side of a keeper.
#[derive(Debug)]
pub struct Keeper {
    process: Child,
    pidfd: OwnedFd,
}

impl Keeper {
    /// Starts a helper under a keeper and returns when it works; else gives the helper's complaint.
    pub fn start(helper: &Helper<'_>) -> Result<std::result::Result<Self, String>> {
        let pid_file = match helper.manner {
            Manner::Background(path) => path,
            Manner::Foreground => Path::new(STAYS),
        };
        let input = helper.input.map(|fd| fd.try_clone_to_owned().map(Stdio::from)).transpose()?;
        let mut process = Command::new("/proc/self/exe")
            .arg(KEEPER_ARGUMENT)
            .arg(if helper.again { AGAIN } else { ONCE })
            .arg(pid_file)
            .arg(helper.program)
            .args(helper.arguments)
            .current_dir(helper.directory)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // The keeper says nothing there; it hands it on.
            .stderr(input.unwrap_or_else(Stdio::null))
            .spawn()?;
        let pidfd = pidfd_of(&process)?;
        let mut answer = Vec::new();
        if let Some(stdout) = process.stdout.take() {
            stdout.take(COMPLAINT_BYTES_MAX).read_to_end(&mut answer)?;
        }
        let keeper = Self { process, pidfd };
        if answer == READY.as_bytes() {
            return Ok(Ok(keeper));
        }
        keeper.finish();
        Ok(Err(String::from_utf8_lossy(&answer).into_owned()))
    }

    /// Gives what becomes readable when the helper has ended.
    pub fn end(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Ends the helper now and waits until that is done.
    pub fn finish(mut self) {
        drop(self.process.stdin.take());
        // Nothing can be done about a keeper that failed; it has ended in any case.
        let _ = self.process.wait();
    }
}

/// Is the keeper's whole life; `arguments` are what becomes of one that hangs, the pid file, the program and its
/// arguments.
pub fn keep(arguments: &[OsString]) -> Result<()> {
    // A signal of the terminal is for the container; the helper ends when that has.
    let _ = setsid();
    let [again, pid_file, program, arguments @ ..] = arguments else {
        return Err(Errno::INVAL.into());
    };
    let start = || match pid_file == STAYS {
        true => start_foreground(program, arguments),
        false => start_background(program, arguments, Path::new(pid_file)),
    };
    let started = start()?;
    let complaint = started.as_ref().err().map(Vec::as_slice);
    std::io::stdout().write_all(complaint.unwrap_or(READY.as_bytes()))?;
    std::io::stdout().flush()?;
    // The watcher reads until the end.
    rustix::stdio::dup2_stdout(std::fs::File::from(rustix::fs::open(
        "/dev/null",
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?))?;
    let Ok(mut helper) = started else { return Ok(()) };
    loop {
        let end = wait(&mut helper)?;
        finish(&helper.pidfd)?;
        if end != End::Hangs || again != AGAIN {
            return Ok(());
        }
        match start()? {
            Ok(next) => helper = next,
            Err(_) => return Ok(()),
        }
    }
}

/// Ends a helper and waits until it is gone.
fn finish(helper: &OwnedFd) -> Result<()> {
    // Not SIGTERM: pasta is the first process of a pid namespace of its own and never sees it.
    match pidfd_send_signal(helper, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(error) => return Err(error.into()),
    }
    // Whoever waits for this process may use the helper's ports again.
    let _ = poll(&mut [PollFd::new(helper, PollFlags::IN)], None);
    // One that stayed is this process's child; one in the background is not.
    let _ = waitid(WaitId::PidFd(helper.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
    Ok(())
}

/// Is why a helper is not kept any longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The watcher or the helper has ended.
    Over,
    Hangs,
}

/// Waits until a helper is not needed or of no use; what it says meanwhile is nobody's business.
fn wait(helper: &mut Started) -> Result<End> {
    let stdin = std::io::stdin();
    let pause = Timespec::try_from(EVERY).map_err(|_| Errno::INVAL)?;
    let mut before = helper.pid.and_then(Counts::of);
    loop {
        let mut polled = vec![PollFd::new(&stdin, PollFlags::IN), PollFd::new(&helper.pidfd, PollFlags::IN)];
        polled.extend(helper.said.as_ref().map(|said| PollFd::new(said, PollFlags::IN)));
        let timeout = before.is_some().then_some(&pause);
        if rustix::io::retry_on_intr(|| poll(&mut polled, timeout))? == 0 {
            let now = helper.pid.and_then(Counts::of);
            if let (Some(before), Some(now)) = (&before, &now)
                && now.hangs_since(before)
            {
                return Ok(End::Hangs);
            }
            before = now;
            continue;
        }
        let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready[0] || ready[1] {
            return Ok(End::Over);
        }
        let mut words = [0; 4096];
        if let Some(open) = &mut helper.said
            && matches!(open.read(&mut words), Ok(0) | Err(_))
        {
            helper.said = None;
        }
    }
}

/// Is a helper that works.
struct Started {
    pidfd: OwnedFd,
    /// Of one in the background: it is looked at.
    pid: Option<i32>,
    said: Option<ChildStderr>,
}

/// Is a helper, or its complaint.
type Starting = std::result::Result<Started, Vec<u8>>;

/// Runs the helper until it is in the background; gives its complaint when it fails.
fn start_background(program: &OsStr, arguments: &[OsString], pid_file: &Path) -> Result<Starting> {
    let mut command = Command::new(program);
    let input = std::io::stderr().as_fd().try_clone_to_owned()?;
    let mut child =
        command.args(arguments).stdin(Stdio::from(input)).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let pidfd = pidfd_of(&child)?;
    if poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout()?))? == 0 {
        child.kill()?;
        child.wait()?;
        return Ok(Err(silent()));
    }
    if child.wait()?.success() {
        return Ok(Ok(helper(pid_file)?));
    }
    Ok(Err(complaint(child)?))
}

/// Runs the helper until it says something.
fn start_foreground(program: &OsStr, arguments: &[OsString]) -> Result<Starting> {
    let mut command = Command::new(program);
    let mut child =
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let pidfd = pidfd_of(&child)?;
    let mut stdout = child.stdout.take().ok_or(Errno::PIPE)?;
    if poll(&mut [PollFd::new(&stdout, PollFlags::IN)], Some(&timeout()?))? == 0 {
        child.kill()?;
        child.wait()?;
        return Ok(Err(silent()));
    }
    if stdout.read(&mut [0])? == 1 {
        return Ok(Ok(Started { pidfd, pid: None, said: child.stderr.take() }));
    }
    child.wait()?;
    Ok(Err(complaint(child)?))
}

fn timeout() -> Result<Timespec> {
    Ok(Timespec::try_from(START_TIMEOUT).map_err(|_| Errno::INVAL)?)
}

fn silent() -> Vec<u8> {
    format!("no answer within {} s", START_TIMEOUT.as_secs()).into_bytes()
}

fn complaint(mut child: Child) -> Result<Vec<u8>> {
    let mut complaint = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        stderr.take(COMPLAINT_BYTES_MAX).read_to_end(&mut complaint)?;
    }
    // A failure without a word is no success.
    Ok(if complaint.is_empty() { b"no message".to_vec() } else { complaint })
}

fn pidfd_of(child: &Child) -> Result<OwnedFd> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Opens the helper by the number it wrote down a moment ago.
fn helper(pid_file: &Path) -> Result<Started> {
    let number = fs_err::read_to_string(pid_file)?.trim().parse().ok();
    let pid = number.and_then(Pid::from_raw).ok_or(Errno::INVAL)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    Ok(Started { pidfd, pid: Some(pid.as_raw_nonzero().get()), said: None })
}
