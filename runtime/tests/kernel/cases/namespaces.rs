//! Namespaces that exist already, user namespaces without a container, and what the host offers.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use coracle_runtime::userns::Ahead;
use coracle_runtime::{IdMap, Stdio, UserNs, host, userns};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::Signal;
use serde_json::json;

use crate::container::{Container, collect, ids};
use crate::place::Place;
use crate::runner::{ALL, Case, User};

pub const CASES: &[Case] = &[
    Case { name: "joins_namespaces_by_path", users: ALL, run: joins },
    Case { name: "joins_a_mount_namespace_and_keeps_its_root", users: ALL, run: joins_mounts },
    Case { name: "run_in_a_user_namespace", users: ALL, run: run_in },
    Case { name: "run_in_forwards_signals", users: &[User::Alice], run: forwards },
    Case { name: "enter_removes_what_subordinate_ids_own", users: &[User::Alice], run: enter },
    Case { name: "on_namespaces_sees_them", users: ALL, run: on_namespaces },
    Case { name: "takes_namespaces_made_ahead", users: &[User::Alice], run: ahead },
    Case { name: "makes_its_own_where_those_ahead_do_not_fit", users: ALL, run: not_ahead },
    Case { name: "host_facts", users: ALL, run: facts },
    Case { name: "a01_program_is_sealed", users: ALL, run: sealed },
    Case { name: "root_without_a_user_namespace", users: &[User::Root], run: without_user },
];

/// What a container says whose namespaces were begun before.
fn says_with(container: &Container, ahead: Option<Ahead>) -> Vec<String> {
    let output = collect(|stdio| container.launch_with(stdio, ahead)).expect("launched");
    assert_eq!(output.status, 0, "{output:?}");
    output.stdout.lines().map(str::to_owned).collect()
}

const SHOW: &str = "for n in user net; do readlink /proc/self/ns/$n; done; tr -s ' ' < /proc/self/uid_map";

/// The ranges of a map as a container reads them.
fn lines(map: &IdMap) -> Vec<String> {
    map.uids.iter().map(|range| format!(" {} {} {}", range.container, range.host, range.size)).collect()
}

fn ahead(place: &Place) {
    let container = Container::new(place, SHOW);
    for ready in [true, false] {
        let (ahead, maker) = Ahead::begin(&container.idmap).expect("begun");
        if ready {
            drop(maker);
        }
        let made = peek(ahead.channel());
        let said = says_with(&container, Some(ahead));
        assert_eq!(said[0], made, "the namespace that was made is taken");
        assert_eq!(said[2..], lines(&container.idmap));
    }
}

/// Says what the first namespace is that waits in a channel, and leaves it there.
fn peek(channel: &OwnedFd) -> String {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(channel, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::PEEK).expect("received");
    let namespace = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    format!("user:[{}]", rustix::fs::fstat(namespace.expect("a descriptor")).expect("stat").st_ino)
}

fn not_ahead(place: &Place) {
    let mut container = Container::new(place, SHOW);
    // Who needs no helper begins nothing.
    let begun = Ahead::begin(&container.idmap);
    let helped = container.idmap.uids.len() > 1 && !rustix::process::geteuid().is_root();
    assert_eq!(begun.is_some(), helped);
    // Made with another map.
    container.idmap = ids(UserNs::Single);
    let said = says_with(&container, begun.map(|(ahead, _)| ahead));
    assert_eq!(said[2..], lines(&container.idmap));
    // Its maker is killed before, or while, or after it answers.
    container.idmap = ids(UserNs::Auto);
    for pause_us in [0, 500, 1000, 2000, 4000] {
        let begun = Ahead::begin(&container.idmap);
        std::thread::sleep(std::time::Duration::from_micros(pause_us));
        let children = fs_err::read_to_string("/proc/thread-self/children").expect("read");
        for child in children.split_whitespace() {
            let child = child.parse().ok().and_then(rustix::process::Pid::from_raw).expect("a process");
            rustix::process::kill_process(child, Signal::KILL).expect("killed");
        }
        let said = says_with(&container, begun.map(|(ahead, _)| ahead));
        assert_eq!(said[2..], lines(&container.idmap));
    }
}

fn joins(place: &Place) {
    let first = Container::new(place, "exec sleep 60").launch(Stdio::Inherit).expect("launched");
    let link =
        |pid: i32, name: &str| fs_err::read_link(format!("/proc/{pid}/ns/{name}")).expect("read").display().to_string();
    let mut second = Container::new(
        place,
        "for n in user net ipc uts pid mnt; do readlink /proc/self/ns/$n; done; ls /sys/class/net; id -u",
    );
    second.spec["linux"]["namespaces"] = json!([
        {"type": "network", "path": format!("/proc/{}/ns/net", first.pid)},
        {"type": "ipc", "path": format!("/proc/{}/ns/ipc", first.pid)},
        {"type": "user", "path": format!("/proc/{}/ns/user", first.pid)},
        {"type": "mount"}, {"type": "pid"}, {"type": "uts"}, {"type": "cgroup"},
    ]);
    let said = second.says();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..3], [link(first.pid, "user"), link(first.pid, "net"), link(first.pid, "ipc")], "{said}");
    assert_ne!(lines[3], link(first.pid, "uts"));
    assert_eq!(lines[6..], ["lo", "0"]);
    // Its pid namespace too: the first one sees the second's process.
    second.spec["linux"]["namespaces"] = json!([
        {"type": "pid", "path": format!("/proc/{}/ns/pid", first.pid)},
        {"type": "user", "path": format!("/proc/{}/ns/user", first.pid)},
        {"type": "network"}, {"type": "mount"}, {"type": "uts"}, {"type": "cgroup"}, {"type": "ipc"},
    ]);
    second.spec["process"]["args"] =
        json!(["sh", "-c", "readlink /proc/self/ns/pid; ps -o args | grep -c '[s]leep 60'"]);
    assert_eq!(second.says(), format!("{}\n1", link(first.pid, "pid")));
    first.signal(Signal::KILL).expect("sent");
    first.wait().expect("waited");
}

/// The program is in the mount namespace that was named, sees its own root alone, and changes nothing there.
fn joins_mounts(place: &Place) {
    use crate::runner::HELPER;
    let first = Container::new(place, "exec sleep 60").launch(Stdio::Inherit).expect("launched");
    let link = |pid: i32| fs_err::read_link(format!("/proc/{pid}/ns/mnt")).expect("read").display().to_string();
    let mounts = || fs_err::read_to_string(format!("/proc/{}/mountinfo", first.pid)).expect("read");
    let before = mounts();
    let joining = |script: &str| {
        let mut second = Container::new(place, script);
        let namespaces = second.spec["linux"]["namespaces"].as_array_mut().expect("a list");
        for one in namespaces.iter_mut() {
            let name = match one["type"].as_str() {
                Some("mount") => Some("mnt"),
                Some("user") => Some("user"),
                _ => None,
            };
            if let Some(name) = name {
                one["path"] = json!(format!("/proc/{}/ns/{name}", first.pid));
            }
        }
        second.mount("/mine", "tmpfs", "tmpfs", &["mode=755"]);
        second
    };
    let script = "readlink /proc/self/ns/mnt; ls / | tr '\\n' ' '; pwd; echo x >/mine/file && cat /mine/file; \
                  head -c 2 /dev/zero | wc -c; echo 1 2>/dev/null >/proc/sys/kernel/panic || echo read-only; \
                  readlink /proc/self/exe; cat /proc/mounts | wc -l; cat /proc/keys | wc -c; ls /proc/1/root/mine";
    let said = joining(script).says();
    let names = "bin dev etc home mine proc root sys tmp";
    let rest = "x\n2\nread-only\n/bin/busybox\n0\n0\nfile";
    assert_eq!(said, format!("{}\n{names} /\n{rest}", link(first.pid)));
    assert_eq!(mounts(), before, "nothing was mounted where others live");
    // Not even chroot(2) leads above its own root.
    let mut climber = joining("true");
    let own = std::env::current_exe().expect("a program");
    climber.mount("/climber", "bind", own.to_str().expect("text"), &["bind", "ro"]);
    climber.spec["process"]["args"] = json!(["/climber", HELPER, "climb"]);
    for set in ["bounding", "effective", "permitted"] {
        climber.spec["process"]["capabilities"][set] = json!(["CAP_SYS_CHROOT", "CAP_DAC_OVERRIDE"]);
    }
    assert_eq!(climber.says(), "bin climber dev etc home mine proc root sys tmp");
    // Who could leave by setns(2), and mounts that cannot be copied, are refused by name.
    let mut admin = joining("true");
    for set in ["bounding", "effective", "permitted"] {
        admin.spec["process"]["capabilities"][set] = json!(["CAP_SYS_ADMIN"]);
    }
    assert!(admin.fails().to_string().contains("CAP_SYS_ADMIN"));
    let mut stuck = joining("true");
    stuck.mount("/stuck", "tmpfs", "tmpfs", &["unbindable"]);
    assert!(stuck.fails().to_string().contains("unbindable"));
    let mut file = joining("true");
    let namespaces = file.spec["linux"]["namespaces"].as_array_mut().expect("a list");
    namespaces.iter_mut().filter(|one| one["type"] == "mount").for_each(|one| one["path"] = json!("/etc/passwd"));
    assert!(file.fails().to_string().contains("is not a namespace"));
    // What it left is gone with it.
    assert_eq!(mounts(), before);
    first.signal(Signal::KILL).expect("sent");
    first.wait().expect("waited");
}

fn run_in(place: &Place) {
    let map = ids(UserNs::Auto);
    let file = place.dir.join("file");
    let code = userns::run_in(&map, || {
        assert_eq!(rustix::process::geteuid().as_raw(), 0);
        fs_err::write(&file, "made inside").expect("written");
        if map.is_single() {
            return 5;
        }
        std::os::unix::fs::chown(&file, Some(7), Some(8)).expect("chown");
        // Work may have threads, and /proc/self is its own again.
        let thread = std::thread::spawn(|| fs_err::read_link("/proc/self/exe").is_ok());
        i32::from(thread.join().expect("joined")) + 4
    });
    assert_eq!(code.expect("ran"), 5);
    let meta = fs_err::metadata(&file).expect("there");
    if !map.is_single() {
        assert_eq!((Some(meta.uid()), Some(meta.gid())), (map.host_uid(7), map.host_gid(8)));
    }
    assert_eq!(userns::run_in(&map, || panic!("on purpose")).expect("ran"), 255);
}

fn forwards(_place: &Place) {
    let me = rustix::process::getpid();
    // A process beside us that sends us a signal while we wait for the child.
    let mut sender = std::process::Command::new("sh")
        .args(["-c", &format!("sleep 0.2; kill -TERM {}", me.as_raw_pid())])
        .spawn()
        .expect("spawned");
    let code = userns::run_in(&ids(UserNs::Auto), || {
        std::thread::sleep(std::time::Duration::from_secs(20));
        0
    });
    assert_eq!(code.expect("ran"), 128 + 15);
    sender.wait().expect("reaped");
}

fn enter(place: &Place) {
    let container =
        Container::new(place, "mkdir -p /tmp/a/b; touch /tmp/a/b/c; chown -R 5:5 /tmp/a; chmod 000 /tmp/a/b");
    let running = container.launch(Stdio::Inherit).expect("launched");
    assert_eq!(running.wait().expect("waited").status(), 0);
    let tree = place.rootfs().join("tmp/a");
    assert!(fs_err::remove_dir_all(&tree).is_err(), "not ours");
    userns::enter(running.userns.as_fd()).expect("entered");
    fs_err::remove_dir_all(&tree).expect("removed");
}

fn on_namespaces(place: &Place) {
    use coracle_runtime::{LaunchFailure, LaunchOptions, Stage, launch};
    let container = Container::new(place, "test -e /tmp/net-ready");
    let spec = serde_json::from_value(container.spec.clone()).expect("a spec");
    let bundle = place.bundle();
    let ready = place.rootfs().join("tmp/net-ready");
    let mut seen = String::new();
    let mut work = |namespaces: &coracle_runtime::Namespaces<'_>| {
        use std::os::fd::AsRawFd;
        let path = format!("/proc/self/fd/{}", namespaces.net.as_raw_fd());
        seen = fs_err::read_link(path).expect("a namespace").display().to_string();
        fs_err::write(&ready, "").expect("written");
        Ok(())
    };
    let mut options = LaunchOptions::new("case", &spec, &bundle, container.rootfs.clone());
    options.idmap = Some(container.idmap.clone());
    options.on_namespaces = Some(&mut work);
    let running = launch(options).expect("launched");
    assert_eq!(running.wait().expect("waited").status(), 0);
    let own = fs_err::read_link("/proc/self/ns/net").expect("read").display().to_string();
    assert!(seen.starts_with("net:[") && seen != own, "{seen}");
    // Its failure ends the launch.
    let mut refuse = |_: &coracle_runtime::Namespaces<'_>| Err(LaunchFailure::rule(Stage::Network, "net", "no"));
    let mut options = LaunchOptions::new("case", &spec, &bundle, container.rootfs.clone());
    options.idmap = Some(container.idmap.clone());
    options.on_namespaces = Some(&mut refuse);
    assert_eq!(launch(options).expect_err("refused").stage, Stage::Network);
}

fn facts(place: &Place) {
    let facts = host::probe(&place.dir);
    let get = |name: &str| facts.get(name).unwrap_or_else(|| panic!("no {name} in {facts:?}"));
    assert_eq!(get("user-namespaces").missing, None);
    assert_eq!(get("overlay").missing, None, "{facts:?}");
    assert_eq!(get("kernel").missing, None);
    let single = ids(UserNs::Auto).is_single();
    assert_eq!(get("subordinate-ids").missing.is_some(), single, "{facts:?}");
    assert_eq!(fs_err::read_dir(&place.dir).expect("listed").count(), 2, "the trial leaves nothing");
    let failure = host::overlay_works(std::path::Path::new("/proc")).expect_err("no place for layers");
    assert_ne!(failure.errno, 0);
}

fn sealed(place: &Place) {
    // A program that belongs to the caller, as one built by cargo does.
    let program = place.rootfs().join("program");
    fs_err::copy(std::env::current_exe().expect("own path"), &program).expect("copied");
    let before = fs_err::read(&program).expect("read");
    let output = std::process::Command::new(&program)
        .args([crate::runner::HELPER, "sealed"])
        .env("KEPT", "1")
        .output()
        .expect("ran");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said.trim(), "sealed true, argument sealed, KEPT 1", "{output:?}");
    // Started from inside (the entry point is /proc/self/exe) the program is still out of reach.
    let script = "for i in 1 2 3; do echo x > /proc/self/exe; echo x > /proc/1/exe; done; true";
    Container::new(place, script).run();
    let mut itself = Container::new(place, "");
    itself.spec["process"]["args"] = json!(["/proc/self/exe", crate::runner::HELPER, "overwrite"]);
    let spec = place.dir.join("spec.json");
    fs_err::write(&spec, serde_json::to_vec(&(itself.spec.clone(), itself.idmap.clone())).expect("json"))
        .expect("written");
    let output = std::process::Command::new(&program)
        .args([crate::runner::HELPER, "sealed-launch"])
        .arg(&spec)
        .arg(place.bundle())
        .output()
        .expect("ran");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("overwrite: refused"), "{output:?}");
    assert!(before == fs_err::read(&program).expect("read"), "the program has changed");
}

fn without_user(place: &Place) {
    let mut container =
        Container::new(place, "readlink /proc/self/ns/user; cat /proc/self/uid_map | tr -s ' '; echo fine > /tmp/x");
    let namespaces = container.spec["linux"]["namespaces"].as_array_mut().expect("a list");
    namespaces.retain(|one| one["type"] != "user");
    let own = fs_err::read_link("/proc/self/ns/user").expect("read").display().to_string();
    assert_eq!(container.says(), format!("{own}\n 0 0 4294967295"));
    let before = fs_err::read_to_string("/proc/self/mountinfo").expect("read");
    container.says();
    assert_eq!(before, fs_err::read_to_string("/proc/self/mountinfo").expect("read"));
    // Without a map to check against, the number that means "leave it" would leave root.
    container.spec["process"]["user"] = json!({"uid": 4_294_967_295_u32, "gid": 0});
    assert_eq!(container.fails().stage, coracle_runtime::Stage::Plan);
}
