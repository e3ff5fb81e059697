//! Maps are compared as data; nothing here needs a privilege.

use super::*;

fn alice() -> HostIds {
    HostIds {
        uid: 1000,
        gid: 1000,
        user: Some("alice".to_owned()),
        subuids: vec![(100_000, 65536)],
        subgids: vec![(100_000, 65536)],
        newuidmap: Some(PathBuf::from("/usr/bin/newuidmap")),
        newgidmap: Some(PathBuf::from("/usr/bin/newgidmap")),
        own_uids: vec![(0, u32::MAX)],
        own_gids: vec![(0, u32::MAX)],
    }
}

fn ranges(map: &[IdRange]) -> Vec<(u32, u32, u32)> {
    map.iter().map(|range| (range.container, range.host, range.size)).collect()
}

fn uids(mode: UserNs, facts: &HostIds) -> Vec<(u32, u32, u32)> {
    ranges(&choose(mode, facts).expect("a map").uids)
}

#[test]
fn ranges_follow_the_mode() {
    let facts = alice();
    assert_eq!(uids(UserNs::Auto, &facts), [(0, 1000, 1), (1, 100_000, 65536)]);
    assert_eq!(uids(UserNs::Single, &facts), [(0, 1000, 1)]);
    assert_eq!(uids(UserNs::KeepId, &facts), [(0, 100_000, 1000), (1000, 1000, 1), (1001, 101_000, 64536)]);
}

#[test]
fn keep_id_works_with_few_ids() {
    let few = HostIds { subuids: vec![(500, 10), (900, 5)], ..alice() };
    assert_eq!(uids(UserNs::KeepId, &few), [(0, 500, 10), (10, 900, 5), (1000, 1000, 1)]);
    let exact = HostIds { subuids: vec![(200_000, 1000)], ..alice() };
    assert_eq!(uids(UserNs::KeepId, &exact), [(0, 200_000, 1000), (1000, 1000, 1)]);
}

#[test]
fn f18_one_id_without_grants_and_an_error_without_helpers() {
    let none = HostIds { subuids: Vec::new(), ..alice() };
    assert_eq!(uids(UserNs::Auto, &none), [(0, 1000, 1)]);
    assert_eq!(uids(UserNs::KeepId, &none), [(1000, 1000, 1)]);
    let no_helper = HostIds { newgidmap: None, ..alice() };
    for mode in [UserNs::Auto, UserNs::KeepId] {
        let refused = choose(mode, &no_helper);
        assert!(matches!(refused, Err(IdMapError::NoHelper { program: "newgidmap" })), "{refused:?}");
    }
    assert_eq!(uids(UserNs::Single, &no_helper), [(0, 1000, 1)], "asked for, so it needs no helper");
}

#[test]
fn root_maps_itself() {
    let root = HostIds { uid: 0, gid: 0, ..alice() };
    assert_eq!(uids(UserNs::Auto, &root), [(0, 0, u32::MAX)]);
    let nested = HostIds { own_uids: vec![(0, 1), (1, 65536)], ..root };
    assert_eq!(uids(UserNs::Auto, &nested), [(0, 0, 1), (1, 1, 65536)]);
    assert_eq!(uids(UserNs::Single, &nested), [(0, 0, 1)]);
}

#[test]
fn names_tell_owners_apart() {
    let name = |mode| choose(mode, &alice()).expect("a map").name();
    assert_eq!(name(UserNs::Auto), "1000+1,100000+65536");
    assert_eq!(name(UserNs::KeepId), "100000+1000,1000+1,101000+64536");
    assert_eq!(name(UserNs::Single), "squashed");
}

#[test]
fn c15_wrong_maps_are_refused() {
    let map = |ranges: &[(u32, u32, u32)]| {
        let ranges: Vec<IdRange> =
            ranges.iter().map(|&(container, host, size)| IdRange { container, host, size }).collect();
        IdMap { uids: ranges.clone(), gids: ranges }
    };
    let refused = |ranges: &[(u32, u32, u32)], why: &str| {
        let said = map(ranges).check().expect_err("refused").to_string();
        assert!(said.contains(why), "{said}");
    };
    refused(&[], "no user ids");
    refused(&[(0, 0, 0)], "a range of 0");
    refused(&[(0, 1000, 10), (9, 2000, 1)], "at 0 and 9 overlap");
    refused(&[(0, 1000, 10), (10, 1009, 1)], "at 1000 and 1009 overlap");
    refused(&[(u32::MAX, 0, 1)], "beyond the last id");
    refused(&[(0, 4_294_967_000, 1000)], "beyond the last id");
    let many: Vec<_> = (0..341).map(|n| (n * 2, n * 2, 1)).collect();
    refused(&many, "341 lines");
    assert!(map(&many[..340]).check().is_ok());
    assert!(map(&[(0, 1000, 1), (5, 100_000, 3)]).check().is_ok(), "gaps are fine");
}

#[test]
fn ids_are_translated() {
    let map = choose(UserNs::Auto, &alice()).expect("a map");
    assert_eq!(map.host_uid(0), Some(1000));
    assert_eq!(map.host_uid(5), Some(100_004));
    assert_eq!(map.host_uid(65536), Some(165_535));
    assert_eq!(map.host_uid(65537), None);
}
