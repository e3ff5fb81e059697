//! What a limit is in a container's directory.
//!
//! ```text
//! containers/<id>/disk/      upper, work and orphans: what is charged, ordinary directories
//! containers/<id>/quota/     where `fuse` and `tmpfs` are mounted, in the container's mount namespace alone
//! containers/<id>/quota<n>/  where a named volume with a limit of its own is
//! containers/<id>/usage      what is used, kept up to date by the filesystem's server
//! volumes/<name>/limit/      what our filesystem keeps for a volume with a limit of its own; `usage` beside it
//! ```
//! The record names the directories under `disk`, so `diff`, `commit`, `rm` and a `cp` of a container that
//! does not run need no filesystem of ours.

use std::path::{Path, PathBuf};

use coracle_runtime::{Rootfs, quota};
use coracle_shim::disk::{self, Disk, DiskOptions, Kind};
use oci_spec::runtime::Spec;

use super::{Backend, DiskLimit, QuotaError, project};
use crate::engine::EngineError;
use crate::engine::container::ContainerDir;
use crate::engine::record::Record;
use crate::engine::volumes::{self, Volume};

/// Where what is charged lies in a container's directory.
pub const BACKING: &str = "disk";
/// Where a filesystem is mounted.
const MOUNT_POINT: &str = "quota";
/// Where its server writes down what is used.
pub const USAGE_FILE: &str = "usage";
/// A volume's part for our filesystem.
const VOLUME_BACKING: &str = "limit";

/// Makes the directories of a limited container; gives its upper and work directories.
pub fn make_directories(
    root: &Path,
    directory: &ContainerDir,
    limit: &mut DiskLimit,
) -> Result<(PathBuf, PathBuf), EngineError> {
    if limit.backend == Backend::Btrfs {
        limit.slot = Some(project::claim_group(root, &directory.path, BACKING, limit)?);
    }
    let backing = directory.make_dir(BACKING, 0o700)?;
    if limit.backend == Backend::Project {
        // The user keeps the claim by having the directory.
        limit.slot = Some(project::claim(root, &backing, &[&directory.path], limit)?);
    }
    if limit.backend.is_mounted() {
        directory.make_dir(MOUNT_POINT, 0o700)?;
    }
    let below = |name: &str, mode| directory.make_dir(&format!("{BACKING}/{name}"), mode);
    if limit.backend == Backend::Fuse {
        below(&disk::ORPHANS.to_string_lossy(), 0o700)?;
    }
    Ok((below("upper", 0o755)?, below("work", 0o700)?))
}

/// Says what a volume's room is taken from.
#[derive(Debug, Clone, Copy)]
pub enum Charge<'a> {
    /// From nothing: it has no limit.
    Nothing,
    /// From the limit of its container.
    Container(&'a DiskLimit),
    /// It has a limit of its own.
    Own(&'a DiskLimit),
}

/// Prepares the directory of a new volume, which is empty, for its limit; `holder` is where it will be.
pub fn charge(root: &Path, draft: &Path, holder: &Path, charge: Charge<'_>) -> Result<Option<DiskLimit>, QuotaError> {
    match charge {
        Charge::Container(DiskLimit { backend: Backend::Project, slot: Some(slot), .. }) => {
            let file = fs_err::File::open(draft).map_err(QuotaError::io(draft))?;
            let project = u32::try_from(*slot).unwrap_or(u32::MAX);
            quota::set_project(&file, project).map_err(|errno| QuotaError::io(draft)(errno.into()))?;
            Ok(None)
        }
        Charge::Nothing | Charge::Container(_) => Ok(None),
        Charge::Own(limit) if limit.backend == Backend::Project => {
            let slot = Some(project::claim(root, draft, &[draft, holder], limit)?);
            Ok(Some(DiskLimit { slot, ..limit.clone() }))
        }
        Charge::Own(limit) => {
            let backing = draft.join(VOLUME_BACKING);
            for path in [&backing, &backing.join(disk::ORPHANS.to_string_lossy().as_ref())] {
                fs_err::create_dir(path).map_err(QuotaError::io(path))?;
            }
            Ok(Some(limit.clone()))
        }
    }
}

/// Gives the root filesystem as a launch mounts it: on the limited filesystem, where there is one.
pub fn moved(directory: &Path, limit: &DiskLimit, rootfs: &Rootfs) -> Result<Rootfs, QuotaError> {
    let (backing, mounted) = (directory.join(BACKING), directory.join(MOUNT_POINT));
    let through = |path: &Path| path.strip_prefix(&backing).map(|rest| mounted.join(rest));
    match rootfs {
        Rootfs::Overlay { .. } if !limit.backend.is_mounted() => Ok(rootfs.clone()),
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

/// Has a launch mount the container's own volumes from the limited filesystem, where there is one.
pub fn move_volumes(directory: &Path, limit: &DiskLimit, spec: &mut Spec, volumes: &[PathBuf]) {
    if limit.backend != Backend::Fuse {
        return;
    }
    for (number, volume) in volumes.iter().enumerate() {
        let at = directory.join(MOUNT_POINT).join(disk::volume_name(number));
        for mount in spec.mounts_mut().iter_mut().flatten().filter(|mount| mount.source().as_ref() == Some(volume)) {
            mount.set_source(Some(at.clone()));
        }
    }
}

/// Starts what keeps the limit of a container whose first process waits; nothing where the filesystem does.
pub fn start(directory: &Path, limit: &DiskLimit, volumes: &[PathBuf], pid: i32) -> Result<Option<Disk>, QuotaError> {
    let kind = match limit.backend {
        Backend::Project | Backend::Btrfs => return Ok(None),
        Backend::Fuse => Kind::Passthrough,
        Backend::Tmpfs => Kind::Memory,
        Backend::Watch => Kind::Watch,
    };
    let options = DiskOptions {
        kind,
        backing: directory.join(BACKING),
        mount_point: directory.join(MOUNT_POINT),
        volumes: volumes.to_vec(),
        usage: directory.join(USAGE_FILE),
        limit_bytes: limit.bytes,
        limit_inodes: limit.inodes,
    };
    let disk = begin(&options, pid)?;
    if kind == Kind::Memory {
        // It needs nobody once it is mounted.
        disk.finish();
        return Ok(None);
    }
    Ok(Some(disk))
}

/// Is a volume with a limit of its own, on its way into a container.
pub struct LimitedVolume {
    volume: Volume,
    mount_point: PathBuf,
}

/// Finds the volumes of a container that our filesystem limits, and has a launch mount them from it.
pub fn start_volume(
    root: &Path,
    directory: &ContainerDir,
    record: &Record,
    spec: &mut std::borrow::Cow<'_, Spec>,
) -> Result<Vec<LimitedVolume>, EngineError> {
    let mut found = Vec::new();
    for mount in record.mounts.iter().filter(|mount| mount.kind == "volume") {
        let Some(name) = &mount.name else { continue };
        let Some(volume) = volumes::find(root, name)? else { continue };
        if volume.record.disk.as_ref().is_none_or(|limit| limit.backend != Backend::Fuse) {
            continue;
        }
        let mount_point = directory.make_dir(&format!("{MOUNT_POINT}{}", found.len()), 0o700)?;
        let at = mount_point.join(disk::volume_name(0));
        for inside in spec.to_mut().mounts_mut().iter_mut().flatten() {
            if inside.source().as_ref() == Some(&volume.data()) {
                inside.set_source(Some(at.clone()));
            }
        }
        found.push(LimitedVolume { volume, mount_point });
    }
    Ok(found)
}

impl LimitedVolume {
    /// Starts its filesystem for a container whose first process waits.
    pub fn start(&self, pid: i32) -> Result<Option<Disk>, QuotaError> {
        let Some(limit) = &self.volume.record.disk else { return Ok(None) };
        let options = DiskOptions {
            kind: Kind::Passthrough,
            backing: self.volume.path().join(VOLUME_BACKING),
            mount_point: self.mount_point.clone(),
            volumes: vec![self.volume.data()],
            usage: self.volume.path().join(USAGE_FILE),
            limit_bytes: limit.bytes,
            limit_inodes: limit.inodes,
        };
        match begin(&options, pid) {
            Err(QuotaError::Start { complaint }) if complaint == disk::IN_USE => {
                Err(QuotaError::VolumeInUse { volume: self.volume.record.name.clone() })
            }
            other => other.map(Some),
        }
    }
}

fn begin(options: &DiskOptions, pid: i32) -> Result<Disk, QuotaError> {
    match Disk::start(options, pid) {
        Ok(Ok(disk)) => Ok(disk),
        Ok(Err(complaint)) => Err(QuotaError::Start { complaint }),
        Err(source) => Err(QuotaError::Prepare { path: options.backing.clone(), source }),
    }
}
