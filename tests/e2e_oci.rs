//! `coracle-oci` on a busybox bundle: the life of a container.

mod hosts;
mod lifecycle;
mod peers;
mod refusals;
mod rows;
mod walk;

use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::env::{Outcome, Run, TestEnv, Who, fixtures, wait_until};

/// Debian's static busybox; a root filesystem needs nothing else.
const BUSYBOX: &str = "/bin/busybox";
const APPLETS: [&str; 16] = [
    "sh", "cat", "id", "true", "false", "sleep", "mount", "ps", "grep", "echo", "kill", "env", "ls", "readlink",
    "stty", "wc",
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

    /// Any command. Root is told a directory, because root's own is the host's.
    fn run(&self, args: &[&str]) -> Run {
        let run = Run::new(self.env, &self.program);
        let told = args.iter().any(|arg| arg.starts_with("--root"));
        if self.env.who() == Who::Root && !told {
            return run.args(&[format!("--root={}", self.state_root().display())]).args(args);
        }
        run.args(args)
    }

    /// `create`, or anything else whose container keeps the standard streams: a pipe would stay open.
    fn quiet(&self, args: &[&str]) -> Run {
        let null = || fs_err::OpenOptions::new().write(true).open("/dev/null").unwrap().into_file();
        self.with_bundle(args).stdout_to(null()).stderr_to(null())
    }

    /// A command for one of many, which `create` alone starts from the bundle.
    fn quiet_or_plain(&self, args: &[&str], id: &str) -> Run {
        let words: Vec<&str> = args.iter().copied().chain([id]).collect();
        if args[0] == "create" { self.quiet(&words) } else { self.run(&words) }
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
        let mut config: Value = serde_json::from_slice(&fs_err::read(self.config()).unwrap()).unwrap();
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
        self.env.path("run/coracle-oci")
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

/// An id that tells in `ps` which test made it.
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
    assert!(row.lines().any(|line| line.starts_with(id.as_str()) && line.contains("running")), "{row}");
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
    assert_eq!((outcome.code, outcome.text().as_str(), outcome.stderr.as_str()), (7, "through", "err\n"));
    oci.run(&["state", id]).outcome().refused(1).says("does not exist");
    oci.with_bundle(&["run", "--keep", id]).outcome().code(7);
    assert_eq!(oci.state(id)["status"], "stopped");
    oci.run(&["delete", id]).ok();
    oci.change(|config| config["process"]["args"] = json!(["/nope"]));
    oci.with_bundle(&["run", id]).outcome().refused(1).says("/nope: no such file or directory");
    oci.with_bundle(&["create", id]).outcome().refused(1).says("/nope: no such file or directory");
    oci.run(&["state", id]).outcome().refused(1).says("does not exist");
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
    assert_eq!(sh(&["--cwd", "/etc", "-e", "A=flag", "-e", "B=2"], "pwd; echo $A $B").ok(), "/etc\nflag 2");
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
        assert!(sh(&["--user", "1"], "grep Cap /proc/self/status").ok().contains("CapEff:\t0000000000000000"), "A30");
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
    assert_eq!(fs_err::read(format!("/proc/{pid}/cmdline")).unwrap(), b"sleep\x001000\x00");
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
    let expect = |bits: &str, no_new_privs: u8| {
        format!(
            "CapInh:\t0000000000000000\nCapPrm:\t{bits}\nCapEff:\t{bits}\nCapBnd:\t{bits}\nCapAmb:\t0000000000000000\n\
             NoNewPrivs:\t{no_new_privs}\nSeccomp:\t2"
        )
    };
    assert_eq!(show(&["--no-new-privs"]), expect("00000000800405fb", 1));
    assert_eq!(show(&["--cap", "NET_RAW"]), expect("00000000800425fb", 0));
    assert_eq!(show(&["--cap", "CAP_FOO"]), expect("00000000800405fb", 0), "C09: unknown, so not granted");
    oci.run(&["delete", "--force", id]).ok();
}

/// Takes the one descriptor that `coracle-oci` sends.
fn receive_terminal(listener: &std::os::unix::net::UnixListener) -> std::fs::File {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let (stream, _) = listener.accept().unwrap();
    let mut name = [0_u8; 64];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(&stream, &mut [std::io::IoSliceMut::new(&mut name)], &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
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
    oci.with_bundle(&["create", "--console-socket", socket.to_str().unwrap(), id]).outcome().refused(1);
}

#[test]
fn oci_kill_all_reaches_every_process() {
    let env = TestEnv::new();
    let script = "trap 'echo deaf' TERM; sleep 1000 & sleep 1000 & wait; wait; wait; echo end";
    let oci = Oci::new(&env, &["sh", "-c", script]);
    let id = &unique("all");
    let mut running = oci.with_bundle(&["run", id]).spawn();
    wait_until("both children", || {
        // The shell's own line has the words too, and so has a child that has not become its program yet.
        let ps = oci.run(&["exec", id, "ps", "-o", "args"]).outcome();
        ps.text().lines().filter(|line| line.trim() == "sleep 1000").count() == 2
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
    // crun's callers name a number that covers theirs; 4 and 7 are open, and ls adds 5.
    assert_eq!(start("--preserve-fds 5").ok(), "through 3\n0\n1\n2\n3\n4\n5\n7");
    let script = format!(
        "exec 3<&-; exec {} run --preserve-fds 1 --bundle {} {id}",
        oci.program.display(),
        oci.bundle.display()
    );
    env.program("/bin/sh").args(&["-c", &script]).outcome().refused(1).says("not open");
}
