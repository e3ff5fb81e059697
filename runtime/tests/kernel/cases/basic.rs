//! An ordinary container: it runs, it is separate, its exit code comes back, nothing is left.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use coracle_runtime::{Gate, Stage, Stdio, open_gate};
use rustix::process::Signal;
use serde_json::json;

use crate::container::{Container, collect};
use crate::place::Place;
use crate::runner::{ALL, Case, User};

pub const CASES: &[Case] = &[
    Case { name: "runs_and_returns_its_exit_code", users: ALL, run: runs },
    Case { name: "c03_programs_that_cannot_run", users: ALL, run: programs_that_cannot_run },
    Case { name: "every_namespace_is_its_own", users: ALL, run: namespaces },
    Case { name: "a33_environment_is_the_specs_alone", users: ALL, run: environment },
    Case { name: "signals_are_reported", users: ALL, run: signals },
    Case { name: "stdin_reaches_the_program", users: &[User::Alice], run: stdin },
    Case { name: "init_reaps_and_forwards", users: ALL, run: init_reaps },
    Case { name: "gate_in_the_launcher", users: ALL, run: gate_wait },
    Case { name: "a02_created_process_holds_no_descriptor", users: ALL, run: gate_socket },
    Case { name: "gate_reports_a_missing_program", users: &[User::Alice], run: gate_failure },
    Case { name: "kept_descriptors_and_no_others", users: ALL, run: kept_descriptors },
    Case { name: "failure_leaves_no_process", users: ALL, run: no_process_left },
    Case { name: "dies_with_its_launcher", users: &[User::Alice], run: dies_with_launcher },
    Case { name: "hostname_and_sysctl", users: ALL, run: hostname },
];

fn runs(place: &Place) {
    let output = Container::new(place, "echo out; echo err >&2; exit 7").run();
    assert_eq!((output.stdout.as_str(), output.stderr.as_str(), output.status), ("out\n", "err\n", 7));
}

fn programs_that_cannot_run(place: &Place) {
    use std::os::unix::fs::PermissionsExt;
    let bin = place.rootfs().join("bin");
    fs_err::write(bin.join("plain"), "data").expect("written");
    fs_err::write(bin.join("noexec"), "#!/bin/sh\n").expect("written");
    fs_err::set_permissions(bin.join("plain"), std::fs::Permissions::from_mode(0o755)).expect("set");
    fs_err::set_permissions(bin.join("noexec"), std::fs::Permissions::from_mode(0o644)).expect("set");
    fs_err::create_dir(bin.join("directory")).expect("made");
    std::os::unix::fs::symlink("nowhere", bin.join("dangling")).expect("linked");
    let check = |args: serde_json::Value, code: i32| {
        let mut container = Container::new(place, "");
        container.spec["process"]["args"] = args.clone();
        let failure = container.fails();
        assert_eq!((failure.stage, failure.exit_code()), (Stage::Exec, code), "{args}: {failure}");
    };
    check(json!(["missing"]), 127);
    check(json!(["/bin/missing"]), 127);
    check(json!(["./missing"]), 127);
    check(json!(["dangling"]), 127);
    check(json!(["plain"]), 126);
    check(json!(["noexec"]), 126);
    check(json!(["/bin/directory"]), 126);
    check(json!(["/bin"]), 126);
    let mut long = Container::new(place, "");
    long.spec["process"]["args"] = json!(["echo", "x".repeat(128 << 10)]);
    assert_eq!(long.fails().errno, libc::E2BIG);
    for empty in [json!([]), json!([""]), json!(["a\0b"])] {
        let mut container = Container::new(place, "");
        container.spec["process"]["args"] = empty;
        assert_eq!(container.fails().stage, Stage::Plan);
    }
}

fn namespaces(place: &Place) {
    let script = "for n in user mnt pid ipc uts net cgroup; do readlink /proc/self/ns/$n; done; echo $$";
    let said = Container::new(place, script).says();
    let inside: Vec<&str> = said.lines().collect();
    assert_eq!(inside.len(), 8, "{said}");
    for line in &inside[..7] {
        let name = line.split(':').next().expect("a name");
        let host = fs_err::read_link(format!("/proc/self/ns/{name}")).expect("read");
        assert_ne!(host.to_str(), Some(*line), "{name} is the host's");
    }
    assert_eq!(inside[7], "1", "the program is pid 1");
}

fn environment(place: &Place) {
    let mut container = Container::new(place, "");
    container.spec["process"]["args"] = json!(["env"]);
    container.spec["process"]["env"] = json!(["PATH=/bin", "A=1", "NOVALUE", "A=2"]);
    assert_eq!(container.says(), "PATH=/bin\nA=1\nNOVALUE\nA=2\nHOME=/root", "HOME is the one thing added");
}

fn signals(place: &Place) {
    let (mut read, write) = std::io::pipe().expect("a pipe");
    let container = Container::new(place, "trap 'exit 9' TERM; echo ready; while :; do sleep 0.01; done");
    let running = container.launch(Stdio::Fds([write.as_fd(); 3])).expect("launched");
    drop(write);
    let mut ready = [0; 6];
    read.read_exact(&mut ready).expect("ready");
    running.signal(Signal::TERM).expect("sent");
    assert_eq!(running.wait().expect("waited").status(), 9);
    let killed = Container::new(place, "sleep 60").launch(Stdio::Inherit).expect("launched");
    killed.signal(Signal::KILL).expect("sent");
    assert_eq!(killed.wait().expect("waited").status(), 137);
}

fn stdin(place: &Place) {
    let (read, mut write) = std::io::pipe().expect("a pipe");
    let (mut out_read, out_write) = std::io::pipe().expect("a pipe");
    let container = Container::new(place, "exec wc -c");
    let running = container.launch(Stdio::Fds([read.as_fd(), out_write.as_fd(), out_write.as_fd()])).expect("launched");
    drop((read, out_write));
    for _ in 0..256 {
        write.write_all(&[7; 4096]).expect("written");
    }
    drop(write);
    let mut said = String::new();
    out_read.read_to_string(&mut said).expect("read");
    assert_eq!(said.trim(), "1048576");
    assert_eq!(running.wait().expect("waited").status(), 0);
}

fn init_reaps(place: &Place) {
    let mut container = Container::new(place, "echo $$; (sleep 0 &) ; sleep 0.05; ps -o pid,stat | grep -c Z; exit 5");
    container.init_reaper = true;
    let output = container.run();
    assert_eq!((output.stdout.as_str(), output.status), ("2\n0\n", 5), "{output:?}");
    let script = "trap 'echo got; exit 3' TERM; kill -TERM 1; while :; do sleep 0.01; done";
    let mut container = Container::new(place, script);
    container.init_reaper = true;
    let output = container.run();
    assert_eq!((output.stdout.as_str(), output.status), ("got\n", 3), "{output:?}");
    let mut container = Container::new(place, "kill -9 $$");
    container.init_reaper = true;
    assert_eq!(container.run().status, 137);
    let mut container = Container::new(place, "");
    container.init_reaper = true;
    container.spec["process"]["args"] = json!(["missing"]);
    assert_eq!(container.fails().exit_code(), 127);
    // The reaper is our program: nobody inside may look at it (A01, A03).
    let mut container = Container::new(place, "ls -l /proc/1/fd; cat /proc/1/exe > /dev/null; readlink /proc/1/root");
    container.init_reaper = true;
    let output = container.run();
    assert!(!output.stdout.contains("->") && output.status == 1, "{output:?}");
    assert!(output.stderr.matches("ermission denied").count() >= 2, "{output:?}");
}

fn gate_wait(place: &Place) {
    let mut container = Container::new(place, "echo ran > /tmp/ran");
    container.gate = Gate::Wait;
    let ran = place.rootfs().join("tmp/ran");
    let mut running = container.launch(Stdio::Inherit).expect("launched");
    assert!(!ran.exists());
    running.start().expect("started");
    assert_eq!(running.wait().expect("waited").status(), 0);
    assert!(ran.exists());
    assert!(running.start().is_err(), "a second start");
}

fn gate_socket(place: &Place) {
    // Longer than a socket address.
    let gate = place.make(&"x".repeat(200)).join("gate");
    let mut container = Container::new(place, "echo ran > /tmp/ran");
    container.gate = Gate::Socket(gate.clone());
    // Something that must not survive into the container, at a number that cwd could name.
    let _held: Vec<fs_err::File> = (0..20).map(|_| fs_err::File::open("/").expect("opened")).collect();
    let (read, write) = std::io::pipe().expect("a pipe");
    let running = container.launch(Stdio::Fds([read.as_fd(), write.as_fd(), write.as_fd()])).expect("launched");
    if rustix::process::geteuid().is_root() {
        // The process has hidden itself: only the host's root may look.
        let mut others: Vec<String> = fs_err::read_dir(format!("/proc/{}/fd", running.pid))
            .expect("listed")
            .map(|entry| fs_err::read_link(entry.expect("read").path()).expect("a link").display().to_string())
            .filter(|target| !target.starts_with("pipe:"))
            .collect();
        others.sort();
        let known = others.iter().all(|target| target.starts_with("socket:"));
        assert!(known && others.len() <= 2, "the created process holds {others:?}");
    } else {
        let denied = fs_err::read_dir(format!("/proc/{}/fd", running.pid)).map(|_| ());
        assert_eq!(denied.expect_err("hidden").kind(), std::io::ErrorKind::PermissionDenied);
    }
    assert!(!place.rootfs().join("tmp/ran").exists());
    open_gate(&gate).expect("opened");
    assert_eq!(running.wait().expect("waited").status(), 0);
    assert!(place.rootfs().join("tmp/ran").exists());
    assert!(!gate.exists());
}

fn gate_failure(place: &Place) {
    let gate = place.dir.join("gate");
    let mut container = Container::new(place, "");
    container.gate = Gate::Socket(gate.clone());
    container.spec["process"]["args"] = json!(["missing"]);
    // Known before anybody starts it, as from runc and crun.
    assert_eq!(container.launch(Stdio::Inherit).expect_err("no such program").exit_code(), 127);
    let program = place.rootfs().join("tmp/program");
    std::os::unix::fs::symlink("/bin/sh", &program).expect("linked");
    container.spec["process"]["args"] = json!(["/tmp/program"]);
    let running = container.launch(Stdio::Inherit).expect("created");
    fs_err::remove_file(&program).expect("removed");
    assert_eq!(open_gate(&gate).expect_err("no such program").exit_code(), 127);
    assert_ne!(running.wait().expect("waited").status(), 0);
    assert_eq!(open_gate(&place.dir.join("nothing")).expect_err("absent").errno, libc::ENOENT);
}

fn kept_descriptors(place: &Place) {
    use std::os::fd::AsRawFd;
    let file = fs_err::File::open("/etc/passwd").expect("opened");
    let _other = fs_err::File::open("/etc/passwd").expect("opened");
    let mut container = Container::new(place, "ls /proc/self/fd | wc -l; ls -l /proc/self/fd");
    // 0, 1, 2 and the directory that ls itself reads.
    assert_eq!(container.says().lines().next(), Some("4"), "{}", container.says());
    container.keep_fds = vec![file.as_raw_fd()];
    assert_eq!(container.says().lines().next(), Some("5"));
    container.keep_fds = vec![900];
    assert_eq!(container.fails().errno, libc::EBADF);
}

fn no_process_left(place: &Place) {
    let mut container = Container::new(place, "true");
    container.spec["process"]["args"] = json!(["missing"]);
    container.fails();
    container.mount("/x", "bind", "/does/not/exist", &["bind"]);
    container.fails();
    let mine = rustix::process::getpid().as_raw_pid();
    let children = fs_err::read_to_string(format!("/proc/{mine}/task/{mine}/children")).expect("read");
    assert_eq!(children.trim(), "");
}

fn dies_with_launcher(place: &Place) {
    // A launcher of its own, so that it can be killed.
    let mut container = Container::new(place, "echo $$ > /tmp/up; exec sleep 600");
    container.spec["process"]["user"] = json!({"uid": 1, "gid": 1});
    container.spec["mounts"]
        .as_array_mut()
        .expect("mounts")
        .push(json!({"destination": "/tmp", "type": "bind", "source": place.make("shared"), "options": ["bind"]}));
    use std::os::unix::fs::PermissionsExt;
    fs_err::set_permissions(place.dir.join("shared"), std::fs::Permissions::from_mode(0o777)).expect("opened");
    let map = container.idmap.clone();
    let (mut read, mut write) = std::io::pipe().expect("a pipe");
    let program = std::env::current_exe().expect("own path");
    let spec = place.dir.join("spec.json");
    fs_err::write(&spec, serde_json::to_vec(&(container.spec.clone(), map)).expect("json")).expect("written");
    let mut launcher = std::process::Command::new(program)
        .args([crate::runner::HELPER, "launch-and-wait"])
        .arg(&spec)
        .arg(place.bundle())
        .spawn()
        .expect("spawned");
    let up = place.dir.join("shared/up");
    wait_until("the container runs", || up.exists());
    let mine = launcher.id();
    let children = fs_err::read_to_string(format!("/proc/{mine}/task/{mine}/children")).expect("read");
    let inner: i32 = children.trim().parse().expect("one child");
    launcher.kill().expect("killed");
    launcher.wait().expect("reaped");
    wait_until("the container is gone", || !std::path::Path::new(&format!("/proc/{inner}")).exists());
    write.write_all(b"x").expect("written");
    drop(write);
    let mut rest = String::new();
    read.read_to_string(&mut rest).expect("read");
}

/// Polls for something that another process does.
pub fn wait_until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "timeout: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn hostname(place: &Place) {
    let mut container =
        Container::new(place, "hostname; cat /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv4/ip_forward");
    container.spec["hostname"] = json!("case-host");
    container.spec["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
    let output = container.run();
    assert_eq!(output.stdout, "case-host\n1\n");
    assert_ne!(output.status, 0, "/proc/sys is read-only inside");
    container.spec["linux"]["sysctl"] = json!({"kernel.core_pattern": "x"});
    assert_eq!(container.fails().stage, Stage::Plan);
    let collected = collect(|stdio| Container::new(place, "hostname").launch(stdio)).expect("ran");
    assert_ne!(collected.stdout, "");
}
