//! What the scheduler is told about an allocation's disk.

use coracle_scheduler::model::{DiskBackend, DiskReport};

use crate::engine::containers::Container;
use crate::engine::quota::{self, Backend};

/// Tells how full a container's disk is, if it has a limit.
pub fn report(container: &Container) -> Option<DiskReport> {
    let backend = container.record.disk.as_ref()?.backend;
    let usage = quota::usage_at_hand(container)?;
    Some(DiskReport {
        backend: match backend {
            Backend::Project => DiskBackend::Project,
            Backend::Btrfs => DiskBackend::Btrfs,
            Backend::Tmpfs => DiskBackend::Tmpfs,
            Backend::Fuse => DiskBackend::Fuse,
            Backend::Watch => DiskBackend::Watch,
        },
        hard: usage.hard,
        limit_bytes: usage.limit_bytes,
        limit_inodes: usage.limit_inodes,
        used_bytes: usage.used_bytes,
        used_inodes: usage.used_inodes,
        lost: usage.lost,
        exceeded: usage.exceeded,
    })
}
