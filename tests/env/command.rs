//! One command in the environment of a test: started, fed, waited for with a time limit, judged.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{TestEnv, fixtures, poll};

/// A command that runs longer hangs; a disk that others keep busy alone costs tens of seconds.
const TIME_LIMIT: Duration = Duration::from_secs(120);

/// A command that is being prepared.
pub struct Run {
    command: Command,
    stdin: Option<Vec<u8>>,
    time_limit: Duration,
    place: PathBuf,
    registry: Option<String>,
    line: String,
}

impl Run {
    /// Starts from an empty environment with the test's directories.
    pub fn new(env: &TestEnv, program: &Path) -> Self {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", fixtures::SEARCH_PATH)
            .env("HOME", env.home())
            .env("XDG_RUNTIME_DIR", env.path("run"))
            .env("TMPDIR", env.path("tmp"))
            .env("CORACLE_ROOT", env.root())
            .env("LC_ALL", "C.UTF-8")
            .current_dir(env.path("home"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Self {
            command,
            stdin: None,
            time_limit: TIME_LIMIT,
            place: env.path(""),
            registry: env.anonymous.get().map(|registry| registry.address().to_owned()),
            line: program.display().to_string(),
        }
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, args: &[A]) -> Self {
        for arg in args {
            self.line.push(' ');
            self.line.push_str(&arg.as_ref().to_string_lossy());
            self.command.arg(arg);
        }
        self
    }

    /// Sets a variable.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Unsets a variable.
    pub fn env_remove(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Gives bytes to read.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self.command.stdin(Stdio::piped());
        self
    }

    /// Works somewhere else than in the home directory.
    pub fn directory(mut self, path: &Path) -> Self {
        self.command.current_dir(path);
        self
    }

    /// Connects standard input to something else.
    pub fn stdin_from(mut self, from: impl Into<Stdio>) -> Self {
        self.command.stdin(from);
        self
    }

    /// Connects standard output to something else.
    pub fn stdout_to(mut self, to: impl Into<Stdio>) -> Self {
        self.command.stdout(to);
        self
    }

    /// Connects standard error to something else.
    pub fn stderr_to(mut self, to: impl Into<Stdio>) -> Self {
        self.command.stderr(to);
        self
    }

    /// Allows another time than the usual one.
    pub fn time_limit(mut self, seconds: u64) -> Self {
        self.time_limit = Duration::from_secs(seconds);
        self
    }

    /// Starts the command and leaves it running.
    pub fn spawn(mut self) -> Running {
        let mut child = self.command.spawn().unwrap_or_else(|error| panic!("{}: {error}", self.line));
        if let (Some(bytes), Some(mut pipe)) = (self.stdin.take(), child.stdin.take()) {
            // A command that ends without reading everything is no failure of the test.
            std::thread::spawn(move || drop(pipe.write_all(&bytes)));
        }
        let stdout = collect(child.stdout.take());
        let stderr = collect(child.stderr.take());
        Running { child, stdout, stderr, run: self, ended: false }
    }

    /// Runs the command to its end.
    pub fn outcome(self) -> Outcome {
        self.spawn().wait()
    }

    /// Runs the command, which must succeed, and gives its standard output without the last newline.
    #[track_caller]
    pub fn ok(self) -> String {
        self.outcome().ok()
    }
}

type Collected = std::sync::Arc<(std::sync::Mutex<Vec<u8>>, std::sync::atomic::AtomicBool)>;

/// Reads a pipe on a thread, so that a test can look at what came so far.
fn collect(pipe: Option<impl Read + Send + 'static>) -> Collected {
    let collected: Collected = Collected::default();
    let Some(mut pipe) = pipe else {
        collected.1.store(true, std::sync::atomic::Ordering::SeqCst);
        return collected;
    };
    let target = collected.clone();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(count @ 1..) = pipe.read(&mut buffer) {
            target.0.lock().unwrap().extend_from_slice(&buffer[..count]);
        }
        target.1.store(true, std::sync::atomic::Ordering::SeqCst);
    });
    collected
}

/// A command that runs.
pub struct Running {
    child: Child,
    stdout: Collected,
    stderr: Collected,
    run: Run,
    ended: bool,
}

impl Running {
    /// Gives the process id.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// Gives what came on standard output so far.
    pub fn stdout_so_far(&self) -> String {
        String::from_utf8_lossy(&self.stdout.0.lock().unwrap()).into_owned()
    }

    /// Says whether the command has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for a text on standard output.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        let seen = poll(super::DEADLINE, || self.stdout_so_far().contains(text) || self.has_ended());
        let so_far = self.stdout_so_far();
        assert!(seen && so_far.contains(text), "{}: no {text:?} in {so_far:?}; {}", self.run.line, self.errors());
    }

    fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr.0.lock().unwrap()).into_owned()
    }

    /// Waits for the end, and for the end of both outputs; kills and panics after the time limit.
    #[track_caller]
    pub fn wait(mut self) -> Outcome {
        let end = Instant::now() + self.run.time_limit;
        let over = std::sync::atomic::Ordering::SeqCst;
        let in_time = poll(self.run.time_limit, || self.child.try_wait().unwrap().is_some());
        let left = end.saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
        let closed = in_time && poll(left, || self.stdout.1.load(over) && self.stderr.1.load(over));
        if !closed {
            let _ = self.child.kill();
        }
        let status = self.child.wait().unwrap();
        self.ended = true;
        let outcome = Outcome {
            code: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            signal: status.signal(),
            stdout: std::mem::take(&mut self.stdout.0.lock().unwrap()),
            stderr: self.errors(),
            line: self.run.line.clone(),
            place: self.run.place.clone(),
            registry: self.run.registry.clone(),
        };
        assert!(in_time, "no end after {:?}\n{outcome}", self.run.time_limit);
        assert!(closed, "somebody keeps the output open\n{outcome}");
        outcome
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// How a command ended.
pub struct Outcome {
    /// Exit code, or 128 + the signal that ended it.
    pub code: i32,
    /// The signal that ended the command itself.
    pub signal: Option<i32>,
    /// Everything on standard output.
    pub stdout: Vec<u8>,
    /// Everything on standard error.
    pub stderr: String,
    line: String,
    place: PathBuf,
    registry: Option<String>,
}

impl Outcome {
    /// Gives standard output without its last newline.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end_matches(['\n', '\r']).to_owned()
    }

    /// Demands success and gives standard output without the last newline.
    #[track_caller]
    pub fn ok(&self) -> String {
        self.code(0);
        self.text()
    }

    /// Demands an exit code.
    #[track_caller]
    pub fn code(&self, code: i32) -> &Self {
        assert!(self.code == code && self.signal.is_none(), "expected exit code {code}\n{self}");
        self
    }

    /// Gives standard error with what differs from run to run replaced by names.
    pub fn golden(&self) -> String {
        let mut text = self.stderr.replace(&self.place.join("").display().to_string(), "[DIR]/");
        if let Some(registry) = &self.registry {
            text = text.replace(registry, "[REGISTRY]");
        }
        without_ids(text.trim_end())
    }

    /// Demands exactly this on standard error, nothing on standard output, and the exit code.
    #[track_caller]
    pub fn error(&self, code: i32, golden: &str) {
        self.refused(code);
        assert_eq!(self.golden(), golden, "{self}");
    }

    /// Like [`Self::error`], with another registry's address replaced by its name.
    #[track_caller]
    pub fn error_at(&self, address: &str, code: i32, golden: &str) {
        self.refused(code);
        assert_eq!(self.golden().replace(address, "[ADDRESS]"), golden, "{self}");
    }

    /// Demands a clear error (O3): one `error:` line, at most hints after it, no panic, no output.
    #[track_caller]
    pub fn refused(&self, code: i32) -> &Self {
        self.code(code);
        assert!(self.stdout.is_empty(), "output beside an error\n{self}");
        self.is_clear()
    }

    /// Demands that standard error is one `error:` line and hints.
    #[track_caller]
    pub fn is_clear(&self) -> &Self {
        let lines: Vec<&str> = self.stderr.lines().collect();
        let first = lines.first().is_some_and(|line| line.starts_with("error: ") && line.len() > 12);
        let rest = lines.iter().skip(1).all(|line| line.starts_with("hint: "));
        assert!(first && rest && !self.stderr.contains("panicked"), "not one clear error line\n{self}");
        self
    }

    /// Demands a text in standard error.
    #[track_caller]
    pub fn says(&self, text: &str) -> &Self {
        assert!(self.stderr.contains(text), "standard error lacks {text:?}\n{self}");
        self
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let stdout = String::from_utf8_lossy(&self.stdout);
        let shown: String = stdout.chars().take(4000).collect();
        write!(f, "command: {}\ncode: {}\nstdout: {shown}\nstderr: {}", self.line, self.code, self.stderr)
    }
}

/// Replaces container ids by their name.
fn without_ids(text: &str) -> String {
    let is_id = |word: &str| word.len() == 12 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let words = text.split_inclusive([' ', ':', '\n']).map(|piece| {
        let word = piece.trim_end_matches([' ', ':', '\n']);
        if is_id(word) { piece.replace(word, "[ID]") } else { piece.to_owned() }
    });
    words.collect()
}

/// Builds an argument list of mixed string types.
pub fn args<const N: usize>(list: [&dyn AsRef<OsStr>; N]) -> Vec<OsString> {
    list.iter().map(|arg| arg.as_ref().to_owned()).collect()
}
