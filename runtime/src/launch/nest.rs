//! A container whose user namespace is made inside another one that the caller owns.
//!
//! Whoever is root of the outer one has every capability in the inner one and in all its siblings, and
//! so can connect their networks, which the caller itself cannot (user_namespaces(7)).

use std::os::fd::BorrowedFd;

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::fault::Fault;
use crate::failure::{LaunchFailure, Stage};
use crate::idmap::{IdMap, IdRange};

/// The outer user namespace of a container.
#[derive(Debug, Clone)]
pub struct Nest<'a> {
    /// The namespace; the caller owns it.
    pub user: BorrowedFd<'a>,
    /// Its own map.
    pub map: IdMap,
}

impl Nest<'_> {
    /// Puts a container's map into the ids of the outer namespace.
    pub(crate) fn translate(&self, map: &IdMap) -> Result<IdMap, LaunchFailure> {
        let fail = || LaunchFailure::rule(Stage::Ids, "id map", "has ids that the outer namespace lacks");
        Ok(IdMap {
            uids: translate(&map.uids, &self.map.uids).ok_or_else(fail)?,
            gids: translate(&map.gids, &self.map.gids).ok_or_else(fail)?,
        })
    }
}

/// Enters a user namespace that the caller owns, on the way to a child in it.
pub(crate) fn enter(user: BorrowedFd<'_>) -> Result<(), LaunchFailure> {
    move_into_link_name_space(user, Some(LinkNameSpaceType::User)).fault(
        Stage::Namespaces,
        "join",
        "user namespace",
    )?;
    // The change of credentials closes /proc, where the ids are mapped.
    set_dumpable_behavior(DumpableBehavior::Dumpable).fault(Stage::Identity, "show", "process")
}

/// Cuts ranges where the outer map changes; None where it has no such id.
fn translate(inner: &[IdRange], outer: &[IdRange]) -> Option<Vec<IdRange>> {
    let mut translated = Vec::new();
    for range in inner {
        let IdRange { mut container, mut host, mut size } = *range;
        while size > 0 {
            let (found, offset) = outer.iter().find_map(|outer| {
                let offset = host.checked_sub(outer.host)?;
                (offset < outer.size).then_some((outer, offset))
            })?;
            let part = size.min(found.size - offset);
            translated.push(IdRange { container, host: found.container + offset, size: part });
            (container, host, size) = (container.saturating_add(part), host.saturating_add(part), size - part);
        }
    }
    Some(translated)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(list: &[(u32, u32, u32)]) -> Vec<IdRange> {
        list.iter().map(|&(container, host, size)| IdRange { container, host, size }).collect()
    }

    #[test]
    fn maps_are_put_into_the_outer_ids() {
        let outer = ranges(&[(0, 1000, 1), (1, 100_000, 65_536)]);
        let same = translate(&outer, &outer).unwrap();
        assert_eq!(same, ranges(&[(0, 0, 1), (1, 1, 65_536)]));
        let kept = ranges(&[(0, 100_000, 1000), (1000, 1000, 1), (1001, 101_000, 64_536)]);
        assert_eq!(translate(&kept, &outer).unwrap(), ranges(&[(0, 1, 1000), (1000, 0, 1), (1001, 1001, 64_536)]));
        let split = ranges(&[(0, 5, 10)]);
        let halves = ranges(&[(0, 0, 8), (20, 8, 10)]);
        assert_eq!(translate(&split, &halves).unwrap(), ranges(&[(0, 5, 3), (3, 20, 7)]));
        assert_eq!(translate(&ranges(&[(0, 99, 1)]), &outer), None);
    }
}
