//! Plans are compared as data; nothing here needs a privilege.

use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use super::*;
use crate::defaults::{self, SpecOptions};
use crate::idmap::IdRange;

fn base() -> Value {
    let options = SpecOptions { map_root_to: Some((1000, 1000)), ..SpecOptions::default() };
    let mut spec = serde_json::to_value(defaults::spec(&options)).expect("json");
    spec["process"]["args"] = json!(["true"]);
    spec
}

fn with(change: impl FnOnce(&mut Value)) -> Result<Plan, LaunchFailure> {
    let mut spec = base();
    change(&mut spec);
    let spec: Spec = serde_json::from_value(spec).expect("a spec");
    plan(&spec, None)
}

fn refused(field: &str, change: impl FnOnce(&mut Value)) {
    let failure = with(change).expect_err("refused");
    assert_eq!((failure.stage, failure.errno), (Stage::Plan, 0), "{failure}");
    assert!(failure.to_string().contains(field), "{failure} does not name {field}");
}

#[test]
fn the_default_is_a_plan() {
    let plan = with(|_| {}).expect("a plan");
    assert!(plan.namespaces.creates_user() && plan.namespaces.join.is_empty());
    let destinations: Vec<String> = plan.mounts.iter().map(|step| step.destination.display().to_string()).collect();
    for expect in ["/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup"] {
        assert!(destinations.iter().any(|one| one == expect), "{expect} in {destinations:?}");
    }
    assert!(plan.process.no_new_privileges);
    assert_eq!(plan.root_propagation, libc::MS_SLAVE);
}

#[test]
fn a_caller_s_map_wins() {
    let spec: Spec = serde_json::from_value(base()).expect("a spec");
    let one = vec![IdRange { container: 7, host: 1000, size: 1 }];
    let map = IdMap { uids: one.clone(), gids: one };
    // The specification's user is 0, whom this map does not have.
    let failure = plan(&spec, Some(&map)).expect_err("refused");
    assert!(failure.to_string().contains("user 0 is not in the container's id map"), "{failure}");
}

#[test]
fn c21_what_is_not_done_is_refused_by_name() {
    refused("process.args", |spec| spec["process"]["args"] = json!([]));
    refused("process", |spec| spec["process"] = Value::Null);
    refused("linux", |spec| spec["linux"] = Value::Null);
    refused("linux.intelRdt", |spec| spec["linux"]["intelRdt"] = json!({"closID": "x"}));
    refused("linux.personality.flags", |spec| {
        spec["linux"]["personality"] = json!({"domain": "LINUX32", "flags": ["x"]});
    });
    refused("linux.memoryPolicy.nodes", |spec| {
        spec["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "x"});
    });
    refused("linux.timeOffsets", |spec| spec["linux"]["timeOffsets"] = json!({"monotonic": {"secs": 1}}));
    refused("linux.timeOffsets", |spec| {
        spec["linux"]["namespaces"].as_array_mut().expect("namespaces").push(json!({"type": "time"}));
        spec["linux"]["timeOffsets"] = json!({"realtime": {"secs": 1}});
    });
    refused("linux.netDevices", |spec| spec["linux"]["netDevices"] = json!({"eth0": {"name": "x"}}));
    refused("linux.mountLabel", |spec| spec["linux"]["mountLabel"] = json!("system_u:object_r:x:s0"));
    refused("process.apparmorProfile", |spec| spec["process"]["apparmorProfile"] = json!("docker-default"));
    refused("process.selinuxLabel", |spec| spec["process"]["selinuxLabel"] = json!("system_u:x"));
    refused("process.ioPriority", |spec| {
        spec["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_IDLE", "priority": 9});
    });
    refused("poststop hook", |spec| spec["hooks"] = json!({"poststop": [{"path": "bin/true"}]}));
    refused("linux.rootfsPropagation", |spec| spec["linux"]["rootfsPropagation"] = json!("sideways"));
    refused("process.oomScoreAdj", |spec| spec["process"]["oomScoreAdj"] = json!(1001));
}

#[test]
fn a18_dev_is_our_own_without_a_mount() {
    let plan = with(|spec| {
        let mounts = spec["mounts"].as_array_mut().expect("mounts");
        mounts.retain(|mount| mount["destination"] != "/dev");
    })
    .expect("a plan");
    assert_eq!(plan.mounts[0].destination, std::path::Path::new("/dev"));
    assert!(matches!(&plan.mounts[0].source, MountSource::Devices { nodes, .. } if nodes.len() == 6));
}

#[test]
fn c08_devices_come_from_below_dev() {
    let device = |path: &str, kind: &str| json!([{"path": path, "type": kind, "major": 1, "minor": 1}]);
    for (path, kind) in
        [("/dev", "c"), ("/", "c"), ("/proc/x", "c"), ("/dev/../sys/x", "c"), ("/dev/x", "p"), ("/dev/x", "a")]
    {
        refused("device", |spec| spec["linux"]["devices"] = device(path, kind));
    }
    refused("device", |spec| {
        spec["linux"]["devices"] = json!([{"path": "/dev/x", "type": "c", "major": -1, "minor": 1}]);
    });
    let plan = with(|spec| spec["linux"]["devices"] = device("/dev/../x", "c")).expect("a plan");
    assert_eq!(plan.devices_elsewhere.len(), 1, "refused by the launch of everybody but root");
    let plan = with(|spec| spec["linux"]["devices"] = device("/dev/net/../tun", "c")).expect("a plan");
    let nodes = plan.mounts.iter().find_map(|step| match &step.source {
        MountSource::Devices { nodes, .. } => Some(nodes.clone()),
        _ => None,
    });
    assert_eq!(nodes.expect("a /dev").last().expect("nodes").name, std::path::Path::new("tun"));
}

#[test]
fn terminal_group_is_dropped_where_it_is_unmapped() {
    let data = |size: u32| {
        let plan = with(|spec| {
            let map = json!([{"containerID": 0, "hostID": 1000, "size": size}]);
            spec["linux"]["uidMappings"] = map.clone();
            spec["linux"]["gidMappings"] = map;
        })
        .expect("a plan");
        plan.mounts.into_iter().find_map(|step| match step.source {
            MountSource::New { kind, data, .. } if kind == "devpts" => Some(data),
            _ => None,
        })
    };
    let has_group =
        |data: Option<Vec<(String, Option<String>)>>| data.expect("a devpts").iter().any(|(key, _)| key == "gid");
    assert!(has_group(data(10)));
    assert!(!has_group(data(1)));
}

#[test]
fn c06_destinations_are_cleaned() {
    let clean = |path: &str| mounts::clean(std::path::Path::new(path)).map(|path| path.display().to_string());
    for (path, expect) in [("/a/../b", "/b"), ("/../..", "/"), ("a/./b/", "/a/b"), ("//a//b", "/a/b"), ("/a/..", "/")] {
        assert_eq!(clean(path).expect("a path"), expect, "{path}");
    }
    assert!(clean("").is_err());
    assert!(clean("/a\0").is_err());
}
