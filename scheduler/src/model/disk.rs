//! How full an allocation's own disk is, and who keeps its limit.
//!
//! A provider's word about its own allocation, for whoever looks: nothing is decided by it, and it is never stored for
//! its own sake.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Resources;

/// Changes of what is used are told in steps of this part of the limit, so that a busy disk does not fill every report.
const STEPS: u64 = 64;

/// Who keeps a disk limit on a provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DiskBackend {
    /// A project quota of ext4 or XFS.
    Project,
    /// A quota group of btrfs.
    Btrfs,
    /// A filesystem in memory.
    Tmpfs,
    /// A filesystem below overlayfs that counts.
    Fuse,
    /// Nobody: who writes too much is killed.
    Watch,
}

/// What a provider says about the disk of one allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskReport {
    /// Who keeps the limit.
    pub backend: DiskBackend,
    /// A write beyond the limit fails, whatever the instance does.
    pub hard: bool,
    /// The limit in bytes.
    pub limit_bytes: u64,
    /// The limit of files and directories.
    pub limit_inodes: u64,
    /// Bytes that are used; absent where nobody can tell.
    #[serde(default)]
    pub used_bytes: Option<u64>,
    /// Files and directories that are there; absent where nobody can tell.
    #[serde(default)]
    pub used_inodes: Option<u64>,
    /// The filesystem is lost: the instance gets errors until it starts again.
    #[serde(default)]
    pub lost: bool,
    /// The instance was killed because it had written more than a soft limit.
    #[serde(default)]
    pub exceeded: bool,
}

impl DiskReport {
    /// Gives it without what cannot be: amounts of no machine, and a limit that is hard although nobody keeps it (S05).
    #[must_use]
    pub fn bounded(self) -> Self {
        let most = |amount: u64| amount.min(Resources::LIMIT);
        Self {
            hard: self.hard && self.backend != DiskBackend::Watch,
            limit_bytes: most(self.limit_bytes),
            limit_inodes: most(self.limit_inodes),
            used_bytes: self.used_bytes.map(most),
            used_inodes: self.used_inodes.map(most),
            ..self
        }
    }

    /// Tells whether this is worth a report after what was told last.
    pub fn is_news(&self, told: &Self) -> bool {
        let moved = |now: Option<u64>, then: Option<u64>, limit: u64| match (now, then) {
            (Some(now), Some(then)) => now.abs_diff(then) > limit / STEPS,
            (now, then) => now != then,
        };
        let same = Self { used_bytes: told.used_bytes, used_inodes: told.used_inodes, ..*self } == *told;
        !same
            || moved(self.used_bytes, told.used_bytes, self.limit_bytes)
            || moved(self.used_inodes, told.used_inodes, self.limit_inodes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: DiskReport = DiskReport {
        backend: DiskBackend::Fuse,
        hard: true,
        limit_bytes: 6400,
        limit_inodes: 640,
        used_bytes: Some(1000),
        used_inodes: Some(10),
        lost: false,
        exceeded: false,
    };

    #[test]
    fn what_cannot_be_is_cut_off() {
        let most = Some(u64::MAX);
        let lie = DiskReport { backend: DiskBackend::Watch, limit_bytes: u64::MAX, used_bytes: most, ..REPORT };
        let shown = lie.bounded();
        assert_eq!((shown.hard, shown.limit_bytes), (false, Resources::LIMIT));
        assert_eq!((shown.used_bytes, shown.used_inodes), (Some(Resources::LIMIT), Some(10)));
        assert_eq!(REPORT.bounded(), REPORT);
    }

    #[test]
    fn a_little_more_is_no_news_and_all_else_is() {
        let check = |report: DiskReport, news: bool| assert_eq!(report.is_news(&REPORT), news, "{report:?}");
        check(REPORT, false);
        check(DiskReport { used_bytes: Some(1100), ..REPORT }, false);
        check(DiskReport { used_bytes: Some(1101), ..REPORT }, true);
        check(DiskReport { used_bytes: Some(800), ..REPORT }, true);
        check(DiskReport { used_inodes: Some(20), ..REPORT }, false);
        check(DiskReport { used_inodes: Some(21), ..REPORT }, true);
        check(DiskReport { used_bytes: None, ..REPORT }, true);
        check(DiskReport { lost: true, ..REPORT }, true);
        check(DiskReport { limit_bytes: 6401, ..REPORT }, true);
    }
}
