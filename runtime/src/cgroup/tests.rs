//! Choosing a place and setting limits, on directories that look like a hierarchy.
//!
//! They hold plain files, so nothing here shows that the kernel obeys: the guest's tests do.

use std::path::Path;

use oci_spec::runtime::LinuxResources;
use serde_json::json;

use super::apply::apply;
use super::delegation::{LEAF, Scope, base, enable};
use super::directory::Directory;
use super::hierarchy::Host;
use super::settings::{Controller, settings};
use super::*;

const ALL: &str = "cpuset cpu io memory hugetlb pids rdma misc";

/// A directory with the files that the kernel would make.
fn node(path: &Path, controllers: &str, limits: &[&str]) -> Directory {
    fs_err::create_dir_all(path).unwrap();
    for (file, text) in [
        ("cgroup.controllers", controllers),
        ("cgroup.subtree_control", ""),
        ("cgroup.procs", ""),
        ("cgroup.events", ""),
    ] {
        fs_err::write(path.join(file), text).unwrap();
    }
    for file in limits {
        fs_err::write(path.join(file), "").unwrap();
    }
    Directory::new(path)
}

fn host(mount: &Path, own: &str) -> Host {
    Host { mount: mount.to_owned(), own: own.to_owned(), uid: 1000, root: false, systemd: true }
}

fn resources(value: serde_json::Value) -> LinuxResources {
    serde_json::from_value(value).unwrap()
}

fn request<'a>(kind: Kind, resources: &'a LinuxResources, best_effort: bool) -> Request<'a> {
    Request { kind, id: "c1", path: None, resources: Some(resources), best_effort }
}

#[test]
fn f20_a_host_of_version_1_runs_everything_but_limits() {
    let nothing = LinuxResources::default();
    let made = place::make(None, &request(Kind::Auto, &nothing, false)).unwrap();
    assert!(made.cgroup.is_none() && made.limits.is_empty());

    let asked = resources(json!({"memory": {"limit": 1000}, "pids": {"limit": 5}}));
    let error = place::make(None, &request(Kind::Auto, &asked, false)).unwrap_err();
    assert_eq!(error.to_string(), "cannot enforce memory.limit, pids.limit");
    assert!(error.fix().unwrap().contains("systemd.unified_cgroup_hierarchy=1"));

    let made = place::make(None, &request(Kind::Auto, &asked, true)).unwrap();
    assert!(made.cgroup.is_none());
    let why = "this host has no unified cgroup hierarchy (v2) at /sys/fs/cgroup";
    assert_eq!(made.limits[0], LimitState::unenforced("memory.limit", "1000", why));
    assert_eq!(made.limits.len(), 2);
}

#[test]
fn disabled_cgroups_ignore_limits_and_say_so() {
    let asked = resources(json!({"memory": {"limit": 1000}, "blockIO": {"leafWeight": 5}}));
    let made = place::make(None, &request(Kind::Disabled, &asked, false)).unwrap();
    assert_eq!(made.limits, [LimitState::unenforced("memory.limit", "1000", "cgroups are disabled")]);
}

#[test]
fn f20_a_missing_controller_is_an_error_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let own = node(&dir.path().join("job"), "memory pids", &[]);
    let asked = resources(json!({"cpu": {"quota": 1000}, "memory": {"limit": 5}, "blockIO": {"weight": 10}}));
    let error = place::make(Some(&host(dir.path(), "/job")), &request(Kind::Auto, &asked, false)).unwrap_err();
    let CgroupError::Controllers { fields, controllers, .. } = &error else { panic!("{error}") };
    assert_eq!((fields.as_str(), controllers.as_str()), ("cpu.quota, blockIO.weight", "cpu, io"));
    let parent = dir.path().join("cgroup.subtree_control");
    let line = format!("sudo sh -c 'echo +cpu +io > {}'", parent.display());
    assert_eq!(error.fix().unwrap(), format!("{line}, or run with --limits=best-effort"));
    assert_eq!(own.read("cgroup.subtree_control").unwrap(), "");
    assert!(!own.child("coracle-c1").exists() && !own.child(LEAF).exists());
}

#[test]
fn what_cgroup_v2_does_not_know_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    node(&dir.path().join("job"), ALL, &[]);
    let asked = resources(json!({"memory": {"swappiness": 10}}));
    let error = place::make(Some(&host(dir.path(), "/job")), &request(Kind::Auto, &asked, false)).unwrap_err();
    assert_eq!(error.to_string(), "cannot enforce memory.swappiness = 10: cgroup v2 has no such limit");
}

#[test]
fn below_a_user_manager_the_fix_is_its_drop_in() {
    let scope = Path::new("/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/app.slice/coracle.scope");
    let fix = controllers_fix(scope, &["io"]);
    assert!(
        fix.contains("user@.service.d/delegate.conf") && fix.contains("Delegate=cpu cpuset io memory pids"),
        "{fix}"
    );
}

/// No bus listens for this user id, so a call to systemd would fail.
#[test]
fn a_scope_that_is_there_costs_no_call() {
    const NOBODY: u32 = 4_000_000_000;
    let dir = tempfile::tempdir().unwrap();
    let manager = format!("user.slice/user-{NOBODY}.slice/user@{NOBODY}.service/app.slice");
    let host = Host { uid: NOBODY, ..host(dir.path(), &format!("/{manager}/shell.service")) };
    let scope = node(&dir.path().join(&manager).join("coracle.scope"), ALL, &[]);
    node(&scope.path().join(LEAF), ALL, &[]);
    assert_eq!(systemd::scope(&host).unwrap(), scope);
    assert_eq!(scope.child(LEAF).read("cgroup.procs").unwrap(), "0");
}

#[test]
fn a_cgroup_that_somebody_gave_us_is_divided() {
    let dir = tempfile::tempdir().unwrap();
    let own = node(&dir.path().join("job"), ALL, &[]);
    assert_eq!(base(&host(dir.path(), "/job"), Scope::Never).unwrap(), own);
    // From our own leaf, its parent is.
    node(&dir.path().join("job").join(LEAF), ALL, &[]);
    assert_eq!(base(&host(dir.path(), &format!("/job/{LEAF}")), Scope::Never).unwrap(), own);
}

#[test]
fn f20_a_cgroup_that_is_not_ours_is_none() {
    let dir = tempfile::tempdir().unwrap();
    fs_err::create_dir_all(dir.path().join("session")).unwrap();
    let error = base(&host(dir.path(), "/session"), Scope::Never).unwrap_err();
    assert!(matches!(&error, NoPlace::NotDelegated { cgroup, .. } if cgroup == "/session"), "{error}");
    // Root writes everywhere; on a host that systemd runs that makes nothing its own.
    node(&dir.path().join("session"), ALL, &[]);
    let root = Host { uid: 0, root: true, ..host(dir.path(), "/session") };
    assert!(base(&root, Scope::Never).is_err());
    assert!(base(&Host { systemd: false, ..root }, Scope::Never).is_ok());
}

#[test]
fn controllers_are_enabled_once() {
    let dir = tempfile::tempdir().unwrap();
    let own = node(&dir.path().join("job"), "memory pids", &[]);
    fs_err::write(dir.path().join("job/cgroup.subtree_control"), "memory").unwrap();
    enable(&own, &[Controller::Memory]).unwrap();
    // Over the first letters of what was there: only what was missing was written.
    assert_eq!(own.read("cgroup.subtree_control").unwrap(), "+pidsy");
}

#[test]
fn c16_values_are_written_and_reported_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let cgroup = node(&dir.path().join("c"), ALL, &["memory.max", "memory.swap.max", "pids.max", "io.weight"]);
    let wanted = settings(&resources(json!({
        "memory": {"limit": 100, "swap": 150}, "pids": {"limit": 5}, "blockIO": {"weight": 10},
    })));
    let states = apply(&cgroup, &wanted, false).unwrap();
    let read = |file| cgroup.read(file).unwrap();
    assert_eq!(
        (read("memory.max"), read("memory.swap.max"), read("pids.max"), read("io.weight")),
        ("100".into(), "50".into(), "5".into(), "1".into())
    );
    assert!(states.iter().all(|state| state.enforced) && states.len() == 4, "{states:?}");
}

#[test]
fn a_file_that_the_kernel_lacks_is_an_error_or_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let cgroup = node(&dir.path().join("c"), ALL, &["pids.max"]);
    let wanted = settings(&resources(json!({"cpu": {"burst": 5}, "pids": {"limit": 5}})));
    assert!(matches!(apply(&cgroup, &wanted, false), Err(CgroupError::NoFile { .. })));
    let states = apply(&cgroup, &wanted, true).unwrap();
    assert_eq!(states.iter().map(|state| state.enforced).collect::<Vec<_>>(), [false, true]);
    assert!(states[0].why.as_deref().unwrap().contains("this kernel has no"), "{states:?}");
}

#[test]
fn processors_that_are_not_there_are_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let cgroup = node(&dir.path().join("c"), ALL, &["cpuset.cpus"]);
    fs_err::write(dir.path().join("c/cpuset.cpus.effective"), "0-1\n").unwrap();
    let with = |list| settings(&resources(json!({"cpu": {"cpus": list}})));
    assert!(apply(&cgroup, &with("0,1"), false).is_ok());
    let error = apply(&cgroup, &with("1,5"), false).unwrap_err();
    assert_eq!(error.to_string(), "cannot enforce cpu.cpus = 1,5: only 0-1 can be had");
}

#[test]
fn one_that_is_gone_is_removed_and_one_elsewhere_is_never_touched() {
    let dir = tempfile::tempdir().unwrap();
    let at =
        |path: &Path| Cgroup { path: path.to_owned(), kind: Kind::Auto, unit: None, limits: Vec::new(), holder: None };
    at(&dir.path().join("gone")).remove().unwrap();
    // A state file that names an ordinary directory.
    assert!(at(dir.path()).remove().is_err());
    assert!(dir.path().exists());
}
