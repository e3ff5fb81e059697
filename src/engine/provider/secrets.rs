//! Secrets of instances on this machine: files in memory that only their container's own user reads (S30).
//!
//! A value is written here and nowhere else: not into the ledger, the container's record, an argument or a log. The
//! files go with the allocation, and with a reboot.

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use coracle_scheduler::model::{Delivered, InstanceSpec};
use fs_err::os::unix::fs::OpenOptionsExt;

use super::{Key, container_name};
use crate::env;

/// statfs(2): the filesystem that is memory.
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// Gives the directory of an allocation's secrets; None where no place is in memory.
pub fn folder(root: &Path, key: Key) -> Option<PathBuf> {
    Some(all(root)?.join(container_name(key)))
}

/// Gives the directory of all secrets of a state directory.
fn all(root: &Path) -> Option<PathBuf> {
    // Two state directories of one user keep apart.
    let stat = fs_err::metadata(root).ok()?;
    let own = rustix::process::geteuid().as_raw();
    let places = [env::value("XDG_RUNTIME_DIR").map(PathBuf::from), Some(PathBuf::from("/dev/shm"))];
    let in_memory = |place: &PathBuf| rustix::fs::statfs(place).is_ok_and(|stat| stat.f_type == TMPFS_MAGIC);
    let place = places.into_iter().flatten().find(in_memory)?;
    Some(place.join(format!("coracle-secrets-{own}-{:x}-{:x}", stat.dev(), stat.ino())))
}

/// Makes a directory that is nobody else's.
fn make(path: &Path) -> std::io::Result<()> {
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let stat = fs_err::symlink_metadata(path)?;
    if stat.is_dir() && stat.uid() == rustix::process::geteuid().as_raw() && stat.mode() & 0o077 == 0 {
        return Ok(());
    }
    Err(std::io::Error::other(format!("{} belongs to somebody else", path.display())))
}

/// Keeps an allocation's secrets, numbered as its spec lists them.
pub fn keep(root: &Path, key: Key, secrets: &[Delivered]) -> Result<(), String> {
    if let Some(name) = secrets.iter().find_map(|secret| secret.env.as_ref()) {
        return Err(format!("this provider gives secrets as files, not as the variable {name}"));
    }
    if secrets.is_empty() {
        return Ok(());
    }
    if secrets.iter().any(|secret| secret.file.as_ref().is_some_and(|file| file.contains(':'))) {
        return Err("the path of a secret has no colon".to_owned());
    }
    let all = all(root).ok_or("this provider has no place in memory for secrets")?;
    let write = || {
        make(&all)?;
        let folder = all.join(container_name(key));
        make(&folder)?;
        for (number, secret) in secrets.iter().enumerate() {
            let path = folder.join(number.to_string());
            let _ = fs_err::remove_file(&path);
            let mut file = fs_err::OpenOptions::new().write(true).create_new(true).mode(0o400).open(path)?;
            file.write_all(secret.value.expose().as_bytes())?;
        }
        Ok(())
    };
    write().map_err(|error: std::io::Error| error.to_string())
}

/// Tells whether what its spec asks for is gone: the machine was booted anew.
pub fn are_lost(root: &Path, key: Key, spec: &InstanceSpec) -> bool {
    !spec.secrets.is_empty() && !folder(root, key).is_some_and(|place| place.exists())
}

/// Keeps an allocation's secrets once more if they are gone, and tells whether it has them.
pub fn restore(root: &Path, key: Key, spec: &InstanceSpec, given: &[Delivered]) -> bool {
    !are_lost(root, key, spec) || (given.len() == spec.secrets.len() && keep(root, key, given).is_ok())
}

/// Forgets an allocation's secrets.
pub fn forget(root: &Path, key: Key) {
    if let Some(folder) = folder(root, key) {
        let _ = fs_err::remove_dir_all(&folder);
        // The last one takes the place with it.
        let _ = folder.parent().map(fs_err::remove_dir);
    }
}

/// Forgets everybody's.
pub fn forget_all(root: &Path) {
    if let Some(all) = all(root) {
        let _ = fs_err::remove_dir_all(all);
    }
}
