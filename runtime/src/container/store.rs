//! The directories of containers: made once, locked while changed, replaced whole.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, Dir, FlockOperation, Mode, OFlags, fchmod, flock, fstat, mkdirat, openat, renameat, statat, unlinkat,
};
use rustix::io::Errno;

use super::id::Id;
use super::identity::IdentityError;
use super::state::{State, Status};
use crate::sys::SysError;

const STATE: &str = "status";
const STATE_DRAFT: &str = ".status";
const CONFIG: &str = "config.json";
const GATE: &str = "gate";

/// The most that is read back; `config.json` itself is limited to as much (C22).
const FILE_BYTES_MAX: u64 = 8 << 20;

/// How long somebody else may hold a container before we give up.
///
/// A holder makes mounts and runs hooks; more than this is a hook that hangs.
const LOCK_DEADLINE: Duration = Duration::from_secs(10);

/// Between two tries for a lock: flock(2) has no deadline of its own.
const LOCK_RETRY: Duration = Duration::from_millis(5);

/// The most containers that are listed; a directory with more is not one of ours.
const CONTAINERS_MAX: usize = 1 << 20;

/// What goes wrong with a container's directory.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// mkdir found it there.
    #[error("container {id} already exists")]
    Exists {
        /// The id.
        id: Id,
    },
    /// There is no such directory.
    #[error("container {id} does not exist")]
    Missing {
        /// The id.
        id: Id,
    },
    /// The directory of all containers belongs to somebody else, or others may change it.
    #[error("state directory {} belongs to uid {owner_uid} and not to uid {own_uid}", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Who owns it.
        owner_uid: u32,
        /// Who we are.
        own_uid: u32,
    },
    /// The directory of all containers can be changed by others.
    #[error("state directory {} can be changed by other users, its mode is {mode:o}", path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Somebody else has held the lock all the time.
    #[error("container {id} is being changed by another process")]
    Busy {
        /// The id.
        id: Id,
    },
    /// A file or directory could not be used.
    #[error(transparent)]
    System(#[from] SysError),
    /// `status` is not what we wrote.
    #[error("cannot read {}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where it is wrong.
        source: serde_json::Error,
    },
    /// The process table could not be read.
    #[error("cannot tell whether container {id} runs")]
    Process {
        /// The id.
        id: Id,
        /// Why.
        source: IdentityError,
    },
}

/// Write permission of group and others.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// The directory that holds all containers of one user.
#[derive(Debug)]
pub struct StateRoot {
    dir: OwnedFd,
    path: PathBuf,
    owner_uid: u32,
    owner_gid: u32,
    mode: u32,
}

/// The directory of one container.
#[derive(Debug)]
pub struct Container {
    id: Id,
    dir: OwnedFd,
    path: PathBuf,
}

/// The right to change one container; given back when dropped.
#[derive(Debug)]
pub struct Lock<'a> {
    container: &'a Container,
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl StateRoot {
    /// Opens the directory if it is there, without judging who owns it.
    ///
    /// The last component may not be a symbolic link. Use [`Self::require_owner`] before trusting
    /// what is inside.
    pub fn open(path: &Path) -> Result<Option<Self>, ContainerError> {
        match openat(rustix::fs::CWD, path, DIRECTORY, Mode::empty()) {
            Ok(dir) => Self::look(dir, path).map(Some),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(io("open", path, errno)),
        }
    }

    /// Opens the directory, and makes it if it is missing, with its parents.
    pub fn create(path: &Path) -> Result<Self, ContainerError> {
        if let Some(root) = Self::open(path)? {
            return Ok(root);
        }
        let parent = path.parent().unwrap_or(Path::new("/"));
        make_parents(parent)?;
        match mkdirat(rustix::fs::CWD, path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(io("make", path, errno)),
        }
        Self::open(path)?.ok_or_else(|| io("open", path, Errno::NOENT))
    }

    fn look(dir: OwnedFd, path: &Path) -> Result<Self, ContainerError> {
        let stat = fstat(&dir).map_err(|errno| io("look at", path, errno))?;
        Ok(Self {
            dir,
            path: path.to_owned(),
            owner_uid: stat.st_uid,
            owner_gid: stat.st_gid,
            mode: stat.st_mode & 0o7777,
        })
    }

    /// Who owns the directory: user and group.
    pub fn owner(&self) -> (u32, u32) {
        (self.owner_uid, self.owner_gid)
    }

    /// Where it is, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Refuses a directory that somebody else than this user could fill.
    pub fn require_owner(&self, uid: u32) -> Result<(), ContainerError> {
        let path = self.path.clone();
        if self.owner_uid != uid {
            return Err(ContainerError::Foreign { path, owner_uid: self.owner_uid, own_uid: uid });
        }
        if self.mode & WRITABLE_BY_OTHERS != 0 {
            return Err(ContainerError::Open { path, mode: self.mode });
        }
        Ok(())
    }

    /// Makes the directory of a new container; exactly one of several callers succeeds (C19).
    pub fn add(&self, id: &Id) -> Result<Container, ContainerError> {
        match mkdirat(&self.dir, id.as_str(), Mode::RWXU) {
            Ok(()) => self.get(id),
            Err(Errno::EXIST) => Err(ContainerError::Exists { id: id.clone() }),
            Err(errno) => Err(io("make", self.path.join(id.as_str()), errno)),
        }
    }

    /// Opens the directory of a container.
    pub fn get(&self, id: &Id) -> Result<Container, ContainerError> {
        let path = self.path.join(id.as_str());
        match openat(&self.dir, id.as_str(), DIRECTORY, Mode::empty()) {
            Ok(dir) => Ok(Container { id: id.clone(), dir, path }),
            Err(Errno::NOENT) => Err(ContainerError::Missing { id: id.clone() }),
            Err(errno) => Err(io("open", path, errno)),
        }
    }

    /// The ids of all containers, sorted. Other names are left alone.
    pub fn ids(&self) -> Result<Vec<Id>, ContainerError> {
        let entries = Dir::read_from(&self.dir).map_err(|errno| io("read", &self.path, errno))?;
        let mut ids = Vec::new();
        for entry in entries.take(CONTAINERS_MAX) {
            let entry = entry.map_err(|errno| io("read", &self.path, errno))?;
            if let Ok(name) = entry.file_name().to_str()
                && let Ok(id) = name.parse::<Id>()
            {
                ids.push(id);
            }
        }
        ids.sort();
        Ok(ids)
    }
}

impl Container {
    /// The container's id.
    pub fn id(&self) -> &Id {
        &self.id
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The socket at which the first process waits for `start`.
    pub fn gate(&self) -> PathBuf {
        self.path.join(GATE)
    }

    /// Waits for the right to change the container.
    pub fn lock(&self) -> Result<Lock<'_>, ContainerError> {
        let deadline = Instant::now() + LOCK_DEADLINE;
        loop {
            match flock(&self.dir, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Lock { container: self }),
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(LOCK_RETRY),
                Err(Errno::WOULDBLOCK) => {
                    return Err(ContainerError::Busy { id: self.id.clone() });
                }
                Err(errno) => return Err(io("lock", &self.path, errno)),
            }
        }
    }

    /// Says whether somebody holds the lock at this moment.
    fn is_locked(&self) -> Result<bool, ContainerError> {
        // A description of its own, so that a lock that this process holds is seen as well.
        let again = openat(&self.dir, ".", DIRECTORY, Mode::empty()).map_err(|errno| io("open", &self.path, errno))?;
        match flock(&again, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(Errno::WOULDBLOCK) => Ok(true),
            Err(errno) => Err(io("lock", &self.path, errno)),
        }
    }

    /// Reads the state; `None` until the first process exists.
    ///
    /// An empty file is one that a power cut kept from reaching the disk: a container of the boot
    /// before, of which nothing is left to control.
    pub fn state(&self) -> Result<Option<State>, ContainerError> {
        let Some(text) = self.read(STATE)?.filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|source| ContainerError::Damaged { path: self.path.join(STATE), source })
    }

    /// Reads the specification as it was at create.
    pub fn config(&self) -> Result<Option<Vec<u8>>, ContainerError> {
        self.read(CONFIG)
    }

    /// Concludes the status from the state and from what the kernel knows.
    pub fn status(&self, state: Option<&State>) -> Result<Status, ContainerError> {
        let Some(state) = state else {
            // Whoever makes it holds the lock; without a holder its making has been cut short.
            return Ok(if self.is_locked()? { Status::Creating } else { Status::Stopped });
        };
        let alive = state.init.is_alive().map_err(|source| ContainerError::Process { id: self.id.clone(), source })?;
        if !alive {
            return Ok(Status::Stopped);
        }
        if !state.ready {
            return Ok(Status::Creating);
        }
        match statat(&self.dir, GATE, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(Status::Created),
            Err(Errno::NOENT) => Ok(if is_paused(state) { Status::Paused } else { Status::Running }),
            Err(errno) => Err(io("look at", self.gate(), errno)),
        }
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, ContainerError> {
        let path = self.path.join(name);
        // NONBLOCK: a fifo put here must not hold us.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat(&self.dir, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(io("open", path, errno)),
        };
        let mut text = Vec::new();
        std::fs::File::from(file)
            .take(FILE_BYTES_MAX)
            .read_to_end(&mut text)
            .map_err(|error| io_error("read", path, &error))?;
        Ok(Some(text))
    }
}

impl<'a> Lock<'a> {
    /// What is locked.
    pub fn container(&self) -> &'a Container {
        self.container
    }

    /// Keeps the specification for later commands; the bundle may go away before the container.
    pub fn save_config(&self, text: &[u8]) -> Result<(), ContainerError> {
        self.write(CONFIG, text)
    }

    /// Publishes the state: readers see the old one or the new one, never a part.
    pub fn publish(&self, state: &State) -> Result<(), ContainerError> {
        let path = self.container.path.join(STATE);
        let text =
            serde_json::to_vec(state).map_err(|source| ContainerError::Damaged { path: path.clone(), source })?;
        self.write(STATE_DRAFT, &text)?;
        let dir = &self.container.dir;
        renameat(dir, STATE_DRAFT, dir, STATE).map_err(|errno| io("publish", path, errno))
    }

    /// Removes the container's directory with everything in it.
    pub fn remove(self) -> Result<(), ContainerError> {
        let container = self.container;
        empty(container.dir.as_fd(), &container.path, REMOVE_DEPTH_MAX)?;
        match unlinkat(rustix::fs::CWD, &container.path, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(io("remove", &container.path, errno)),
        }
    }

    fn write(&self, name: &str, text: &[u8]) -> Result<(), ContainerError> {
        let path = self.container.path.join(name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.container.dir, name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|errno| io("make", &path, errno))?;
        // The umask of the caller may have taken away even this.
        fchmod(&file, Mode::RUSR | Mode::WUSR).map_err(|errno| io("make", &path, errno))?;
        let mut file = std::fs::File::from(file);
        // Without which costs more than the whole start of a container where the state lies on
        // a disk: nothing written here is true after a power cut, see `Container::state`.
        file.write_all(text).map_err(|error| io_error("write", &path, &error))
    }
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        // Closing the directory would do it too; a failure here changes nothing.
        let _ = flock(&self.container.dir, FlockOperation::Unlock);
    }
}

/// Makes a directory with its parents, closed to others.
/// Whether its cgroup stands still. One that cannot be looked at does not.
fn is_paused(state: &State) -> bool {
    state.cgroup().ok().flatten().is_some_and(|cgroup| cgroup.is_frozen().unwrap_or(false))
}

fn make_parents(path: &Path) -> Result<(), ContainerError> {
    match mkdirat(rustix::fs::CWD, path, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(Errno::NOENT) => {
            let parent = path.parent().ok_or_else(|| io("make", path, Errno::NOENT))?;
            make_parents(parent)?;
            match mkdirat(rustix::fs::CWD, path, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => Ok(()),
                Err(errno) => Err(io("make", path, errno)),
            }
        }
        Err(errno) => Err(io("make", path, errno)),
    }
}

/// Nothing of ours nests deeper; the bound keeps a planted tree from exhausting the stack.
const REMOVE_DEPTH_MAX: usize = 4;

/// Removes what is in a directory, by descriptor and without following anything.
fn empty(dir: std::os::fd::BorrowedFd<'_>, path: &Path, depth: usize) -> Result<(), ContainerError> {
    let entries = Dir::read_from(dir).map_err(|errno| io("read", path, errno))?;
    for entry in entries {
        let entry = entry.map_err(|errno| io("read", path, errno))?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let below = path.join(OsStr::from_bytes(name.to_bytes()));
        match unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::ISDIR) if depth > 0 => {}
            Err(errno) => return Err(io("remove", below, errno)),
        }
        let inner = openat(dir, name, DIRECTORY, Mode::empty()).map_err(|errno| io("open", &below, errno))?;
        empty(inner.as_fd(), &below, depth - 1)?;
        unlinkat(dir, name, AtFlags::REMOVEDIR).map_err(|errno| io("remove", below, errno))?;
    }
    Ok(())
}

fn io(op: &'static str, path: impl AsRef<Path>, errno: Errno) -> ContainerError {
    SysError::new(op, path.as_ref().display().to_string(), errno.raw_os_error()).into()
}

/// The same for an error of the standard library; one without a number comes from no system call.
fn io_error(op: &'static str, path: impl AsRef<Path>, error: &std::io::Error) -> ContainerError {
    io(op, path, error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;
    use crate::container::{Beginning, Identity};

    fn root() -> (tempfile::TempDir, StateRoot) {
        let dir = tempfile::tempdir().expect("a directory");
        let root = StateRoot::create(&dir.path().join("deep/root")).expect("a root");
        (dir, root)
    }

    fn id(text: &str) -> Id {
        text.parse().expect("an id")
    }

    fn state(container: &Id) -> State {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let spec = oci_spec::runtime::Spec::default();
        let mut state = State::begin(Beginning {
            spec: &spec,
            id: container.as_str(),
            bundle: Path::new("/bundle"),
            rootfs: "/bundle/rootfs".into(),
            init: Identity::of(own).expect("this process"),
            cgroup: None,
        })
        .expect("a state");
        state.ready = true;
        state
    }

    #[test]
    fn c19_one_of_many_gets_the_id() {
        let (_dir, root) = root();
        let winners: usize = std::thread::scope(|scope| {
            let tries: Vec<_> = (0..8).map(|_| scope.spawn(|| usize::from(root.add(&id("same")).is_ok()))).collect();
            tries.into_iter().map(|thread| thread.join().expect("a thread")).sum()
        });
        assert_eq!(winners, 1);
        assert!(matches!(root.add(&id("same")), Err(ContainerError::Exists { .. })));
    }

    #[test]
    fn a32_directories_and_files_are_private() {
        let (_dir, root) = root();
        let container = root.add(&id("a")).expect("add");
        let lock = container.lock().expect("lock");
        lock.publish(&state(container.id())).expect("publish");
        lock.save_config(b"{}").expect("save");
        for (path, mode) in [
            (root.path().to_owned(), 0o700),
            (container.path().to_owned(), 0o700),
            (container.path().join(STATE), 0o600),
            (container.path().join(CONFIG), 0o600),
        ] {
            assert_eq!(fs_err::metadata(&path).expect("stat").mode() & 0o7777, mode, "{}", path.display());
        }
    }

    #[test]
    fn status_follows_lock_process_and_gate() {
        let (_dir, root) = root();
        let container = root.add(&id("a")).expect("add");
        assert_eq!(container.status(None).expect("status"), Status::Stopped, "nobody is making it");
        let lock = container.lock().expect("lock");
        assert_eq!(container.status(None).expect("status"), Status::Creating);
        let mut state = state(container.id());
        state.ready = false;
        lock.publish(&state).expect("publish");
        let read = container.state().expect("read").expect("there");
        assert_eq!(container.status(Some(&read)).expect("status"), Status::Creating, "not ready");
        state.ready = true;
        lock.publish(&state).expect("publish");
        fs_err::write(container.gate(), "").expect("a gate");
        let read = container.state().expect("read").expect("there");
        assert_eq!(read.annotations, state.annotations);
        assert_eq!(container.status(Some(&read)).expect("status"), Status::Created);
        fs_err::remove_file(container.gate()).expect("open the gate");
        assert_eq!(container.status(Some(&read)).expect("status"), Status::Running);
        state.init.start_ticks += 1;
        lock.publish(&state).expect("publish");
        let read = container.state().expect("read").expect("there");
        assert_eq!(container.status(Some(&read)).expect("status"), Status::Stopped, "F14");
    }

    #[test]
    fn f15_an_empty_state_is_a_container_of_the_boot_before() {
        let (_dir, root) = root();
        let container = root.add(&id("a")).expect("add");
        fs_err::write(container.path().join(STATE), "").expect("an empty file");
        let state = container.state().expect("read");
        assert_eq!(container.status(state.as_ref()).expect("status"), Status::Stopped);
        fs_err::write(container.path().join(STATE), "{").expect("half a file");
        assert!(matches!(container.state(), Err(ContainerError::Damaged { .. })));
    }

    #[test]
    fn remove_follows_nothing() {
        let (dir, root) = root();
        let canary = dir.path().join("canary");
        fs_err::create_dir(&canary).expect("canary");
        fs_err::write(canary.join("file"), "kept").expect("canary");
        let container = root.add(&id("a")).expect("add");
        symlink(&canary, container.path().join("link")).expect("link");
        fs_err::create_dir(container.path().join("sub")).expect("sub");
        symlink("../..", container.path().join("sub/up")).expect("link");
        container.lock().expect("lock").remove().expect("remove");
        assert!(canary.join("file").exists());
        assert!(matches!(root.get(&id("a")), Err(ContainerError::Missing { .. })));
        assert!(root.ids().expect("ids").is_empty());
    }

    #[test]
    fn links_are_not_followed() {
        let (dir, root) = root();
        let link = dir.path().join("link");
        symlink(root.path(), &link).expect("link");
        assert!(StateRoot::open(&link).is_err(), "the root itself");
        symlink(dir.path(), root.path().join("evil")).expect("link");
        assert!(root.get(&id("evil")).is_err(), "a container");
        let container = root.add(&id("a")).expect("add");
        symlink("/etc/passwd", container.path().join(STATE)).expect("link");
        assert!(container.state().is_err(), "a state");
    }

    #[test]
    fn a_foreign_root_is_refused() {
        let (_dir, root) = root();
        let own = root.owner().0;
        assert!(root.require_owner(own).is_ok());
        assert!(matches!(root.require_owner(own + 1), Err(ContainerError::Foreign { .. })));
        for (mode, trusted) in [(0o777, false), (0o720, false), (0o702, false), (0o755, true)] {
            let permissions = std::fs::Permissions::from_mode(mode);
            fs_err::set_permissions(root.path(), permissions).expect("chmod");
            let again = StateRoot::open(root.path()).expect("open").expect("there");
            assert_eq!(again.require_owner(own).is_ok(), trusted, "{mode:o}");
        }
    }
}
