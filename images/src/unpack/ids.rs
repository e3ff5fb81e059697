//! Which user and group ids exist in the user namespace we are in.
//!
//! Asked before the first chown(2), because its EINVAL would not say which id and how many there
//! are (T22).

use std::io;

use super::error::{EntryProblem, UnpackError, quote};
use crate::layer::Ownership;

/// Ids that may own files, and the ids that files get without asking.
#[derive(Debug, Clone)]
pub(super) struct Ids {
    uids: Vec<(u64, u64)>,
    gids: Vec<(u64, u64)>,
    own: (u32, u32),
}

impl Ids {
    /// Reads the maps of the current user namespace.
    pub fn current() -> Result<Ids, UnpackError> {
        let read = |path| fs_err::read_to_string(path).map_err(|source| UnpackError::IdMap { source });
        let parse = |text: String| {
            parse_map(&text).ok_or_else(|| UnpackError::IdMap { source: io::ErrorKind::InvalidData.into() })
        };
        Ok(Ids {
            uids: parse(read("/proc/self/uid_map")?)?,
            gids: parse(read("/proc/self/gid_map")?)?,
            own: (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
        })
    }

    /// The owner to set for an entry; `None` when nothing has to be done.
    pub fn owner(
        &self,
        ownership: Ownership,
        path: &[u8],
        uid: u64,
        gid: u64,
    ) -> Result<Option<(u32, u32)>, UnpackError> {
        if ownership == Ownership::Squash {
            return Ok(None);
        }
        let narrow = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX);
        let (Some(narrow_uid), Some(narrow_gid)) = (narrow(uid), narrow(gid)) else {
            return Err(UnpackError::Entry { path: quote(path), problem: EntryProblem::IdRange });
        };
        check(&self.uids, "uid", uid)?;
        check(&self.gids, "gid", gid)?;
        let owner = (narrow_uid, narrow_gid);
        Ok((owner != self.own).then_some(owner))
    }
}

fn check(ranges: &[(u64, u64)], kind: &'static str, id: u64) -> Result<(), UnpackError> {
    if ranges.iter().any(|(first, count)| (*first..first + count).contains(&id)) {
        return Ok(());
    }
    let available = ranges.iter().map(|(_, count)| count).sum();
    Err(UnpackError::UnmappedId { kind, id, available })
}

/// First inside id and count of each line (user_namespaces(7)).
fn parse_map(text: &str) -> Option<Vec<(u64, u64)>> {
    let parse_line = |line: &str| {
        let mut words = line.split_ascii_whitespace().map(|word| word.parse::<u32>().ok().map(u64::from));
        let (first, _outside, count) = (words.next()??, words.next()??, words.next()??);
        Some((first, count))
    };
    text.lines().map(parse_line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t22_ids() {
        let map = parse_map("         0       1000          1\n         1     100000      65536\n").expect("valid");
        let ids = Ids { uids: map.clone(), gids: map, own: (0, 0) };
        let owner = |uid, gid| ids.owner(Ownership::Keep, b"f", uid, gid);
        assert_eq!(owner(0, 0).expect("mapped"), None);
        assert_eq!(owner(1, 65536).expect("mapped"), Some((1, 65536)));
        let error = owner(65537, 0).expect_err("unmapped").to_string();
        assert_eq!(error, "image needs uid 65537, have 65537 ids");
        let error = owner(0, 1 << 21).expect_err("unmapped").to_string();
        assert_eq!(error, "image needs gid 2097152, have 65537 ids");
        for out_of_range in [u64::from(u32::MAX), 1 << 32, u64::MAX] {
            assert!(matches!(owner(out_of_range, 0), Err(UnpackError::Entry { problem: EntryProblem::IdRange, .. })));
        }
        assert_eq!(ids.owner(Ownership::Squash, b"f", u64::MAX, 7).expect("squashed"), None);
    }
}
