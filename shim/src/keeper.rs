//! Starts a network helper and ends it when its container's watcher is gone, however it went.
//!
//! pasta has no notion of "my container ended" for a namespace without a name. The keeper is a second
//! process of this binary: it starts the helper, which goes into the background by itself, and then
//! reads a pipe from the watcher. When the watcher ends, even by SIGKILL and even while the helper
//! still starts, the pipe closes and the keeper ends the helper.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Result, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The hidden first argument under which the binary becomes a keeper.
pub const KEEPER_ARGUMENT: &str = "__keep-helper";
/// What the keeper says when the helper works.
const READY: &str = "ready";
/// Old versions of pasta hang where they may not open a device; a start takes milliseconds.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// What is kept of a helper's complaint.
const COMPLAINT_BYTES_MAX: u64 = 16 * 1024;

/// Is the watcher's side of a keeper.
#[derive(Debug)]
pub struct Keeper {
    process: Child,
}

impl Keeper {
    /// Starts a helper under a keeper and returns when it works; else gives the helper's complaint.
    ///
    /// The helper puts itself into the background and its process id into `pid_file`.
    pub fn start(pid_file: &Path, program: &Path, arguments: &[String]) -> Result<std::result::Result<Self, String>> {
        let mut process = Command::new("/proc/self/exe")
            .arg(KEEPER_ARGUMENT)
            .arg(pid_file)
            .arg(program)
            .args(arguments)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut answer = Vec::new();
        if let Some(stdout) = process.stdout.take() {
            stdout.take(COMPLAINT_BYTES_MAX).read_to_end(&mut answer)?;
        }
        let keeper = Self { process };
        if answer == READY.as_bytes() {
            return Ok(Ok(keeper));
        }
        keeper.finish();
        Ok(Err(String::from_utf8_lossy(&answer).into_owned()))
    }

    /// Ends the helper now and waits until that is done.
    pub fn finish(mut self) {
        drop(self.process.stdin.take());
        // Nothing can be done about a keeper that failed; it has ended in any case.
        let _ = self.process.wait();
    }
}

/// Is the keeper's whole life; `arguments` are the pid file, the program and its arguments.
pub fn keep(arguments: &[OsString]) -> Result<()> {
    let [pid_file, program, arguments @ ..] = arguments else {
        return Err(Errno::INVAL.into());
    };
    let complaint = start(program, arguments)?;
    let helper = match &complaint {
        None => Some(helper(Path::new(pid_file))?),
        Some(_) => None,
    };
    std::io::stdout().write_all(complaint.as_deref().unwrap_or(READY.as_bytes()))?;
    std::io::stdout().flush()?;
    // The watcher reads until the end.
    rustix::stdio::dup2_stdout(std::fs::File::from(rustix::fs::open(
        "/dev/null",
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?))?;
    let Some(helper) = helper else { return Ok(()) };
    let mut end = Vec::new();
    let _ = std::io::stdin().lock().read_to_end(&mut end);
    // Not SIGTERM: pasta is the first process of a pid namespace of its own and never sees it.
    match pidfd_send_signal(&helper, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Runs the helper until it is in the background; gives its complaint when it fails.
fn start(program: &OsStr, arguments: &[OsString]) -> Result<Option<Vec<u8>>> {
    let mut command = Command::new(program);
    let mut child =
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let timeout = Timespec::try_from(START_TIMEOUT).map_err(|_| Errno::INVAL)?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    if poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout))? == 0 {
        child.kill()?;
        child.wait()?;
        return Ok(Some(format!("no answer within {} s", START_TIMEOUT.as_secs()).into_bytes()));
    }
    if child.wait()?.success() {
        return Ok(None);
    }
    let mut complaint = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        stderr.take(COMPLAINT_BYTES_MAX).read_to_end(&mut complaint)?;
    }
    Ok(Some(complaint))
}

/// Opens the helper by the number it wrote down a moment ago.
fn helper(pid_file: &Path) -> Result<std::os::fd::OwnedFd> {
    let number = fs_err::read_to_string(pid_file)?.trim().parse().ok();
    let pid = number.and_then(Pid::from_raw).ok_or(Errno::INVAL)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}
