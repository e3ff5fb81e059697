//! How much a container may write: what was asked, who enforces it, and what is used.
//!
//! A backend is chosen when the container is made and written into its record; every start uses the same.
//! A limit is never weakened silently: without a backend that holds, `--disk` is an error.
//!
//! What a container under the `fuse` backend sees other than on overlayfs alone (`tests/quota/fuzz.py` finds nothing
//! else): copy_file_range out of an image's file says EXDEV; a file of which one of several names was taken away may
//! say ESTALE under its others, once they were dropped from the kernel's cache while it is in use, because overlayfs
//! asks FUSE about a name that is gone; a shared mapping that does not fit fails at msync.
//!
//! A node's number is its inode's. What loses its last name keeps one in `disk/orphans` until the kernel forgets it, so
//! a number never means two things and a new server finds everything by walking the tree. Anonymous volumes are
//! further directories at the top of the same filesystem.

mod choice;
mod fuse;
mod report;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use choice::choose;
pub use fuse::{make_directories, move_volumes, moved, own_volumes, start};
pub use report::usage;

use super::size::{SizeError, parse_size_bytes};

/// Less than this cannot hold what overlayfs itself makes.
const BYTES_MIN: u64 = 1 << 20;
/// One inode for every page of the limit, as nobody needs more, and never fewer than this many.
const INODES_MIN: u64 = 16 * 1024;
const BYTES_PER_INODE: u64 = 4096;

/// Is what a person asks for: `SIZE[,inodes=N]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSize {
    pub bytes: u64,
    pub inodes: Option<u64>,
}

/// Is what a container was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskLimit {
    pub bytes: u64,
    pub inodes: u64,
    pub backend: Backend,
}

/// Names who enforces a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// Our own filesystem below overlayfs.
    Fuse,
}

impl Backend {
    pub fn word(self) -> &'static str {
        match self {
            Self::Fuse => "fuse",
        }
    }

    /// Says whether a write beyond the limit fails, whatever the container does.
    pub fn is_hard(self) -> bool {
        match self {
            Self::Fuse => true,
        }
    }
}

/// Says what is wrong with a limit.
#[derive(Debug, thiserror::Error)]
pub enum QuotaError {
    #[error("invalid disk limit {text:?}: expected SIZE[,inodes=N], at least 1m")]
    Syntax { text: String },
    #[error(transparent)]
    Size(#[from] SizeError),
    #[error("this host cannot limit what a container writes: {reason}")]
    NoBackend { reason: String },
    #[error("--disk needs an image with layers and overlayfs")]
    NoOverlay,
    #[error("cannot prepare {}", path.display())]
    Prepare { path: PathBuf, source: std::io::Error },
    #[error("the disk limit's filesystem did not start: {complaint}")]
    Start { complaint: String },
}

impl std::str::FromStr for DiskSize {
    type Err = QuotaError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = || QuotaError::Syntax { text: text.to_owned() };
        let (size, rest) = text.split_once(',').map_or((text, None), |(size, rest)| (size, Some(rest)));
        let bytes = parse_size_bytes(size)?;
        let inodes = match rest {
            None => None,
            Some(rest) => {
                let number = rest.strip_prefix("inodes=").and_then(|number| number.parse().ok());
                Some(number.filter(|number| *number > 0).ok_or_else(fail)?)
            }
        };
        if bytes < BYTES_MIN {
            return Err(fail());
        }
        Ok(Self { bytes, inodes })
    }
}

impl DiskSize {
    /// Fills in what was not said.
    pub fn with(self, backend: Backend) -> DiskLimit {
        let inodes = self.inodes.unwrap_or_else(|| (self.bytes / BYTES_PER_INODE).max(INODES_MIN));
        DiskLimit { bytes: self.bytes, inodes, backend }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let parse = |text: &str| text.parse::<DiskSize>().ok();
        assert_eq!(parse("64m"), Some(DiskSize { bytes: 64 << 20, inodes: None }));
        assert_eq!(parse("1g,inodes=500"), Some(DiskSize { bytes: 1 << 30, inodes: Some(500) }));
        for bad in ["", "1k", "64m,", "64m,inodes=", "64m,inodes=0", "64m,files=3", "-1", "64m,inodes=5,inodes=6"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn inodes_follow_the_size() {
        let limit = |bytes, inodes| DiskSize { bytes, inodes }.with(Backend::Fuse).inodes;
        assert_eq!(limit(1 << 20, None), 16 * 1024);
        assert_eq!(limit(1 << 30, None), 1 << 18);
        assert_eq!(limit(1 << 30, Some(7)), 7);
    }
}
