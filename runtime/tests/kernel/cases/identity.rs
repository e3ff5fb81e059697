//! Users, groups, capabilities and what the kernel says about them from inside (O5).

use coracle_runtime::{Stage, UserNs};
use serde_json::json;

use crate::container::{Container, ids};
use crate::place::Place;
use crate::runner::{ALL, Case, ORDINARY, User};

pub const CASES: &[Case] = &[
    Case { name: "a22_no_inheritable_or_ambient_capability", users: ALL, run: capabilities },
    Case { name: "a30_other_users_have_no_capability", users: &[User::Alice, User::Root], run: other_users },
    Case { name: "a23_groups_are_exactly_the_specs", users: &[User::Alice, User::Root], run: groups },
    Case { name: "a24_one_id_denies_setgroups", users: ORDINARY, run: setgroups_denied },
    Case { name: "a24_negative_group_stays_negative", users: &[User::Alice], run: negative_group },
    Case { name: "a26_ids_outside_of_the_map", users: ALL, run: ids_outside },
    Case { name: "id_maps_by_mode", users: ORDINARY, run: maps },
    Case { name: "limits_umask_and_score", users: ALL, run: limits },
    Case { name: "no_new_privileges_and_filter", users: ALL, run: confinement },
];

const CAPS: &str = "grep ^Cap /proc/self/status | tr -s '\\t\\n' '  '";
/// The default set of security.md section 7.
const DEFAULT_CAPS: &str = "00000000800405fb";

fn capabilities(place: &Place) {
    let said = Container::new(place, CAPS).says();
    let expect = format!(
        "CapInh: 0000000000000000 CapPrm: {DEFAULT_CAPS} CapEff: {DEFAULT_CAPS} CapBnd: {DEFAULT_CAPS} CapAmb: 0000000000000000"
    );
    assert_eq!(said, expect);
    let mut container = Container::new(place, CAPS);
    container.spec["process"]["capabilities"] =
        json!({"bounding": [], "effective": [], "permitted": [], "inheritable": [], "ambient": []});
    let none = "0000000000000000";
    let nothing = format!("CapInh: {none} CapPrm: {none} CapEff: {none} CapBnd: {none} CapAmb: {none}");
    assert_eq!(container.says(), nothing);
    let mut container = Container::new(place, CAPS);
    container.spec["process"]["capabilities"] = serde_json::Value::Null;
    assert_eq!(container.says(), nothing, "no object means no capability");
}

fn other_users(place: &Place) {
    let mut container = Container::new(place, &format!("id -u; {CAPS}"));
    container.spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let zero = "0000000000000000";
    let expect = format!("1000\nCapInh: {zero} CapPrm: {zero} CapEff: {zero} CapBnd: {DEFAULT_CAPS} CapAmb: {zero}");
    assert_eq!(container.says(), expect);
    // Asked for: ambient works, and only that one.
    let one = json!(["CAP_NET_BIND_SERVICE"]);
    container.spec["process"]["capabilities"] =
        json!({"bounding": one, "effective": one, "permitted": one, "inheritable": one, "ambient": one});
    assert!(
        container.says().ends_with("CapEff: 0000000000000400 CapBnd: 0000000000000400 CapAmb: 0000000000000400"),
        "{}",
        container.says()
    );
}

fn groups(place: &Place) {
    use std::os::unix::fs::PermissionsExt;
    let check = |user: serde_json::Value, expect: &str| {
        let mut container =
            Container::new(place, "grep -E '^(Uid|Gid|Groups)' /proc/self/status | tr -s '\\t\\n ' ' '");
        container.spec["process"]["user"] = user;
        assert_eq!(container.says().trim_end(), expect);
    };
    check(json!({"uid": 0, "gid": 0}), "Uid: 0 0 0 0 Gid: 0 0 0 0 Groups:");
    check(
        json!({"uid": 1000, "gid": 1000, "additionalGids": [2000]}),
        "Uid: 1000 1000 1000 1000 Gid: 1000 1000 1000 1000 Groups: 2000",
    );
    check(json!({"uid": 5, "gid": 6, "additionalGids": [7, 6, 7, 8]}), "Uid: 5 5 5 5 Gid: 6 6 6 6 Groups: 6 7 8");
    // A file for a supplementary group alone.
    let mut container = Container::new(place, "cat /shared/file");
    container.spec["process"]["user"] = json!({"uid": 0, "gid": 0});
    let map = container.idmap.clone();
    let shared = place.make("shared");
    fs_err::write(shared.join("file"), "for the group\n").expect("written");
    let host_gid = map.host_gid(2000).expect("mapped");
    coracle_runtime::userns::run_in(&map, || {
        let file = shared.join("file");
        std::os::unix::fs::chown(&file, Some(0), Some(2000)).expect("chown");
        fs_err::set_permissions(&file, std::fs::Permissions::from_mode(0o070)).expect("chmod");
        0
    })
    .expect("ran");
    use std::os::unix::fs::MetadataExt;
    assert_eq!(fs_err::metadata(shared.join("file")).expect("stat").gid(), host_gid);
    container.mount("/shared", "bind", shared.to_str().expect("text"), &["rbind"]);
    container.spec["process"]["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [2000]});
    assert_eq!(container.says(), "for the group");
    container.spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    assert_ne!(container.run().status, 0);
}

fn setgroups_denied(place: &Place) {
    let mut container =
        Container::new(place, "cat /proc/self/setgroups /proc/self/uid_map /proc/self/gid_map | tr -s ' '");
    container.idmap = ids(UserNs::Single);
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    assert_eq!(container.says(), format!("deny\n 0 {uid} 1\n 0 {gid} 1"));
    container.spec["process"]["user"] = json!({"uid": 0, "gid": 0, "additionalGids": [5]});
    assert_eq!(container.fails().stage, Stage::Plan, "a group that cannot be had");
}

fn negative_group(place: &Place) {
    use std::os::unix::fs::PermissionsExt;
    // rwx---r-x: whoever is in the group may not enter; others may.
    let closed = place.make("closed");
    fs_err::write(closed.join("file"), "").expect("written");
    let mut container = Container::new(place, "ls /closed");
    let map = container.idmap.clone();
    coracle_runtime::userns::run_in(&map, || {
        std::os::unix::fs::chown(&closed, Some(1), Some(2000)).expect("chown");
        fs_err::set_permissions(&closed, std::fs::Permissions::from_mode(0o705)).expect("chmod");
        0
    })
    .expect("ran");
    container.mount("/closed", "bind", closed.to_str().expect("text"), &["rbind"]);
    container.spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    assert_eq!(container.says(), "file");
    container.spec["process"]["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [2000]});
    assert_ne!(container.run().status, 0);
    coracle_runtime::userns::run_in(&map, || {
        fs_err::remove_dir_all(&closed).expect("removed");
        0
    })
    .expect("ran");
}

fn ids_outside(place: &Place) {
    for user in [json!({"uid": 4_294_967_295_u32, "gid": 0}), json!({"uid": 0, "gid": 4_294_967_295_u32})] {
        let mut container = Container::new(place, "id -u");
        container.spec["process"]["user"] = user.clone();
        let failure = container.fails();
        assert_eq!((failure.stage, failure.errno), (Stage::Plan, 0), "{user}");
    }
    let mut container = Container::new(place, "id -u");
    if container.idmap.host_uid(3_000_000_000).is_none() {
        container.spec["process"]["user"] = json!({"uid": 3_000_000_000_u32, "gid": 0});
        assert!(container.fails().to_string().contains("user 3000000000 is not in the container's id map"));
    }
}

fn maps(place: &Place) {
    let uid = rustix::process::geteuid().as_raw();
    let mut container = Container::new(place, "id -u; touch /tmp/made; stat -c %u /tmp/made");
    container.idmap = ids(UserNs::KeepId);
    container.spec["process"]["user"] = json!({"uid": uid, "gid": rustix::process::getegid().as_raw()});
    // The root filesystem belongs to the caller, whoever that is inside.
    assert_eq!(container.says(), format!("{uid}\n{uid}"));
    use std::os::unix::fs::MetadataExt;
    assert_eq!(fs_err::metadata(place.rootfs().join("tmp/made")).expect("made").uid(), uid);
}

fn limits(place: &Place) {
    let mut container = Container::new(place, "ulimit -Sn; ulimit -Hn; ulimit -c; umask; cat /proc/self/oom_score_adj");
    container.spec["process"]["rlimits"] = json!([
        {"type": "RLIMIT_NOFILE", "soft": 99, "hard": 101},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
    ]);
    container.spec["process"]["user"]["umask"] = json!(0o27);
    container.spec["process"]["oomScoreAdj"] = json!(777);
    assert_eq!(container.says(), "99\n101\n0\n0027\n777");
    container.spec["process"]["user"]["umask"] = json!(0o7777);
    assert_eq!(container.fails().stage, Stage::Plan);
    // C11
    let with = |limits: serde_json::Value| {
        let mut container = Container::new(place, "true");
        container.spec["process"]["rlimits"] = limits;
        container.fails().stage
    };
    assert_eq!(with(json!([{"type": "RLIMIT_NOFILE", "soft": 2, "hard": 1}])), Stage::Plan);
    let one = json!({"type": "RLIMIT_NOFILE", "soft": 9, "hard": 9});
    assert_eq!(with(json!([one, one])), Stage::Plan);
    if !rustix::process::geteuid().is_root() {
        assert_eq!(with(json!([{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 900_000_000_u64}])), Stage::Identity);
    }
}

fn confinement(place: &Place) {
    let said = Container::new(place, "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status | tr -s '\\t\\n' '  '").says();
    assert_eq!(said, "NoNewPrivs: 1 Seccomp: 2");
    let mut relaxed = Container::new(place, "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status | tr -s '\\t\\n' '  '");
    relaxed.spec["process"]["noNewPrivileges"] = json!(false);
    assert_eq!(relaxed.says(), "NoNewPrivs: 0 Seccomp: 2");
    relaxed.spec["linux"]["seccomp"] = serde_json::Value::Null;
    assert_eq!(relaxed.says(), "NoNewPrivs: 0 Seccomp: 0");
    assert_ne!(Container::new(place, "mount -t tmpfs none /tmp").run().status, 0);
}
