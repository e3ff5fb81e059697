//! A container's directory: who may use it, what it holds, when it goes away.
//!
//! ```text
//! containers/<id>/       0700, one container
//!   lock                 flock, held by the process that looks after the container
//!   config.json          the OCI bundle's specification
//!   container.json       what was asked: name, image, command, id map
//!   upper/ work/         the writable layer and overlayfs' scratch directory
//!   volumes/<n>/         anonymous volumes
//!   hosts resolv.conf hostname
//!   exit.json            how it ended
//! containers/new-<id>/   a container that is being made
//! names/<name>           one file for each taken name, holding the id
//! autoremove/<id>        one empty file for each `--rm` container that still exists
//! ```
//! Invariant: a directory under `autoremove` whose lock nobody holds is rubbish of a killed run and
//! is removed by the next one, so `--rm` holds even across SIGKILL.

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use coracle_runtime::IdMap;
use fs_err::File;
use fs_err::os::unix::fs::OpenOptionsExt;
use serde::{Deserialize, Serialize};

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
    Lock { path: PathBuf, source: rustix::io::Errno },
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

/// Is what is kept about a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    pub id: String,
    pub name: Option<String>,
    /// As it was asked for.
    pub image: String,
    pub image_id: String,
    pub argv: Vec<String>,
    pub auto_remove: bool,
    pub stop_signal: Option<String>,
    /// The map under which the writable layer was written.
    pub idmap: IdMap,
    /// Seconds since the epoch.
    pub created_s: u64,
}

/// Is how a container ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExitRecord {
    pub exit_code: i32,
    pub finished_s: u64,
}

/// Is a container's directory that this process holds the lock of.
pub struct ContainerDir {
    pub id: String,
    pub path: PathBuf,
    state: PathBuf,
    name: Option<String>,
    auto_remove: bool,
    _lock: File,
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
        let mut directory =
            Self { id: id.to_owned(), path, state: state.to_owned(), name: None, auto_remove, _lock: lock };
        if let Some(name) = name
            && let Err(error) = directory.take_name(name)
        {
            let _ = directory.remove();
            return Err(error);
        }
        Ok(directory)
    }

    fn take_name(&mut self, name: &str) -> Result<(), ContainerError> {
        check_name(name)?;
        let taken = self.state.join("names").join(name);
        // Written aside and linked, so that a name file always holds a whole id.
        let draft = self.path.join("name");
        fs_err::write(&draft, &self.id)?;
        match fs_err::hard_link(&draft, &taken) {
            Ok(()) => {
                self.name = Some(name.to_owned());
                Ok(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                let id = fs_err::read_to_string(&taken).unwrap_or_default();
                Err(ContainerError::NameTaken { name: name.to_owned(), id: short_id(&id).to_owned() })
            }
            Err(error) => Err(error.into()),
        }
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
        let path = self.path.join(name);
        let text = serde_json::to_vec(value).map_err(|source| ContainerError::Encode { path: path.clone(), source })?;
        let draft = self.path.join(format!("{name}.new"));
        let mut file = fs_err::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(&text)?;
        if !self.auto_remove {
            file.sync_all()?;
        }
        drop(file);
        fs_err::rename(&draft, &path)?;
        Ok(())
    }

    /// Removes everything; the caller is root of the user namespace that owns the files.
    pub fn remove(&self) -> Result<(), ContainerError> {
        if let Some(name) = &self.name {
            let _ = fs_err::remove_file(self.state.join("names").join(name));
        }
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
            let id = name.strip_prefix(DRAFT_PREFIX)?;
            let path = draft_of(state, id);
            if is_young(&path) { None } else { Unwatched::take_at(state, id, path) }
        })
        .collect()
}

/// Lists every container that has a record, newest first.
pub fn list(state: &Path) -> Vec<Listed> {
    let Ok(entries) = fs_err::read_dir(state.join("containers")) else {
        return Vec::new();
    };
    let ids = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut all: Vec<Listed> = ids.filter_map(|id| Listed::read(state, &id)).collect();
    all.sort_by_key(|listed| std::cmp::Reverse(listed.record.created_s));
    all
}

/// Is a container as a listing shows it.
pub struct Listed {
    pub record: Record,
    pub status: Status,
}

/// Says how a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Running,
    Exited {
        code: i32,
        finished_s: u64,
    },
    /// Its watcher was killed before it could write down how it ended.
    Lost,
}

impl Listed {
    fn read(state: &Path, id: &str) -> Option<Self> {
        let path = state.join("containers").join(id);
        let record = serde_json::from_slice(&fs_err::read(path.join("container.json")).ok()?).ok()?;
        let exit: Option<ExitRecord> =
            fs_err::read(path.join("exit.json")).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let watched = File::open(path.join("lock")).is_ok_and(|file| try_lock(file).is_none());
        let status = match exit {
            Some(exit) => Status::Exited { code: exit.exit_code, finished_s: exit.finished_s },
            None if watched => Status::Running,
            None => Status::Lost,
        };
        Some(Self { record, status })
    }
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
    /// Takes the container's lock; None when somebody has it.
    pub fn take(state: &Path, id: &str) -> Option<Self> {
        Self::take_at(state, id, state.join("containers").join(id))
    }

    fn take_at(state: &Path, id: &str, path: PathBuf) -> Option<Self> {
        let lock = match File::open(path.join("lock")) {
            Ok(file) => Some(try_lock(file)?),
            // Gone this moment, or killed between its directory and its lock: decided by age.
            Err(_) if is_young(&path) => return None,
            Err(_) => None,
        };
        let record = fs_err::read(path.join("container.json")).ok();
        let record = record.and_then(|text| serde_json::from_slice(&text).ok());
        Some(Self { id: id.to_owned(), state: state.to_owned(), path, record, _lock: lock })
    }

    /// Gives the map under which its files were written; None when it got no further than its directory.
    pub fn idmap(&self) -> Option<&IdMap> {
        self.record.as_ref().map(|record| &record.idmap)
    }

    /// Removes it; the caller is root of the user namespace that owns the files.
    pub fn remove(&self) -> Result<(), ContainerError> {
        if let Some(name) = self.record.as_ref().and_then(|record| record.name.as_ref()) {
            let file = self.state.join("names").join(name);
            if fs_err::read_to_string(&file).is_ok_and(|owner| owner == self.id) {
                let _ = fs_err::remove_file(file);
            }
        }
        remove_dir(&self.state, &self.id, &self.path)
    }
}

/// How long a directory without a lock is given the benefit of the doubt; making the lock takes
/// microseconds, a stopped machine longer.
const YOUNG_S: u64 = 60;

fn is_young(path: &Path) -> bool {
    let age = fs_err::metadata(path).ok().and_then(|meta| meta.modified().ok()).and_then(|time| time.elapsed().ok());
    age.is_none_or(|age| age.as_secs() < YOUNG_S)
}

fn remove_dir(state: &Path, id: &str, path: &Path) -> Result<(), ContainerError> {
    coracle_images::remove_tree(path)?;
    match fs_err::remove_file(state.join("autoremove").join(id)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
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

fn lock(path: &Path) -> Result<File, ContainerError> {
    let file = fs_err::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .map_err(|source| ContainerError::Lock { path: path.to_owned(), source })?;
    Ok(file)
}

fn try_lock(file: File) -> Option<File> {
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).ok().map(|()| file)
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
        assert!(fs_err::read_dir(state.path().join("names")).unwrap().next().is_none());
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
