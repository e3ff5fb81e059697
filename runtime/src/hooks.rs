//! Hooks: programs that the author of a bundle wants run at six moments of a container's life.
//!
//! A hook gets the container's state on its standard input. It may fork, hang or talk without end:
//! it has a time limit, it is over when its own process is over, and of what it says only the first
//! line is kept, for the error. What follows a failure is the caller's to do (runtime-spec 1.3,
//! "Lifecycle"): all but poststop stop the container.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fmt;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use oci_spec::runtime::{Hook, Hooks, Spec};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde_json::{Value, json};

use crate::failure::{LaunchFailure, Stage};

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Deprecated, the same as the next and before it.
    Prestart,
    /// The namespaces and mounts are made, the root is not yet changed; in the caller's namespaces.
    CreateRuntime,
    /// As before, but in the container's namespaces; the program is still looked for on the host.
    CreateContainer,
    /// Everything is ready and the container is started; inside.
    StartContainer,
    /// The container's program runs; in the caller's namespaces.
    Poststart,
    /// The container is deleted; in the caller's namespaces.
    Poststop,
}

const MOMENTS: [Moment; 6] = [
    Moment::Prestart,
    Moment::CreateRuntime,
    Moment::CreateContainer,
    Moment::StartContainer,
    Moment::Poststart,
    Moment::Poststop,
];

/// A hook that names no limit gets this one: longer than any set-up of a network takes.
const TIMEOUT_DEFAULT_S: u64 = 600;
/// The longest limit: a year, so that a deadline never overflows.
const TIMEOUT_MAX_S: u64 = 365 * 24 * 3600;
/// Bytes kept of what a hook says.
const WORDS_MAX: usize = 1024;
/// Bytes read at once of what a hook says.
const CHUNK_BYTES: usize = 8192;

/// What a hook is told about its container, except the moment and the process.
#[derive(Debug, Clone)]
pub struct Subject {
    version: String,
    id: String,
    bundle: String,
    annotations: Value,
}

impl Subject {
    /// Describes a container.
    pub fn new(id: &str, spec: &Spec, bundle: &Path) -> Self {
        let annotations = spec.annotations().clone().unwrap_or_default().into_iter().collect();
        Self::of(spec.version(), id, bundle, &annotations)
    }

    /// The same from what was written down about it.
    pub fn of(version: &str, id: &str, bundle: &Path, annotations: &BTreeMap<String, String>) -> Self {
        Self {
            version: version.to_owned(),
            id: id.to_owned(),
            bundle: bundle.display().to_string(),
            annotations: if annotations.is_empty() { Value::Null } else { json!(annotations) },
        }
    }

    /// The state of the runtime specification as JSON.
    pub(crate) fn state(&self, status: &str, pid: i32) -> Value {
        let mut state = json!({
            "ociVersion": self.version,
            "id": self.id,
            "status": status,
            "pid": pid,
            "bundle": self.bundle,
        });
        if !self.annotations.is_null() {
            state["annotations"] = self.annotations.clone();
        }
        state
    }
}

impl Moment {
    /// The hooks of this moment.
    pub fn of(self, hooks: Option<&Hooks>) -> &[Hook] {
        let Some(hooks) = hooks else { return &[] };
        let list = match self {
            Self::Prestart => hooks.prestart(),
            Self::CreateRuntime => hooks.create_runtime(),
            Self::CreateContainer => hooks.create_container(),
            Self::StartContainer => hooks.start_container(),
            Self::Poststart => hooks.poststart(),
            Self::Poststop => hooks.poststop(),
        };
        list.as_deref().unwrap_or_default()
    }

    /// The container's status while these hooks run.
    fn status(self) -> &'static str {
        match self {
            Self::Prestart | Self::CreateRuntime | Self::CreateContainer => "creating",
            Self::StartContainer => "created",
            Self::Poststart => "running",
            Self::Poststop => "stopped",
        }
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        })
    }
}

/// Refuses hooks that could never run (C12).
pub(crate) fn check(hooks: Option<&Hooks>) -> Result<(), LaunchFailure> {
    for moment in MOMENTS {
        for hook in moment.of(hooks) {
            let refuse = |statement: &str| {
                Err(LaunchFailure::rule(Stage::Plan, format!("{moment} hook {}", hook.path().display()), statement))
            };
            if !hook.path().is_absolute() {
                return refuse("its path is not absolute");
            }
            if hook.timeout().is_some_and(|seconds| seconds <= 0) {
                return refuse("its timeout is not greater than zero");
            }
            let texts = hook.args().iter().flatten().chain(hook.env().iter().flatten());
            if texts.chain([&hook.path().display().to_string()]).any(|text| text.contains('\0')) {
                return refuse("it contains a NUL byte");
            }
        }
    }
    Ok(())
}

/// Runs the hooks of one moment in their order; the first failure ends it.
///
/// Hooks without an environment of their own get the caller's.
pub fn run(hooks: Option<&Hooks>, moment: Moment, subject: &Subject, pid: i32) -> Result<(), LaunchFailure> {
    run_with(moment.of(hooks), moment, subject, pid, None)
}

/// The same for a list, with an environment for hooks that have none.
pub(crate) fn run_with(
    hooks: &[Hook],
    moment: Moment,
    subject: &Subject,
    pid: i32,
    env: Option<&[CString]>,
) -> Result<(), LaunchFailure> {
    if hooks.is_empty() {
        return Ok(());
    }
    let state = subject.state(moment.status(), pid).to_string();
    hooks.iter().try_for_each(|hook| {
        let failed = |problem: Problem| problem.explain(moment, hook);
        let mut running = start(hook, env).map_err(failed)?;
        attend(&mut running, hook, state.as_bytes()).map_err(failed)
    })
}

/// How a hook failed.
enum Problem {
    System(&'static str, std::io::Error),
    Timeout(Duration),
    Ended { how: String, words: String },
}

impl Problem {
    fn explain(self, moment: Moment, hook: &Hook) -> LaunchFailure {
        let target = format!("{moment} hook {}", hook.path().display());
        match self {
            Self::System(op, error) => {
                LaunchFailure::new(Stage::Hooks, op, target, Errno::from_io_error(&error).unwrap_or(Errno::IO))
            }
            Self::Timeout(limit) => {
                LaunchFailure::rule(Stage::Hooks, target, &format!("did not end within {} s", limit.as_secs()))
            }
            Self::Ended { how, words } if words.is_empty() => LaunchFailure::rule(Stage::Hooks, target, &how),
            Self::Ended { how, words } => LaunchFailure::rule(Stage::Hooks, target, &format!("{how}: {words}")),
        }
    }
}

/// A hook on its way.
struct Attended {
    child: Child,
    pidfd: OwnedFd,
    /// What it says on both streams.
    words: std::io::PipeReader,
}

fn start(hook: &Hook, env: Option<&[CString]>) -> Result<Attended, Problem> {
    let system = |op: &'static str| move |error: std::io::Error| Problem::System(op, error);
    let (words, said) = std::io::pipe().map_err(system("make pipe for"))?;
    let again = said.try_clone().map_err(system("make pipe for"))?;
    let mut command = Command::new(hook.path());
    if let Some((name, rest)) = hook.args().as_deref().and_then(<[String]>::split_first) {
        command.arg0(name).args(rest);
    }
    let pair = |text: &[u8]| {
        let split = text.iter().position(|byte| *byte == b'=').filter(|split| *split > 0)?;
        Some((OsStr::from_bytes(&text[..split]).to_owned(), OsStr::from_bytes(&text[split + 1..]).to_owned()))
    };
    match (hook.env(), env) {
        (Some(own), _) => drop(command.env_clear().envs(own.iter().filter_map(|text| pair(text.as_bytes())))),
        (None, Some(env)) => drop(command.env_clear().envs(env.iter().filter_map(|text| pair(text.to_bytes())))),
        (None, None) => {}
    }
    // A group of its own, so that what it leaves behind ends with it when its time is over.
    command.stdin(Stdio::piped()).stdout(said).stderr(again).process_group(0);
    let mut child = command.spawn().map_err(system("execute"))?;
    // The command keeps our copies of the pipe's other end.
    drop(command);
    let opened = Pid::from_raw(i32::try_from(child.id()).unwrap_or(0))
        .ok_or(Errno::SRCH)
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
    match opened {
        Ok(pidfd) => Ok(Attended { child, pidfd, words }),
        Err(errno) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(Problem::System("watch", errno.into()))
        }
    }
}

/// Feeds a hook, hears it, and waits for its own end, but no longer than its limit.
fn attend(running: &mut Attended, hook: &Hook, state: &[u8]) -> Result<(), Problem> {
    let limit = hook.timeout().and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(TIMEOUT_DEFAULT_S);
    let limit = Duration::from_secs(limit.min(TIMEOUT_MAX_S));
    let mut words = Vec::new();
    let result = converse(running, state, limit, &mut words);
    if result.is_err() {
        end(&mut running.child);
    }
    result?;
    let status = running.child.wait().map_err(|error| Problem::System("wait for", error))?;
    hear(&mut running.words, &mut words);
    if status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&words).into_owned();
    let words = text.lines().next().unwrap_or_default().trim().to_owned();
    Err(Problem::Ended { how: format!("failed with {status}"), words })
}

/// Kills a hook with all that it started, and reaps it.
fn end(child: &mut Child) {
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    // It may be gone already; waiting is what counts.
    let _ = group.map(|group| kill_process_group(group, Signal::KILL));
    let _ = child.wait();
}

fn converse(running: &mut Attended, state: &[u8], limit: Duration, words: &mut Vec<u8>) -> Result<(), Problem> {
    let system = |errno: Errno| Problem::System("talk to", errno.into());
    let deadline = Instant::now() + limit;
    let mut stdin = running.child.stdin.take();
    if let Some(stdin) = &stdin {
        ioctl_fionbio(stdin, true).map_err(system)?;
    }
    ioctl_fionbio(&running.words, true).map_err(system)?;
    let mut rest = state;
    let mut silent = false;
    loop {
        if rest.is_empty() {
            stdin = None;
        }
        let mut polled = vec![PollFd::new(&running.pidfd, PollFlags::IN)];
        if !silent {
            polled.push(PollFd::new(&running.words, PollFlags::IN));
        }
        if let Some(stdin) = &stdin {
            polled.push(PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::OUT));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        match poll(&mut polled, Some(&Timespec::try_from(left).unwrap_or_default())) {
            Ok(0) => return Err(Problem::Timeout(limit)),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(system(errno)),
        }
        if !polled[0].revents().is_empty() {
            return Ok(());
        }
        silent = !hear(&mut running.words, words);
        match stdin.as_mut().map(|stdin| stdin.write(rest)) {
            None => {}
            Some(Ok(written)) => rest = &rest[written..],
            Some(Err(error)) if matches!(error.kind(), std::io::ErrorKind::WouldBlock) => {}
            Some(Err(error)) if matches!(error.kind(), std::io::ErrorKind::Interrupted) => {}
            // It does not want to know.
            Some(Err(_)) => rest = &[],
        }
    }
}

/// Takes what there is to hear and keeps its beginning; false when nobody speaks any more.
fn hear(from: &mut impl Read, words: &mut Vec<u8>) -> bool {
    let mut chunk = [0_u8; CHUNK_BYTES];
    match from.read(&mut chunk) {
        Ok(0) => false,
        Ok(length) => {
            let room = WORDS_MAX.saturating_sub(words.len());
            words.extend_from_slice(&chunk[..length.min(room)]);
            true
        }
        Err(error) => matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(value: Value) -> Hooks {
        serde_json::from_value(json!({ "poststop": [value] })).expect("hooks")
    }

    fn subject() -> Subject {
        let mut spec = Spec::default();
        spec.set_annotations(Some([("a".to_owned(), "b".to_owned())].into()));
        Subject::new("one", &spec, Path::new("/bundle"))
    }

    fn sh(script: &str, more: Value) -> Result<(), LaunchFailure> {
        let mut value = json!({ "path": "/bin/sh", "args": ["sh", "-c", script] });
        value.as_object_mut().expect("object").extend(more.as_object().expect("object").clone());
        run(Some(&hook(value)), Moment::Poststop, &subject(), 7)
    }

    #[test]
    fn c12_impossible_hooks_are_refused() {
        for bad in [
            json!({ "path": "bin/true" }),
            json!({ "path": "/bin/true", "timeout": 0 }),
            json!({ "path": "/bin/true", "timeout": -1 }),
            json!({ "path": "/bin/true", "args": ["a\0b"] }),
            json!({ "path": "/bin/true", "env": ["A=\0"] }),
        ] {
            assert!(check(Some(&hook(bad.clone()))).is_err(), "{bad}");
        }
        assert!(check(Some(&hook(json!({ "path": "/bin/true", "timeout": 1 })))).is_ok());
    }

    #[test]
    fn state_and_environment() {
        let test = r#"read -r state; test "$state" = '{"annotations":{"a":"b"},"bundle":"/bundle","id":"one","ociVersion":"1.2.0","pid":7,"status":"stopped"}' || { echo "got $state"; exit 3; }"#;
        let version = subject().version;
        sh(&test.replace("1.2.0", &version), json!({})).expect("the state");
        sh("test \"$A\" = 1 && test -z \"$HOME\"", json!({ "env": ["A=1"] })).expect("its own environment");
        sh("test -n \"$PATH\"", json!({})).expect("the caller's environment");
    }

    #[test]
    fn c12_failures_say_why() {
        let failure = sh("echo no such bridge >&2; exit 3", json!({})).expect_err("fails");
        assert_eq!(failure.stage, Stage::Hooks);
        assert!(failure.to_string().contains("poststop hook /bin/sh: failed with exit status: 3: no such bridge"));
        let missing = run(Some(&hook(json!({ "path": "/nonexistent" }))), Moment::Poststop, &subject(), 7);
        assert_eq!(missing.expect_err("fails").errno, libc::ENOENT);
    }

    #[test]
    fn c12_a_hook_that_hangs_is_ended_with_its_children() {
        let started = Instant::now();
        let failure = sh("sleep 1000 & wait", json!({ "timeout": 1 })).expect_err("too long");
        assert!(failure.to_string().contains("did not end within 1 s"), "{failure}");
        assert!(started.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn c12_a_hook_may_talk_without_end_and_leave_a_daemon() {
        sh("head -c 8000000 /dev/zero; exit 0", json!({})).expect("heard");
        sh("sleep 3 & exit 0", json!({})).expect("over when its own process is");
        let big = "x".repeat(200_000);
        let mut spec = Spec::default();
        spec.set_annotations(Some([("a".to_owned(), big)].into()));
        let subject = Subject::new("one", &spec, Path::new("/"));
        let deaf = hook(json!({ "path": "/bin/true" }));
        run(Some(&deaf), Moment::Poststop, &subject, 7).expect("it need not read");
    }
}
