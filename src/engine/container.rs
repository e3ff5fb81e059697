//! A container's directory: who may use it, what it holds, when it goes away.
//!
//! ```text
//! containers/<id>/       0700, one container
//!   lock                 locked by the process that looks after the container; at its end it
//!                        holds the exit record, for those who have it open when all is removed
//!   config.json          the OCI bundle's specification
//!   container.json       what was asked (`record::Record`)
//!   state.json           the latest run (`record::State`), absent until the first start
//!   exit.json            how a run ended (`record::ExitRecord`)
//!   health.json          what the health checks said (`record::Health`)
//!   stopped              a person stopped it: the restart policy rests until the next start
//!   logs/current.json    output in docker's json-file form; current.json.1 … are older
//!   shim.sock            the shim listens here while it lives
//!   upper/ work/         the writable layer and overlayfs' scratch directory
//!   hosts resolv.conf hostname
//! containers/new-<id>/   a container that is being made
//! names/<name>           one file for each taken name, holding the id
//! autoremove/<id>        one empty file for each `--rm` container that has been started
//! ```
//! Invariant: a directory under `autoremove` whose lock nobody holds is rubbish of a killed run and
//! is removed by the next one, so `--rm` holds even across SIGKILL.

mod lock;

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use coracle_runtime::{IdMap, failpoint};
use fs_err::File;
use fs_err::os::unix::fs::OpenOptionsExt;
use nix::errno::Errno;
use serde::Serialize;

use lock::{lock, open_existing_lock, open_lock, try_lock, wait_for_lock};

use super::record::{ExitRecord, Record};
use super::volumes;

pub use lock::is_locked;

/// Docker's length of a container id in bytes; shown as 64 hex digits.
const ID_BYTES: usize = 32;
/// Begins the name of a container's directory while it is being made.
const DRAFT_PREFIX: &str = "new-";
/// The digits of an id that are shown where room is short.
const SHORT_ID_DIGITS: usize = 12;
/// C19 of the attack list: `[a-zA-Z0-9][a-zA-Z0-9_.-]*`, at most this long.
const NAME_BYTES_MAX: usize = 64;

/// Says what is wrong with a container's directory or name.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    #[error("invalid container name {0:?}: letters, digits, and _ . - after the first, 64 at most")]
    InvalidName(String),
    #[error("the name {name:?} is taken by container {id}")]
    NameTaken { name: String, id: String },
    #[error("cannot use the container's directory")]
    Io(#[source] std::io::Error),
    #[error("cannot make {path}")]
    MakeDir { path: PathBuf, source: std::io::Error },
    #[error("cannot lock {path}")]
    Lock { path: PathBuf, source: Errno },
    #[error("cannot write {path}")]
    Encode { path: PathBuf, source: serde_json::Error },
    #[error("no randomness from the kernel")]
    Random(#[source] rustix::io::Errno),
}

impl From<std::io::Error> for ContainerError {
    fn from(source: std::io::Error) -> Self {
        Self::Io(source)
    }
}

/// Is a container's directory that this process holds the lock of.
pub struct ContainerDir {
    pub id: String,
    pub path: PathBuf,
    state: PathBuf,
    auto_remove: bool,
    lock: File,
}

/// Checks a name by the grammar that is safe as a file name and in every output.
pub fn check_name(name: &str) -> Result<(), ContainerError> {
    let clean = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
    let first = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !clean || !first || name.len() > NAME_BYTES_MAX {
        return Err(ContainerError::InvalidName(name.to_owned()));
    }
    Ok(())
}

/// Makes a new id.
pub fn new_id() -> Result<String, ContainerError> {
    let mut bytes = [0u8; ID_BYTES];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).map_err(ContainerError::Random)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Gives the short form of an id.
pub fn short_id(id: &str) -> &str {
    id.get(..SHORT_ID_DIGITS).unwrap_or(id)
}

impl ContainerDir {
    /// Makes the directory of a new container and takes its lock and its name.
    pub fn create(state: &Path, id: &str, name: Option<&str>, auto_remove: bool) -> Result<Self, ContainerError> {
        for directory in ["containers", "names", "autoremove"] {
            ensure_private_dir(&state.join(directory))?;
        }
        let path = state.join("containers").join(id);
        // Made under another name until its lock is held and its marker is there: a sweeper never
        // meets a container that looks abandoned and is not.
        let draft = draft_of(state, id);
        private_dir(&draft)?;
        let lock = lock(&draft.join("lock"))?;
        if auto_remove {
            File::create(state.join("autoremove").join(id))?;
        }
        fs_err::rename(&draft, &path)?;
        let directory = Self { id: id.to_owned(), path, state: state.to_owned(), auto_remove, lock };
        if let Some(name) = name
            && let Err(error) = take_name(state, &directory.path, id, name)
        {
            let _ = directory.remove();
            return Err(error);
        }
        failpoint::hit("id_reserved")?;
        Ok(directory)
    }

    /// Takes over a container that is there; None when somebody else looks after it or it is gone.
    pub fn take(state: &Path, record: &Record) -> Result<Option<Self>, ContainerError> {
        let path = state.join("containers").join(&record.id);
        let Ok(file) = open_existing_lock(&path) else { return Ok(None) };
        let Some(lock) = try_lock(file) else { return Ok(None) };
        // Removed between the two: what is locked is nobody's any more.
        if !path.join("lock").exists() {
            return Ok(None);
        }
        Ok(Some(Self { id: record.id.clone(), path, state: state.to_owned(), auto_remove: record.auto_remove, lock }))
    }

    /// Says whether the container's directory goes away by itself when nobody looks after it.
    ///
    /// One that was only created waits for its start, however long.
    pub fn set_abandonable(&self, abandonable: bool) -> Result<(), ContainerError> {
        let mark = self.state.join("autoremove").join(&self.id);
        if !abandonable {
            let _ = fs_err::remove_file(mark);
        } else if self.auto_remove {
            File::create(mark)?;
        }
        Ok(())
    }

    /// Gives the lock's descriptor, which a shim has to keep open.
    pub fn lock_fd(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// Publishes how a run ended; also into the lock, for a waiter that finds the directory gone.
    pub fn publish_exit(&self, exit: &ExitRecord) -> Result<(), ContainerError> {
        if let Ok(text) = serde_json::to_vec(exit) {
            // Only a waiter of a `--rm` container reads it, and it has the code of its own process else.
            let _ = self.lock.file().write_all_at(&text, 0).and_then(|()| self.lock.file().set_len(text.len() as u64));
        }
        self.publish("exit.json", exit)
    }

    /// Makes a directory inside the container's one.
    pub fn make_dir(&self, name: &str, mode: u32) -> Result<PathBuf, ContainerError> {
        let path = self.path.join(name);
        ensure_private_dir(&path)?;
        // The caller's umask must not decide what the container sees.
        fs_err::set_permissions(&path, PermissionsExt::from_mode(mode))?;
        Ok(path)
    }

    /// Writes a file that the container will see.
    pub fn write_shared(&self, name: &str, text: &str) -> Result<PathBuf, ContainerError> {
        let path = self.path.join(name);
        fs_err::write(&path, text)?;
        fs_err::set_permissions(&path, PermissionsExt::from_mode(0o644))?;
        Ok(path)
    }

    /// Publishes a JSON file whole or not at all.
    ///
    /// Of a `--rm` container nothing is worth waiting for the disk: after a crash of the machine it is
    /// rubbish, whatever its record says.
    pub fn publish<T: Serialize>(&self, name: &str, value: &T) -> Result<(), ContainerError> {
        self.publish_as(name, value, true)
    }

    /// Publishes a JSON file that means nothing after a crash of the machine.
    pub fn publish_soon<T: Serialize>(&self, name: &str, value: &T) -> Result<(), ContainerError> {
        self.publish_as(name, value, false)
    }

    /// Publishes a JSON file; `durable` waits until it is on the disk, which a `--rm` container does not need.
    pub fn publish_as<T: Serialize>(&self, name: &str, value: &T, durable: bool) -> Result<(), ContainerError> {
        publish_json(&self.path, name, value, durable && !self.auto_remove)
    }

    /// Removes a container that could not be started, with the volumes that were made for it.
    pub fn discard(&self) -> Result<(), ContainerError> {
        // Without it the container is stillborn.
        match fs_err::remove_file(self.path.join("config.json")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => self.remove(),
        }
    }

    /// Removes everything; the caller is root of the user namespace that owns the files.
    pub fn remove(&self) -> Result<(), ContainerError> {
        remove_dir(&self.state, &self.id, &self.path)
    }
}

/// Lists `--rm` containers that nobody looks after any more.
pub fn abandoned(state: &Path) -> Vec<Unwatched> {
    let Ok(entries) = fs_err::read_dir(state.join("autoremove")) else {
        return Vec::new();
    };
    let ids = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let marked = ids.filter_map(|id| {
        // In this order, because a draft becomes a container and never the other way round.
        for place in [draft_of(state, &id), state.join("containers").join(&id)] {
            if place.exists() {
                return Unwatched::take_at(state, &id, place);
            }
        }
        let _ = fs_err::remove_file(state.join("autoremove").join(&id));
        None
    });
    marked.chain(old_drafts(state)).collect()
}

/// Names a container's directory while it is being made.
fn draft_of(state: &Path, id: &str) -> PathBuf {
    state.join("containers").join(format!("{DRAFT_PREFIX}{id}"))
}

/// Lists drafts whose maker was killed before it could even mark them.
fn old_drafts(state: &Path) -> Vec<Unwatched> {
    let Ok(entries) = fs_err::read_dir(state.join("containers")) else {
        return Vec::new();
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names
        .filter_map(|name| {
            let path = state.join("containers").join(&name);
            // Also one that has its place and got no further.
            let id = match name.strip_prefix(DRAFT_PREFIX) {
                Some(id) => id,
                None if path.join("container.json").exists() => return None,
                None => &name,
            };
            if is_young(&path) { None } else { Unwatched::take_at(state, id, path) }
        })
        .collect()
}

/// Is a container that no process looks after; its lock is held until this is dropped.
pub struct Unwatched {
    pub id: String,
    state: PathBuf,
    path: PathBuf,
    record: Option<Record>,
    _lock: Option<File>,
}

impl Unwatched {
    fn take_at(state: &Path, id: &str, path: PathBuf) -> Option<Self> {
        let lock = match open_existing_lock(&path) {
            Ok(file) => Some(try_lock(file)?),
            // Gone this moment, or killed between its directory and its lock: decided by age.
            Err(_) if is_young(&path) => return None,
            Err(_) => None,
        };
        let record = read_record(&path);
        Some(Self { id: id.to_owned(), state: state.to_owned(), path, record, _lock: lock })
    }

    /// Gives the map under which its files were written; None when it got no further than its directory.
    pub fn idmap(&self) -> Option<&IdMap> {
        self.record.as_ref().map(|record| &record.idmap)
    }

    /// Removes it; the caller is root of the user namespace that owns the files.
    pub fn remove(&self) -> Result<(), ContainerError> {
        remove_dir(&self.state, &self.id, &self.path)
    }
}

/// Gives a free name to a container, in one step that only one can win.
pub fn take_name(state: &Path, path: &Path, id: &str, name: &str) -> Result<(), ContainerError> {
    check_name(name)?;
    let taken = state.join("names").join(name);
    // Written aside and linked, so that a name file always holds a whole id. Whoever is killed before the
    // record names it has left the name here, for the one who removes the container.
    let draft = path.join("name");
    fs_err::write(&draft, id)?;
    fs_err::write(path.join("name.taken"), name)?;
    let exists = |error: &std::io::Error| error.kind() == std::io::ErrorKind::AlreadyExists;
    match fs_err::hard_link(&draft, &taken) {
        Err(error) if exists(&error) => {}
        linked => return Ok(linked?),
    }
    // Whoever took it may have been killed before it was anything. One at a time looks at that.
    let turn = open_lock(&state.join("names").join(".lock"))?;
    wait_for_lock(&turn)?;
    let owner = fs_err::read_to_string(&taken).unwrap_or_default();
    if !is_nobody(state, &owner) {
        return Err(ContainerError::NameTaken { name: name.to_owned(), id: short_id(&owner).to_owned() });
    }
    let _ = fs_err::remove_file(&taken);
    match fs_err::hard_link(&draft, &taken) {
        Err(error) if exists(&error) => {
            let owner = fs_err::read_to_string(&taken).unwrap_or_default();
            Err(ContainerError::NameTaken { name: name.to_owned(), id: short_id(&owner).to_owned() })
        }
        linked => Ok(linked?),
    }
}

/// Says whether an id belongs to no container, and to none that is being made.
fn is_nobody(state: &Path, id: &str) -> bool {
    let path = state.join("containers").join(id);
    let held = open_existing_lock(&path).is_ok_and(|lock| is_locked(&lock));
    id.is_empty() || !(path.join("container.json").exists() || held)
}

/// Frees a name if it is this container's.
pub fn free_name(state: &Path, id: &str, name: &str) {
    let file = state.join("names").join(name);
    if check_name(name).is_ok() && fs_err::read_to_string(&file).is_ok_and(|owner| owner == id) {
        let _ = fs_err::remove_file(file);
    }
}

/// Publishes a JSON file whole or not at all.
pub fn publish_json<T: Serialize>(path: &Path, name: &str, value: &T, durable: bool) -> Result<(), ContainerError> {
    let target = path.join(name);
    let text = serde_json::to_vec(value).map_err(|source| ContainerError::Encode { path: target.clone(), source })?;
    let draft = path.join(format!("{name}.new"));
    let mut file = fs_err::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    file.write_all(&text)?;
    if name == "exit.json" {
        failpoint::hit("exit_written_unsynced")?;
    }
    if durable {
        file.sync_all()?;
    }
    drop(file);
    fs_err::rename(&draft, &target)?;
    Ok(())
}

/// Brings a new container's record to the disk, with every name on the way to it (fsync(2): a file alone may be
/// nameless after a crash).
pub fn make_durable(state: &Path, id: &str) {
    let path = state.join("containers").join(id);
    let files = ["container.json", "config.json", "."].map(|name| path.join(name));
    for path in files.into_iter().chain(["containers", "names"].map(|name| state.join(name))) {
        // A disk that cannot keep it has nobody who could: the container runs.
        let _ = File::open(path).and_then(|file| file.sync_all());
    }
}

/// Waits for one's turn to change a container's record; the turn ends with the file.
pub fn take_turn(path: &Path) -> Result<File, ContainerError> {
    let file = fs_err::OpenOptions::new().read(true).write(true).open(path.join("container.json"))?;
    drop(file);
    let file = open_lock(&path.join("edit"))?;
    wait_for_lock(&file)?;
    Ok(file)
}

fn read_record(path: &Path) -> Option<Record> {
    fs_err::read(path.join("container.json")).ok().and_then(|text| serde_json::from_slice(&text).ok())
}

/// How long a directory without a lock is given the benefit of the doubt; making the lock takes
/// microseconds, a stopped machine longer.
const YOUNG_S: u64 = 60;

fn is_young(path: &Path) -> bool {
    let age = fs_err::metadata(path).ok().and_then(|meta| meta.modified().ok()).and_then(|time| time.elapsed().ok());
    age.is_none_or(|age| age.as_secs() < YOUNG_S)
}

/// Removes a container whose lock is held, or that nobody can want any more.
///
/// It is a draft again from the first moment, so that one that is half removed is nobody's container and
/// is swept later.
fn remove_dir(state: &Path, id: &str, path: &Path) -> Result<(), ContainerError> {
    let record = read_record(path);
    let volumes = record.iter().flat_map(|record| &record.mounts).filter_map(|mount| mount.name.clone());
    // The record names them, so they go before it: a removal that is killed is done again.
    // Docker keeps those of a container that was not to go away by itself, unless told otherwise.
    if record.as_ref().is_some_and(|record| record.auto_remove) || is_stillborn(path) {
        volumes::remove_anonymous(state, id, &volumes.collect::<Vec<_>>())?;
    }
    let names = [record.and_then(|record| record.name), fs_err::read_to_string(path.join("name.taken")).ok()];
    let draft = draft_of(state, id);
    if path != draft {
        fs_err::rename(path, &draft)?;
    }
    for name in names.into_iter().flatten() {
        free_name(state, id, &name);
    }
    failpoint::hit("rootfs_removed")?;
    coracle_images::remove_tree(&draft)?;
    failpoint::hit("state_removed")?;
    match fs_err::remove_file(state.join("autoremove").join(id)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Whether the container never got as far as its first run and never will: nobody knows its volumes.
fn is_stillborn(path: &Path) -> bool {
    !path.join("config.json").exists()
}

/// Makes a directory that only its owner may enter; one that exists is an error.
fn private_dir(path: &Path) -> Result<(), ContainerError> {
    let made = std::fs::DirBuilder::new().mode(0o700).create(path);
    made.map_err(|source| ContainerError::MakeDir { path: path.to_owned(), source })
}

fn ensure_private_dir(path: &Path) -> Result<(), ContainerError> {
    match private_dir(path) {
        Err(ContainerError::MakeDir { source, .. }) if source.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c19_names() {
        for bad in ["", ".", "..", "../x", "-rf", "a/b", "a b", "é", "a\n", &"x".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        assert!(check_name("Web_1.a-b").is_ok());
    }

    #[test]
    fn a_name_is_taken_once_and_given_back() {
        let state = tempfile::tempdir().unwrap();
        let (first, second) = (new_id().unwrap(), new_id().unwrap());
        let dir = ContainerDir::create(state.path(), &first, Some("web"), true).unwrap();
        assert!(matches!(
            ContainerDir::create(state.path(), &second, Some("web"), false),
            Err(ContainerError::NameTaken { .. })
        ));
        dir.remove().unwrap();
        assert!(!dir.path.exists());
        assert!(!state.path().join("names/web").exists());
        assert!(fs_err::read_dir(state.path().join("autoremove")).unwrap().next().is_none());
    }

    #[test]
    fn only_containers_without_a_holder_are_abandoned() {
        let state = tempfile::tempdir().unwrap();
        let id = new_id().unwrap();
        let dir = ContainerDir::create(state.path(), &id, None, true).unwrap();
        assert!(abandoned(state.path()).is_empty(), "its lock is held");
        drop(dir);
        let left = abandoned(state.path());
        assert_eq!(left.iter().map(|left| left.id.as_str()).collect::<Vec<_>>(), [id.as_str()]);
        left[0].remove().unwrap();
        assert!(!state.path().join("containers").join(id).exists());
    }
}
