//! Commands in the guest, by the protocol of agent.py.

use std::io::{BufWriter, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Where `guest start` keeps the running machine.
const GUEST: &str = "CORACLE_TEST_GUEST";
const REQUIRE: &str = "CORACLE_TEST_REQUIRE";
/// The slowest single command, a cold container start beside a busy loop, takes some 10 s.
const COMMAND_SECONDS_MAX: u64 = 120;
/// A boot takes 10 to 25 s; what comes before it, a shutdown, is bounded by systemd's 90 s.
const BOOT_SECONDS_MAX: u64 = 300;
/// How long an answer of a machine that may be gone is waited for.
const ANSWER_SECONDS_MAX: u64 = 30;
/// Polling a condition inside costs an exec of 20 ms there; more often would only slow the guest down.
const POLL: Duration = Duration::from_millis(200);
/// Kinds of frames.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const EXIT: u8 = 3;

/// A user of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// The administrator.
    Root,
    /// An ordinary user who lingers: user manager, bus, delegated controllers.
    Alice,
    /// An ordinary user without user manager, bus or cgroup.
    Carol,
}

/// The controllers that alice's user manager gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delegated {
    /// As Debian 12 is: cpu, memory, pids.
    Default,
    /// After the drop-in that coracle's hint prints: cpuset and io too.
    All,
}

/// What a command left behind.
#[derive(Debug)]
pub struct Output {
    /// Its exit status, 128 + signal if one ended it.
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// Its standard output, without the last line break, if it succeeded.
    #[track_caller]
    pub fn ok(&self) -> &str {
        assert_eq!(self.status, 0, "{self:?}");
        self.stdout.trim_end_matches('\n')
    }

    /// Its standard error, if it failed.
    #[track_caller]
    pub fn failed(&self) -> &str {
        assert_ne!(self.status, 0, "{self:?}");
        self.stderr.trim_end_matches('\n')
    }
}

/// The running machine.
pub struct Guest {
    info: Value,
}

/// A command that runs.
pub struct Running {
    stream: TcpStream,
}

impl Guest {
    /// Finds the machine; `None`, said aloud, where none runs.
    #[expect(clippy::disallowed_methods, reason = "the tests' own variables, not coracle's")]
    pub fn find(test: &str) -> Option<Self> {
        let directory = std::env::var_os(GUEST).map(PathBuf::from);
        let Some(directory) = directory else {
            let reason = "no guest is running (make guest starts one; it needs qemu-system-x86)";
            assert!(std::env::var(REQUIRE).as_deref() != Ok("all"), "{test}: {reason}");
            println!("SKIP {test}: {reason}");
            return None;
        };
        let info = fs_err::read(directory.join("guest.json")).unwrap();
        Some(Self { info: serde_json::from_slice(&info).unwrap() })
    }

    /// Starts a command; dropping what is returned kills it.
    pub fn start(&self, user: User, argv: &[&str]) -> Running {
        self.try_start(user, argv, COMMAND_SECONDS_MAX).unwrap()
    }

    fn try_start(&self, user: User, argv: &[&str], seconds_max: u64) -> std::io::Result<Running> {
        let name = format!("{user:?}").to_lowercase();
        let port = self.info["ports"][name.as_str()].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap();
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(Duration::from_secs(seconds_max)))?;
        let request = json!({"token": self.info["token"], "argv": argv});
        let mut writer = BufWriter::new(&stream);
        writeln!(writer, "{request}")?;
        // No input: an empty frame.
        writer.write_all(&[STDIN, 0, 0, 0, 0])?;
        writer.flush()?;
        drop(writer);
        Ok(Running { stream })
    }

    /// Runs a command to its end.
    #[track_caller]
    pub fn run(&self, user: User, argv: &[&str]) -> Output {
        self.start(user, argv).wait()
    }

    /// Runs a line of shell to its end.
    #[track_caller]
    pub fn sh(&self, user: User, line: &str) -> Output {
        self.run(user, &["sh", "-c", line])
    }

    /// Runs a line of shell, which prints something when it is true, until it does.
    #[track_caller]
    pub fn wait_for(&self, user: User, line: &str, what: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(COMMAND_SECONDS_MAX);
        loop {
            let output = self.sh(user, line);
            if output.status == 0 {
                return output.stdout.trim_end().to_owned();
            }
            assert!(Instant::now() < deadline, "{what}: {output:?}");
            std::thread::sleep(POLL);
        }
    }
}

impl Running {
    /// Waits for the end, and gives what was written.
    #[track_caller]
    pub fn wait(self) -> Output {
        self.try_wait().unwrap()
    }

    fn try_wait(mut self) -> std::io::Result<Output> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            let mut header = [0_u8; 5];
            self.stream.read_exact(&mut header)?;
            let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
            let mut data = vec![0_u8; usize::try_from(length).unwrap()];
            self.stream.read_exact(&mut data)?;
            match header[0] {
                STDOUT => stdout.extend(data),
                STDERR => stderr.extend(data),
                EXIT => {
                    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
                    let status = text(data).parse().unwrap();
                    return Ok(Output { status, stdout: text(stdout), stderr: text(stderr) });
                }
                kind => panic!("a frame of kind {kind}"),
            }
        }
    }
}

/// The program inside.
pub const CORACLE: &str = "/payload/coracle";
/// The image inside, as it is named after [`Guest::prepare`].
pub const IMAGE: &str = "busybox";

impl Guest {
    /// Gives the user the image, once; the name it then has is [`IMAGE`].
    pub fn prepare(&self, user: User) {
        let line = format!(
            "exec 9>/tmp/image-$(id -u).lock && flock 9 && {{ {CORACLE} images -q {IMAGE} 2>/dev/null | grep -q . ||
                {{ id=$({CORACLE} load -q -i /var/lib/guest/busybox | sed 's/.*sha256://') && {CORACLE} tag $id {IMAGE}; }}; }}"
        );
        self.sh(user, &line).ok();
    }

    /// Boots the machine anew, as its administrator does. Its memory is gone, its disk is as it was.
    #[track_caller]
    pub fn reboot(&self) {
        let attempt = |line: &str| {
            let running = self.try_start(User::Root, &["sh", "-c", line], ANSWER_SECONDS_MAX)?;
            running.try_wait().map(|output| output.stdout)
        };
        let boot = "cat /proc/sys/kernel/random/boot_id";
        let before = self.sh(User::Root, boot).stdout;
        // The answer may not come.
        let _ = attempt("systemctl reboot");
        let deadline = Instant::now() + Duration::from_secs(BOOT_SECONDS_MAX);
        while !attempt(boot).is_ok_and(|now| now.len() == before.len() && now != before) {
            assert!(Instant::now() < deadline, "the machine does not boot again");
            std::thread::sleep(POLL);
        }
        // What the machine had when its state was saved (guest, build_in and start).
        let again = "modprobe -a overlay tun fuse; chmod 666 /dev/net/tun; mount -t ext4 -o ro /dev/vdb /payload";
        self.sh(User::Root, again).ok();
        self.wait_for(User::Root, "ss -Hltn sport = :7002 | grep -q .", "alice's agent is back");
    }

    /// Gives alice's user manager these controllers; tests of one kind follow each other (nextest.toml).
    pub fn delegate(&self, wanted: Delegated) {
        let have = if self.delegated().contains("cpuset") { Delegated::All } else { Delegated::Default };
        if have == wanted {
            return;
        }
        let dropin = Path::new("/etc/systemd/system/user@.service.d/delegate.conf");
        let dropin = dropin.display();
        let change = match wanted {
            Delegated::Default => format!("rm -f {dropin}"),
            Delegated::All => format!(
                "mkdir -p $(dirname {dropin}) && printf '[Service]\\nDelegate=cpu cpuset io memory pids\\n' >{dropin}"
            ),
        };
        self.sh(User::Root, &format!("{change} && systemctl daemon-reload && systemctl restart user@1001")).ok();
        self.wait_for(User::Root, "ss -Hltn sport = :7002 | grep -q .", "alice's agent is back");
    }

    /// The controllers that alice's user manager may use.
    pub fn delegated(&self) -> String {
        let file = "/sys/fs/cgroup/user.slice/user-1001.slice/user@1001.service/cgroup.controllers";
        self.run(User::Root, &["cat", file]).ok().to_owned()
    }
}
