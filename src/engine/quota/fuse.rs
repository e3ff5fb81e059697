//! The `fuse` backend's side of a container's directory.
//!
//! ```text
//! containers/<id>/disk/     upper, work and orphans: what is charged, ordinary directories
//! containers/<id>/quota/    where the filesystem is mounted, in the container's mount namespace alone
//! containers/<id>/usage     what is used, kept up to date by its server
//! ```
//! The record names the directories under `disk`, so `diff`, `commit`, `rm` and a `cp` of a container that
//! does not run need no filesystem of ours.

use std::path::{Path, PathBuf};

use coracle_runtime::Rootfs;
use coracle_shim::disk::{self, Disk, DiskOptions};
use oci_spec::runtime::Spec;

use super::{DiskLimit, QuotaError};
use crate::engine::container::{ContainerDir, ContainerError};
use crate::engine::record::Record;
use crate::engine::volumes;

/// Where what is charged lies in a container's directory.
const BACKING: &str = "disk";
/// Where the filesystem is mounted.
const MOUNT_POINT: &str = "quota";
/// Where its server writes down what is used.
pub(super) const USAGE_FILE: &str = "usage";

/// Makes the directories of a limited container; gives its upper and work directories.
pub fn make_directories(directory: &ContainerDir) -> Result<(PathBuf, PathBuf), ContainerError> {
    directory.make_dir(BACKING, 0o700)?;
    directory.make_dir(MOUNT_POINT, 0o700)?;
    let below = |name: &str, mode| directory.make_dir(&format!("{BACKING}/{name}"), mode);
    below(&disk::ORPHANS.to_string_lossy(), 0o700)?;
    Ok((below("upper", 0o755)?, below("work", 0o700)?))
}

/// Gives the root filesystem as a launch mounts it: on the limited filesystem.
pub fn moved(directory: &Path, rootfs: &Rootfs) -> Result<Rootfs, QuotaError> {
    let (backing, mounted) = (directory.join(BACKING), directory.join(MOUNT_POINT));
    let through = |path: &Path| path.strip_prefix(&backing).map(|rest| mounted.join(rest));
    match rootfs {
        Rootfs::Overlay { lower, upper, work, volatile } => match (through(upper), through(work)) {
            (Ok(upper), Ok(work)) => Ok(Rootfs::Overlay { lower: lower.clone(), upper, work, volatile: *volatile }),
            _ => Err(QuotaError::NoOverlay),
        },
        Rootfs::Directory(_) => Err(QuotaError::NoOverlay),
    }
}

/// Gives the container's own anonymous volumes, which its limit covers.
pub fn own_volumes(root: &Path, record: &Record) -> Vec<PathBuf> {
    let mounts = record.mounts.iter().filter(|mount| mount.kind == "volume");
    let own = mounts.filter_map(|mount| {
        let volume = volumes::find(root, mount.name.as_deref()?).ok()??;
        let owner = volume.record.anonymous_for.as_deref();
        (owner == Some(record.id.as_str())).then(|| mount.source.clone())?
    });
    own.collect()
}

/// Has a launch mount the container's own volumes from the limited filesystem.
pub fn move_volumes(directory: &Path, spec: &mut Spec, volumes: &[PathBuf]) {
    for mount in spec.mounts_mut().iter_mut().flatten() {
        let number = volumes.iter().position(|path| mount.source().as_ref() == Some(path));
        if let Some(number) = number {
            mount.set_source(Some(directory.join(MOUNT_POINT).join(disk::volume_name(number))));
        }
    }
}

/// Mounts the filesystem for a container whose first process waits.
pub fn start(directory: &Path, limit: &DiskLimit, volumes: &[PathBuf], pid: i32) -> Result<Disk, QuotaError> {
    let options = DiskOptions {
        backing: directory.join(BACKING),
        mount_point: directory.join(MOUNT_POINT),
        volumes: volumes.to_vec(),
        usage: directory.join(USAGE_FILE),
        limit_bytes: limit.bytes,
        limit_inodes: limit.inodes,
    };
    match Disk::start(&options, pid) {
        Ok(Ok(disk)) => Ok(disk),
        Ok(Err(complaint)) => Err(QuotaError::Start { complaint }),
        Err(source) => Err(QuotaError::Prepare { path: options.backing, source }),
    }
}
