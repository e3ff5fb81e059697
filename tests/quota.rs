//! `--disk`: what a container may write (F39). The host's own disk is watched while it tries.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::env::{Outcome, TestEnv, Who, fixtures, poll, wait_until};
use crate::require;

mod ways;

const MIB: u64 = 1 << 20;

/// What a container may take to begin on a machine that others keep busy.
const PATIENCE: Duration = Duration::from_secs(300);

const FUZZ: &str = include_str!("quota/fuzz.py");
const LOAD: &str = include_str!("quota/load.py");
const LINKS: &str = include_str!("quota/links.py");
const RIGHTS: &str = include_str!("quota/rights.py");
/// The host's python: the image's lacks mmap and ctypes.
pub const PYTHON: [&str; 6] =
    ["-v", "/usr:/host:ro", "-e", "PYTHONHOME=/host", "-e", "LD_LIBRARY_PATH=/host/lib/x86_64-linux-gnu"];

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
pub fn only_container(env: &TestEnv) -> PathBuf {
    let entries = fs_err::read_dir(env.root().join("containers")).unwrap();
    entries.flatten().map(|entry| entry.path()).find(|path| path.join("container.json").exists()).unwrap()
}

pub fn inspect(env: &TestEnv, name: &str) -> Value {
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
    for flags in [
        &["--disk=16m"][..],
        &["--disk=16m,backend=fuse"],
        &["--disk=16m,backend=tmpfs"],
        &["--storage-opt", "size=16m,backend=fuse"],
    ] {
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
    let most = write_in_every_way("fuse", &["-v", ways::VOLUME], &[]);
    assert!(most > size_mib() * MIB / 2, "the host was not watched: {most}");
}

#[test]
fn f39_no_way_to_write_passes_the_limit_in_memory() {
    require!();
    // It refuses anonymous volumes, which would outlive it.
    let most = write_in_every_way("tmpfs", &[], &[ways::VOLUME]);
    assert!(most < 2 * MIB, "on the host's disk are {most} bytes");
}

fn size_mib() -> u64 {
    if fixtures::is_full() { 64 } else { 16 }
}

/// Runs the vectors, as an attacker without a system call filter; gives what the host's disk had at most.
#[track_caller]
fn write_in_every_way(backend: &str, flags: &[&str], left_out: &[&str]) -> u64 {
    let env = TestEnv::new();
    let image = env.image("debian");
    let size_mib = size_mib();
    let script = env.write("vectors.py", ways::SCRIPT);
    let mount = format!("{}:/vectors.py:ro", script.display());
    let disk = format!("{size_mib}m,inodes=3000,backend={backend}");
    let mut running = env
        .container(&["--disk", &disk, "-v", &mount, "--shm-size=8m", "--security-opt", "seccomp=unconfined"])
        .args(&["--log-opt", "max-size=128k", "--log-opt", "max-file=2"])
        .args(flags)
        .args(&PYTHON)
        .args(&[&image, "/host/bin/python3", "-u", "/vectors.py", &size_mib.to_string()])
        .time_limit(600)
        .spawn();
    let limit = size_mib * MIB;
    let (mut most, mut last) = (0, 0);
    while !running.has_ended() {
        if fs_err::read_dir(env.root().join("containers")).is_ok_and(|mut entries| entries.next().is_some()) {
            let places = ["containers", "volumes"].map(|name| allocated_bytes(&env.root().join(name)));
            let now: u64 = places.iter().sum();
            // A look that lasts counts what goes and what comes into its place; what stays is there at the next one.
            most = most.max(now.min(last));
            last = now;
            // A neighbour's write goes on.
            env.write("neighbour", vec![0; 1 << 16]);
        }
    }
    let outcome = running.wait();
    ways::judge(&ways::all_but(left_out), &outcome.ok());
    assert!(most <= limit + MIB, "the host had {most} bytes, allowed are {limit} and one MiB");
    most
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

/// Lists guards (first), servers and tellers of disks of this test.
fn disk_processes(env: &TestEnv) -> (Vec<i32>, Vec<i32>, Vec<i32>) {
    let place = env.root().into_os_string().into_encoded_bytes();
    let mut found = Vec::new();
    for entry in fs_err::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let line = fs_err::read(entry.path().join("cmdline")).unwrap_or_default();
        let ours = line.windows(12).any(|part| part == b"__serve-disk");
        if ours && line.windows(place.len()).any(|part| part == place) {
            let stat = fs_err::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse::<i32>().ok());
            found.push((pid, parent.unwrap_or(0)));
        }
    }
    let is_ours = |pid: i32| found.iter().any(|(other, _)| *other == pid);
    let (below, guards): (Vec<_>, Vec<_>) = found.iter().partition(|(_, parent)| is_ours(*parent));
    let name = |pid: i32| fs_err::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let (tellers, servers) = below.into_iter().partition(|(pid, _)| name(*pid) == "disk-teller\n");
    let numbers = |list: Vec<(i32, i32)>| list.into_iter().map(|(pid, _)| pid).collect();
    (numbers(guards), numbers(servers), numbers(tellers))
}

fn kill(pid: i32) {
    // It may have ended by itself.
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
}

#[test]
fn f39_a_killed_server_is_replaced_and_nothing_is_wrong() {
    require!();
    let env = TestEnv::new();
    env.containers_may_stay();
    let image = env.image("debian");
    let script = env.write("load.py", LOAD);
    let mount = format!("{}:/load.py:ro", script.display());
    let (files, kills) = if fixtures::is_full() { ("20000", 100) } else { ("600", 10) };
    let mut running = env
        .coracle(&["run", "--network", "none", "--name", "box", "--disk=256m", "-v", &mount])
        .args(&PYTHON)
        .args(&[&image, "/host/bin/python3", "-u", "/load.py", files])
        .time_limit(600)
        .spawn();
    // Loading the image and starting takes a minute where many others want the processor.
    poll(PATIENCE, || running.stdout_so_far().contains("begins") || running.has_ended());
    assert!(running.stdout_so_far().contains("begins"), "it never began: {}", running.stdout_so_far());
    let mut killed = 0;
    while killed < kills && !running.has_ended() {
        let (_, servers, tellers) = disk_processes(&env);
        // Sometimes the teller, for whose end a server ends too.
        for one in if killed % 7 == 3 { tellers } else { servers } {
            kill(one);
            killed += 1;
        }
        // The next one is to have done something.
        let before = running.stdout_so_far().len();
        poll(Duration::from_millis(200), || running.stdout_so_far().len() > before);
    }
    println!("killed {killed} servers");
    let text = running.wait().ok();
    assert!(text.ends_with("errors 0 wrong 0"), "{text}");
    assert!(killed > 0, "the load was over before anything was killed");
    let disk = inspect(&env, "box")["Disk"].take();
    assert!(disk["Takeovers"].as_u64().unwrap() > 0, "{disk}");
    let scanned = allocated_bytes(&only_container(&env).join("disk"));
    assert_eq!(disk["UsedBytes"], scanned, "the usage is not what a rescan finds");
    env.coracle(&["rm", "box"]).ok();
}

#[test]
fn every_thread_of_the_server_is_under_a_system_call_filter() {
    require!();
    let env = TestEnv::new();
    env.containers_may_stay();
    let image = env.image("busybox");
    let start = ["run", "-d", "--network", "none", "--name", "box", "--disk=16m,backend=fuse", &image, "sleep", "1000"];
    env.coracle(&start).ok();
    // Everything but reading has been done by the time the write is over.
    env.coracle(&["exec", "box", "sh", "-c", "echo text > /file"]).ok();
    let server = disk_processes(&env).1[0];
    let mut threads = 0;
    for thread in fs_err::read_dir(format!("/proc/{server}/task")).unwrap().flatten() {
        let path = thread.path().join("status");
        wait_until("a thread to be filtered", || {
            let status = fs_err::read_to_string(&path).unwrap_or_default();
            ["Seccomp:\t2", "NoNewPrivs:\t1"].iter().all(|line| status.lines().any(|found| found == *line))
        });
        threads += 1;
    }
    assert!(threads > 2, "{threads} threads");
    env.coracle(&["rm", "-f", "box"]).ok();
}

#[test]
fn without_a_limit_there_is_nothing_that_keeps_one() {
    require!();
    let env = TestEnv::new();
    env.containers_may_stay();
    let image = env.image("busybox");
    let mounts = |flags: &[&str]| {
        let run = env.coracle(&["run", "-d", "--network", "none", "--name", "box"]).args(flags);
        run.args(&[&image, "sleep", "1000"]).ok();
        let (guards, servers, tellers) = disk_processes(&env);
        let kept = only_container(&env).join("disk").exists();
        let mounts = env.coracle(&["exec", "box", "cat", "/proc/mounts"]).ok();
        env.coracle(&["rm", "-f", "box"]).ok();
        let places: Vec<String> = mounts.lines().map(|line| line.split(' ').take(3).collect()).collect();
        (guards.len() + servers.len() + tellers.len(), kept, places)
    };
    let (alone, limited) = (mounts(&[]), mounts(&["--disk=16m,backend=fuse"]));
    assert_eq!((alone.0, alone.1), (0, false), "a process or a directory of a limit");
    assert_eq!((limited.0, limited.1), (3, true), "then the check above shows nothing");
    assert!(!alone.2.iter().any(|mount| mount.contains("fuse")), "{alone:?}");
    // What is below the overlay is not the container's to see.
    assert_eq!(alone.2, limited.2);
}

#[test]
fn a_lost_guard_is_an_error_inside_and_inspect_says_so() {
    require!();
    let env = TestEnv::new();
    env.containers_may_stay();
    let image = env.image("busybox");
    let start = ["run", "-d", "--network", "none", "--name", "box", "--disk=16m", &image, "sleep", "1000"];
    env.coracle(&start).ok();
    env.coracle(&["exec", "box", "sh", "-c", "echo kept > /file"]).ok();
    let (guards, servers, _) = disk_processes(&env);
    assert_eq!((guards.len(), servers.len()), (1, 1));
    assert_eq!(inspect(&env, "box")["Disk"]["Lost"], false);
    kill(guards[0]);
    wait_until("the loss to be reported", || inspect(&env, "box")["Disk"]["Lost"] == true);
    // No hang: the write ends, with an error.
    let outcome = env.coracle(&["exec", "box", "sh", "-c", "echo lost > /file"]).time_limit(30).outcome();
    assert_ne!(outcome.code, 0, "{outcome}");
    env.coracle(&["kill", "box"]).ok();
    env.coracle(&["wait", "box"]).ok();
    env.coracle(&["start", "box"]).ok();
    assert_eq!(env.coracle(&["exec", "box", "cat", "/file"]).ok(), "kept");
    env.coracle(&["rm", "-f", "box"]).ok();
}

#[test]
fn random_operations_are_the_same_as_on_overlayfs_alone() {
    require!();
    let (count, rounds) = if fixtures::is_full() { (10_000, 10) } else { (1_500, 1) };
    let first = fixtures::given_seed().unwrap_or(1);
    for seed in first..first + rounds {
        let text = the_same_as_alone(FUZZ, &["--hostname", "h"], &[&count.to_string(), &seed.to_string()]);
        assert!(text.lines().count() > count, "seed {seed}: {text}");
    }
}

/// Runs a script on overlayfs alone and on the fuse backend and demands that both say the same; gives what they say.
#[track_caller]
fn the_same_as_alone(script: &str, flags: &[&str], arguments: &[&str]) -> String {
    let env = TestEnv::new();
    let image = env.image("debian");
    let mount = format!("{}:/script.py:ro", env.write("script.py", script).display());
    let run = |disk: &[&str]| {
        let run = env.container(disk).args(flags).args(&["-v", &mount]).args(&PYTHON);
        run.args(&[&image, "/host/bin/python3", "/script.py"]).args(arguments).time_limit(600).outcome().ok()
    };
    let (native, limited) = (run(&[]), run(&["--disk=1g,backend=fuse"]));
    let differs = native.lines().zip(limited.lines()).find(|(native, limited)| native != limited);
    assert_eq!(differs, None, "{arguments:?}: native first, limited second");
    assert_eq!(native.lines().count(), limited.lines().count(), "{arguments:?}");
    native
}

/// Set-user-id that stays with a file which a stranger has written would be the stranger's way to root.
#[test]
fn whoever_writes_takes_the_same_rights_from_a_file_as_on_overlayfs_alone() {
    require!();
    // Where one id is mapped there is nobody but root.
    let strangers: &[&str] = if TestEnv::new().who() == Who::Single { &[] } else { &["1000"] };
    let text = the_same_as_alone(RIGHTS, &[], strangers);
    for line in ["write 0o4777 0 0 0o777 False", "mapped 0o6777 0 0 0o6777 True"] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}

#[test]
fn a_file_that_lost_one_of_its_names_is_still_there() {
    require!();
    let text = the_same_as_alone(LINKS, &[], &[]);
    assert!(text.ends_with("at once [] 400") && !text.contains("ESTALE"), "{text}");
}
