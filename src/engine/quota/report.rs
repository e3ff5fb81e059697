//! What is used of a limit, for inspect, stats, volumes and the provider.

use std::os::fd::OwnedFd;
use std::path::Path;

use coracle_shim::disk::{Phase, Usage, measure};
use rustix::fs::{FlockOperation, StatVfs, flock, statvfs};
use rustix::io::Errno;
use serde::Serialize;

use super::directories::{BACKING, USAGE_FILE};
use super::{Backend, DiskLimit};
use crate::engine::containers::Container;
use crate::engine::elsewhere;
use crate::engine::volumes::Volume;

/// Is what is said about a container's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct DiskUsage {
    pub backend: &'static str,
    /// A write beyond the limit fails, whatever the container does.
    pub hard: bool,
    pub limit_bytes: u64,
    pub limit_inodes: u64,
    /// Absent until the first start, and where nobody can tell.
    pub used_bytes: Option<u64>,
    pub used_inodes: Option<u64>,
    /// How many servers of the filesystem died and were replaced in the latest run.
    pub takeovers: u32,
    /// The filesystem is lost: the container gets errors until its next start.
    pub lost: bool,
    /// The container was killed because it had written more than a soft limit.
    pub exceeded: bool,
}

impl DiskUsage {
    fn new(limit: &DiskLimit, used: Option<(u64, u64)>) -> Self {
        Self {
            backend: limit.backend.word(),
            hard: limit.backend.is_hard(),
            limit_bytes: limit.bytes,
            limit_inodes: limit.inodes,
            used_bytes: used.map(|(bytes, _)| bytes),
            used_inodes: used.map(|(_, inodes)| inodes),
            takeovers: 0,
            lost: false,
            exceeded: false,
        }
    }
}

/// Tells what is used of a container's limit, if it has one.
pub fn usage(container: &Container) -> Option<DiskUsage> {
    let limit = container.record.disk.as_ref()?;
    match limit.backend {
        Backend::Btrfs => Some(DiskUsage::new(limit, counted(container, &container.path.join(BACKING)))),
        _ => usage_at_hand(container),
    }
}

/// Tells it without another process, for callers with threads: of btrfs only the limit.
pub fn usage_at_hand(container: &Container) -> Option<DiskUsage> {
    let limit = container.record.disk.as_ref()?;
    let backing = container.path.join(BACKING);
    Some(match limit.backend {
        Backend::Fuse | Backend::Watch => served(limit, &container.path.join(USAGE_FILE)),
        // It shows the project's, because the directory passes its project on.
        Backend::Project => DiskUsage::new(limit, statvfs(&backing).ok().map(|stat| shown(&stat))),
        Backend::Tmpfs => DiskUsage::new(limit, in_memory(container.pid())),
        Backend::Btrfs => DiskUsage::new(limit, None),
    })
}

/// Tells what is used of a volume's own limit, if it has one.
pub fn volume_usage(volume: &Volume) -> Option<DiskUsage> {
    let limit = volume.record.disk.as_ref()?;
    Some(match limit.backend {
        Backend::Project => DiskUsage::new(limit, statvfs(volume.path()).ok().map(|stat| shown(&stat))),
        _ => served(limit, &volume.path().join(USAGE_FILE)),
    })
}

fn served(limit: &DiskLimit, file: &Path) -> DiskUsage {
    let used = Usage::read(file);
    let phase = used.map(|used| used.phase);
    DiskUsage {
        takeovers: used.map_or(0, |used| used.takeovers),
        lost: phase == Some(Phase::Lost)
            || (limit.backend == Backend::Fuse && phase == Some(Phase::Serving) && !is_served(file)),
        exceeded: phase == Some(Phase::Exceeded),
        ..DiskUsage::new(limit, used.map(|used| (used.used_bytes, used.used_inodes)))
    }
}

fn shown(stat: &StatVfs) -> (u64, u64) {
    (
        stat.f_blocks.saturating_sub(stat.f_bfree).saturating_mul(stat.f_frsize),
        stat.f_files.saturating_sub(stat.f_ffree),
    )
}

/// Asks the root of a running container, whose statfs(2) is its upper directory's.
fn in_memory(pid: i32) -> Option<(u64, u64)> {
    let stat = (pid > 0).then(|| statvfs(format!("/proc/{pid}/root")).ok())??;
    Some(shown(&stat))
}

/// Counts files: btrfs tells nobody but root what a quota group uses.
fn counted(container: &Container, backing: &Path) -> Option<(u64, u64)> {
    let found = elsewhere::call(&container.record.idmap, || {
        let dir: Option<OwnedFd> = fs_err::File::open(backing).ok().map(|file| file.into_file().into());
        let found = measure(dir.as_slice());
        Ok((found.bytes, found.inodes))
    });
    found.ok()
}

/// Says whether a server or its guard lives: they hold a lock on the file.
fn is_served(file: &Path) -> bool {
    let Ok(file) = fs_err::File::open(file) else { return false };
    matches!(flock(&file, FlockOperation::NonBlockingLockShared), Err(Errno::WOULDBLOCK))
}
