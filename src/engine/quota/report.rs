//! What is used of a limit, for inspect, stats and the provider.

use std::path::Path;

use coracle_shim::disk::{Phase, Usage};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::Serialize;

use super::DiskLimit;
use super::fuse::USAGE_FILE;

/// Is what is said about a container's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct DiskUsage {
    pub backend: &'static str,
    /// A write beyond the limit fails, whatever the container does.
    pub hard: bool,
    pub limit_bytes: u64,
    pub limit_inodes: u64,
    /// Absent until the first start.
    pub used_bytes: Option<u64>,
    pub used_inodes: Option<u64>,
    /// How many servers of the filesystem died and were replaced in the latest run.
    pub takeovers: u32,
    /// The filesystem is lost: the container gets errors until its next start.
    pub lost: bool,
}

/// Tells what is used of a container's limit.
pub fn usage(directory: &Path, limit: &DiskLimit) -> DiskUsage {
    let file = directory.join(USAGE_FILE);
    let used = Usage::read(&file);
    DiskUsage {
        backend: limit.backend.word(),
        hard: limit.backend.is_hard(),
        limit_bytes: limit.bytes,
        limit_inodes: limit.inodes,
        used_bytes: used.map(|used| used.used_bytes),
        used_inodes: used.map(|used| used.used_inodes),
        takeovers: used.map_or(0, |used| used.takeovers),
        lost: used.is_some_and(|used| used.phase == Phase::Lost || (used.phase == Phase::Serving && !is_served(&file))),
    }
}

/// Says whether a server or its guard lives: they hold a lock on the file.
fn is_served(file: &Path) -> bool {
    let Ok(file) = fs_err::File::open(file) else { return false };
    matches!(flock(&file, FlockOperation::NonBlockingLockShared), Err(Errno::WOULDBLOCK))
}
