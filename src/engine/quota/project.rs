//! Limits that the filesystem itself keeps: project quotas of ext4 and XFS, quota groups of btrfs.
//!
//! An administrator set limits once; a user picks one that is free. On XFS any project has the default limit, so a
//! random number is a project of one's own. On ext4 and btrfs numbers were handed out (`administrator.rs`): a *slot* is
//! claimed by a file in a directory of the user's, and free again when what claimed it is gone.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use coracle_runtime::quota;
use fs_err::File;
use rustix::fs::{FallocateFlags, StatVfs, fallocate, fstatvfs};
use rustix::io::Errno;

use super::administrator::{self, Filesystem, Place};
use super::{Backend, DiskLimit, DiskSize, QuotaError, proof};
use crate::report::chain;

/// Random projects of XFS: far from numbers that people give.
const RANDOM_FIRST: u32 = 1 << 30;
/// A random number that is taken is as good as impossible.
const RANDOM_ATTEMPTS_MAX: usize = 8;
/// What an empty directory may be charged.
const EMPTY_BYTES_MAX: u64 = 256 * 1024;
/// How much more than the limit is asked for in a trial.
const BEYOND_BYTES: u64 = 1 << 20;

/// Is a size that can be had here: bytes and inodes.
pub type Offered = (u64, u64);

/// Gives the inodes that a project of this size has.
pub fn offer(root: &Path, size: &DiskSize) -> Result<u64, String> {
    pick(&sizes(root, Backend::Project)?, size)
}

/// Says whether there is a quota group of this size. It limits no inodes.
pub fn offer_group(root: &Path, size: &DiskSize) -> Result<(), String> {
    if size.inodes.is_some() {
        return Err("btrfs limits no inodes".to_owned());
    }
    pick(&sizes(root, Backend::Btrfs)?, size).map(drop)
}

fn pick(sizes: &[Offered], size: &DiskSize) -> Result<u64, String> {
    let fits = |(bytes, inodes): &&Offered| *bytes == size.bytes && size.inodes.is_none_or(|wanted| wanted == *inodes);
    sizes.iter().find(fits).map(|(_, inodes)| *inodes).ok_or_else(|| {
        let all: Vec<String> = sizes.iter().map(|(bytes, inodes)| format!("{bytes},inodes={inodes}")).collect();
        format!("it was set up for other sizes: {}", all.join(" and "))
    })
}

/// Lists the sizes that a backend has at the state directory, or says why there are none.
pub fn sizes(root: &Path, backend: Backend) -> Result<Vec<Offered>, String> {
    let filesystem = administrator::filesystem(root).map_err(|error| chain(&error))?;
    let places = || -> Result<Vec<Offered>, String> {
        let places = administrator::own_places(root).map_err(|error| chain(&error))?;
        let sizes: Vec<_> = places.iter().map(|place| (place.bytes, place.inodes)).collect();
        if sizes.is_empty() { Err("no slots were set up (coracle quota setup)".to_owned()) } else { Ok(sizes) }
    };
    match (backend, filesystem) {
        (Backend::Project, Some(Filesystem::Xfs)) => xfs_default(root).map(|offered| vec![offered]),
        (Backend::Project, Some(Filesystem::Ext4)) | (Backend::Btrfs, Some(Filesystem::Btrfs)) => places(),
        (Backend::Btrfs, _) => Err("the state directory is not on btrfs".to_owned()),
        _ => Err("the state directory is on neither ext4 nor xfs".to_owned()),
    }
}

/// Looks at the limit that a project has for which nobody set any.
fn xfs_default(root: &Path) -> Result<Offered, String> {
    let place = proof::scratch(root).map_err(|error| chain(&error))?;
    let found = random_project(&place).map(|(_, stat)| stat);
    let _ = fs_err::remove_dir(&place);
    let found = found.map_err(|error| chain(&error))?;
    let whole = whole(root).map_err(|error| chain(&error))?;
    if found.f_blocks >= whole.f_blocks {
        return Err("no default limit for projects was set (coracle quota setup)".to_owned());
    }
    Ok((found.f_blocks.saturating_mul(found.f_frsize), found.f_files))
}

fn whole(root: &Path) -> Result<StatVfs, QuotaError> {
    rustix::fs::statvfs(root).map_err(|errno| QuotaError::io(root)(errno.into()))
}

/// Gives an empty directory a project that nobody has; gives it and what it shows.
fn random_project(dir: &Path) -> Result<(u32, StatVfs), QuotaError> {
    let failed = |errno: Errno| QuotaError::io(dir)(errno.into());
    let file = File::open(dir).map_err(QuotaError::io(dir))?;
    for _ in 0..RANDOM_ATTEMPTS_MAX {
        let mut bytes = [0; 4];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).map_err(failed)?;
        let project = RANDOM_FIRST | (u32::from_ne_bytes(bytes) % RANDOM_FIRST);
        quota::set_project(&file, project).map_err(failed)?;
        let stat = fstatvfs(&file).map_err(failed)?;
        if used_bytes(&stat) <= EMPTY_BYTES_MAX || stat.f_blocks == whole(dir)?.f_blocks {
            return Ok((project, stat));
        }
    }
    Err(failed(Errno::BUSY))
}

fn used_bytes(stat: &StatVfs) -> u64 {
    stat.f_blocks.saturating_sub(stat.f_bfree).saturating_mul(stat.f_frsize)
}

/// Gives a directory, and what will be made in it, to a free project of the limit's size.
///
/// The claim lives as long as one of `holders`. That a write beyond the limit fails is tried here.
pub fn claim(root: &Path, dir: &Path, holders: &[&Path], limit: &DiskLimit) -> Result<u64, QuotaError> {
    let refused = |reason: String| QuotaError::Refused { backend: Backend::Project, reason };
    if administrator::filesystem(root)? == Some(Filesystem::Xfs) {
        let (project, stat) = random_project(dir)?;
        shows(&stat, limit).map_err(refused)?;
        prove(root, dir, limit, "xfs").map_err(refused)?;
        return Ok(project.into());
    }
    let file = File::open(dir).map_err(QuotaError::io(dir))?;
    let mut last = "every slot of this size is in use".to_owned();
    for (place, number) in slots(root, limit)? {
        let Some(claim) = administrator::claim(&place, number, holders)? else { continue };
        let project = u32::try_from(number).map_err(|_| refused(format!("{number} is no project")))?;
        let tried = quota::set_project(&file, project)
            .and_then(|()| fstatvfs(&file))
            .map_err(|errno| chain(&errno))
            .and_then(|stat| shows(&stat, limit))
            .and_then(|()| prove(root, dir, limit, &number.to_string()));
        match tried {
            Ok(()) => return Ok(number),
            Err(reason) => last = reason,
        }
        claim.give_back();
    }
    Err(refused(last))
}

/// Makes a subvolume of this name in a free quota group.
pub fn claim_group(root: &Path, parent: &Path, name: &str, limit: &DiskLimit) -> Result<u64, QuotaError> {
    let refused = |reason: String| QuotaError::Refused { backend: Backend::Btrfs, reason };
    let file = File::open(parent).map_err(QuotaError::io(parent))?;
    let mut last = "every slot of this size is in use".to_owned();
    for (place, number) in slots(root, limit)? {
        let Some(claim) = administrator::claim(&place, number, &[parent])? else { continue };
        let made = quota::make_subvolume(&file, name, quota::group(1, number))
            .map_err(|errno| chain(&errno))
            .and_then(|()| prove(root, &parent.join(name), limit, &number.to_string()));
        match made {
            Ok(()) => return Ok(number),
            Err(reason) => last = reason,
        }
        let _ = fs_err::remove_dir(parent.join(name));
        claim.give_back();
    }
    Err(refused(last))
}

/// Lists the slots of a limit's size.
fn slots(root: &Path, limit: &DiskLimit) -> Result<Vec<(Place, u64)>, QuotaError> {
    let places = administrator::own_places(root)?;
    let fitting = places.into_iter().filter(|place| {
        place.bytes == limit.bytes && (limit.backend == Backend::Btrfs || place.inodes == limit.inodes)
    });
    Ok(fitting.flat_map(|place| (0..place.count).map(move |at| (place.clone(), place.first + at))).collect())
}

/// Demands that statfs(2) shows the limit, and nothing used of it.
fn shows(stat: &StatVfs, limit: &DiskLimit) -> Result<(), String> {
    let bytes = stat.f_blocks.saturating_mul(stat.f_frsize);
    // It is shown in blocks.
    if bytes > limit.bytes || limit.bytes - bytes >= stat.f_frsize || stat.f_files != limit.inodes {
        return Err(format!("it has {bytes} bytes and {} inodes, not what was asked", stat.f_files));
    }
    let used = used_bytes(stat);
    if used > EMPTY_BYTES_MAX { Err(format!("{used} bytes of a free slot are used")) } else { Ok(()) }
}

/// Demands, once, that more than the limit cannot be allocated in a directory.
fn prove(root: &Path, dir: &Path, limit: &DiskLimit, slot: &str) -> Result<(), String> {
    let what = format!("{} {slot} {}", limit.backend.word(), limit.bytes);
    proof::once(root, &proof::key(root, &what)?, || {
        let whole = whole(root).map_err(|error| chain(&error))?;
        let wanted = limit.bytes + BEYOND_BYTES;
        if whole.f_bavail.saturating_mul(whole.f_frsize) <= wanted + BEYOND_BYTES {
            return Err("the filesystem has not even that much room".to_owned());
        }
        let path: PathBuf = dir.join("trial");
        let file = File::create(&path).map_err(|error| chain(&error))?;
        let result = fallocate(file.as_fd(), FallocateFlags::empty(), 0, wanted);
        fs_err::remove_file(&path).map_err(|error| chain(&error))?;
        match result {
            Err(Errno::DQUOT | Errno::NOSPC) => Ok(()),
            Err(errno) => Err(chain(&errno)),
            Ok(()) => Err("more than the limit could be allocated".to_owned()),
        }
    })
}
