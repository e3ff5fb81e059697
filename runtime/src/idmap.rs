//! Which ids of the host stand behind the ids of a container.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One run of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// The first id inside.
    pub container: u32,
    /// The first id of the host.
    pub host: u32,
    /// How many ids follow each other.
    pub size: u32,
}

/// The user and group ids of one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// User ids.
    pub uids: Vec<IdRange>,
    /// Group ids.
    pub gids: Vec<IdRange>,
}

/// How the ids are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UserNs {
    /// Root is the caller, the rest are subordinate ids where the host grants them.
    #[default]
    Auto,
    /// The caller keeps its own number inside.
    KeepId,
    /// Only root, who is the caller.
    Single,
}

/// What the host says about the caller's ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostIds {
    /// The caller's user id.
    pub uid: u32,
    /// The caller's group id.
    pub gid: u32,
    /// The caller's login name.
    pub user: Option<String>,
    /// Subordinate user ids granted: (first, count).
    pub subuids: Vec<(u32, u32)>,
    /// Subordinate group ids granted.
    pub subgids: Vec<(u32, u32)>,
    /// Where newuidmap is.
    pub newuidmap: Option<PathBuf>,
    /// Where newgidmap is.
    pub newgidmap: Option<PathBuf>,
    /// The user ids that exist in the caller's own namespace: (first, count).
    pub own_uids: Vec<(u32, u32)>,
    /// The group ids that exist in the caller's own namespace.
    pub own_gids: Vec<(u32, u32)>,
}

/// Why no id map can be made.
#[derive(Debug, thiserror::Error)]
pub enum IdMapError {
    /// A line of /etc/subuid or /etc/subgid is wrong.
    #[error("{file}:{line}: {problem}")]
    Subordinate {
        /// The file.
        file: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// A file of the host cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A map that the kernel would refuse.
    #[error("invalid id map: {problem}")]
    Invalid {
        /// What is wrong with it.
        problem: String,
    },
}

impl HostIds {
    /// Reads what this host grants the caller.
    pub fn probe() -> Result<Self, IdMapError> {
        Err(IdMapError::Invalid { problem: "not finished yet".to_owned() })
    }
}

impl IdMap {
    /// Whether root is the only id.
    pub fn is_single(&self) -> bool {
        self.uids.iter().map(|range| u64::from(range.size)).sum::<u64>() == 1
    }

    /// A name for the layers unpacked under this map: the same name means the same owners on disk.
    pub fn name(&self) -> String {
        String::new()
    }
}

/// Chooses the map of a container.
pub fn choose(mode: UserNs, facts: &HostIds) -> Result<IdMap, IdMapError> {
    let _ = (mode, facts);
    Err(IdMapError::Invalid { problem: "not finished yet".to_owned() })
}
