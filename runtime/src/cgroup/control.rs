//! Changing, ending and asking a cgroup that runs.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use oci_spec::runtime::LinuxResources;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::apply::{apply, refuse};
use super::delegation::{enable, is};
use super::directory::Directory;
use super::place::drop_undelegated;
use super::settings::{Settings, is_below_usage, settings};
use super::{Cgroup, CgroupError, LimitState};

/// How long a freeze may take: processes in uninterruptible sleep freeze when they wake up.
const FREEZE_MS_MAX: u64 = 10_000;
/// How long killed processes may take to leave their cgroup.
const REMOVE_MS_MAX: u64 = 5_000;
/// Between two tries to remove it.
const REMOVE_PAUSE: Duration = Duration::from_millis(2);
/// Rounds of killing one by one, where the kernel is older than cgroup.kill.
const KILL_ROUNDS_MAX: u32 = 64;

impl Cgroup {
    /// Changes limits of the running container; those that are not named stay. Gives what became of each.
    ///
    /// With `best_effort` a limit that cannot be enforced is only reported, but one below what is in use is
    /// an error all the same: the kernel would kill for it.
    pub fn update(&mut self, resources: &LinuxResources, best_effort: bool) -> Result<Vec<LimitState>, CgroupError> {
        let mut wanted = settings(resources);
        let mut states = refuse(&wanted, best_effort)?;
        let directory = self.directory();
        if let Some(memory) = resources.memory() {
            let used_bytes = directory.read("memory.current").ok().and_then(|text| text.trim().parse().ok());
            if let (Some(used_bytes), Some(limit)) = (used_bytes, memory.limit())
                && is_below_usage(memory, used_bytes)
            {
                return Err(CgroupError::InUse { limit, used_bytes });
            }
        }
        self.enable_missing(&wanted, best_effort)?;
        states.extend(drop_undelegated(&directory, &mut wanted, best_effort)?);
        if let Some(unit) = &self.unit {
            unit.update(&wanted)?;
        }
        states.extend(apply(&directory, &wanted, best_effort)?);
        for state in &states {
            self.limits.retain(|old| old.name != state.name || differs_in_device(old, state));
            self.limits.push(state.clone());
        }
        Ok(states)
    }

    /// Switches on the controllers that a cgroup without limits was made without, where its parent has them.
    fn enable_missing(&self, wanted: &Settings, best_effort: bool) -> Result<(), CgroupError> {
        let present = self.directory().controllers();
        let needed = wanted.controllers();
        let Some(parent) = self.path.parent().map(Directory::new) else { return Ok(()) };
        if needed.iter().all(|one| present.contains(one)) {
            return Ok(());
        }
        let there = parent.controllers();
        let possible: Vec<_> = needed.iter().copied().filter(|one| there.contains(one)).collect();
        match possible.len() == needed.len() {
            true => enable(&parent, &possible),
            // What is still missing then is reported.
            false if best_effort => enable(&parent, &possible).or(Ok(())),
            false => Ok(()),
        }
    }

    /// Stops every process of it where it is; returns when the kernel says that all of them stand still.
    pub fn freeze(&self) -> Result<(), CgroupError> {
        self.set_frozen(true)
    }

    /// Lets them go on.
    pub fn thaw(&self) -> Result<(), CgroupError> {
        self.set_frozen(false)
    }

    /// Whether all of it stands still.
    pub fn is_frozen(&self) -> Result<bool, CgroupError> {
        let frozen = self.directory().keyed("cgroup.events", "frozen");
        Ok(frozen.map_err(|source| self.failed("read events of", source))? == Some(1))
    }

    /// Kills every process of it and of its children, however fast they fork. What is gone is dead.
    pub fn kill(&self) -> Result<(), CgroupError> {
        let directory = self.directory();
        match directory.write("cgroup.kill", "1") {
            Err(error) if is(&error, Errno::NOENT) && directory.exists() => self.kill_one_by_one(),
            Err(error) if is(&error, Errno::NOENT) || is(&error, Errno::NODEV) => Ok(()),
            result => result.map_err(|source| self.failed("kill processes of", source)),
        }
    }

    /// The processes in it and in its children, by our numbers.
    pub fn processes(&self) -> Result<Vec<i32>, CgroupError> {
        let mut list = Vec::new();
        collect(&self.directory(), &mut list).map_err(|source| self.failed("read processes of", source))?;
        list.sort_unstable();
        list.dedup();
        Ok(list)
    }

    /// How many of its processes the kernel has killed for want of memory; 0 without that controller.
    pub fn oom_kills(&self) -> Result<u64, CgroupError> {
        match self.directory().keyed("memory.events", "oom_kill") {
            Err(error) if is(&error, Errno::NOENT) => Ok(0),
            result => Ok(result.map_err(|source| self.failed("read events of", source))?.unwrap_or(0)),
        }
    }

    /// Removes it and its children, waiting for killed processes to leave. One that is gone is removed.
    pub fn remove(&self) -> Result<(), CgroupError> {
        if let Err(source) = Directory::checked(&self.path) {
            let gone = is(&source, Errno::NOENT) || is(&source, Errno::NODEV);
            return if gone { Ok(()) } else { Err(self.failed("open", source)) };
        }
        let deadline = Instant::now() + Duration::from_millis(REMOVE_MS_MAX);
        loop {
            match remove_tree(&self.directory()) {
                Ok(()) => break,
                Err(error) if is(&error, Errno::BUSY) && Instant::now() < deadline => std::thread::sleep(REMOVE_PAUSE),
                Err(source) => return Err(self.failed("remove", source)),
            }
        }
        match &self.unit {
            Some(unit) => unit.forget(),
            None => Ok(()),
        }
    }

    fn set_frozen(&self, frozen: bool) -> Result<(), CgroupError> {
        let value = if frozen { "1" } else { "0" };
        self.directory().write("cgroup.freeze", value).map_err(|source| self.failed("freeze", source))?;
        let deadline = Instant::now() + Duration::from_millis(FREEZE_MS_MAX);
        let path = self.path.join("cgroup.events");
        let events = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| self.failed("open events of", errno.into()))?;
        while self.is_frozen()? != frozen {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let what = if frozen { "freeze" } else { "thaw" };
                return Err(CgroupError::Late { path: self.path.clone(), what, limit_ms: FREEZE_MS_MAX });
            }
            wait_for_change(&events, left);
        }
        Ok(())
    }

    fn kill_one_by_one(&self) -> Result<(), CgroupError> {
        for _ in 0..KILL_ROUNDS_MAX {
            let list = self.processes()?;
            if list.is_empty() {
                break;
            }
            for pid in list.into_iter().filter_map(Pid::from_raw) {
                // It may have ended by itself.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        Ok(())
    }
}

/// Rates are limits by device: the first word of what was asked names it.
fn differs_in_device(old: &LimitState, new: &LimitState) -> bool {
    let device = |state: &LimitState| state.asked.split_once(' ').map(|(device, _)| device.to_owned());
    new.name.starts_with("blockIO.") && device(old) != device(new)
}

/// Returns when the kernel says that the file has changed, or a little before the deadline.
fn wait_for_change(events: &impl AsFd, left: Duration) {
    let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(left.subsec_nanos().clamp(1_000_000, 100_000_000)) };
    let mut polled = [PollFd::new(events, PollFlags::PRI)];
    // Whatever it says, the state is read again.
    let _ = poll(&mut polled, Some(&timeout));
}

fn collect(directory: &Directory, list: &mut Vec<i32>) -> io::Result<()> {
    list.extend(directory.processes()?);
    for child in children(directory.path())? {
        match collect(&child, list) {
            Err(error) if is(&error, Errno::NOENT) || is(&error, Errno::NODEV) => {}
            result => result?,
        }
    }
    Ok(())
}

fn children(path: &Path) -> io::Result<Vec<Directory>> {
    let mut found = Vec::new();
    for entry in fs_err::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(Directory::new(entry.path()));
        }
    }
    Ok(found)
}

/// Removes a directory and those below it, which must hold no processes.
pub(super) fn remove_tree(directory: &Directory) -> io::Result<()> {
    match directory.remove() {
        Err(error) if is(&error, Errno::NOENT) => Ok(()),
        Err(error) if is(&error, Errno::BUSY) || is(&error, Errno::NOTEMPTY) => {
            for child in children(directory.path())? {
                remove_tree(&child)?;
            }
            match directory.remove() {
                Err(error) if is(&error, Errno::NOENT) => Ok(()),
                result => result,
            }
        }
        result => result,
    }
}
