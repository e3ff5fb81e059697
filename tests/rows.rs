//! Rows of the fault and attack list about containers and their shims that no other file here is about.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::env::{Canary, TestEnv, Who, leak, set_mode, wait_until};
use crate::life::{detached, directory, json, lives, pid, status};
use crate::require;

/// How often a race is tried; each round costs a container.
const ROUNDS: usize = 40;

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// Writes a JSON file of a container anew.
fn edit(env: &TestEnv, id: &str, file: &str, change: impl FnOnce(&mut Value)) {
    let mut value = json(env, id, file);
    change(&mut value);
    fs_err::write(directory(env, id).join(file), value.to_string()).unwrap();
}

#[test]
fn f08_a_log_that_cannot_be_written_holds_nobody_up_and_says_so_later() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let script = "echo first; until [ -e /go ]; do sleep 0.02; done; seq 1 20000; touch /done; \
                  until [ -e /end ]; do sleep 0.02; done; echo last";
    let id = detached(&env, &["--name", "c", &image, "sh", "-c", script]);
    let shim = pid(&env, &id, "watcher");
    wait_until("the first line", || env.coracle(&["logs", "c"]).ok() == "first");
    // What the shim writes gets EFBIG from now on, as it would get ENOSPC from a full disk.
    let limit = |bytes: &str| {
        env.program("prlimit").args(&[format!("--pid={shim}"), format!("--fsize={bytes}:unlimited")]).ok();
    };
    limit("4096");
    env.coracle(&["exec", "c", "touch", "/go"]).ok();
    wait_until("the container to have written everything", || {
        env.coracle(&["exec", "c", "test", "-e", "/done"]).outcome().code == 0
    });
    limit("unlimited");
    env.coracle(&["exec", "c", "touch", "/end"]).ok();
    assert_eq!(env.coracle(&["wait", "c"]).ok(), "0");
    let shown = env.coracle(&["logs", "c"]).outcome();
    let (out, err) = (String::from_utf8_lossy(&shown.stdout).into_owned(), shown.stderr.clone());
    assert!(out.starts_with("first\n") && out.ends_with("last\n"), "{}", &out[out.len().saturating_sub(200)..]);
    assert!(err.contains("bytes of log could not be written"), "{err}");
    assert!(out.lines().count() < 20_002, "the limit had no effect");
    for line in fs_err::read_to_string(directory(&env, &id).join("logs/current.json")).unwrap().lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
    env.coracle(&["rm", "c"]).ok();
}

#[test]
fn f09_too_few_descriptors_processes_or_bytes_are_an_error_and_the_next_run_works() {
    require!();
    let env = TestEnv::new();
    env.containers_may_stay();
    let image = env.image("busybox");
    env.coracle(&["pull", &image]).ok();
    let mut failures = 0;
    let limits = (3..40).step_by(4).map(|count| format!("-n {count}")).chain(["-v 60000".to_owned()]);
    for limit in limits {
        let script = format!("ulimit {limit} && exec \"$0\" run -d --network none --name c {image} sleep 1000");
        let program = crate::env::fixtures::coracle();
        let outcome = env.program("sh").args(&["-c", &script]).args(&[program]).time_limit(30).outcome();
        assert!(!outcome.stderr.contains("panicked"), "{limit}: {outcome}");
        if outcome.code != 0 {
            failures += 1;
            assert!(outcome.stderr.lines().count() <= 3 && !outcome.stderr.is_empty(), "{limit}: {outcome}");
            assert!((1..=127).contains(&outcome.code), "{limit}: {outcome}");
        }
        let shown = status(&env, "c");
        assert!(shown == "running" || outcome.code != 0, "{limit}: {outcome}, then {shown}");
        env.coracle(&["rm", "-f", "c"]).ok();
    }
    assert!(failures >= 3, "the limits had no effect");
    let id = detached(&env, &["--name", "c", &image, "sleep", "1000"]);
    env.coracle(&["rm", "-f", &id]).ok();
    assert_eq!(env.coracle(&["ps", "-aq"]).ok(), "");
}

#[test]
fn f09_a_directory_that_cannot_be_written_is_named() {
    require!();
    let env = TestEnv::new();
    if env.who() == Who::Root {
        crate::env::fixtures::elsewhere("root writes everywhere");
        return;
    }
    let image = env.image("busybox");
    env.coracle(&["create", "--name", "c", "--network", "none", &image, "true"]).ok();
    let containers = env.root().join("containers");
    set_mode(&containers, 0o500);
    let outcome = env.coracle(&["run", "-d", "--network", "none", &image, "true"]).outcome();
    outcome.refused(125).says("containers");
    set_mode(&containers, 0o700);
    let own = fs_err::read_dir(&containers).unwrap().next().unwrap().unwrap().path();
    set_mode(&own, 0o500);
    env.coracle(&["start", "c"]).outcome().refused(1);
    assert_eq!(status(&env, "c"), "created");
    set_mode(&own, 0o700);
    env.coracle(&["start", "c"]).ok();
    env.coracle(&["wait", "c"]).ok();
    env.coracle(&["rm", "c"]).ok();
}

#[test]
fn f11_whatever_a_container_leaves_behind_ends_with_it() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let script = "trap '' TERM HUP INT; \
                  for n in $(seq 30); do (setsid sh -c 'trap \"\" TERM HUP; sleep 1000 & sleep 1000' &) ; done; \
                  for n in $(seq 200); do (true &) ; done; echo ready; while :; do sleep 1000; done";
    for flags in [&[][..], &["--init"]] {
        let id = detached(&env, &[&["--name", "c"][..], flags, &[&image, "sh", "-c", script]].concat());
        wait_until("all of them", || env.coracle(&["logs", "c"]).ok().contains("ready"));
        let (shim, init) = (pid(&env, &id, "watcher"), pid(&env, &id, "init"));
        let inside = leak::below(init);
        assert!(inside.len() >= 30, "{inside:?}");
        env.coracle(&["stop", "-t", "1", "c"]).time_limit(20).ok();
        assert!(!lives(init) && inside.iter().all(|pid| !lives(*pid)), "one of {inside:?} is there still");
        assert_eq!(json(&env, &id, "exit.json")["exit_code"], 137);
        wait_until("the shim to be gone", || !lives(shim));
        env.coracle(&["rm", "c"]).ok();
    }
}

#[test]
fn f13_broken_files_of_one_container_harm_no_other() {
    require!();
    let env = TestEnv::new();
    env.containers_may_stay();
    let image = env.image("busybox");
    let whole = detached(&env, &["--name", "whole", &image, "sleep", "1000"]);
    let broken = env.coracle(&["create", "--name", "broken", "--network", "none", &image, "true"]).ok();
    env.coracle(&["start", "-a", "broken"]).ok();
    for file in ["container.json", "state.json", "exit.json", "config.json", "logs/current.json"] {
        let path = directory(&env, &broken).join(file);
        let text = fs_err::read(&path).unwrap();
        for bytes in [&b""[..], b"{", b"\0\0\0\0", b"[]", b"{\"version\":1}", &text[..text.len() / 2]] {
            fs_err::write(&path, bytes).unwrap();
            let what = format!("{file} is {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(20)]));
            for command in [
                &["ps", "-a"][..],
                &["inspect", "broken"],
                &["logs", "broken"],
                &["start", "broken"],
                &["stop", "broken"],
                &["top", "broken"],
                &["stats", "--no-stream"],
                &["system", "df"],
                &["images"],
                &["export", "broken"],
                &["diff", "broken"],
                &["port", "broken"],
                &["cp", "broken:/etc/passwd", "-"],
            ] {
                let outcome = env.coracle(command).time_limit(30).outcome();
                assert!(!outcome.stderr.contains("panicked") && outcome.code < 128, "{what}: {command:?}: {outcome}");
            }
            assert_eq!(env.coracle(&["ps", "--format", "{{.Names}}"]).ok(), "whole", "{what}");
            assert_eq!(env.coracle(&["exec", "whole", "echo", "here"]).ok(), "here", "{what}");
        }
        fs_err::write(&path, &text).unwrap();
        env.coracle(&["start", "-a", "broken"]).ok();
    }
    env.coracle(&["rm", "-f", "broken", &whole]).ok();
    assert_eq!(env.coracle(&["ps", "-aq"]).ok(), "");
}

#[test]
fn f14_a_number_that_belongs_to_another_process_now_is_left_alone() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let id = detached(&env, &["--name", "c", &image, "sleep", "1000"]);
    let mut other = env.program("sleep").args(&["1000"]).spawn();
    let (shim, init) = (pid(&env, &id, "watcher"), pid(&env, &id, "init"));
    signal(shim, Signal::SIGKILL);
    wait_until("both to be gone", || !lives(shim) && !lives(init));
    // As if both numbers had come round again.
    let stranger = other.pid();
    edit(&env, &id, "state.json", |state| {
        state["init"]["pid"] = stranger.into();
        state["watcher"]["pid"] = stranger.into();
    });
    assert_eq!(status(&env, "c"), "exited");
    env.coracle(&["kill", "c"]).outcome().refused(1).says("not running");
    env.coracle(&["exec", "c", "true"]).outcome().refused(1);
    env.coracle(&["stop", "-t", "0", "c"]).ok();
    env.coracle(&["rm", "-f", "c"]).ok();
    assert!(!other.has_ended() && lives(stranger), "a stranger was signalled");
    other.signal(Signal::SIGKILL);
    other.wait();
}

#[test]
fn f16_a_lock_ends_with_who_held_it() {
    require!();
    let env = TestEnv::new();
    env.containers_may_stay();
    let image = env.image("busybox");
    for point in ["rootfs_removed", "state_removed"] {
        env.coracle(&["create", "--name", "c", "--network", "none", &image, "true"]).ok();
        env.coracle(&["rm", "c"]).env("CORACLE_FAILPOINT", format!("{point}=abort")).outcome();
        // Whatever is left of it, nobody holds it and the name can be had again.
        env.coracle(&["rm", "-f", "c"]).time_limit(5).outcome();
        env.coracle(&["create", "--name", "c", "--network", "none", &image, "true"]).time_limit(5).ok();
        env.coracle(&["rm", "c"]).time_limit(5).ok();
    }
    assert_eq!(env.coracle(&["ps", "-aq"]).ok(), "");
}

#[test]
fn f17_a_clock_that_jumped_changes_no_order_and_ends_nothing() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let script = "echo one; echo two; echo three; sleep 1000";
    let id = detached(&env, &["--name", "c", &image, "sh", "-c", script]);
    wait_until("three lines", || env.coracle(&["logs", "c"]).ok().lines().count() == 3);
    let log = directory(&env, &id).join("logs/current.json");
    let text = fs_err::read_to_string(&log).unwrap();
    let years = ["2036-01-01", "1996-01-01", "2026-01-01"];
    let jumped = text.lines().zip(years).map(|(line, day)| {
        let mut entry: Value = serde_json::from_str(line).unwrap();
        entry["time"] = format!("{day}T00:00:00Z").into();
        format!("{entry}\n")
    });
    fs_err::write(&log, jumped.collect::<String>()).unwrap();
    assert_eq!(env.coracle(&["logs", "c"]).ok(), "one\ntwo\nthree");
    assert_eq!(env.coracle(&["logs", "--tail", "2", "c"]).ok(), "two\nthree");
    for ns in [0_u64, 2_085_978_496_000_000_000, u64::MAX] {
        edit(&env, &id, "container.json", |record| record["created_ns"] = ns.into());
        edit(&env, &id, "state.json", |state| state["started_ns"] = ns.into());
        assert_eq!(status(&env, "c"), "running", "{ns}");
        for command in [&["ps", "-a"][..], &["inspect", "c"], &["stats", "--no-stream", "c"], &["exec", "c", "true"]] {
            env.coracle(command).outcome().code(0);
        }
    }
    env.coracle(&["stop", "-t", "0", "c"]).ok();
    env.coracle(&["start", "c"]).ok();
    env.coracle(&["rm", "-f", "c"]).ok();
}

#[test]
fn f24_pulls_runs_and_removals_of_one_image_at_once() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    for _ in 0..3 {
        let runs: Vec<_> = (0..6).map(|_| env.container(&[&image, "echo", "ran"]).spawn()).collect();
        let pulls: Vec<_> = (0..2).map(|_| env.coracle(&["pull", "-q", &image]).spawn()).collect();
        let removals: Vec<_> = (0..2).map(|_| env.coracle(&["rmi", &image]).spawn()).collect();
        let sweeps: Vec<_> = (0..2).map(|_| env.coracle(&["image", "prune", "-a", "-f"]).spawn()).collect();
        for run in runs {
            let outcome = run.wait();
            assert!(!outcome.stderr.contains("panicked"), "{outcome}");
            // Its image may have been removed before it was used; then it says so.
            assert!(outcome.code == 0 || outcome.stderr.contains("image"), "{outcome}");
            assert!(outcome.code != 0 || outcome.text() == "ran", "{outcome}");
        }
        for other in pulls.into_iter().chain(removals).chain(sweeps) {
            let outcome = other.wait();
            assert!(!outcome.stderr.contains("panicked") && outcome.code < 126, "{outcome}");
        }
        assert_eq!(env.container(&[&image, "echo", "ran"]).ok(), "ran");
    }
}

#[test]
fn a37_nobody_else_reaches_the_shim() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let id = detached(&env, &["--name", "c", &image, "sleep", "1000"]);
    let socket = directory(&env, &id).join("shim.sock");
    let own = fs_err::symlink_metadata(&socket).unwrap();
    assert_eq!((own.mode() & 0o777, own.uid()), (0o600, nix::unistd::geteuid().as_raw()));
    for above in socket.ancestors().skip(1).take_while(|path| path.starts_with(env.root())) {
        assert_eq!(fs_err::metadata(above).unwrap().permissions().mode() & 0o077, 0, "{}", above.display());
    }
    // A container with the host's network sees the host's abstract sockets: there is none of ours.
    let shim = pid(&env, &id, "watcher");
    let numbers: Vec<String> = fs_err::read_dir(format!("/proc/{shim}/fd"))
        .unwrap()
        .filter_map(|entry| fs_err::read_link(entry.unwrap().path()).ok())
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    assert!(!numbers.is_empty(), "the shim listens");
    let table = env.coracle(&["run", "--rm", "--network", "host", &image, "cat", "/proc/net/unix"]).ok();
    let of_shim: Vec<&str> = table
        .lines()
        .filter(|line| line.split_whitespace().nth(6).is_some_and(|number| numbers.iter().any(|own| own == number)))
        .collect();
    assert!(!of_shim.is_empty(), "the container has the host's table");
    assert!(of_shim.iter().all(|line| !line.contains('@')), "{of_shim:?}");
    env.coracle(&["rm", "-f", "c"]).ok();
}

#[test]
fn a38_shared_memory_goes_with_its_container() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    env.coracle(&["run", "--rm", "--network", "none", "--ipc", "container:c", &image, "true"]).outcome().refused(125);
    let memory = || {
        let text = fs_err::read_to_string("/proc/meminfo").unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("Shmem:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let restarts = ["--name", "c", "--restart", "on-failure:3", "--shm-size", "32m"];
    let script = "[ -z \"$(ls /dev/shm)\" ] || touch /dev/shm/found; head -c 40000000 /dev/zero >/dev/shm/full; \
                  ls /dev/shm; exit 1";
    let before = memory();
    let id = detached(&env, &[&restarts[..], &[&image, "sh", "-c", script]].concat());
    wait_until("the last restart", || status(&env, "c") == "exited" && json(&env, &id, "state.json")["restarts"] == 3);
    assert_eq!(env.coracle(&["logs", "c"]).outcome().text(), "full\nfull\nfull\nfull", "each run begins with none");
    // Others use shared memory too, but not 100 MB just now.
    wait_until("the memory to be free", || memory() < before + 96 * 1024);
    env.coracle(&["rm", "c"]).ok();
}

#[test]
fn a43_a_reader_that_never_reads_costs_nothing() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    detached(&env, &["--name", "c", &image, "sleep", "1000"]);
    for flags in [&["exec", "c", "yes"][..], &["exec", "-i", "c", "cat", "/dev/zero"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        let exec = env.coracle(flags).stdout_to(writer).spawn();
        let size = || {
            let status = fs_err::read_to_string(format!("/proc/{}/status", exec.pid())).unwrap_or_default();
            let line =
                status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or("0 kB").trim().to_owned();
            line.trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        // The pipe is full as soon as it holds what a pipe holds.
        wait_until("a full pipe", || {
            use std::os::fd::AsFd;
            rustix::io::ioctl_fionread(reader.as_fd()).unwrap_or(0) >= 60_000
        });
        assert!(size() < 16 * 1024, "{} KiB", size());
        drop(reader);
        // SIGPIPE inside is what a pipe of the shell would give.
        let outcome = exec.wait();
        assert!(outcome.code != 0, "{outcome}");
    }
    assert_eq!(status(&env, "c"), "running");
    env.coracle(&["rm", "-f", "c"]).ok();
}

#[test]
fn a46_an_archive_moves_no_name_without_being_told() {
    require!();
    let env = TestEnv::new();
    let (real, other) = (env.image("busybox"), env.image("config"));
    for image in [&real, &other] {
        env.coracle(&["pull", "-q", image]).ok();
    }
    let id = |image: &str| env.coracle(&["images", "-q", "--no-trunc", image]).ok();
    let archive = env.path("archive.tar").display().to_string();
    let name = "docker.io/library/alpine:latest";
    env.coracle(&["tag", &other, name]).ok();
    env.coracle(&["save", "-o", &archive, name]).ok();
    env.coracle(&["tag", &real, name]).ok();
    let trusted = id(name);
    let loaded = env.coracle(&["load", "-i", &archive]).outcome();
    let said = format!("note: alpine:latest was {trusted} until now");
    loaded.code(0);
    assert!(loaded.stderr.contains(&said), "{loaded}");
    assert_eq!(id(name), id(&other));
    env.coracle(&["tag", &real, name]).ok();
    env.coracle(&["load", "-i", &archive, "--tag", "mine:1"]).ok();
    assert_eq!(id(name), trusted, "a name was given, so no other moves");
    assert_eq!(id("mine:1"), id(&other));
}

#[test]
fn a47_rm_while_somebody_swaps_directories_for_links() {
    require!();
    let env = TestEnv::new();
    let canary = Canary::plant(&env);
    let image = env.image("busybox");
    env.coracle(&["pull", "-q", &image]).ok();
    let target = canary.dir().to_owned();
    let mut swaps = 0;
    for round in 0..ROUNDS {
        let id = env.coracle(&["create", "--network", "none", "--name", "c", &image, "true"]).ok();
        let upper = directory(&env, &id).join("upper");
        for number in 0..20 {
            fs_err::create_dir_all(upper.join(format!("d/{number}/deep"))).unwrap();
        }
        let (victim, aside) = (upper.join("d/7"), env.path(format!("aside{round}")));
        let mut rm = env.coracle(&["rm", "c"]).spawn();
        while !rm.has_ended() {
            if fs_err::rename(&victim, &aside).is_ok() {
                swaps += usize::from(fs_err::os::unix::fs::symlink(&target, &victim).is_ok());
                let _ = fs_err::remove_file(&victim);
                let _ = fs_err::rename(&aside, &victim);
            }
        }
        // What was swapped in at the last moment may keep the directory; the next try takes it.
        rm.wait();
        env.coracle(&["rm", "c"]).outcome();
        assert!(!directory(&env, &id).exists(), "round {round}");
        let _ = fs_err::remove_dir_all(&aside);
    }
    assert!(swaps > ROUNDS, "{swaps} swaps are too few to mean anything");
    canary.assert_untouched();
}

#[test]
fn between_an_end_and_the_next_start_it_is_restarting() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    for (policy, word) in [("always", "restarting"), ("no", "exited")] {
        let id = detached(&env, &["--name", "c", "--restart", policy, &image, "sleep", "1000"]);
        let (shim, init) = (pid(&env, &id, "watcher"), pid(&env, &id, "init"));
        // A shim that is stopped makes the moment long.
        signal(shim, Signal::SIGSTOP);
        env.coracle(&["exec", "c", "sh", "-c", "kill -9 -1"]).outcome();
        assert_eq!(status(&env, "c"), "running", "the first process is not reached from inside");
        signal(init, Signal::SIGKILL);
        wait_until("the end", || !lives(init));
        assert_eq!(status(&env, "c"), word);
        signal(shim, Signal::SIGCONT);
        wait_until("what follows", || status(&env, "c") == if policy == "no" { "exited" } else { "running" });
        env.coracle(&["rm", "-f", "c"]).ok();
    }
}

#[test]
fn a01_all_shims_share_one_sealed_copy() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    // A program that belongs to whoever runs it, as after an installation below $HOME.
    let program = env.path("own-coracle");
    fs_err::copy(crate::env::fixtures::coracle(), &program).unwrap();
    set_mode(&program, 0o755);
    let run = |name: &str| {
        let run = env.program(&program.display().to_string());
        let run = run.args(&["run", "-d", "--network", "none", "--name", name, &image, "sleep", "1000"]);
        let id = run.ok();
        let shim = pid(&env, &id, "watcher");
        let copy = fs_err::File::open(format!("/proc/{shim}/exe")).unwrap();
        let seals = rustix::fs::fcntl_get_seals(&copy).expect("a file in memory");
        assert!(seals.contains(rustix::fs::SealFlags::WRITE | rustix::fs::SealFlags::SEAL), "{seals:?}");
        (shim, fs_err::metadata(format!("/proc/{shim}/exe")).unwrap().ino())
    };
    let (first, copy) = run("a");
    assert_eq!(run("b").1, copy);
    let (third, same) = run("c");
    assert_eq!(same, copy);
    // The latest is asked first, then those that are there.
    signal(third, Signal::SIGKILL);
    wait_until("its end", || !lives(third));
    assert_eq!(run("d").1, copy);
    // Another file, another copy.
    fs_err::copy(crate::env::fixtures::coracle(), env.path("new")).unwrap();
    fs_err::rename(env.path("new"), &program).unwrap();
    assert_ne!(run("e").1, copy);
    assert!(lives(first));
    env.coracle(&["rm", "-f", "a", "b", "c", "d", "e"]).ok();
}
