//! Where the state of containers is, and as whom it may be touched.
//!
//! Slurm runs `run` as the user and `state`, `kill` and `delete` as root, with `--root=/run/coracle/%u`
//! for both (slurm.md). So root may be asked to work in a directory that belongs to somebody else;
//! then it becomes that user before it looks at anything inside.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use coracle_runtime::container::{Container, ContainerError, Id, StateRoot};
use nix::unistd::{Gid, Uid, setegid, seteuid, setgroups};

use super::error::OciError;
use crate::env;

/// The directory below the runtime directories of root and of users.
const NAME: &str = "coracle-oci";
const ROOT_RUNTIME_DIR: &str = "/run";
const XDG_RUNTIME_DIR: &str = "XDG_RUNTIME_DIR";
const PASSWD: &str = "/etc/passwd";
const ROOT_UID: u32 = 0;
/// Bytes of a line of /etc/passwd before the name ends are few; the whole file is bounded (A28).
const PASSWD_BYTES_MAX: usize = 1 << 20;

/// Is the directory in which one command looks for containers.
pub struct Place {
    given: Option<PathBuf>,
}

impl Place {
    /// Takes what `--root` says.
    pub fn new(given: Option<PathBuf>) -> Self {
        Self { given }
    }

    /// Opens the directory for new containers; it must be ours alone.
    pub fn make(&self) -> Result<StateRoot, OciError> {
        let path = self.path()?;
        let root = StateRoot::create(&path)?;
        root.require_owner(own_uid())?;
        Ok(root)
    }

    /// Opens the directory of existing containers; `None` when there is none yet.
    pub fn open(&self) -> Result<Option<StateRoot>, OciError> {
        let path = self.path()?;
        let Some(root) = StateRoot::open(&path)? else {
            return Ok(None);
        };
        let (owner, group) = root.owner();
        if own_uid() == ROOT_UID && owner != ROOT_UID {
            root.require_owner(owner)?;
            check_name(&path, owner)?;
            become_owner(&path, owner, group)?;
        } else {
            root.require_owner(own_uid())?;
        }
        Ok(Some(root))
    }

    /// Opens one existing container.
    pub fn container(&self, id: &Id) -> Result<Container, OciError> {
        match self.open()? {
            Some(root) => Ok(root.get(id)?),
            None => Err(ContainerError::Missing { id: id.clone() }.into()),
        }
    }

    fn path(&self) -> Result<PathBuf, OciError> {
        if let Some(given) = &self.given {
            return std::path::absolute(given).map_err(|error| OciError::file("find", given, &error));
        }
        let runtime_dir = env::value(XDG_RUNTIME_DIR).map(PathBuf::from).filter(|path| path.is_absolute());
        if own_uid() == ROOT_UID && (runtime_dir.is_none() || owns_the_host()) {
            return Ok(Path::new(ROOT_RUNTIME_DIR).join(NAME));
        }
        match runtime_dir {
            Some(dir) => Ok(dir.join(NAME)),
            None => in_tmp(),
        }
    }
}

/// Makes a directory of our own in /tmp, for sessions without a runtime directory.
fn in_tmp() -> Result<PathBuf, OciError> {
    let path = PathBuf::from(format!("/tmp/{NAME}-{}", own_uid()));
    match std::fs::DirBuilder::new().mode(0o700).create(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(_) => return Err(OciError::NoStateDirectory),
    }
    // Whoever made it first, it must be ours, not a link, and closed to others.
    match StateRoot::open(&path)? {
        Some(root) => root.require_owner(own_uid())?,
        None => return Err(OciError::NoStateDirectory),
    }
    Ok(path)
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Says whether our root is the host's root: its id map then covers every id.
fn owns_the_host() -> bool {
    let map = fs_err::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let fields: Vec<&str> = map.split_whitespace().collect();
    fields == ["0", "0", "4294967295"]
}

/// Refuses a directory named after a user whom it does not belong to.
fn check_name(path: &Path, owner: u32) -> Result<(), OciError> {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        return Ok(());
    };
    let text = fs_err::read_to_string(PASSWD).unwrap_or_default();
    let text = text.get(..PASSWD_BYTES_MAX).unwrap_or(&text);
    let mut uids = text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1).and_then(|uid| uid.parse::<u32>().ok())).flatten()
    });
    match uids.next() {
        Some(uid) if uid != owner => Err(OciError::StateOwner { path: path.to_owned(), user: name.to_owned() }),
        _ => Ok(()),
    }
}

/// Gives up root for the owner of the directory, for the rest of this command.
fn become_owner(path: &Path, uid: u32, gid: u32) -> Result<(), OciError> {
    let failed = |source| OciError::Become { path: path.to_owned(), uid, source };
    let gid = Gid::from_raw(gid);
    setgroups(&[gid]).map_err(failed)?;
    setegid(gid).map_err(failed)?;
    seteuid(Uid::from_raw(uid)).map_err(failed)
}
