//! Gives a process that waits in a new user namespace its ids.
//!
//! Three ways: one own id is written directly after `setgroups` is denied for good (CVE-2018-7169);
//! root writes its map directly; everything else goes through newuidmap and newgidmap, side by side
//! because each costs about a millisecond of process start.

use std::fmt::Write as _;
use std::io::Read;
use std::process::{Child, Command, Stdio};

use rustix::io::Errno;

use super::{IdMap, IdRange};
use crate::failure::{LaunchFailure, Stage};
use crate::{failpoint, programs};

/// A helper says one line; more is not read.
const HELPER_TEXT_MAX: u64 = 1024;

/// Writes both maps of a process. It must be dumpable and wait until this returns.
pub(crate) fn write(pid: i32, map: &IdMap) -> Result<(), LaunchFailure> {
    map.check().map_err(|error| LaunchFailure::rule(Stage::Ids, "id map", &error.to_string()))?;
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    if may_map_any() {
        write_map(pid, "uid_map", &map.uids)?;
        write_map(pid, "gid_map", &map.gids)?;
        return failpoint::pass(Stage::Ids, "gidmap_done");
    }
    if is_own(&map.uids, uid) && is_own(&map.gids, gid) {
        write_file(pid, "setgroups", "deny")?;
        write_map(pid, "uid_map", &map.uids)?;
        write_map(pid, "gid_map", &map.gids)?;
        return failpoint::pass(Stage::Ids, "gidmap_done");
    }
    let groups = spawn_helper("newgidmap", pid, &map.gids)?;
    let users = spawn_helper("newuidmap", pid, &map.uids);
    let groups = finish_helper("newgidmap", groups).and_then(|()| failpoint::pass(Stage::Ids, "gidmap_done"));
    finish_helper("newuidmap", users?)?;
    groups
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

fn finish_helper(name: &str, mut child: Child) -> Result<(), LaunchFailure> {
    let mut said = String::new();
    if let Some(stderr) = child.stderr.take() {
        // What it says only decorates the failure that its exit code proves.
        let _ = stderr.take(HELPER_TEXT_MAX).read_to_string(&mut said);
    }
    let ended = child.wait().map_err(|error| {
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
        LaunchFailure::new(Stage::Ids, "wait for", name, errno)
    })?;
    if ended.success() {
        return Ok(());
    }
    let said = said.lines().next().unwrap_or("failed without a word");
    let said = said.strip_prefix(name).map_or(said, |rest| rest.trim_start_matches([':', ' ']));
    Err(LaunchFailure::rule(Stage::Ids, name, said))
}
