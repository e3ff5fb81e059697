//! The containers there are, as others see them: found by name or id, with their state.
//!
//! Reading never takes a lock and never changes anything. What a reader concludes:
//!
//! | state.json | exit.json of the same run | lock held | the container is |
//! |---|---|---|---|
//! | none | | | created |
//! | there | there | | exited |
//! | there | none | yes | starting, running, paused or restarting; when its process is gone: exited, or restarting where its policy lets it |
//! | there | none | no | exited, code unknown: the watcher was killed and the container with it (F02) |
//!
//! The last row is written down (`sweep`) by the next command that changes containers.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use coracle_runtime::container::Identity;
use fs_err::File;
use rustix::fs::{Mode, OFlags, open, openat};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::de::DeserializeOwned;

use super::container::{self, ContainerDir, ContainerError};
use super::record::{ExitRecord, Health, Phase, Record, RestartPolicy, State, UNKNOWN_EXIT_CODE, VERSION};
use super::shim::STOPPED;
use super::{Engine, EngineError, confinement};

/// An id's beginning shorter than this is still looked for; docker has no limit either.
const PREFIX_DIGITS_MIN: usize = 1;
/// A thread takes as long to begin as this many containers to read.
const THREAD_LEAST: usize = 32;
/// Few records are longer; reading one is two system calls then.
const FILE_BYTES_USUAL: usize = 8 << 10;
/// More of a file of ours is never read.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Is a container as it is at this moment.
#[derive(Debug)]
pub struct Container {
    pub record: Record,
    pub state: Option<State>,
    /// Of the latest run; a guess with `unknown` set when nobody saw its end.
    pub exit: Option<ExitRecord>,
    pub path: PathBuf,
    status: Status,
}

/// Says how a container is, in docker's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Created,
    /// Starting counts as running.
    Running,
    Paused,
    Restarting,
    Exited,
}

impl Status {
    /// Gives docker's word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Exited => "exited",
        }
    }

    /// Says whether somebody looks after it: it runs, or will in a moment.
    pub fn is_active(self) -> bool {
        matches!(self, Self::Running | Self::Paused | Self::Restarting)
    }
}

impl Container {
    /// Reads one container by its whole id; None when there is none.
    pub fn read(root: &Path, id: &str) -> Result<Option<Self>, EngineError> {
        Shelf::open(root).map_or(Ok(None), |shelf| Self::read_at(&shelf, id))
    }

    fn read_at(shelf: &Shelf, id: &str) -> Result<Option<Self>, EngineError> {
        let path = shelf.path.join(id);
        // In this order: a run's end is published after its state, so an older state never meets a newer exit.
        let Some(record) = shelf.text(id, "container.json", |text| {
            serde_json::from_slice::<Record>(text).map_err(|source| refuse(id, text, source))
        }) else {
            return Ok(None);
        };
        let record = record?;
        if record.version > VERSION {
            return Err(EngineError::NewerRecord { id: container::short_id(id).to_owned(), version: record.version });
        }
        loop {
            let state: Option<State> = shelf.json(id, "state.json");
            let Some(state) = state else {
                return Ok(Some(Self { record, state: None, exit: None, path, status: Status::Created }));
            };
            let end = || shelf.json::<ExitRecord>(id, "exit.json").filter(|exit| exit.run == state.run);
            // Most containers of a long list have ended for good, whoever holds the lock.
            if let Some(exit) = end().filter(|exit| !exit.restarting && state.phase != Phase::Restarting) {
                return Ok(Some(Self { record, state: Some(state), exit: Some(exit), path, status: Status::Exited }));
            }
            let held = shelf.open_file(id, "lock").is_some_and(container::is_locked);
            // After the lock: whoever let it go has written the end before.
            let exit = end();
            // A new run may have begun meanwhile.
            if exit.is_none() && !held && shelf.json::<State>(id, "state.json").is_some_and(|now| now.run != state.run)
            {
                continue;
            }
            let status = match (&exit, held, state.phase) {
                (_, true, Phase::Restarting) => Status::Restarting,
                (Some(exit), true, _) if exit.restarting => Status::Restarting,
                // Its shim is stopped, or about to write the end down and what follows.
                (None, true, Phase::Running) if state.init.as_ref().is_none_or(has_ended) => {
                    let again = record.restart != RestartPolicy::No && !path.join(STOPPED).exists();
                    if again { Status::Restarting } else { Status::Exited }
                }
                (None, true, _) if is_paused(&state) => Status::Paused,
                (None, true, _) => Status::Running,
                _ => Status::Exited,
            };
            let exit = match exit {
                None if !held => Some(unseen_end(&state)),
                exit => exit,
            };
            return Ok(Some(Self { record, state: Some(state), exit, path, status }));
        }
    }

    /// Gives the status.
    pub fn status(&self) -> Status {
        self.status
    }

    /// Says whether its process is gone and nobody has written down yet what follows.
    pub fn is_undecided(&self) -> bool {
        let running = self.state.as_ref().is_some_and(|state| state.phase == Phase::Running);
        running && self.exit.is_none() && matches!(self.status, Status::Restarting | Status::Exited)
    }

    /// Gives the whole id.
    pub fn id(&self) -> &str {
        &self.record.id
    }

    /// Gives the first process while the container has one.
    pub fn init(&self) -> Option<&Identity> {
        self.state.as_ref()?.init.as_ref().filter(|_| matches!(self.status, Status::Running | Status::Paused))
    }

    /// Gives the first process's number as this host sees it, 0 without one, as docker shows it.
    pub fn pid(&self) -> i32 {
        self.init().map_or(0, |init| init.pid)
    }

    /// Gives the number of the latest run, 0 before the first.
    pub fn run(&self) -> u64 {
        self.state.as_ref().map_or(0, |state| state.run)
    }

    /// Gives what the health checks say, where there are any.
    pub fn health(&self) -> Option<Health> {
        self.record.health.as_ref()?;
        read_json(&self.path.join("health.json"))
    }

    /// Gives the directory of the logs; the newest file is `current.json`.
    pub fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    /// Gives the shim's socket, which exists while there is a shim.
    pub fn socket(&self) -> PathBuf {
        self.path.join("shim.sock")
    }

    /// Says whether the latest run was in the foreground of a terminal: it has no log and no shim.
    pub fn is_foreground(&self) -> bool {
        self.state.as_ref().is_some_and(|state| state.foreground)
    }
}

/// Lists every container, newest first; what a newer coracle wrote is left out.
pub fn list(root: &Path) -> Vec<Container> {
    sorted(read_all(root, ids(root)))
}

/// Like [`list`], and on every processor where there are many. For a caller that makes no process afterwards: a thread
/// that has ended may still be counted.
pub fn list_at_once(root: &Path) -> Vec<Container> {
    let all: Vec<String> = ids(root).collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(all.len() / THREAD_LEAST);
    if threads < 2 {
        return sorted(read_all(root, all.into_iter()));
    }
    let mut parts = all.chunks(all.len().div_ceil(threads));
    let own = parts.next().unwrap_or_default();
    let read = |part: &[String]| read_all(root, part.iter().cloned());
    sorted(std::thread::scope(|scope| {
        // Who may have no more processes may have no thread either.
        let begin = |part| (part, std::thread::Builder::new().spawn_scoped(scope, move || read(part)));
        let others: Vec<_> = parts.map(begin).collect();
        let mut found = read(own);
        for (part, thread) in others {
            match thread.map(ScopedJoinHandle::join) {
                Ok(Ok(part)) => found.extend(part),
                Ok(Err(panic)) => std::panic::resume_unwind(panic),
                Err(_) => found.extend(read(part)),
            }
        }
        found
    }))
}

fn read_all(root: &Path, ids: impl Iterator<Item = String>) -> Vec<Container> {
    let Some(shelf) = Shelf::open(root) else { return Vec::new() };
    ids.filter_map(|id| Container::read_at(&shelf, &id).ok().flatten()).collect()
}

fn sorted(mut all: Vec<Container>) -> Vec<Container> {
    all.sort_by_key(|container| std::cmp::Reverse(container.record.created_ns));
    all
}

/// Finds a container by its name, its id or an unambiguous beginning of its id.
pub fn find(root: &Path, wanted: &str) -> Result<Container, EngineError> {
    let unknown = || EngineError::UnknownContainer(wanted.to_owned());
    let is_name = container::check_name(wanted).is_ok();
    let wanted_name = wanted.strip_prefix('/').unwrap_or(wanted);
    if is_name
        && let Ok(id) = fs_err::read_to_string(root.join("names").join(wanted_name))
        && let Some(found) = Container::read(root, id.trim())?
        && found.record.name.as_deref() == Some(wanted_name)
    {
        return Ok(found);
    }
    if wanted.len() < PREFIX_DIGITS_MIN || !wanted.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(unknown());
    }
    let mut matches = ids(root).filter(|id| id.starts_with(wanted));
    let id = matches.next().ok_or_else(unknown)?;
    if matches.next().is_some() {
        return Err(EngineError::AmbiguousContainer(wanted.to_owned()));
    }
    Container::read(root, &id)?.ok_or_else(unknown)
}

/// Changes the record of a container; `change` gets it as it is now.
///
/// Two who change it take turns: the lock is for the length of this only, and not the container's own.
pub fn edit(
    root: &Path,
    id: &str,
    change: impl FnOnce(&mut ContainerRecord<'_>) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    let path = root.join("containers").join(id);
    let unknown = || EngineError::UnknownContainer(container::short_id(id).to_owned());
    let _turn = container::take_turn(&path).map_err(|_| unknown())?;
    let found = Container::read(root, id)?.ok_or_else(unknown)?;
    let mut record = ContainerRecord { record: found.record, root, path: &path };
    change(&mut record)?;
    Ok(container::publish_json(&path, "container.json", &record.record, true)?)
}

/// Is a record that is being changed.
pub struct ContainerRecord<'a> {
    pub record: Record,
    root: &'a Path,
    path: &'a Path,
}

impl ContainerRecord<'_> {
    /// Gives the container another name; the old one is free at once.
    pub fn rename(&mut self, name: &str) -> Result<(), EngineError> {
        container::take_name(self.root, self.path, &self.record.id, name)?;
        if let Some(old) = self.record.name.replace(name.to_owned()) {
            container::free_name(self.root, &self.record.id, &old);
        }
        Ok(())
    }
}

/// Gives the ids of the containers' directories, drafts left out.
fn ids(root: &Path) -> impl Iterator<Item = String> {
    let entries = fs_err::read_dir(root.join("containers")).into_iter().flatten();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Writes down the end of runs whose watcher was killed, and ends what is left of them.
pub fn sweep(engine: &Engine) {
    for container in list(engine.root()) {
        if container.exit.as_ref().is_some_and(|exit| exit.unknown) {
            // Best effort: whoever comes next finds it again.
            let _ = sweep_one(engine.root(), &container);
        }
    }
}

/// Writes down the end of one such run; its lock is taken for it.
pub fn sweep_one(root: &Path, container: &Container) -> Result<(), EngineError> {
    let Some(directory) = ContainerDir::take(root, &container.record)? else { return Ok(()) };
    settle(&directory)?;
    Ok(())
}

/// Brings a container whose lock the caller holds to rest: no process, an exit for its latest run.
pub fn settle(directory: &ContainerDir) -> Result<(), EngineError> {
    let path = &directory.path;
    let Some(state) = read_json::<State>(&path.join("state.json")) else { return Ok(()) };
    if read_json::<ExitRecord>(&path.join("exit.json")).is_some_and(|exit| exit.run == state.run) {
        return Ok(());
    }
    // The kernel kills init with its parent, but a setuid program of the image can have undone that
    // where no_new_privs was switched off (prctl(2), PR_SET_PDEATHSIG).
    if let Some(pidfd) = state.init.as_ref().and_then(|init| init.open().ok().flatten()) {
        let _ = pidfd_send_signal(&pidfd, Signal::KILL);
        super::signals::wait_for_end(&pidfd, None);
    }
    let _ = fs_err::remove_file(path.join("shim.sock"));
    let oom_killed = state.cgroup.as_ref().is_some_and(confinement::end);
    Ok(directory.publish_exit(&ExitRecord { oom_killed, ..unseen_end(&state) })?)
}

/// Says what is known about the end of a run that nobody saw.
fn unseen_end(state: &State) -> ExitRecord {
    let this_boot = fs_err::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let reboot = this_boot.trim() != state.watcher.boot_id;
    let error = if reboot { "the machine went down while it ran" } else { "its shim was killed, and it with it" };
    ExitRecord {
        version: VERSION,
        run: state.run,
        exit_code: UNKNOWN_EXIT_CODE,
        // Nobody knows; it cannot have been earlier.
        finished_ns: state.started_ns,
        oom_killed: false,
        unknown: true,
        restarting: false,
        terminated: false,
        error: Some(error.to_owned()),
    }
}

fn is_paused(state: &State) -> bool {
    state.cgroup.as_ref().is_some_and(|cgroup| cgroup.is_frozen().unwrap_or(false))
}

/// Says whether a process is gone, dead ones included that nobody has reaped yet.
fn has_ended(init: &Identity) -> bool {
    let pidfd = Pid::from_raw(init.pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    pidfd.is_none_or(|pidfd| super::signals::wait_for_end(pidfd, Some(Duration::ZERO)))
}

fn refuse(id: &str, text: &[u8], source: serde_json::Error) -> EngineError {
    let id = container::short_id(id).to_owned();
    let version = serde_json::from_slice::<serde_json::Value>(text).ok().and_then(|raw| raw.get("version")?.as_u64());
    match version.and_then(|version| u32::try_from(version).ok()) {
        Some(version) if version > VERSION => EngineError::NewerRecord { id, version },
        _ => EngineError::BrokenRecord { id, source },
    }
}

/// Reads a small file of ours; what is missing or not whole counts as not there.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&read_bounded(path)?).ok()
}

/// Is the directory of all containers, open: names below it are short for the kernel, which looks up each part of a path
/// of each of a thousand files.
struct Shelf {
    path: PathBuf,
    directory: OwnedFd,
    /// Reading it again and again needs no new memory.
    buffer: RefCell<Vec<u8>>,
}

impl Shelf {
    fn open(root: &Path) -> Option<Self> {
        let path = root.join("containers");
        let directory = open(&path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        Some(Self { path, directory, buffer: RefCell::new(vec![0; FILE_BYTES_USUAL]) })
    }

    fn open_file(&self, id: &str, name: &str) -> Option<OwnedFd> {
        openat(&self.directory, format!("{id}/{name}"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()
    }

    /// Reads a small file of ours; None when it is missing.
    fn text<T>(&self, id: &str, name: &str, read: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let file = self.open_file(id, name)?;
        let mut buffer = self.buffer.borrow_mut();
        let count = rustix::io::retry_on_intr(|| rustix::io::read(&file, buffer.as_mut_slice())).ok()?;
        if count == buffer.len() {
            // Of an unusual length; once more from the beginning.
            drop(buffer);
            return read_bounded(&self.path.join(id).join(name)).map(|text| read(&text));
        }
        Some(read(&buffer[..count]))
    }

    fn json<T: DeserializeOwned>(&self, id: &str, name: &str) -> Option<T> {
        self.text(id, name, |text| serde_json::from_slice(text).ok())?
    }
}

fn read_bounded(path: &Path) -> Option<Vec<u8>> {
    use std::io::Read;
    // Room for a whole file: growing from nothing costs a system call for each few bytes, and so does asking
    // for more than there is, because a regular file gives less than was asked for only at its end (read(2)).
    let mut text = vec![0; FILE_BYTES_USUAL];
    let mut file = File::open(path).ok()?;
    let count = file.read(&mut text).ok()?;
    text.truncate(count);
    if count == FILE_BYTES_USUAL {
        file.take(FILE_BYTES_MAX).read_to_end(&mut text).ok()?;
    }
    Some(text)
}

impl From<std::io::Error> for EngineError {
    fn from(source: std::io::Error) -> Self {
        Self::Container(ContainerError::Io(source))
    }
}
