//! How much a container may write: what was asked, who enforces it, and what is used.
//!
//! A backend is chosen when the container is made and written into its record; every start uses the same.
//! A limit is never weakened silently: without a backend that holds, `--disk` is an error. Each backend is a file:
//!
//! | backend | what is limited | who can |
//! |---|---|---|
//! | `project` | a directory's project on ext4 or XFS | who was given limits once (`coracle quota setup`) |
//! | `btrfs`   | a subvolume's quota group | the same |
//! | `tmpfs`   | memory, gone with the container | `--rm`, where it fits |
//! | `fuse`    | everything that goes through our filesystem | everybody |
//! | `watch`   | nothing: a container that wrote too much is killed | `--limits=best-effort` |
//!
//! What a container under the `fuse` backend sees other than on overlayfs alone (`tests/quota/fuzz.py` finds nothing
//! else): copy_file_range out of an image's file says EXDEV; a file of which one of several names was taken away may
//! say ESTALE under its others, once they were dropped from the kernel's cache while it is in use, because overlayfs
//! asks FUSE about a name that is gone; a shared mapping that does not fit fails at msync.
//!
//! A node's number is its inode's. What loses its last name keeps one in `disk/orphans` until the kernel forgets it, so
//! a number never means two things and a new server finds everything by walking the tree. Anonymous volumes are
//! further directories at the top of the same filesystem.

mod administrator;
mod choice;
mod directories;
mod grammar;
mod project;
mod proof;
mod report;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use administrator::{Filesystem, Place, Setup, places, plan, setup, used_slots};
pub use choice::{Offer, Wanted, choose, choose_for_volume, is_likely, offers};
pub use directories::{Charge, charge, make_directories, move_volumes, moved, own_volumes, start, start_volume};
pub use grammar::{DiskAsk, DiskSize};
pub use report::{DiskUsage, usage, usage_at_hand, volume_usage};

use super::size::SizeError;

/// Is what a container or a volume was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskLimit {
    pub bytes: u64,
    pub inodes: u64,
    pub backend: Backend,
    /// The project or the quota group's number, where the filesystem keeps the limit.
    #[serde(default)]
    pub slot: Option<u64>,
}

/// Names who enforces a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// A project quota of ext4 or XFS.
    Project,
    /// A quota group of btrfs.
    Btrfs,
    /// A filesystem in memory.
    Tmpfs,
    /// Our own filesystem below overlayfs.
    Fuse,
    /// Nobody: who writes too much is killed.
    Watch,
}

impl Backend {
    /// Those that hold, in the order in which they are tried.
    pub const HARD: [Self; 4] = [Self::Project, Self::Btrfs, Self::Tmpfs, Self::Fuse];

    pub fn word(self) -> &'static str {
        match self {
            Self::Project => "project",
            Self::Btrfs => "btrfs",
            Self::Tmpfs => "tmpfs",
            Self::Fuse => "fuse",
            Self::Watch => "watch",
        }
    }

    fn named(word: &str) -> Option<Self> {
        [Self::Project, Self::Btrfs, Self::Tmpfs, Self::Fuse, Self::Watch].into_iter().find(|one| one.word() == word)
    }

    /// Says whether a write beyond the limit fails, whatever the container does.
    pub fn is_hard(self) -> bool {
        self != Self::Watch
    }

    /// Says whether overlayfs' upper directory is mounted at each start.
    fn is_mounted(self) -> bool {
        matches!(self, Self::Tmpfs | Self::Fuse)
    }
}

/// Says what is wrong with a limit.
#[derive(Debug, thiserror::Error)]
pub enum QuotaError {
    #[error("invalid disk limit {text:?}: expected SIZE[,inodes=N][,backend=NAME], at least 1m")]
    Syntax { text: String },
    #[error(transparent)]
    Size(#[from] SizeError),
    #[error("nothing on this host holds that disk limit ({})", reasons(refused))]
    NoBackend { refused: Vec<(Backend, String)> },
    #[error("the disk limit cannot be kept by {}: {reason}", backend.word())]
    Refused { backend: Backend, reason: String },
    #[error("--disk needs an image with layers and overlayfs")]
    NoOverlay,
    #[error("volume {volume} has a limit of its own, so one container at a time can use it")]
    VolumeInUse { volume: String },
    #[error("cannot prepare {}", path.display())]
    Prepare { path: PathBuf, source: std::io::Error },
    #[error("the disk limit's filesystem did not start: {complaint}")]
    Start { complaint: String },
    #[error("invalid {}", path.display())]
    Configuration { path: PathBuf, source: serde_json::Error },
    #[error("invalid {}", path.display())]
    ConfiguredSize { path: PathBuf, source: Box<QuotaError> },
    #[error("{} is {found}: disk limits are set up on ext4, xfs and btrfs", path.display())]
    OtherFilesystem { path: PathBuf, found: String },
    #[error("{} keeps no project quota; as root: {fix}", path.display())]
    NotEnabled { path: PathBuf, fix: String },
}

impl QuotaError {
    fn io(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Prepare { path, source }
    }

    /// Says what a person can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoBackend { .. } | Self::Refused { .. } => Some(
                "coracle info shows what each backend lacks: access to /dev/fuse is enough; an administrator can run \
                 coracle quota setup once; --limits=best-effort kills a container that wrote too much"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

fn reasons(refused: &[(Backend, String)]) -> String {
    let each = refused.iter().map(|(backend, reason)| format!("{}: {reason}", backend.word()));
    each.collect::<Vec<_>>().join("; ")
}
