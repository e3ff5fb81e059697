//! Hooks, time namespaces, scheduling and seccomp agents through `coracle-oci`.

use std::io::{IoSliceMut, Read};
use std::os::unix::net::UnixListener;

use serde_json::{Value, json};

use super::{Oci, unique};
use crate::env::terminal::Terminal;
use crate::env::{TestEnv, Who};

const KINDS: [&str; 6] = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// A hook that notes its kind, its state and the namespace it is in.
fn noting(kind: &str, log: &str) -> Value {
    let script = format!(
        "read -r state; echo \"{kind} $state $(readlink /proc/self/ns/mnt) $(test -e /bin/busybox.mark && echo inside)\" >>{log}"
    );
    json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"] }])
}

#[test]
fn c12_hooks_run_in_order_with_the_state_on_stdin() {
    let env = TestEnv::new();
    let oci = Oci::new(&env, &["sh", "-c", "echo program >>/notes/log"]);
    fs_err::create_dir(env.path("notes")).unwrap();
    let log = env.path("notes/log");
    fs_err::write(oci.bundle.join("rootfs/bin/busybox.mark"), "").unwrap();
    oci.change(|config| {
        config["annotations"] = json!({ "who": "test" });
        config["root"]["readonly"] = json!(false);
        for kind in KINDS {
            // Inside, the log is where it is mounted.
            let place = if kind == "startContainer" { "/notes/log" } else { log.to_str().unwrap() };
            config["hooks"][kind] = noting(kind, place);
        }
        config["mounts"].as_array_mut().unwrap().push(json!({
            "destination": "/notes", "type": "bind", "source": env.path("notes"), "options": ["bind", "rw"]
        }));
    });
    let id = &unique("hooks");
    oci.quiet(&["create", id]).ok();
    let pid = oci.state(id)["pid"].clone();
    let notes = || fs_err::read_to_string(&log).unwrap_or_default();
    assert_eq!(notes().lines().count(), 3, "{}", notes());
    oci.run(&["start", id]).ok();
    oci.wait_for_status(id, "stopped");
    oci.run(&["delete", id]).ok();
    let text = notes();
    let mut kinds: Vec<&str> = text.lines().map(|line| line.split(' ').next().unwrap()).collect();
    // The program and the hooks that follow it do not wait for each other.
    kinds.retain(|kind| *kind != "program");
    assert_eq!(kinds, KINDS, "{text}");
    let own = fs_err::read_link("/proc/self/ns/mnt").unwrap().display().to_string();
    for (line, kind) in text.lines().filter(|line| !line.starts_with("program")).zip(KINDS) {
        let state: Value = serde_json::from_str(&line[line.find('{').unwrap()..=line.rfind('}').unwrap()]).unwrap();
        let (status, shown) = match kind {
            "startContainer" => ("created", json!(1)),
            "createContainer" => ("creating", json!(1)),
            "poststart" => ("running", pid.clone()),
            "poststop" => ("stopped", json!(0)),
            _ => ("creating", pid.clone()),
        };
        assert_eq!((&state["status"], &state["pid"]), (&json!(status), &shown), "{line}");
        assert_eq!((&state["id"], &state["annotations"]["who"]), (&json!(id), &json!("test")));
        assert_eq!(state["bundle"], json!(oci.bundle));
        let runtime = ["prestart", "createRuntime", "poststart", "poststop"].contains(&kind);
        assert_eq!(line.contains(&own), runtime, "the mount namespace of {line}");
        assert_eq!(line.ends_with("inside"), kind == "startContainer", "the root of {line}");
    }
}

#[test]
fn c12_a_hook_that_fails_stops_the_container() {
    let env = TestEnv::new();
    let oci = Oci::new(&env, &["sleep", "1000"]);
    let id = &unique("hookfail");
    let after = env.path("after");
    let failing = json!([{ "path": "/bin/sh", "args": ["sh", "-c", "echo no bridge; exit 3"] }]);
    for kind in &KINDS[..5] {
        oci.change(|config| {
            config["hooks"] = json!({ *kind: failing.clone(), "poststop": [
                { "path": "/bin/false" },
                { "path": "/bin/sh", "args": ["sh", "-c", format!("echo {kind} >>{}", after.display())] }
            ]});
        });
        let outcome = oci.with_bundle(&["run", id]).outcome();
        outcome.refused(1).says(&format!("{kind} hook /bin/sh: failed with exit status: 3: no bridge"));
        oci.run(&["state", id]).outcome().refused(1).says("does not exist");
    }
    let text = fs_err::read_to_string(&after).unwrap();
    assert_eq!(text.lines().collect::<Vec<&str>>(), &KINDS[..5], "poststop runs all the same, its failure is no error");
    oci.change(|config| config["hooks"] = json!({ "poststart": failing.clone() }));
    oci.quiet(&["create", id]).ok();
    oci.run(&["start", id]).outcome().refused(1).says("poststart hook");
    oci.is_empty();
    for (hook, text) in [
        (json!({ "path": "bin/true" }), "its path is not absolute"),
        (json!({ "path": "/bin/true", "timeout": 0 }), "its timeout is not greater than zero"),
        (json!({ "path": "/nonexistent/hook" }), "no such file or directory"),
        (json!({ "path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1 }), "did not end within 1 s"),
    ] {
        oci.change(|config| config["hooks"] = json!({ "createRuntime": [hook] }));
        oci.with_bundle(&["run", id]).outcome().refused(1).says(text);
    }
    oci.is_empty();
}

#[test]
fn c21_time_namespaces_have_their_clocks() {
    let env = TestEnv::new();
    let oci = Oci::new(&env, &["sh", "-c", "read up rest </proc/uptime; echo ${up%.*}; readlink /proc/self/ns/time"]);
    oci.change(|config| {
        config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "time" }));
        config["linux"]["timeOffsets"] =
            json!({ "boottime": { "secs": 1_000_000, "nanosecs": 5 }, "monotonic": { "secs": 7 } });
    });
    let id = &unique("time");
    let said = oci.with_bundle(&["run", id]).ok();
    let (uptime, namespace) = said.split_once('\n').unwrap();
    assert!(uptime.parse::<u64>().unwrap() >= 1_000_000, "{said}");
    assert_ne!(namespace, fs_err::read_link("/proc/self/ns/time").unwrap().display().to_string());
    oci.change(|config| config["process"]["args"] = json!(["sleep", "1000"]));
    oci.quiet(&["run", "--detach", id]).ok();
    let inside = oci.run(&["exec", id, "readlink", "/proc/1/ns/time"]).ok();
    assert_eq!(oci.run(&["exec", id, "readlink", "/proc/self/ns/time"]).ok(), inside, "exec joins it");
    let pid = oci.state(id)["pid"].clone();
    oci.change(|config| {
        // Both by path: the owner of a namespace must be joined with it.
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        for namespace in namespaces.iter_mut().filter(|one| one["type"] == "time" || one["type"] == "user") {
            namespace["path"] = json!(format!("/proc/{pid}/ns/{}", namespace["type"].as_str().unwrap()));
        }
        let linux = config["linux"].as_object_mut().unwrap();
        for field in ["timeOffsets", "uidMappings", "gidMappings"] {
            linux.remove(field);
        }
        config["process"]["args"] = json!(["readlink", "/proc/self/ns/time"]);
    });
    assert_eq!(oci.with_bundle(&["run", &unique("joiner")]).ok(), inside, "joined by path");
    oci.run(&["delete", "--force", id]).ok();
}

#[test]
fn c21_scheduling_is_done_or_refused() {
    let env = TestEnv::new();
    let script = "cat /proc/self/oom_score_adj; grep -E '^policy' /proc/self/sched | tr -d ' '; uname -m; umask";
    let oci = Oci::new(&env, &["sh", "-c", script]);
    fs_err::create_dir_all(oci.bundle.join("rootfs/bin")).unwrap();
    for applet in ["uname", "tr"] {
        std::os::unix::fs::symlink("busybox", oci.bundle.join("rootfs/bin").join(applet)).unwrap();
    }
    oci.change(|config| {
        config["process"]["scheduler"] = json!({ "policy": "SCHED_BATCH", "nice": 5 });
        config["process"]["ioPriority"] = json!({ "class": "IOPRIO_CLASS_IDLE", "priority": 0 });
        config["process"]["execCPUAffinity"] = json!({ "initial": "0", "final": "0" });
        config["process"]["user"]["umask"] = json!(0o027);
        // Lower than ours: clamped (C21).
        config["process"]["oomScoreAdj"] = json!(-1000);
        config["linux"]["memoryPolicy"] = json!({ "mode": "MPOL_BIND", "nodes": "0" });
        config["linux"]["personality"] = json!({ "domain": "LINUX32" });
    });
    let id = &unique("sched");
    let said = oci.with_bundle(&["run", id]).ok();
    let machine = if cfg!(target_arch = "aarch64") { "armv8l" } else { "i686" };
    let rest = format!("\npolicy:3\n{machine}\n0027");
    let clamped = said == format!("{}{rest}", own_score());
    assert!(clamped || (env.who() == Who::Root && said == format!("-1000{rest}")), "{said}");
    for (field, value) in [
        ("process.scheduler", json!({ "process": { "scheduler": { "policy": "SCHED_FIFO", "priority": 200 } } })),
        ("linux.memoryPolicy", json!({ "linux": { "memoryPolicy": { "mode": "MPOL_BIND", "nodes": "999" } } })),
        ("linux.personality.flags", json!({ "linux": { "personality": { "domain": "LINUX", "flags": ["X"] } } })),
    ] {
        oci.change(|config| super::refusals::merge(config, &value));
        oci.with_bundle(&["run", id]).outcome().refused(1).says(field);
        oci.change(|config| {
            config["process"].as_object_mut().unwrap().remove("scheduler");
            config["linux"].as_object_mut().unwrap().remove("memoryPolicy");
        });
    }
    oci.change(|config| {
        config["linux"].as_object_mut().unwrap().remove("personality");
        config["process"]["args"] = json!(["sleep", "1000"]);
    });
    oci.quiet(&["run", "--detach", id]).ok();
    let allowed = oci.run(&["exec", id, "grep", "Cpus_allowed_list", "/proc/self/status"]).ok();
    assert_eq!(allowed, "Cpus_allowed_list:\t0", "execCPUAffinity");
    oci.run(&["delete", "--force", id]).ok();
}

fn own_score() -> String {
    fs_err::read_to_string("/proc/self/oom_score_adj").unwrap().trim().to_owned()
}

/// A seccomp agent gets the descriptor and decides: here by hanging up, which the kernel answers with ENOSYS.
#[test]
fn c13_a_seccomp_agent_gets_the_listener() {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let env = TestEnv::new();
    let oci = Oci::new(&env, &["sh", "-c", "mkdir /tmp/x; echo $?"]);
    std::os::unix::fs::symlink("busybox", oci.bundle.join("rootfs/bin/mkdir")).unwrap();
    let path = env.path("agent.sock");
    oci.change(|config| {
        config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "listenerPath": path,
            "listenerMetadata": "for the agent",
            "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY" }],
        });
    });
    let id = &unique("agent");
    oci.with_bundle(&["run", id]).outcome().refused(1).says("listener");
    let listener = UnixListener::bind(&path).unwrap();
    let running = oci.with_bundle(&["run", id]).spawn();
    let (stream, _) = listener.accept().unwrap();
    let mut text = vec![0_u8; 4096];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received =
        recvmsg(&stream, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC).unwrap().bytes;
    let notify = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let message: Value = serde_json::from_slice(&text[..received]).unwrap();
    assert_eq!(message["fds"], json!(["seccompFd"]));
    assert_eq!((&message["metadata"], &message["state"]["id"]), (&json!("for the agent"), &json!(id)));
    assert!(fs_err::metadata(format!("/proc/{}", message["pid"])).is_ok(), "the process by our number: {message}");
    assert!((&stream).read(&mut [0]).is_ok_and(|length| length == 0), "the socket is closed by the program's start");
    drop(notify.expect("a descriptor"));
    let outcome = running.wait();
    assert!(outcome.stderr.contains("Function not implemented"), "{outcome}");
    assert_eq!(outcome.text(), "1");
    for (rule, text) in [
        (json!([{ "names": ["sendmsg"], "action": "SCMP_ACT_NOTIFY" }]), "not possible for sendmsg"),
        (json!([{ "names": ["no_such_call"], "action": "SCMP_ACT_NOTIFY" }]), "unknown system call"),
    ] {
        oci.change(|config| config["linux"]["seccomp"]["syscalls"] = rule);
        oci.with_bundle(&["run", id]).outcome().refused(1).says(text);
    }
}

#[test]
fn oci_ps_and_what_needs_a_cgroup() {
    let env = TestEnv::new();
    let oci = Oci::new(&env, &["sh", "-c", "sleep 1000 & sleep 1000; :"]);
    let id = &unique("ps");
    let command = |args: &[&str]| oci.run(&["--cgroup-manager=disabled"]).args(args);
    let bundle = oci.bundle.to_str().unwrap();
    let null = || fs_err::OpenOptions::new().write(true).open("/dev/null").unwrap().into_file();
    command(&["run", "--detach", "--bundle", bundle, id]).stdout_to(null()).stderr_to(null()).ok();
    let pid = oci.state(id)["pid"].clone();
    let list = || -> Vec<Value> { serde_json::from_str(&command(&["ps", "-f", "json", id]).ok()).unwrap() };
    crate::env::wait_until("three processes", || list().len() == 3);
    assert!(list().contains(&pid));
    let table = command(&["ps", id]).ok();
    assert!(table.starts_with("PID\n") && table.contains(&pid.to_string()), "{table}");
    for words in [vec!["pause", id], vec!["events", "--stats", id], vec!["update", "--memory", "64m", id]] {
        command(&words).outcome().refused(1).says("it has no cgroup of its own");
    }
    command(&["resume", id]).outcome().refused(1).says("it is running");
    command(&["update", "--l3-cache-schema", "x", id]).outcome().refused(1).says("--l3-cache-schema");
    command(&["exec", "--cgroup", "sub", id, "true"]).outcome().refused(1).says("it has no cgroup of its own");
    command(&["exec", "--apparmor", "docker-default", id, "true"])
        .outcome()
        .refused(255)
        .says("process.apparmorProfile");
    command(&["exec", "--process-label", "a:b:c", id, "true"]).outcome().refused(255).says("process.selinuxLabel");
    command(&["exec", "--apparmor", "", id, "true"]).ok();
    let other = &unique("ps-other");
    command(&["run", "--detach", "--bundle", bundle, other]).stdout_to(null()).stderr_to(null()).ok();
    command(&["kill", "-r", "(", "KILL"]).outcome().refused(1).says("invalid regular expression");
    command(&["kill", "--regex", "^coracle-test-ps-oth", "KILL"]).ok();
    let status = |id: &str| oci.state(id)["status"].as_str().unwrap().to_owned();
    crate::env::wait_until("the other's end", || status(other) == "stopped");
    assert_eq!(status(id), "running");
    command(&["kill", "-a", "-r", "^coracle-test-ps", "KILL"]).ok();
    crate::env::wait_until("the end of both", || status(id) == "stopped");
    command(&["delete", "--force", "--regex", "("]).outcome().refused(1).says("invalid regular expression");
    command(&["delete", "--force", "--regex", "^coracle-test-ps"]).ok();
    oci.is_empty();
}

#[test]
fn c18_terminal_of_run_is_the_callers() {
    let env = TestEnv::new();
    let oci = Oci::new(&env, &["sh", "-c", "read line; echo got $line on $(readlink /proc/self/fd/0); exit 3"]);
    let id = &unique("terminal");
    oci.change(|config| config["process"]["terminal"] = json!(true));
    let root = format!("--root={}", oci.state_root().display());
    let args = [root.as_str(), "run", "--bundle", oci.bundle.to_str().unwrap(), id];
    let mut terminal = Terminal::start(&env, 80, 24, oci.program.to_str().unwrap(), &args);
    terminal.wait_raw();
    terminal.type_in("hello\n");
    terminal.expect("got hello on /dev/pts/0");
    assert_eq!(terminal.exit_code(), 3);
    assert!(terminal.is_cooked());
    assert_eq!(oci.run(&[&root, "list", "-q"]).ok(), "");
}

/// The program and what is executed beside it live in a mount namespace of others and have a root of their own.
#[test]
fn oci_joins_a_mount_namespace_by_path() {
    let env = TestEnv::new();
    let oci = Oci::new(&env, &["sleep", "1000"]);
    let (host, guest) = (&unique("mounts-host"), &unique("mounts-guest"));
    oci.quiet(&["run", "--detach", host]).ok();
    let pid = oci.state(host)["pid"].clone();
    let link = |pid: &Value| fs_err::read_link(format!("/proc/{pid}/ns/mnt")).unwrap();
    let mounts = || fs_err::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let before = mounts();
    let log = env.path("log");
    oci.change(|config| {
        for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
            let name = match namespace["type"].as_str() {
                Some("mount") => "mnt",
                Some("user") => "user",
                _ => continue,
            };
            namespace["path"] = json!(format!("/proc/{pid}/ns/{name}"));
        }
        let linux = config["linux"].as_object_mut().unwrap();
        linux.remove("uidMappings");
        linux.remove("gidMappings");
        let tmpfs = json!({ "destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"] });
        config["mounts"].as_array_mut().unwrap().push(tmpfs);
        config["hooks"] = json!({ "createRuntime": noting("createRuntime", log.to_str().unwrap()) });
    });
    oci.quiet(&["create", guest]).ok();
    oci.run(&["start", guest]).ok();
    assert_eq!(link(&oci.state(guest)["pid"]), link(&pid));
    assert_eq!(mounts(), before, "nothing of it appears to the others");
    let exec = |script: &str| oci.run(&["exec", guest, "sh", "-c", script]).outcome();
    exec("echo own >/etc/mark").ok();
    let said = exec("cat /etc/mark; readlink /proc/self/ns/mnt; ls /proc/1/root/etc; cat /proc/keys | wc -c; pwd")
        .ok()
        .to_owned();
    assert_eq!(said, format!("own\n{}\nmark\n0\n/", link(&pid).display()));
    oci.run(&["exec", "--cap", "CAP_SYS_ADMIN", guest, "true"]).outcome().refused(255).says("CAP_SYS_ADMIN");
    assert_eq!(oci.run(&["exec", host, "ls", "/etc"]).ok(), "");
    assert!(fs_err::read_to_string(&log).unwrap().starts_with("createRuntime"));
    oci.run(&["delete", "--force", guest]).ok();
    assert_eq!(mounts(), before);
    oci.run(&["delete", "--force", host]).ok();
    oci.is_empty();
}
