//! `--disk`: what a container may write (F39). The host's own disk is watched while it tries.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::env::{Outcome, TestEnv, Who, fixtures};
use crate::require;

const MIB: u64 = 1 << 20;
/// Everything that F39 names, in one script.
const VECTORS: &str = include_str!("quota/vectors.py");

/// Gives what is allocated below a directory, hard links once; what goes away meanwhile does not count.
fn allocated_bytes(path: &Path) -> u64 {
    let mut seen = std::collections::HashSet::new();
    let mut bytes = 0;
    let mut pending = vec![path.to_owned()];
    while let Some(path) = pending.pop() {
        let Ok(meta) = fs_err::symlink_metadata(&path) else { continue };
        if seen.insert(meta.ino()) {
            bytes += meta.blocks() * 512;
        }
        if meta.is_dir() {
            let entries = fs_err::read_dir(&path).into_iter().flatten().flatten();
            pending.extend(entries.map(|entry| entry.path()));
        }
    }
    bytes
}

/// Gives the one container's directory.
fn only_container(env: &TestEnv) -> PathBuf {
    let entries = fs_err::read_dir(env.root().join("containers")).unwrap();
    entries.flatten().map(|entry| entry.path()).find(|path| path.join("container.json").exists()).unwrap()
}

fn inspect(env: &TestEnv, name: &str) -> Value {
    let text = env.coracle(&["inspect", name]).ok();
    serde_json::from_str::<Value>(&text).unwrap()[0].take()
}

/// Demands that a program failed for want of room.
#[track_caller]
fn full(outcome: &Outcome) {
    assert!(outcome.code(1).stderr.contains("No space left on device"), "{outcome}");
}

#[test]
fn a_write_beyond_the_limit_fails_and_df_shows_it() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let script = "df -k / | tail -1; dd if=/dev/zero of=/a bs=1M count=20 2>&1; rm /a; dd if=/dev/zero of=/a bs=1M count=14 && echo again";
    for flags in [&["--disk=16m"][..], &["--storage-opt", "size=16m"]] {
        let mut argv = flags.to_vec();
        argv.extend([image.as_str(), "sh", "-c", script]);
        let text = env.container(&argv).ok();
        assert!(text.contains(" 16384 "), "{text}");
        assert!(text.contains("No space left on device"), "{text}");
        assert!(text.ends_with("again"), "{text}");
    }
}

#[test]
fn f39_no_way_to_write_passes_the_limit() {
    require!();
    let env = TestEnv::new();
    let image = env.image("debian");
    let size_mib = if fixtures::is_full() { 64 } else { 16 };
    let script = env.write("vectors.py", VECTORS);
    let mount = format!("{}:/vectors.py:ro", script.display());
    let disk = format!("{size_mib}m,inodes=3000");
    // The image's python lacks mmap.
    let python = ["-v", "/usr:/host:ro", "-e", "PYTHONHOME=/host", "-e", "LD_LIBRARY_PATH=/host/lib/x86_64-linux-gnu"];
    let mut running = env
        .container(&["--disk", &disk, "-v", &mount, "--shm-size=8m"])
        .args(&python)
        .args(&[&image, "/host/bin/python3", "-u", "/vectors.py", &size_mib.to_string()])
        .time_limit(600)
        .spawn();
    let limit = size_mib * MIB;
    let mut most = 0;
    while !running.has_ended() {
        if fs_err::read_dir(env.root().join("containers")).is_ok_and(|mut entries| entries.next().is_some()) {
            most = most.max(allocated_bytes(&env.root().join("containers")));
            // A neighbour's write goes on.
            env.write("neighbour", vec![0; 1 << 16]);
        }
    }
    let outcome = running.wait();
    let text = outcome.ok();
    for line in text.lines().filter(|line| *line != "again") {
        let (name, result) = line.split_once(' ').unwrap();
        assert!(["ENOSPC", "EDQUOT"].contains(&result), "{name}: {result}\n{text}");
    }
    assert_eq!(text.lines().filter(|line| *line == "again").count(), 19, "{text}");
    assert_eq!(text.lines().count(), 19 * 2 + 4, "{text}");
    assert!(most <= limit + MIB, "the host had {most} bytes, allowed are {limit} and one MiB");
    assert!(most > limit / 2, "the host was not watched: {most}");
}

#[test]
fn a_second_exec_and_a_restart_have_the_same_limit() {
    require!();
    let env = TestEnv::new();
    env.containers_may_stay();
    let image = env.image("busybox");
    let start = ["run", "-d", "--network", "none", "--name", "box", "--disk=16m,inodes=500", &image, "sleep", "1000"];
    env.coracle(&start).ok();
    let fill = "dd if=/dev/zero of=/file bs=1M count=30";
    full(&env.coracle(&["exec", "box", "sh", "-c", fill]).outcome());
    let disk = inspect(&env, "box")["Disk"].take();
    assert_eq!((&disk["Backend"], &disk["Hard"]), (&"fuse".into(), &true.into()), "{disk}");
    assert_eq!((&disk["LimitBytes"], &disk["LimitInodes"]), (&(16 * MIB).into(), &500.into()), "{disk}");
    let stats = env.coracle(&["stats", "--no-stream", "--format", "{{.DiskUsage}} {{.DiskBackend}}", "box"]).ok();
    assert!(stats.ends_with("/ 16.8MB fuse"), "{stats}");
    env.coracle(&["stop", "-t", "1", "box"]).ok();
    // Measured anew: the file is still there, and what was used at the end is known.
    let used = inspect(&env, "box")["Disk"]["UsedBytes"].as_u64().unwrap();
    let container = only_container(&env);
    assert_eq!(used, allocated_bytes(&container.join("disk")));
    assert!(used > 15 * MIB && used <= 16 * MIB, "{used}");
    env.coracle(&["start", "box"]).ok();
    let more = env.coracle(&["exec", "box", "sh", "-c", "dd if=/dev/zero of=/more bs=1M count=3"]).outcome();
    full(&more);
    env.coracle(&["exec", "box", "sh", "-c", "rm /file /more; dd if=/dev/zero of=/more bs=1M count=12"]).ok();
    env.coracle(&["rm", "-f", "box"]).ok();
}

#[test]
fn what_a_limited_container_wrote_can_be_copied_compared_and_committed() {
    require!();
    let env = TestEnv::new();
    env.containers_may_stay();
    let image = env.image("busybox");
    let script =
        "mkdir /made; echo text > /made/file; rm /bin/vi; ln /made/file /made/link; chown 7:7 /made/file; true";
    let chown = env.who() != Who::Single;
    let script = if chown { script.to_owned() } else { script.replace("chown 7:7 /made/file; ", "") };
    env.coracle(&["run", "--network", "none", "--name", "box", "--disk=16m", &image, "sh", "-c", &script]).ok();
    let diff = env.coracle(&["diff", "box"]).ok();
    for line in ["A /made", "A /made/file", "A /made/link", "D /bin/vi"] {
        assert!(diff.lines().any(|found| found == line), "{line} is not in\n{diff}");
    }
    assert!(env.coracle(&["cp", "box:/made/file", "-"]).ok().contains("text"));
    env.coracle(&["start", "-a", "box"]).outcome();
    env.coracle(&["commit", "box", "made"]).ok();
    let listed = env.container(&["made", "sh", "-c", "cat /made/link; stat -c %u:%h /made/file; ls /bin/vi"]).outcome();
    assert!(listed.text().starts_with(if chown { "text\n7:2" } else { "text\n0:2" }), "{}", listed.text());
    assert!(listed.stderr.contains("/bin/vi"), "{}", listed.stderr);
    env.coracle(&["rm", "box"]).ok();
}

#[test]
fn limits_that_cannot_be_are_refused() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    for (flags, word) in [
        (&["--disk=1k"][..], "invalid disk limit"),
        (&["--disk=64m,files=3"], "invalid disk limit"),
        (&["--disk=much"], "is not a size"),
        (&["--storage-opt", "dm.size=5g"], "only size=SIZE"),
        (&["--disk=64m", "--storage-opt", "size=64m"], "give one of them"),
    ] {
        let mut argv = flags.to_vec();
        argv.extend([image.as_str(), "true"]);
        env.container(&argv).outcome().refused(125).says(word);
    }
    env.container(&["--disk=64m", "coracle/hello"]).outcome().refused(125).says("needs an image with layers");
}
