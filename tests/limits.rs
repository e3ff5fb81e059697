//! Limits on a host that has none to give: this one mounts cgroup v1. The guest's tests show the rest.

use crate::env::TestEnv;
use crate::require;

/// Says whether this host is of version 1; the guest's tests are for the others.
fn first_version(test: &str) -> bool {
    let unified = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    if unified {
        println!("SKIP {test}: this host has cgroup v2");
    }
    !unified
}

#[test]
fn f20_a_limit_on_version_1_is_an_error_with_its_fix() {
    require!();
    if !first_version("f20_a_limit_on_version_1_is_an_error_with_its_fix") {
        return;
    }
    let env = TestEnv::new();
    let image = env.image("busybox");
    for flag in ["--memory=64m", "--cpus=0.5", "--pids-limit=32", "--blkio-weight=100", "--cpuset-cpus=0"] {
        let outcome = env.container(&[flag, &image, "true"]).outcome();
        outcome.refused(125).says("this host has no unified cgroup hierarchy (v2)");
        outcome.refused(125).says("systemd.unified_cgroup_hierarchy=1");
    }
}

#[test]
fn f20_best_effort_runs_and_says_what_is_not_enforced() {
    require!();
    if !first_version("f20_best_effort_runs_and_says_what_is_not_enforced") {
        return;
    }
    let env = TestEnv::new();
    let image = env.image("busybox");
    let outcome = env.container(&["--memory=64m", "--limits=best-effort", &image, "echo", "ran"]).outcome();
    assert_eq!(outcome.ok(), "ran");
    let notes = &outcome.stderr;
    assert!(notes.contains("note: memory.limit is not enforced: this host has no unified cgroup hierarchy"), "{notes}");
}

#[test]
fn what_cgroup_v2_lacks_and_what_docker_refuses_is_refused_by_name() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    for (flags, word) in [
        (&["--memory-swappiness=10"][..], "--memory-swappiness"),
        (&["--oom-kill-disable"], "--oom-kill-disable"),
        (&["--memory=1m"], "--memory"),
        (&["--cpus=1", "--cpu-quota=5000"], "exclude each other"),
        (&["--cpus=1000"], "--cpus"),
        (&["--device-read-bps=/dev/null:1m"], "/dev/null"),
        (&["--oom-score-adj=1001"], "--oom-score-adj"),
    ] {
        let mut argv = flags.to_vec();
        argv.extend([image.as_str(), "true"]);
        env.container(&argv).outcome().refused(125).says(word);
    }
}

#[test]
fn update_changes_what_the_next_start_gets() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    env.coracle(&["create", "--name", "box", "--pids-limit=9", &image, "true"]).ok();
    assert_eq!(env.coracle(&["update", "--memory=64m", "--cpu-shares=512", "box"]).ok(), "box");
    let shown =
        |field: &str| env.coracle(&["inspect", "--format", &format!("{{{{.HostConfig.{field}}}}}"), "box"]).ok();
    assert_eq!((shown("Memory"), shown("MemorySwap")), ("67108864".to_owned(), "134217728".to_owned()));
    assert_eq!((shown("CpuShares"), shown("PidsLimit")), ("512".to_owned(), "9".to_owned()));
    env.coracle(&["update", "--restart=on-failure:3", "box"]).ok();
    assert_eq!(shown("RestartPolicy.MaximumRetryCount"), "3");
    env.coracle(&["update", "box"]).outcome().code(1).says("nothing to change");
    env.coracle(&["update", "--memory=1m", "box"]).outcome().code(1).says("--memory");
    env.coracle(&["update", "--memory=64m", "nobody"]).outcome().code(1).says("nobody");
    env.coracle(&["rm", "box"]).ok();
}

#[test]
fn a_running_container_without_a_cgroup_keeps_its_limits() {
    require!();
    if !first_version("a_running_container_without_a_cgroup_keeps_its_limits") {
        return;
    }
    let env = TestEnv::new();
    env.coracle(&["run", "-d", "--name", "box", &env.image("busybox"), "sleep", "1000"]).ok();
    env.coracle(&["update", "--pids-limit=9", "box"]).outcome().code(1).says("without a cgroup");
    let pids = || env.coracle(&["inspect", "--format", "{{.HostConfig.PidsLimit}}", "box"]).ok();
    assert_eq!(pids(), "0", "what was refused is not written down");
    // What is only wished for is told and kept, and the next start does not fail for it.
    let wished = env.coracle(&["update", "--pids-limit=9", "--limits=best-effort", "box"]).outcome();
    assert_eq!(wished.ok(), "box");
    let words = "note: pids.limit is not enforced: the container runs without a cgroup";
    assert!(wished.stderr.contains(words), "{wished}");
    assert_eq!(pids(), "9");
    env.coracle(&["stop", "-t", "0", "box"]).ok();
    env.coracle(&["start", "box"]).ok();
    env.coracle(&["rm", "-f", "box"]).ok();
}

#[test]
fn the_oom_score_of_a_container_is_not_its_callers() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let run = |flags: &str| {
        let line = format!(
            "echo 300 >/proc/self/oom_score_adj && exec {} run --rm --network none {flags} {image} cat /proc/self/oom_score_adj",
            crate::env::fixtures::coracle().display()
        );
        env.program("/bin/sh").args(&["-c", &line]).ok()
    };
    assert_eq!(run(""), "0");
    assert_eq!(run("--oom-score-adj=77"), "77");
}
