//! `coracle-oci` on a busybox bundle: the life of a container, what is refused, and crun as the measure.

use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::env::{Outcome, Run, TestEnv, Who, fixtures, set_mode, wait_until};

/// Debian's static busybox; a root filesystem needs nothing else.
const BUSYBOX: &str = "/bin/busybox";
const APPLETS: [&str; 16] = [
    "sh", "cat", "id", "true", "false", "sleep", "mount", "ps", "grep", "echo", "kill", "env",
    "ls", "readlink", "stty", "wc",
];

/// A bundle and the command that runs it.
struct Oci<'a> {
    env: &'a TestEnv,
    program: PathBuf,
    bundle: PathBuf,
}

impl<'a> Oci<'a> {
    /// Makes a bundle in `NAME/` whose program is this.
    fn new(env: &'a TestEnv, args: &[&str]) -> Self {
        let program = env.path("coracle-oci");
        symlink(fixtures::coracle(), &program).unwrap();
        let bundle = env.path("bundle");
        make_rootfs(&bundle.join("rootfs"));
        let oci = Self { env, program, bundle };
        let mut spec = vec!["spec", "--bundle", oci.bundle.to_str().unwrap()];
        if env.who() != Who::Root {
            spec.push("--rootless");
        }
        oci.run(&spec).ok();
        oci.change(|config| config["process"]["args"] = json!(args));
        oci
    }

    fn run(&self, args: &[&str]) -> Run {
        Run::new(self.env, &self.program).args(args)
    }

    /// `create`, or anything else whose container keeps the standard streams: a pipe would stay open.
    fn quiet(&self, args: &[&str]) -> Run {
        let null = || fs_err::OpenOptions::new().write(true).open("/dev/null").unwrap().into_file();
        self.with_bundle(args).stdout_to(null()).stderr_to(null())
    }

    /// `create` or `run` with the bundle.
    fn with_bundle(&self, args: &[&str]) -> Run {
        let (command, rest) = args.split_first().unwrap();
        self.run(&[command, "--bundle", self.bundle.to_str().unwrap()]).args(rest)
    }

    fn config(&self) -> PathBuf {
        self.bundle.join("config.json")
    }

    fn change(&self, edit: impl FnOnce(&mut Value)) {
        let mut config: Value =
            serde_json::from_slice(&fs_err::read(self.config()).unwrap()).unwrap();
        edit(&mut config);
        fs_err::write(self.config(), config.to_string()).unwrap();
    }

    fn state(&self, id: &str) -> Value {
        serde_json::from_str(&self.run(&["state", id]).ok()).unwrap()
    }

    fn wait_for_status(&self, id: &str, status: &str) {
        wait_until(&format!("{id} to be {status}"), || self.state(id)["status"] == status);
    }

    /// Demands that no container is left.
    fn is_empty(&self) {
        assert_eq!(self.run(&["list", "-q"]).ok(), "", "containers are left");
        let dir = self.state_root();
        let left = fs_err::read_dir(dir).map(Iterator::count).unwrap_or(0);
        assert_eq!(left, 0, "directories are left");
    }

    fn state_root(&self) -> PathBuf {
        match self.env.who() {
            // As root of the host the test gives the directory, see `run` in the tests that need it.
            Who::Root => PathBuf::from("/run/coracle-oci"),
            _ => self.env.path("run/coracle-oci"),
        }
    }
}

fn make_rootfs(rootfs: &Path) {
    for dir in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        fs_err::create_dir_all(rootfs.join(dir)).unwrap();
    }
    fs_err::copy(BUSYBOX, rootfs.join("bin/busybox")).unwrap();
    for applet in APPLETS {
        symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
    }
}

/// An id that no other test, user or run has, because root's state directory is the host's.
fn unique(name: &str) -> String {
    format!("coracle-test-{name}-{}", std::process::id())
}

#[test]
fn oci_create_start_exec_kill_delete() {
    let env = TestEnv::new();
    let oci = Oci::new(&env, &["sleep", "1000"]);
    let id = &unique("life");
    let pid_file = env.path("pid");
    oci.quiet(&["create", "--pid-file", pid_file.to_str().unwrap(), id]).ok();
    let state = oci.state(id);
    assert_eq!((&state["status"], &state["id"]), (&json!("created"), &json!(id)));
    assert_eq!(state["bundle"], json!(oci.bundle));
    let pid = fs_err::read_to_string(&pid_file).unwrap();
    assert_eq!(state["pid"].to_string(), pid, "the pid file holds the pid of the first process");
    oci.with_bundle(&["create", id]).outcome().refused(1).says("already exists");
    oci.run(&["start", id]).ok();
    assert_eq!(oci.state(id)["status"], "running");
    oci.run(&["start", id]).outcome().refused(1).says("it is running");
    oci.run(&["delete", id]).outcome().refused(1).says("it is running");
    let row = oci.run(&["list"]).ok();
    assert!(
        row.lines().any(|line| line.starts_with(id.as_str()) && line.contains("running")),
        "{row}"
    );
    assert!(oci.run(&["list", "-f", "json"]).ok().contains(&format!("\"id\":\"{id}\"")));
    assert_eq!(oci.run(&["exec", id, "cat", "/proc/1/cmdline"]).ok(), "sleep\u{0}1000\u{0}");
    oci.run(&["kill", id, "KILL"]).ok();
    oci.wait_for_status(id, "stopped");
    assert_eq!(oci.state(id)["pid"], 0);
    for command in ["start", "kill"] {
        oci.run(&[command, id]).outcome().refused(1).says("it is stopped");
    }
    oci.run(&["exec", id, "true"]).outcome().refused(1).says("it is stopped");
    oci.run(&["delete", id]).ok();
    oci.run(&["state", id]).outcome().refused(1).says("does not exist");
    oci.run(&["delete", id]).outcome().refused(1);
    oci.run(&["delete", "--force", id]).ok();
}

#[test]
fn oci_run_gives_streams_and_exit_code() {
    let env = TestEnv::new();
    let oci = Oci::new(&env, &["sh", "-c", "cat; echo err >&2; exit 7"]);
    let id = &unique("run");
    let outcome = oci.with_bundle(&["run", id]).stdin("through").outcome();
    assert_eq!(
        (outcome.code, outcome.text().as_str(), outcome.stderr.as_str()),
        (7, "through", "err\n")
    );
    oci.run(&["state", id]).outcome().refused(1).says("does not exist");
    oci.with_bundle(&["run", "--keep", id]).outcome().code(7);
    assert_eq!(oci.state(id)["status"], "stopped");
    oci.run(&["delete", id]).ok();
    oci.change(|config| config["process"]["args"] = json!(["/nope"]));
    oci.with_bundle(&["run", id]).outcome().refused(1).says("/nope: no such file or directory");
    oci.quiet(&["create", id]).ok();
    oci.run(&["start", id]).outcome().refused(1).says("no such file or directory");
    oci.run(&["delete", "-f", id]).ok();
}

#[test]
fn oci_run_detached_outlives_the_command() {
    let env = TestEnv::new();
    let oci = Oci::new(&env, &["sleep", "1000"]);
    let id = &unique("detached");
    oci.quiet(&["run", "--detach", id]).ok();
    assert_eq!(oci.state(id)["status"], "running");
    oci.run(&["delete", "--force", id]).ok();
    oci.run(&["state", id]).outcome().refused(1);
}

#[test]
fn oci_exec_user_env_cwd_and_codes() {
    let env = TestEnv::new();
    let oci = Oci::new(&env, &["sleep", "1000"]);
    oci.change(|config| {
        config["process"]["env"] = json!(["PATH=/bin", "A=spec"]);
        config["process"]["cwd"] = json!("/tmp");
    });
    let id = &unique("exec");
    oci.quiet(&["create", id]).ok();
    oci.run(&["start", id]).ok();
    let sh = |flags: &[&str], script: &str| -> Outcome {
        oci.run(&["exec"]).args(flags).args(&[id.as_str(), "sh", "-c", script]).outcome()
    };
    assert_eq!(sh(&[], "pwd; echo $A").ok(), "/tmp\nspec");
    assert_eq!(
        sh(&["--cwd", "/etc", "-e", "A=flag", "-e", "B=2"], "pwd; echo $A $B").ok(),
        "/etc\nflag 2"
    );
    sh(&[], "exit 9").code(9);
    sh(&[], "kill -TERM $$").code(143);
    oci.run(&["exec", id, "/nope"]).outcome().refused(255).says("no such file or directory");
    sh(&["-e", "=x"], "true").refused(1);
    // A27: user 1 is user 1, and what is no number is nobody.
    for bad in ["", "x", "-1", "0x0", "+0", " 0", "1:", ":1", "1:2:3", "4294967296", "root"] {
        sh(&[&format!("--user={bad}")], "id").refused(1).says("invalid user");
    }
    sh(&["--user=4294967295"], "id").refused(255);
    if env.who() == Who::Root {
        assert_eq!(sh(&["--user", "1"], "id -u; id -g").ok(), "1\n0");
        assert_eq!(sh(&["--user", "1:2"], "id -u; id -g").ok(), "1\n2");
        assert!(
            sh(&["--user", "1"], "grep Cap /proc/self/status")
                .ok()
                .contains("CapEff:\t0000000000000000"),
            "A30"
        );
    } else {
        sh(&["--user", "1"], "id").refused(255).says("not in the container's id map");
    }
    let process = env.write(
        "process.json",
        json!({ "cwd": "/", "args": ["sh", "-c", "echo $C; pwd"], "env": ["PATH=/bin", "C=file"], "user": { "uid": 0, "gid": 0 } })
            .to_string(),
    );
    assert_eq!(oci.run(&["exec", "--process", process.to_str().unwrap(), id]).ok(), "file\n/");
    let pid_file = env.path("exec-pid");
    let null = || fs_err::OpenOptions::new().write(true).open("/dev/null").unwrap().into_file();
    oci.run(&["exec", "--detach", "--pid-file", pid_file.to_str().unwrap(), id, "sleep", "1000"])
        .stdout_to(null())
        .stderr_to(null())
        .ok();
    let pid = fs_err::read_to_string(&pid_file).unwrap();
    assert_eq!(fs_err::read(format!("/proc/{pid}/cmdline")).unwrap(), b"sleep\01000\0");
    // A pid namespace ends when its last process is reaped, and this one is ours to reap.
    let detached = nix::unistd::Pid::from_raw(pid.parse().unwrap());
    let reaper = std::thread::spawn(move || nix::sys::wait::waitpid(detached, None));
    oci.run(&["delete", "--force", id]).ok();
    reaper.join().unwrap().unwrap();
}

#[test]
fn a22_inheritable_and_ambient_are_empty() {
    let env = TestEnv::new();
    let oci = Oci::new(&env, &["sleep", "1000"]);
    let id = &unique("caps");
    oci.quiet(&["create", id]).ok();
    oci.run(&["start", id]).ok();
    let show = |flags: &[&str]| {
        oci.run(&["exec"])
            .args(flags)
            .args(&[id.as_str(), "grep", "-E", "Cap|NoNewPrivs|Seccomp:", "/proc/self/status"])
            .ok()
    };
    let expect = |bits: &str| {
        format!(
            "CapInh:\t0000000000000000\nCapPrm:\t{bits}\nCapEff:\t{bits}\nCapBnd:\t{bits}\nCapAmb:\t0000000000000000\n\
             NoNewPrivs:\t1\nSeccomp:\t2"
        )
    };
    assert_eq!(show(&[]), expect("00000000800405fb"));
    assert_eq!(show(&["--cap", "NET_RAW"]), expect("00000000800425fb"));
    oci.run(&["exec", "--cap", "CAP_FOO", id, "true"])
        .outcome()
        .refused(1)
        .says("unknown capability \"CAP_FOO\"");
    oci.run(&["delete", "--force", id]).ok();
}

#[test]
fn c19_ids_and_the_race_for_one() {
    let env = TestEnv::new();
    let oci = Oci::new(&env, &["sleep", "1000"]);
    let long = "a".repeat(256);
    for bad in ["../x", "", ".", "..", "a/b", "é", "a b", ".x", &long] {
        oci.with_bundle(&["create", bad]).outcome().refused(1).says("invalid container id");
        oci.run(&["delete", "--force", bad]).outcome().refused(1);
    }
    let id = &unique("race");
    let log = |number: usize| env.path(format!("log{number}"));
    let attempt = |number: usize| {
        let log = format!("--log={}", log(number).display());
        let null = || fs_err::OpenOptions::new().write(true).open("/dev/null").unwrap().into_file();
        let bundle = oci.bundle.to_str().unwrap();
        oci.run(&[&log, "create", "--bundle", bundle, id])
            .stdout_to(null())
            .stderr_to(null())
            .spawn()
    };
    let tries: Vec<_> = (0..6).map(attempt).collect();
    let outcomes: Vec<Outcome> =
        tries.into_iter().map(crate::env::command::Running::wait).collect();
    assert_eq!(outcomes.iter().filter(|outcome| outcome.code == 0).count(), 1);
    for (number, _) in outcomes.iter().enumerate().filter(|(_, outcome)| outcome.code != 0) {
        let text = fs_err::read_to_string(log(number)).unwrap();
        assert!(text.contains("already exists"), "{text}");
    }
    assert_eq!(oci.state(id)["status"], "created", "the losers leave the winner's container alone");
    oci.run(&["delete", id]).ok();
}

#[test]
fn c22_configurations_are_bounded_and_of_our_version() {
    let env = TestEnv::new();
    let oci = Oci::new(&env, &["true"]);
    let good = fs_err::read_to_string(oci.config()).unwrap();
    let id = &unique("config");
    let refused = |what: &str| {
        oci.with_bundle(&["run", id]).outcome().refused(1).says(what);
        oci.run(&["state", id]).outcome().refused(1).says("does not exist");
    };
    for version in ["0.9.0", "99.0.0", ""] {
        oci.change(|config| config["ociVersion"] = json!(version));
        refused("ociVersion");
    }
    fs_err::write(oci.config(), format!("{good} x")).unwrap();
    refused("not a valid configuration");
    fs_err::File::create(oci.config()).unwrap().set_len(1 << 30).unwrap();
    refused("larger than");
    fs_err::remove_file(oci.config()).unwrap();
    refused("config.json: no such file or directory");
    for (name, edit) in [
        ("linux.intelRdt", json!({ "linux": { "intelRdt": { "closID": "x" } } })),
        ("linux.netDevices", json!({ "linux": { "netDevices": { "eth0": {} } } })),
        (
            "linux.resources.memory",
            json!({ "linux": { "resources": { "memory": { "limit": 1 << 26 } } } }),
        ),
        ("process.scheduler", json!({ "process": { "scheduler": { "policy": "SCHED_OTHER" } } })),
        (
            "SCMP_ACT_NOTIFY",
            json!({ "linux": { "seccomp": { "defaultAction": "SCMP_ACT_NOTIFY" } } }),
        ),
    ] {
        fs_err::write(oci.config(), &good).unwrap();
        oci.change(|config| merge(config, &edit));
        refused(name);
    }
    fs_err::write(oci.config(), &good).unwrap();
    oci.change(|config| {
        config["future"] = json!({ "unknown": true });
        config["process"]["capabilities"]["bounding"] = json!(["CAP_KILL", "CAP_FOO"]);
        config["process"]["capabilities"]["effective"] = json!([]);
        config["process"]["capabilities"]["permitted"] = json!([]);
    });
    let log = env.path("log");
    let flags = ["--log", log.to_str().unwrap(), "--log-format", "json"];
    oci.run(&flags).args(&["run", "--bundle", oci.bundle.to_str().unwrap(), id]).ok();
    let line: Value =
        serde_json::from_str(fs_err::read_to_string(&log).unwrap().lines().next().unwrap())
            .unwrap();
    assert_eq!(line["level"], "warning", "C09: {line}");
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

#[test]
fn oci_log_has_runcs_form() {
    let env = TestEnv::new();
    let oci = Oci::new(&env, &["true"]);
    let log = env.path("log");
    let log = log.to_str().unwrap();
    oci.run(&["--log", log, "--log-format", "json", "state", "nobody"]).outcome().refused(1);
    oci.run(&["--log", log, "state", "nobody"]).outcome().refused(1);
    let text = fs_err::read_to_string(log).unwrap();
    let (first, second) = text.trim_end().split_once('\n').unwrap();
    let first: Value = serde_json::from_str(first).unwrap();
    assert_eq!(
        (&first["level"], &first["msg"]),
        (&json!("error"), &json!("container nobody does not exist"))
    );
    assert!(first["time"].as_str().unwrap().ends_with('Z'));
    assert!(second.contains("level=error msg=\"container nobody does not exist\""), "{second}");
    oci.run(&["--log", "/nonexistent/log", "list"]).outcome().refused(1);
}

#[test]
fn oci_what_is_missing_is_refused_by_name() {
    let env = TestEnv::new();
    let oci = Oci::new(&env, &["true"]);
    for (args, text) in [
        (vec!["pause", "x"], "error: command pause is not implemented"),
        (vec!["run", "--criu", "x"], "error: flag --criu is not implemented"),
        (vec!["--systemd-cgroup", "list"], "error: flag --systemd-cgroup is not implemented"),
        (
            vec!["--cgroup-manager=systemd", "list"],
            "error: flag --cgroup-manager=systemd is not implemented",
        ),
        (vec!["kill"], "error: argument <ID> is missing"),
        (vec!["kill", "nobody", "SIGFOO"], "error: invalid signal \"SIGFOO\""),
    ] {
        oci.run(&args).outcome().error(1, text);
    }
    assert!(oci.run(&["--version"]).ok().starts_with("coracle-oci version "));
    let features: Value = serde_json::from_str(&oci.run(&["features"]).ok()).unwrap();
    assert_eq!(features["linux"]["seccomp"]["enabled"], true);
    oci.run(&["spec", "--bundle", oci.bundle.to_str().unwrap()])
        .outcome()
        .refused(1)
        .says("already exists");
}

/// Takes the one descriptor that `coracle-oci` sends.
fn receive_terminal(listener: &std::os::unix::net::UnixListener) -> std::fs::File {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let (stream, _) = listener.accept().unwrap();
    let mut name = [0_u8; 64];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(
        &stream,
        &mut [std::io::IoSliceMut::new(&mut name)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )
    .unwrap();
    let sent = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    sent.unwrap().into()
}

#[test]
fn c18_terminal_goes_to_the_console_socket() {
    let env = TestEnv::new();
    let oci = Oci::new(&env, &["sh", "-c", "stty size; read line; echo got $line; exit 3"]);
    let id = &unique("console");
    oci.change(|config| {
        config["process"]["terminal"] = json!(true);
        config["process"]["consoleSize"] = json!({ "height": 31, "width": 97 });
    });
    oci.with_bundle(&["create", id]).outcome().refused(1).says("--console-socket");
    oci.with_bundle(&["run", "--detach", id]).outcome().refused(1).says("--console-socket");
    // A path that is too long for a socket address is reached all the same.
    let dir = env.path("d".repeat(100));
    fs_err::create_dir(&dir).unwrap();
    let short = env.path("s");
    let listener = std::os::unix::net::UnixListener::bind(&short).unwrap();
    let socket = dir.join("console");
    fs_err::rename(&short, &socket).unwrap();
    oci.quiet(&["create", "--console-socket", socket.to_str().unwrap(), id]).ok();
    let mut terminal = receive_terminal(&listener);
    oci.run(&["start", id]).ok();
    terminal.write_all(b"hello\n").unwrap();
    let mut output = Vec::new();
    let mut buffer = [0_u8; 256];
    // The last reader of a terminal gets EIO when its other side is gone.
    while let Ok(count @ 1..) = terminal.read(&mut buffer) {
        output.extend_from_slice(&buffer[..count]);
    }
    let output = String::from_utf8_lossy(&output).into_owned();
    assert!(output.contains("31 97") && output.contains("got hello"), "{output:?}");
    oci.wait_for_status(id, "stopped");
    oci.run(&["delete", id]).ok();
    oci.change(|config| config["process"]["terminal"] = json!(false));
    oci.with_bundle(&["create", "--console-socket", socket.to_str().unwrap(), id])
        .outcome()
        .refused(1);
}

#[test]
fn oci_kill_all_reaches_every_process() {
    let env = TestEnv::new();
    let script = "trap 'echo deaf' TERM; sleep 1000 & sleep 1000 & wait; wait; wait; echo end";
    let oci = Oci::new(&env, &["sh", "-c", script]);
    let id = &unique("all");
    let mut running = oci.with_bundle(&["run", id]).spawn();
    wait_until("both children", || {
        let ps = oci.run(&["exec", id, "ps"]).outcome();
        ps.text().matches("sleep 1000").count() >= 3
    });
    oci.run(&["kill", "--all", id, "TERM"]).ok();
    running.wait_for("end");
    assert_eq!(running.wait().code, 0);
}

#[test]
fn oci_preserved_descriptors_and_no_others() {
    let env = TestEnv::new();
    let oci = Oci::new(&env, &["sh", "-c", "cat <&3; ls /proc/self/fd"]);
    let file = env.write("passed", "through 3\n");
    let id = &unique("fds");
    let start = |flags: &str| {
        let script = format!(
            "exec 3<{file} 4<{file} 7<{file}; exec {oci} run {flags} --bundle {bundle} {id}",
            file = file.display(),
            oci = oci.program.display(),
            bundle = oci.bundle.display()
        );
        env.program("/bin/sh").args(&["-c", &script])
    };
    // ls itself opens one more.
    assert_eq!(start("--preserve-fds 1").ok(), "through 3\n0\n1\n2\n3\n4");
    let without = start("").outcome();
    assert!(without.stderr.contains("3"), "descriptor 3 is closed: {without}");
    assert_eq!(without.text(), "0\n1\n2\n3");
    start("--preserve-fds 9").outcome().refused(1).says("not open");
}

#[test]
fn f15_a_state_of_another_boot_is_stopped() {
    let env = TestEnv::new();
    if env.who() == Who::Root {
        // Root's state directory is the host's own; the runs of the users show it.
        return;
    }
    let oci = Oci::new(&env, &["sleep", "1000"]);
    let id = &unique("boot");
    oci.quiet(&["create", id]).ok();
    oci.run(&["start", id]).ok();
    let file = oci.state_root().join(id).join("state.json");
    let whole = fs_err::read_to_string(&file).unwrap();
    let mut state: Value = serde_json::from_str(&whole).unwrap();
    state["init"]["bootId"] = json!("00000000-0000-0000-0000-000000000000");
    fs_err::write(&file, state.to_string()).unwrap();
    assert_eq!(oci.state(id)["status"], "stopped");
    oci.run(&["kill", id, "KILL"]).outcome().refused(1);
    fs_err::write(&file, whole).unwrap();
    assert_eq!(oci.state(id)["status"], "running", "nothing was signalled");
    oci.run(&["delete", "--force", id]).ok();
    oci.is_empty();
}

#[test]
fn o4_a_killed_create_leaves_an_id_that_can_be_deleted() {
    let env = TestEnv::new();
    let oci = Oci::new(&env, &["sleep", "1000"]);
    let id = &unique("killed");
    for delay_us in [0, 500, 1000, 2000, 3000, 5000, 8000, 12000] {
        let running = oci.quiet(&["create", id]).spawn();
        std::thread::sleep(std::time::Duration::from_micros(delay_us));
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(running.pid()),
            nix::sys::signal::Signal::SIGKILL,
        );
        drop(running);
        oci.run(&["delete", "--force", id]).ok();
        oci.run(&["state", id]).outcome().refused(1).says("does not exist");
    }
    oci.quiet(&["run", "--detach", id]).ok();
    oci.run(&["delete", "--force", id]).ok();
}

/// Slurm asks as root about containers that users started (slurm.md).
#[test]
fn oci_root_works_in_a_users_state_directory() {
    let env = TestEnv::new();
    if env.who() != Who::Root {
        // Only root can become somebody else; root's run shows it.
        return;
    }
    let Some((uid, gid)) = user("alice") else {
        return fixtures::skip("there is no user alice");
    };
    let oci = Oci::new(&env, &["sleep", "1000"]);
    fs_err::remove_file(oci.config()).unwrap();
    for dir in [env.path(""), env.path("home"), env.path("slurm")] {
        fs_err::create_dir_all(&dir).unwrap();
        set_mode(&dir, 0o755);
    }
    let chown = |path: &Path| std::os::unix::fs::chown(path, Some(uid), Some(gid)).unwrap();
    chown(&oci.bundle);
    set_mode(&env.path("slurm"), 0o1777);
    let program = env.path("copy/coracle-oci");
    fs_err::create_dir(env.path("copy")).unwrap();
    fs_err::copy(fixtures::coracle(), &program).unwrap();
    let as_alice = |args: &[&str]| {
        env.program("setpriv")
            .args(&["--reuid=alice", "--regid=alice", "--init-groups"])
            .args(&[program.to_str().unwrap()])
            .args(args)
    };
    let bundle = oci.bundle.to_str().unwrap();
    as_alice(&["spec", "--rootless", "--bundle", bundle]).ok();
    oci.change(|config| config["process"]["args"] = json!(["sleep", "1000"]));
    let root = format!("--root={}", env.path("slurm/alice").display());
    let id = "node1.alice.17.4294967291.0";
    let mut running = as_alice(&[&root, "run", "--bundle", bundle, id]).spawn();
    wait_until("the container to run", || {
        let outcome = oci.run(&[&root, "state", id]).outcome();
        outcome.code == 0 && outcome.text().contains("\"running\"")
    });
    oci.run(&[&root, "state", "nobody"]).outcome().refused(1);
    oci.run(&[&root, "kill", "--all", id]).ok();
    assert!(!running.has_ended(), "sleep as the first process ignores SIGTERM");
    oci.run(&[&root, "kill", "--all", id, "KILL"]).ok();
    assert_eq!(running.wait().code, 137);
    // Another user's directory under this name, and a link to it, are refused.
    fs_err::create_dir(env.path("slurm/bob")).unwrap();
    chown(&env.path("slurm/bob"));
    let bob = format!("--root={}", env.path("slurm/bob").display());
    oci.run(&[&bob, "state", id]).outcome().refused(1).says("not the one of user \"bob\"");
    let link = format!("--root={}", env.path("slurm/link").display());
    symlink(env.path("slurm/alice"), env.path("slurm/link")).unwrap();
    oci.run(&[&link, "state", id]).outcome().refused(1);
    oci.run(&[&root, "delete", "--force", id]).ok();
    assert_eq!(fs_err::read_dir(env.path("slurm/alice")).unwrap().count(), 0);
}

fn user(name: &str) -> Option<(u32, u32)> {
    let passwd = fs_err::read_to_string("/etc/passwd").unwrap();
    let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
    let fields: Vec<&str> = line.split(':').collect();
    Some((fields[2].parse().unwrap(), fields[3].parse().unwrap()))
}

/// The same bundle through crun: what the program sees must be the same.
#[test]
fn oci_agrees_with_crun() {
    let env = TestEnv::new();
    if fixtures::find_program("crun").is_none() {
        return fixtures::skip("crun is not installed");
    }
    if env.who() == Who::Single {
        // crun needs a range of ids to get past a hybrid cgroup host; the other runs show it.
        return;
    }
    // Two differences are wanted: crun invents HOME=/ where the specification has none, and links
    // /dev/core to the masked /proc/kcore.
    let script = "id; pwd; env | grep -v -E '^(SHLVL|HOME)='; grep -E 'Cap|NoNewPrivs|Seccomp:|Groups' /proc/self/status; \
                  ls -l /dev | grep -v -E '^total| core ' | cut -c1-10; cat /proc/sys/kernel/hostname; echo $0 $1; \
                  for kind in user mnt pid net ipc uts; do readlink /proc/self/ns/$kind >/dev/null && echo $kind; done; \
                  cat /proc/mounts | grep -E ' /(proc|dev|dev/pts|dev/shm|dev/mqueue|tmp) ' | wc -l; exit 42";
    let oci = Oci::new(&env, &["sh", "-c", script, "zero", "one"]);
    oci.change(|config| {
        // Debian's crun 1.8.1 neither knows rro nor mounts a cgroup here, and takes no newer specification.
        config["ociVersion"] = json!("1.0.2");
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| {
            mount["destination"] != "/sys/fs/cgroup" && mount["destination"] != "/sys"
        });
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "cgroup");
        let linux = config["linux"].as_object_mut().unwrap();
        // Inside a user namespace with a range the mapping starts at that namespace's root.
        linux.remove("uidMappings");
        linux.remove("gidMappings");
        linux["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "user");
    });
    let inside = |command: &str| {
        let map = if env.who() == Who::Root { "" } else { "-U --map-auto --map-root-user" };
        let line = format!(
            "exec unshare {map} -m sh -c 'mount --bind /sys/fs/cgroup/unified /sys/fs/cgroup && {command} run --bundle {} {}'",
            oci.bundle.display(),
            unique("crun")
        );
        env.program("/bin/sh").args(&["-c", &line]).outcome()
    };
    let crun =
        inside(&format!("crun --root {} --cgroup-manager=disabled", env.path("crun").display()));
    let ours = inside(&format!("{} --root {}", oci.program.display(), env.path("ours").display()));
    assert_eq!(crun.code, 42, "{crun}");
    assert_eq!(ours.code, 42, "{ours}");
    assert_eq!(ours.text(), crun.text());
}
