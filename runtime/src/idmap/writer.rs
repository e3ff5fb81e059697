//! Gives a process that waits in a new user namespace its ids.
//!
//! Three ways: one own id is written directly after `setgroups` is denied for good (CVE-2018-7169);
//! root writes its map directly; everything else goes through newuidmap and newgidmap, side by side
//! because each costs about a millisecond of process start.

use std::fmt::Write as _;
use std::io::Read;
use std::os::fd::AsFd;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{IdMap, IdRange};
use crate::failure::{LaunchFailure, Stage};
use crate::{failpoint, programs};

/// A helper says one line; more is not read.
const HELPER_TEXT_MAX: usize = 1024;
/// A helper takes a millisecond; one that asks a directory service over a slow network takes seconds.
const HELPER_TIME_MAX: Duration = Duration::from_secs(5);

/// Writes both maps of a process. It must be dumpable and wait until this returns.
pub(crate) fn write(pid: i32, map: &IdMap) -> Result<(), LaunchFailure> {
    map.check().map_err(|error| LaunchFailure::rule(Stage::Ids, "id map", &error.to_string()))?;
    if may_map_any() {
        write_map(pid, "uid_map", &map.uids)?;
        write_map(pid, "gid_map", &map.gids)?;
        return failpoint::pass(Stage::Ids, "gidmap_done");
    }
    if is_own_only(map) {
        write_file(pid, "setgroups", "deny")?;
        write_map(pid, "uid_map", &map.uids)?;
        write_map(pid, "gid_map", &map.gids)?;
        return failpoint::pass(Stage::Ids, "gidmap_done");
    }
    let deadline = Instant::now() + HELPER_TIME_MAX;
    let groups = spawn_helper("newgidmap", pid, &map.gids)?;
    let users = spawn_helper("newuidmap", pid, &map.uids);
    let groups = finish_helper("newgidmap", groups, deadline).and_then(|()| failpoint::pass(Stage::Ids, "gidmap_done"));
    finish_helper("newuidmap", users?, deadline)?;
    groups?;
    check_mapped(pid)
}

/// Writes the maps that somebody who was killed has left out; helpers of his may still be at work.
pub(crate) fn complete(pid: i32, map: &IdMap) -> Result<(), LaunchFailure> {
    let deadline = Instant::now() + HELPER_TIME_MAX;
    let helpers = [("gid_map", "newgidmap", &map.gids), ("uid_map", "newuidmap", &map.uids)];
    for (file, name, ranges) in helpers {
        if is_mapped(pid, file) {
            continue;
        }
        let asked = spawn_helper(name, pid, ranges).and_then(|child| finish_helper(name, child, deadline));
        // The kernel takes a map once, and theirs is the same.
        asked.or_else(|failure| if is_mapped(pid, file) { Ok(()) } else { Err(failure) })?;
    }
    failpoint::pass(Stage::Ids, "gidmap_done")?;
    check_mapped(pid)
}

/// Whether newuidmap and newgidmap have to be asked for a map.
pub(crate) fn needs_helpers(map: &IdMap) -> bool {
    !may_map_any() && !is_own_only(map)
}

fn is_own_only(map: &IdMap) -> bool {
    is_own(&map.uids, rustix::process::geteuid().as_raw()) && is_own(&map.gids, rustix::process::getegid().as_raw())
}

fn is_own(ranges: &[IdRange], id: u32) -> bool {
    matches!(ranges, [IdRange { host, size: 1, .. }] if *host == id)
}

/// Whether the kernel lets us write any map: CAP_SETUID and CAP_SETGID in our own namespace.
fn may_map_any() -> bool {
    use rustix::thread::{CapabilitySet, capabilities};
    let needed = CapabilitySet::SETUID | CapabilitySet::SETGID;
    capabilities(None).is_ok_and(|sets| sets.effective.contains(needed))
}

fn write_map(pid: i32, file: &str, ranges: &[IdRange]) -> Result<(), LaunchFailure> {
    let mut text = String::new();
    for IdRange { container, host, size } in ranges {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{container} {host} {size}");
    }
    write_file(pid, file, &text)
}

fn write_file(pid: i32, file: &str, text: &str) -> Result<(), LaunchFailure> {
    let path = format!("/proc/{pid}/{file}");
    let failed = |errno: Errno| LaunchFailure::new(Stage::Ids, "write", &path, errno);
    let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
    let file = rustix::fs::open(&path, flags, rustix::fs::Mode::empty()).map_err(failed)?;
    // One write: the kernel takes a map whole or not at all.
    match rustix::io::write(&file, text.as_bytes()) {
        Ok(written) if written == text.len() => Ok(()),
        Ok(_) => Err(failed(Errno::IO)),
        Err(errno) => Err(failed(errno)),
    }
}

fn spawn_helper(name: &str, pid: i32, ranges: &[IdRange]) -> Result<Child, LaunchFailure> {
    let path = programs::find(name).ok_or_else(|| LaunchFailure::new(Stage::Ids, "execute", name, Errno::NOENT))?;
    let mut command = Command::new(&path);
    command.arg(pid.to_string());
    for range in ranges {
        command.args([range.container, range.host, range.size].map(|number| number.to_string()));
    }
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().map_err(|error| {
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
        LaunchFailure::new(Stage::Ids, "execute", path.display(), errno)
    })
}

/// Waits for a helper's end, and kills one that hangs: a name service behind it may (F18).
fn finish_helper(name: &str, mut child: Child, deadline: Instant) -> Result<(), LaunchFailure> {
    let failed = |errno: Errno| LaunchFailure::new(Stage::Ids, "wait for", name, errno);
    let said = child.stderr.take().map(|stderr| hear(stderr, deadline)).unwrap_or_default();
    let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).map_err(failed)?;
    if !wait_until(&pidfd, deadline) {
        // It may have ended just now; either way it is reaped.
        let _ = child.kill();
        let _ = child.wait();
        let seconds = HELPER_TIME_MAX.as_secs();
        return Err(LaunchFailure::rule(Stage::Ids, name, &format!("has not ended within {seconds} seconds")));
    }
    let ended = child.wait().map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
    if ended.success() {
        return Ok(());
    }
    let said = said.lines().next().unwrap_or("failed without a word");
    let said = said.strip_prefix(name).map_or(said, |rest| rest.trim_start_matches([':', ' ']));
    Err(LaunchFailure::rule(Stage::Ids, name, said))
}

/// Reads what a helper says until it has ended or the time is over; it only decorates the failure that
/// the exit code proves.
fn hear(mut stderr: ChildStderr, deadline: Instant) -> String {
    let mut said = Vec::new();
    let mut part = [0; 256];
    while said.len() < HELPER_TEXT_MAX && wait_until(&stderr, deadline) {
        match stderr.read(&mut part) {
            Ok(0) | Err(_) => break,
            Ok(length) => said.extend_from_slice(&part[..length]),
        }
    }
    String::from_utf8_lossy(&said).into_owned()
}

/// Says whether something could be read, or a process ended, before the deadline.
fn wait_until(what: &impl AsFd, deadline: Instant) -> bool {
    loop {
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).unwrap_or_default();
        match poll(&mut [PollFd::new(what, PollFlags::IN)], Some(&left)) {
            Err(Errno::INTR) => {}
            result => return result.is_ok_and(|ready| ready > 0),
        }
    }
}

/// A helper that says that all went well and mapped nothing must not start a container (F18).
fn check_mapped(pid: i32) -> Result<(), LaunchFailure> {
    for (file, name) in [("uid_map", "newuidmap"), ("gid_map", "newgidmap")] {
        if !is_mapped(pid, file) {
            return Err(LaunchFailure::rule(Stage::Ids, name, "has mapped nothing"));
        }
    }
    Ok(())
}

fn is_mapped(pid: i32, file: &str) -> bool {
    fs_err::read_to_string(format!("/proc/{pid}/{file}")).is_ok_and(|map| !map.trim().is_empty())
}
