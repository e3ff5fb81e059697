//! Further processes in a running container.

use std::io::Read;
use std::os::fd::AsFd;

use coracle_runtime::caps::{CapSet, CapabilitySets};
use coracle_runtime::{ExecOptions, LaunchFailure, Running, Stage, Stdio, exec};
use oci_spec::runtime::{LinuxSeccomp, Process};
use rustix::process::Signal;
use serde_json::json;

use crate::container::{Container, Output, collect};
use crate::place::Place;
use crate::runner::{ALL, Case, User};

pub const CASES: &[Case] = &[
    Case { name: "exec_is_inside", users: ALL, run: inside },
    Case { name: "a02_exec_cwd_through_a_descriptor", users: ALL, run: cwd },
    Case { name: "a03_joiner_cannot_be_reached", users: ALL, run: joiner },
    Case { name: "a22_exec_capabilities_and_users", users: ALL, run: identity },
    Case { name: "exec_in_a_terminal", users: ALL, run: terminal },
    Case { name: "exec_in_what_is_gone", users: &[User::Alice], run: gone },
];

struct Up {
    container: Container,
    running: Running,
}

fn up(place: &Place, script: &str) -> Up {
    raise(Container::new(place, script))
}

/// Launches a container and waits until it says that it is ready.
fn raise(container: Container) -> Up {
    let (mut read, write) = std::io::pipe().expect("a pipe");
    let running = container.launch(Stdio::Fds([read.as_fd(), write.as_fd(), write.as_fd()])).expect("launched");
    drop(write);
    let mut ready = [0; 6];
    read.read_exact(&mut ready).expect("ready");
    // Kept open: the container may write more.
    std::mem::forget(read);
    Up { container, running }
}

impl Up {
    fn process(&self, script: &str) -> serde_json::Value {
        let mut process = self.container.spec["process"].clone();
        process["args"] = json!(["sh", "-c", script]);
        process
    }

    fn start(&self, process: &serde_json::Value, stdio: Stdio<'_>) -> Result<Running, LaunchFailure> {
        let process: Process = serde_json::from_value(process.clone()).expect("a process");
        let seccomp: LinuxSeccomp =
            serde_json::from_value(self.container.spec["linux"]["seccomp"].clone()).expect("a profile");
        let mut options = ExecOptions::new(self.running.pid, self.running.pidfd.as_fd(), &process);
        options.stdio = stdio;
        options.seccomp = Some(&seccomp);
        exec(options)
    }

    fn exec(&self, process: &serde_json::Value) -> Result<Output, LaunchFailure> {
        collect(|stdio| self.start(process, stdio))
    }

    fn down(self) {
        self.running.signal(Signal::KILL).expect("sent");
        self.running.wait().expect("waited");
    }
}

const IDLE: &str = "echo ready; exec sleep 60";

fn inside(place: &Place) {
    let up = up(place, IDLE);
    let script = "for n in user mnt pid ipc uts net cgroup; do readlink /proc/self/ns/$n; done; cat /proc/1/comm; ls /proc/self/fd | wc -l; exit 6";
    let output = up.exec(&up.process(script)).expect("ran");
    let lines: Vec<&str> = output.stdout.lines().collect();
    for line in &lines[..7] {
        let name = line.split(':').next().expect("a name");
        let theirs = fs_err::read_link(format!("/proc/{}/ns/{name}", up.running.pid)).expect("read");
        assert_eq!(theirs.to_str(), Some(*line));
    }
    assert_eq!((&lines[7..], output.status), (["sleep", "4"].as_slice(), 6), "{output:?}");
    let mut missing = up.process("");
    missing["args"] = json!(["missing"]);
    assert_eq!(up.exec(&missing).expect_err("missing").exit_code(), 127);
    let status =
        up.exec(&up.process("grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status | tr -s '\\t\\n' '  '")).expect("ran");
    assert_eq!(status.stdout.trim_end(), "NoNewPrivs: 1 Seccomp: 2");
    up.down();
}

fn cwd(place: &Place) {
    let up = up(place, IDLE);
    let _held: Vec<fs_err::File> = (0..30).map(|_| fs_err::File::open("/").expect("opened")).collect();
    for number in 3..48 {
        let mut process = up.process("pwd; ls");
        process["cwd"] = json!(format!("/proc/self/fd/{number}"));
        let failure = up.exec(&process).expect_err("refused");
        assert_eq!(failure.stage, Stage::WorkingDirectory, "{number}");
    }
    let mut process = up.process("pwd");
    process["cwd"] = json!("/etc");
    assert_eq!(up.exec(&process).expect("ran").stdout, "/etc\n");
    process["cwd"] = json!("/not/there");
    assert_eq!(up.exec(&process).expect_err("missing").stage, Stage::WorkingDirectory);
    up.down();
}

fn joiner(place: &Place) {
    // Pid 1, with every capability that a container can have, looks at each process that appears
    // as fast as it can: at its program, its directories, its descriptors and its memory.
    fs_err::copy(std::env::current_exe().expect("own path"), place.rootfs().join("bin/looker")).expect("copied");
    let mut container = Container::new(place, "");
    container.spec["process"]["args"] = json!(["/bin/looker", crate::runner::HELPER, "look"]);
    let every = CapabilitySets::granting(CapSet::known()).to_spec();
    container.spec["process"]["capabilities"] = serde_json::to_value(every).expect("json");
    container.spec["linux"]["seccomp"] = serde_json::Value::Null;
    let mut up = raise(container);
    up.container.spec["linux"]["seccomp"] = Container::new(place, "").spec["linux"]["seccomp"].clone();
    for _ in 0..150 {
        let output = up.exec(&up.process("true")).expect("ran");
        assert_eq!(output.status, 0);
    }
    let seen = fs_err::read_to_string(place.rootfs().join("tmp/seen")).unwrap_or_default();
    assert!(seen.lines().any(|line| line.contains("allowed")), "the looker saw no program at all");
    let leaks: Vec<&str> = seen.lines().filter(|line| !line.contains("allowed")).collect();
    assert!(leaks.is_empty(), "{leaks:?}");
    up.down();
}

fn identity(place: &Place) {
    let up = up(place, IDLE);
    let script = "id -u; grep -E '^Cap(Inh|Eff|Amb)' /proc/self/status | tr -s '\\t\\n' '  '";
    let output = up.exec(&up.process(script)).expect("ran");
    assert_eq!(
        output.stdout.trim_end(),
        "0\nCapInh: 0000000000000000 CapEff: 00000000800405fb CapAmb: 0000000000000000"
    );
    let mut process = up.process(script);
    process["user"] = json!({"uid": 1000, "gid": 1000});
    if up.container.idmap.is_single() {
        assert_eq!(up.exec(&process).expect_err("unmapped").stage, Stage::Plan);
    } else {
        let output = up.exec(&process).expect("ran");
        assert_eq!(
            output.stdout.trim_end(),
            "1000\nCapInh: 0000000000000000 CapEff: 0000000000000000 CapAmb: 0000000000000000"
        );
    }
    process["user"] = json!({"uid": 4_294_967_295_u32, "gid": 0});
    assert_eq!(up.exec(&process).expect_err("no id").stage, Stage::Plan);
    up.down();
}

fn terminal(place: &Place) {
    let up = up(place, IDLE);
    let mut process = up.process("tty; stty size");
    process["terminal"] = json!(true);
    process["consoleSize"] = json!({"height": 5, "width": 6});
    let running = up.start(&process, Stdio::Console).expect("started");
    let mut master = std::fs::File::from(running.console.as_ref().expect("a terminal").try_clone().expect("copied"));
    let mut said = Vec::new();
    let mut chunk = [0; 256];
    while let Ok(length @ 1..) = master.read(&mut chunk) {
        said.extend_from_slice(&chunk[..length]);
    }
    assert_eq!(String::from_utf8_lossy(&said).replace('\r', ""), "/dev/pts/0\n5 6\n");
    assert_eq!(running.wait().expect("waited").status(), 0);
    up.down();
}

fn gone(place: &Place) {
    let up = up(place, IDLE);
    let process = up.process("true");
    up.running.signal(Signal::KILL).expect("sent");
    up.running.wait().expect("waited");
    let failure = up.exec(&process).expect_err("gone");
    assert!(coracle_runtime::exec::is_gone(&failure), "{failure:?}");
}
