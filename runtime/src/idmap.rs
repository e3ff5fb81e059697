//! Which ids of the host stand behind the ids of a container.
//!
//! Choosing is pure; only [`HostIds::probe`] reads the host and only [`write()`] changes a process.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{programs, subid};

mod writer;

pub(crate) use writer::{complete, needs_helpers, write};

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
    #[error("{}:{line}: {problem}", file.display())]
    Subordinate {
        /// The file.
        file: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// A file of the host cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Ids are granted, and what maps them is missing. One id is then the person's choice, not ours.
    #[error("subordinate ids are granted, but {program} is not installed")]
    NoHelper {
        /// The program.
        program: &'static str,
    },
    /// A map that the kernel would refuse.
    #[error("invalid id map: {problem}")]
    Invalid {
        /// What is wrong with it.
        problem: String,
    },
}

/// The kernel takes 340 lines in one map (user_namespaces(7)).
const LINES_MAX: usize = 340;

impl HostIds {
    /// Reads what this host grants the caller.
    pub fn probe() -> Result<Self, IdMapError> {
        let uid = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        let people = subid::people(Path::new("/etc/passwd"))?;
        let user = people.into_iter().find(|(_, id)| *id == uid).map(|(name, _)| name);
        let mut subuids = subid::read(Path::new("/etc/subuid"), user.as_deref(), uid)?;
        let mut subgids = subid::read(Path::new("/etc/subgid"), user.as_deref(), uid)?;
        if let Some(name) = user.as_deref()
            && (subuids.is_empty() || subgids.is_empty())
            && has_other_source()
        {
            subuids = subid::ask_getsubids(name, false);
            subgids = subid::ask_getsubids(name, true);
        }
        Ok(Self {
            uid,
            gid,
            user,
            subuids,
            subgids,
            newuidmap: programs::find("newuidmap"),
            newgidmap: programs::find("newgidmap"),
            own_uids: read_own("/proc/self/uid_map")?,
            own_gids: read_own("/proc/self/gid_map")?,
        })
    }

    /// Whether the host lets the caller map more than its own id.
    pub fn has_ranges(&self) -> bool {
        let helpers = self.newuidmap.is_some() && self.newgidmap.is_some();
        self.uid == 0 || helpers && !self.subuids.is_empty() && !self.subgids.is_empty()
    }
}

impl IdMap {
    /// Whether there is only one id.
    pub fn is_single(&self) -> bool {
        self.uids.iter().map(|range| u64::from(range.size)).sum::<u64>() == 1
    }

    /// A name for the layers unpacked under this map: the same name means the same owners on disk.
    pub fn name(&self) -> String {
        if self.is_single() {
            return "squashed".to_owned();
        }
        let join = |ranges: &[IdRange]| {
            let parts: Vec<String> = ranges.iter().map(|range| format!("{}+{}", range.host, range.size)).collect();
            parts.join(",")
        };
        let (uids, gids) = (join(&self.uids), join(&self.gids));
        if uids == gids { uids } else { format!("{uids}_{gids}") }
    }

    /// The host's user id behind a container's.
    pub fn host_uid(&self, container: u32) -> Option<u32> {
        to_host(&self.uids, container)
    }

    /// The host's group id behind a container's.
    pub fn host_gid(&self, container: u32) -> Option<u32> {
        to_host(&self.gids, container)
    }

    /// Refuses what the kernel would refuse with a bare `EINVAL`.
    pub fn check(&self) -> Result<(), IdMapError> {
        check_ranges("user", &self.uids)?;
        check_ranges("group", &self.gids)
    }
}

/// Chooses the map of a container.
pub fn choose(mode: UserNs, facts: &HostIds) -> Result<IdMap, IdMapError> {
    let granted = !facts.subuids.is_empty() && !facts.subgids.is_empty();
    if mode != UserNs::Single && facts.uid != 0 && granted {
        for (program, found) in [("newuidmap", &facts.newuidmap), ("newgidmap", &facts.newgidmap)] {
            if found.is_none() {
                return Err(IdMapError::NoHelper { program });
            }
        }
    }
    let keep = |id: u32| if mode == UserNs::KeepId { id } else { 0 };
    let map = if mode == UserNs::Single || !facts.has_ranges() {
        let one = |id: u32| vec![IdRange { container: keep(id), host: id, size: 1 }];
        IdMap { uids: one(facts.uid), gids: one(facts.gid) }
    } else if facts.uid == 0 {
        IdMap { uids: identity(&facts.own_uids), gids: identity(&facts.own_gids) }
    } else {
        IdMap {
            uids: spread(keep(facts.uid), facts.uid, &facts.subuids),
            gids: spread(keep(facts.gid), facts.gid, &facts.subgids),
        }
    };
    map.check()?;
    Ok(map)
}

fn identity(extents: &[(u32, u32)]) -> Vec<IdRange> {
    extents.iter().map(|&(first, size)| IdRange { container: first, host: first, size }).collect()
}

/// Puts the caller at `place` and the granted ids around it, from 0 upwards.
fn spread(place: u32, caller: u32, grants: &[(u32, u32)]) -> Vec<IdRange> {
    let own = IdRange { container: place, host: caller, size: 1 };
    let mut ranges = Vec::new();
    let mut next: u32 = 0;
    for &(first, count) in grants {
        let (mut host, mut left) = (first, count);
        while left > 0 && next < u32::MAX {
            if next == place {
                next += 1;
                ranges.push(own);
                continue;
            }
            let room = if next < place { place - next } else { u32::MAX - next };
            let size = left.min(room);
            ranges.push(IdRange { container: next, host, size });
            next += size;
            host = host.saturating_add(size);
            left -= size;
        }
    }
    if !ranges.contains(&own) {
        ranges.push(own);
    }
    ranges
}

fn to_host(ranges: &[IdRange], container: u32) -> Option<u32> {
    ranges.iter().find_map(|range| {
        let offset = container.checked_sub(range.container)?;
        (offset < range.size).then(|| range.host.saturating_add(offset))
    })
}

fn check_ranges(what: &str, ranges: &[IdRange]) -> Result<(), IdMapError> {
    let invalid = |problem: String| Err(IdMapError::Invalid { problem });
    if ranges.is_empty() {
        return invalid(format!("no {what} ids"));
    }
    if ranges.len() > LINES_MAX {
        return invalid(format!("{} lines of {what} ids, more than {LINES_MAX}", ranges.len()));
    }
    for side in [|range: &IdRange| range.container, |range: &IdRange| range.host] {
        let mut spans: Vec<(u64, u64)> = ranges.iter().map(|range| (side(range).into(), range.size.into())).collect();
        spans.sort_unstable();
        if let Some((first, _)) = spans.iter().find(|(_, size)| *size == 0) {
            return invalid(format!("a range of 0 {what} ids at {first}"));
        }
        if let Some((first, _)) = spans.iter().find(|(first, size)| first + size > u64::from(u32::MAX)) {
            return invalid(format!("the {what} ids at {first} go beyond the last id"));
        }
        if let Some(pair) = spans.windows(2).find(|pair| pair[0].0 + pair[0].1 > pair[1].0) {
            return invalid(format!("the {what} ids at {} and {} overlap", pair[0].0, pair[1].0));
        }
    }
    Ok(())
}

/// Whether nsswitch.conf names a source of subordinate ids other than the files.
fn has_other_source() -> bool {
    let text = fs_err::read_to_string("/etc/nsswitch.conf").unwrap_or_default();
    text.lines().any(|line| line.strip_prefix("subid:").is_some_and(|rest| rest.trim() != "files"))
}

/// Reads the first column of a map of our own: the ids that we can name.
fn read_own(path: &str) -> Result<Vec<(u32, u32)>, IdMapError> {
    let ranges = read_map(Path::new(path))?;
    Ok(ranges.into_iter().map(|range| (range.container, range.size)).collect())
}

/// Reads a map as the kernel shows it, its second column in ids of the reader's namespace.
pub(crate) fn read_map(path: &Path) -> Result<Vec<IdRange>, IdMapError> {
    let text = fs_err::read_to_string(path).map_err(|source| IdMapError::Read { path: path.to_owned(), source })?;
    let range = |line: &str| {
        let mut numbers = line.split_ascii_whitespace().map(|word| word.parse().ok());
        Some(IdRange { container: numbers.next()??, host: numbers.next()??, size: numbers.next()?? })
    };
    Ok(text.lines().filter_map(range).collect())
}

#[cfg(test)]
mod tests;
