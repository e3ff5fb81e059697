//! Word by word beside runc: mount options, flags of commands, and fields that only the kernel can show.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Oci, receive_terminal, unique};
use crate::env::{TestEnv, Who, fixtures};

/// What `runc features` (1.1.5) lists, and what a fresh tmpfs shows of each word in its line of mountinfo.
const OPTIONS: [(&str, &str); 67] = [
    ("acl", ""),
    ("async", ""),
    ("atime", " rw,relatime "),
    ("bind", "-"),
    ("defaults", " rw,relatime "),
    ("dev", " rw,relatime "),
    ("diratime", " rw,relatime "),
    ("dirsync", "dirsync"),
    ("exec", " rw,relatime "),
    ("iversion", ""),
    ("lazytime", "lazytime"),
    ("loud", ""),
    ("mand", ""),
    ("noacl", ""),
    ("noatime", "noatime"),
    ("nodev", "nodev"),
    ("nodiratime", "nodiratime"),
    ("noexec", "noexec"),
    ("noiversion", ""),
    ("nolazytime", ""),
    ("nomand", ""),
    ("norelatime", ""),
    ("nostrictatime", " rw,relatime "),
    ("nosuid", "nosuid"),
    ("nosymfollow", "nosymfollow"),
    ("private", ""),
    ("ratime", " rw,relatime "),
    ("rbind", "-"),
    ("rdev", " rw,relatime "),
    ("rdiratime", " rw,relatime "),
    ("relatime", " rw,relatime "),
    ("remount", ""),
    ("rexec", " rw,relatime "),
    ("rnoatime", "noatime"),
    ("rnodev", "nodev"),
    ("rnodiratime", "nodiratime"),
    ("rnoexec", "noexec"),
    ("rnorelatime", ""),
    ("rnostrictatime", " rw,relatime "),
    ("rnosuid", "nosuid"),
    ("rnosymfollow", "nosymfollow"),
    ("ro", " ro,relatime "),
    ("rprivate", ""),
    ("rrelatime", " rw,relatime "),
    ("rro", " ro,relatime "),
    ("rrw", " rw,relatime "),
    ("rshared", "shared:"),
    ("rslave", ""),
    ("rstrictatime", " rw "),
    ("rsuid", " rw,relatime "),
    ("rsymfollow", " rw,relatime "),
    ("runbindable", "unbindable"),
    ("rw", " rw,relatime "),
    ("shared", "shared:"),
    ("silent", ""),
    ("slave", ""),
    ("strictatime", " rw "),
    ("suid", " rw,relatime "),
    ("symfollow", " rw,relatime "),
    ("sync", "sync"),
    ("tmpcopyup", ""),
    ("unbindable", "unbindable"),
    // What a filesystem of its own is told, and what comes later than runc 1.1.5.
    ("size=64k", "size=64k"),
    ("mode=700", "mode=700"),
    ("nr_inodes=9", "nr_inodes=9"),
    ("copyup", ""),
    ("rnoatime,nodev", "noatime"),
];

/// Words for a filesystem, which a bind mount has not: they change a superblock that others use too.
const NOT_FOR_BINDS: [&str; 4] = ["dirsync", "lazytime", "mand", "sync"];

/// A line of the container's mountinfo for each mount point.
fn lines(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(|line| Some((line.split(' ').nth(4)?, line))).collect()
}

#[test]
fn oci_every_mount_option_of_runc() {
    let env = TestEnv::new();
    let oci = Oci::new(&env, &["cat", "/proc/self/mountinfo"]);
    let plain = oci.config();
    let plain = fs_err::read_to_string(plain).unwrap();
    let place = |word: &str| format!("/m/{}", word.replace([',', '='], "-"));
    oci.change(|config| {
        config["root"]["readonly"] = json!(false);
        let mounts = config["mounts"].as_array_mut().unwrap();
        for (word, _) in OPTIONS.iter().filter(|(_, shown)| *shown != "-") {
            let options: Vec<&str> = word.split(',').collect();
            mounts.push(json!({ "destination": place(word), "type": "tmpfs", "source": "tmpfs", "options": options }));
        }
    });
    let text = oci.with_bundle(&["run", &unique("options")]).ok();
    let found = lines(&text);
    for (word, shown) in OPTIONS.iter().filter(|(_, shown)| *shown != "-") {
        let line = found.get(place(word).as_str()).unwrap_or_else(|| panic!("{word} is not mounted: {text}"));
        assert!(line.contains(shown), "{word}: {line}");
    }

    // The same for binds, of a directory of our own: what says nothing about a mount is refused by its name.
    let source = env.path("source");
    fs_err::create_dir(&source).unwrap();
    let bind = |word: &str| {
        fs_err::write(oci.config(), &plain).unwrap();
        oci.change(|config| {
            let mounts = config["mounts"].as_array_mut().unwrap();
            let options: Vec<&str> = if word == "rbind" { vec![word] } else { vec!["bind", word] };
            mounts.push(json!({ "destination": "/tmp", "type": "bind", "source": source, "options": options }));
        });
        oci.with_bundle(&["run", &unique("bind")]).outcome()
    };
    for word in NOT_FOR_BINDS {
        bind(word).refused(1).says(&format!("bind mounts have no option {word:?}"));
    }
    for (word, flag) in [("ro", "ro,"), ("nodev", "nodev"), ("rnosuid", "nosuid"), ("rro", "ro,"), ("rbind", "rw,")] {
        let text = bind(word).ok().to_owned();
        let line = lines(&text)["/tmp"].to_owned();
        assert!(line.split(' ').nth(5).unwrap().contains(flag), "{word}: {line}");
    }
    // What nobody knows goes to the filesystem, which says no.
    fs_err::write(oci.config(), &plain).unwrap();
    for (kind, destination) in [("tmpfs", "/tmp"), ("sysfs", "/sys"), ("proc", "/proc"), ("cgroup", "/sys/fs/cgroup")] {
        oci.change(|config| {
            let mounts = config["mounts"].as_array_mut().unwrap();
            mounts.retain(|mount| mount["destination"] != destination);
            mounts
                .push(json!({ "destination": destination, "type": kind, "source": kind, "options": ["no_such_word"] }));
        });
        oci.with_bundle(&["run", &unique("word")]).outcome().refused(1).says("no_such_word");
        fs_err::write(oci.config(), &plain).unwrap();
    }
    let features: Value = serde_json::from_str(&oci.run(&["features"]).ok()).unwrap();
    for (word, _) in &OPTIONS[..62] {
        assert!(features["mountOptions"].as_array().unwrap().contains(&json!(word)), "features name {word}");
    }
}

/// Commands and their flags, as `runc --help` (1.1.5) and `crun --help` (1.8.1) list them.
const FLAGS: [(&str, &str); 15] = [
    (
        "create",
        "-b --bundle --console-socket --pid-file --no-pivot --no-new-keyring --preserve-fds -f --config --no-subreaper",
    ),
    (
        "run",
        "-b --bundle --console-socket -d --detach --keep --pid-file --no-subreaper --no-pivot --no-new-keyring \
         --preserve-fds -f --config",
    ),
    ("start", ""),
    ("state", ""),
    ("kill", "-a --all"),
    ("delete", "-f --force --regex"),
    (
        "exec",
        "--console-socket --cwd -e --env -t --tty -u --user -g --additional-gids -p --process -d --detach --pid-file \
         --no-new-privs -c --cap --preserve-fds --cgroup --ignore-paused",
    ),
    ("list", "-f --format -q --quiet"),
    ("ps", "-f --format"),
    ("pause", ""),
    ("resume", ""),
    (
        "update",
        "-r --resources --blkio-weight --cpu-period --cpu-quota --cpu-burst --cpu-share --cpu-rt-period \
         --cpu-rt-runtime --cpuset-cpus --cpuset-mems --cpu-idle --kernel-memory --kernel-memory-tcp --memory \
         --memory-reservation --memory-swap --pids-limit --l3-cache-schema --mem-bw-schema",
    ),
    ("events", "--interval --stats"),
    ("spec", "-b --bundle --rootless"),
    ("features", ""),
];

const GLOBALS: &str =
    "--debug --log --log-format --root --systemd-cgroup --cgroup-manager --rootless -h --help -v --version";

#[test]
fn oci_every_flag_of_runc() {
    let env = TestEnv::new();
    let oci = Oci::new(&env, &["true"]);
    let words = |help: &str| -> Vec<String> {
        help.split([' ', ',', '\n']).filter(|word| word.starts_with('-')).map(str::to_owned).collect()
    };
    for (command, flags) in FLAGS {
        let known = words(&oci.run(&[command, "--help"]).ok());
        for flag in flags.split(' ').filter(|flag| !flag.is_empty()) {
            assert!(known.iter().any(|word| word == flag), "{command} {flag}: {known:?}");
        }
        oci.run(&[command, "--no-such-flag"]).outcome().refused(1).says("flag --no-such-flag is not implemented");
    }
    let known = words(&oci.run(&["--help"]).ok());
    for flag in GLOBALS.split(' ') {
        assert!(known.iter().any(|word| word == flag), "{flag}: {known:?}");
    }
    // What stands before the command is the program's, what stands behind it the command's.
    let log = env.path("log");
    let log = log.to_str().unwrap();
    let (root, bundle) = (format!("--root={}", env.path("state").display()), oci.bundle.to_str().unwrap());
    let before =
        [root.as_str(), "--debug", "--log", log, "--log-format=json", "--rootless=auto", "--cgroup-manager=disabled"];
    oci.run(&before).args(&["run", "--no-subreaper", "--no-new-keyring", "--bundle", bundle, &unique("flags")]).ok();
    let first = fs_err::read_to_string(log).unwrap();
    let first: Value = serde_json::from_str(first.lines().next().unwrap()).unwrap();
    assert_eq!(first["level"], "debug", "{first}");
    oci.run(&["list", "--log", log]).outcome().refused(1).says("--log");
    oci.run(&["--log-format=xml", "list"]).outcome().refused(1).says("log-format");
    oci.run(&["--cgroup-manager=none", "list"]).outcome().refused(1).says("cgroup-manager");
    oci.run(&[]).outcome().refused(1).says("no command");
}

/// A bundle of an ordinary user names one id; without it the caller's own ranges are chosen.
fn use_own_ranges(oci: &Oci<'_>) {
    if oci.env.who() == Who::Ranges {
        oci.change(|config| {
            let linux = config["linux"].as_object_mut().unwrap();
            linux.remove("uidMappings");
            linux.remove("gidMappings");
        });
    }
}

#[test]
fn oci_fields_are_what_the_kernel_shows() {
    let env = TestEnv::new();
    let script = "cat /proc/sys/kernel/domainname; ionice; grep -E '^(Cap(Inh|Amb|Bnd)|Groups)' /proc/self/status; \
                  grep -E '^([^ ]+ ){4}/ ' /proc/self/mountinfo | grep -c shared:; echo x 2>/dev/null >/etc/new || echo read-only; \
                  cat /proc/sys/kernel/shmmni; grep -c bind:0 /proc/self/numa_maps; ulimit -c";
    let oci = Oci::new(&env, &["sh", "-c", script]);
    std::os::unix::fs::symlink("busybox", oci.bundle.join("rootfs/bin/ionice")).unwrap();
    let groups = if env.who() == Who::Single { json!([]) } else { json!([7, 9]) };
    use_own_ranges(&oci);
    oci.change(|config| {
        config["domainname"] = json!("example.test");
        config["root"]["readonly"] = json!(false);
        let process = &mut config["process"];
        process["ioPriority"] = json!({ "class": "IOPRIO_CLASS_BE", "priority": 6 });
        for set in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
            process["capabilities"][set] = json!(["CAP_CHOWN", "CAP_KILL"]);
        }
        process["user"]["additionalGids"] = groups;
        process["rlimits"] = json!([{ "type": "RLIMIT_CORE", "soft": 0, "hard": 0 }]);
        config["linux"]["rootfsPropagation"] = json!("shared");
        config["linux"]["readonlyPaths"].as_array_mut().unwrap().push(json!("/etc"));
        config["linux"]["sysctl"] = json!({ "kernel.shmmni": "4001" });
        config["linux"]["memoryPolicy"] = json!({ "mode": "MPOL_BIND", "nodes": "0" });
        config["linux"]["seccomp"]["flags"] = json!(["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"]);
    });
    let text = oci.with_bundle(&["run", &unique("fields")]).ok();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..2], ["example.test", "best-effort: prio 6"], "{text}");
    assert!(lines[2].starts_with("Groups:\t7 9") || env.who() == Who::Single, "{text}");
    let sets = ["CapInh:\t0000000000000021", "CapBnd:\t0000000000000021", "CapAmb:\t0000000000000021"];
    assert_eq!(lines[3..6], sets, "{text}");
    assert_eq!(lines[6..9], ["1", "read-only", "4001"], "{text}");
    let numa = fs_err::read_to_string("/proc/self/numa_maps").is_ok();
    assert!(!numa || lines[9].parse::<u32>().unwrap() > 0, "{text}");
    assert_eq!(lines.last(), Some(&"0"), "{text}");
}

#[test]
fn c12_hooks_of_one_moment_run_in_their_order_up_to_a_failure() {
    let env = TestEnv::new();
    let oci = Oci::new(&env, &["sleep", "1000"]);
    let log = env.path("log");
    let say = |word: &str, code: u8| {
        let script = format!("echo {word} >>{}; exit {code}", log.display());
        json!({ "path": "/bin/sh", "args": ["sh", "-c", script] })
    };
    oci.change(|config| {
        config["hooks"] = json!({
            "createRuntime": [say("first", 0), say("second", 4), say("third", 0)],
            "poststop": [say("after", 5), say("last", 0)],
        });
    });
    let id = &unique("order");
    oci.with_bundle(&["create", id]).outcome().refused(1).says("createRuntime hook");
    assert_eq!(fs_err::read_to_string(&log).unwrap(), "first\nsecond\nafter\nlast\n");
    // A hook inside that fails when the container was created already: `start` says so, and nothing runs.
    let failing = json!({ "path": "/bin/sh", "args": ["sh", "-c", "exit 6"] });
    oci.change(|config| config["hooks"] = json!({ "startContainer": [failing], "poststop": [say("stopped", 0)] }));
    oci.quiet(&["create", id]).ok();
    oci.run(&["start", id]).outcome().refused(1).says("startContainer hook /bin/sh: failed with exit status: 6");
    oci.wait_for_status(id, "stopped");
    oci.run(&["delete", id]).ok();
    assert!(fs_err::read_to_string(&log).unwrap().ends_with("stopped\n"));
    oci.is_empty();
}

#[test]
fn oci_exec_groups_terminals_and_descriptors() {
    let env = TestEnv::new();
    let oci = Oci::new(&env, &["sleep", "1000"]);
    use_own_ranges(&oci);
    let id = &unique("execs");
    oci.quiet(&["run", "--detach", id]).ok();
    let groups = ["exec", "-g", "5", "--additional-gids", "8", id, "grep", "Groups", "/proc/self/status"];
    if env.who() == Who::Single {
        oci.run(&groups).outcome().refused(255).says("not in the container's id map");
    } else {
        assert_eq!(oci.run(&groups).ok().trim_end(), "Groups:\t5 8");
    }
    // A terminal that somebody else takes, by the flag and by the file.
    let socket = env.path("console");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let socket = socket.to_str().unwrap();
    oci.run(&["exec", "--tty", "--detach", id, "true"]).outcome().refused(1).says("--console-socket");
    let process = env.write(
        "process.json",
        json!({ "cwd": "/", "terminal": true, "args": ["stty", "size"], "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 },
                "consoleSize": { "height": 13, "width": 57 } })
        .to_string(),
    );
    let flags = ["exec", "--process", process.to_str().unwrap(), "--console-socket", socket, id];
    let running = oci.run(&flags).spawn();
    let mut terminal = receive_terminal(&listener);
    let mut said = Vec::new();
    let mut buffer = [0_u8; 256];
    while let Ok(count @ 1..) = std::io::Read::read(&mut terminal, &mut buffer) {
        said.extend_from_slice(&buffer[..count]);
    }
    assert_eq!(running.wait().code, 0);
    assert_eq!(String::from_utf8_lossy(&said).trim_end(), "13 57");
    // Descriptors that are passed on, and no others.
    let file = env.write("passed", "through 3\n");
    let passing = |flags: &str| {
        let command = format!(
            "exec 3<{file} 5<{file}; exec {oci} --root {root} exec {flags} {id} sh -c 'cat <&3; ls /proc/self/fd'",
            file = file.display(),
            oci = oci.program.display(),
            root = oci.state_root().display(),
        );
        env.program("/bin/sh").args(&["-c", &command]).outcome()
    };
    assert_eq!(passing("--preserve-fds 1").text(), "through 3\n0\n1\n2\n3\n4");
    assert!(!passing("").text().contains("through"), "no descriptor comes along unasked");
    oci.run(&["delete", "--force", id]).ok();
}

/// How many containers one after the other, and how many at once: the 1,000 and 50 with CORACLE_TEST_FULL=1.
fn lives() -> (usize, usize) {
    if fixtures::is_full() { (1000, 50) } else { (15, 5) }
}

#[test]
fn oci_a_thousand_lives_leave_nothing() {
    let env = TestEnv::new();
    let oci = Oci::new(&env, &["true"]);
    let (in_turn, at_once) = lives();
    let live = |number: usize| {
        let id = unique(&format!("life-{number}"));
        oci.quiet(&["create", &id]).ok();
        oci.run(&["start", &id]).ok();
        oci.wait_for_status(&id, "stopped");
        oci.run(&["delete", &id]).ok();
    };
    let mounts = || fs_err::read_to_string("/proc/self/mountinfo").unwrap();
    let descriptors = || fs_err::read_dir("/proc/self/fd").unwrap().count();
    live(0);
    let before = (mounts(), descriptors());
    (1..=in_turn).for_each(live);
    // All of them exist at the same time before the first one goes.
    let ids: Vec<String> = (0..at_once).map(|number| unique(&format!("crowd-{number}"))).collect();
    let each = |args: &[&str]| {
        let running: Vec<_> = ids.iter().map(|id| oci.quiet_or_plain(args, id).spawn()).collect();
        for outcome in running.into_iter().map(crate::env::command::Running::wait) {
            assert_eq!(outcome.code, 0, "{args:?}: {outcome}");
        }
    };
    each(&["create"]);
    assert_eq!(oci.run(&["list", "-q"]).ok().lines().count(), at_once);
    each(&["start"]);
    ids.iter().for_each(|id| oci.wait_for_status(id, "stopped"));
    each(&["delete"]);
    oci.is_empty();
    assert_eq!((mounts(), descriptors()), before, "mounts or descriptors are left");
}
