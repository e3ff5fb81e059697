//! This program's own commands as children of the agent, at most one per allocation at a time.

use std::collections::BTreeMap;
use std::io::{Read, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use coracle_scheduler::agent::EngineStream;
use coracle_scheduler::model::{InstanceSpec, StreamKind, StreamOrder};
use rustix::process::{Pid, Signal, kill_process};

use super::watch::Watch;
use super::words::{self, Given};
use super::{Key, container_name};
use crate::env;

/// The label that every container of a pool carries.
pub const LABEL: &str = "coracle.pool.instance";
/// So much of what a failed command says goes to the scheduler.
const SAID_BYTES_MAX: u64 = 2048;

/// Is what a child does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Run,
    Start,
    Stop,
    Remove,
}

/// Is how a child ended.
#[derive(Debug)]
pub struct Outcome {
    pub verb: Verb,
    pub success: bool,
    /// What it said on standard error; empty after success.
    pub said: String,
}

struct Running {
    verb: Verb,
    child: Child,
    stderr: std::fs::File,
    /// Wakes the agent at its end.
    _wakes: Option<OwnedFd>,
}

/// Is the children that have not ended.
pub struct Children {
    root: PathBuf,
    folder: PathBuf,
    running: BTreeMap<Key, Running>,
    failed: Vec<(Key, Outcome)>,
    /// What wakes the agent; None where the kernel has no watch left.
    pub watch: Option<Watch>,
}

impl Children {
    /// Begins without any.
    pub fn new(root: &Path, folder: &Path) -> Self {
        let watch = Watch::new(folder);
        let (root, folder) = (root.to_owned(), folder.to_owned());
        Self { root, folder, running: BTreeMap::new(), failed: Vec::new(), watch }
    }

    /// Tells whether nothing is being done.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.failed.is_empty()
    }

    /// Says what is being done about an allocation.
    pub fn verb(&self, key: Key) -> Option<Verb> {
        self.running.get(&key).map(|running| running.verb)
    }

    /// Pulls what is missing and starts the container.
    pub fn run(&mut self, key: Key, spec: &InstanceSpec, given: &Given) {
        self.spawn(key, Verb::Run, &words::of(key, spec, given));
    }

    /// Pulls what is missing and makes a container that is not started.
    pub fn make(&mut self, key: Key, spec: &InstanceSpec, given: &Given) {
        self.spawn(key, Verb::Run, &words::making(key, spec, given));
    }

    /// Starts the container again.
    pub fn start(&mut self, key: Key) {
        self.spawn(key, Verb::Start, &["start".into(), container_name(key)]);
    }

    /// Stops the container.
    pub fn stop(&mut self, key: Key, grace_s: u64) {
        self.spawn(key, Verb::Stop, &["stop".into(), "-t".into(), grace_s.to_string(), container_name(key)]);
    }

    /// Removes the container and its anonymous volumes.
    pub fn remove(&mut self, key: Key) {
        self.spawn(key, Verb::Remove, &["rm".into(), "-f".into(), "-v".into(), container_name(key)]);
    }

    /// Asks the child to end; a pull leaves what can be gone on with.
    pub fn give_up(&mut self, key: Key) {
        if let Some(running) = self.running.get(&key)
            && let Some(pid) = i32::try_from(running.child.id()).ok().and_then(Pid::from_raw)
        {
            // It is our child and not reaped yet, so the number is its own.
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    fn spawn(&mut self, key: Key, verb: Verb, arguments: &[String]) {
        match self.try_spawn(verb, arguments) {
            Ok((child, stderr)) => {
                let wakes = self.watch.as_ref().and_then(|watch| watch.child(child.id()));
                self.running.insert(key, Running { verb, child, stderr, _wakes: wakes });
            }
            Err(error) => self.failed.push((key, Outcome { verb, success: false, said: error.to_string() })),
        }
    }

    fn try_spawn(&self, verb: Verb, arguments: &[String]) -> std::io::Result<(Child, std::fs::File)> {
        let stderr = std::fs::File::from(rustix::fs::memfd_create("stderr", rustix::fs::MemfdFlags::CLOEXEC)?);
        let mut command = self.command(arguments);
        if verb == Verb::Run {
            command.env(env::CORACLE_POOL_MIRROR, &self.folder);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr.try_clone()?);
        Ok((command.spawn()?, stderr))
    }

    fn command(&self, arguments: &[String]) -> Command {
        // By this path the very program that runs, also after its file was replaced by a newer one.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("coracle").arg("--root").arg(&self.root).args(arguments);
        // A signal that a terminal sends to the agent is not for it.
        command.process_group(0);
        command
    }

    /// Starts what speaks to an allocation by a socket.
    pub fn stream(&self, key: Key, order: &StreamOrder, folder: &Path) -> std::io::Result<EngineStream> {
        let mut words = vec!["logs".to_owned()];
        match &order.kind {
            StreamKind::Logs { follow, tail } => {
                words.extend(follow.then(|| "--follow".to_owned()));
                words.extend(tail.map(|lines| format!("--tail={lines}")));
                words.push(container_name(key));
            }
            StreamKind::Data => return super::moved::give(&self.root, &container_name(key)),
            StreamKind::Ssh | StreamKind::Exec { .. } => return super::ssh::start(&self.root, folder, order),
        }
        let (socket, far) = UnixStream::pair()?;
        let mut command = self.command(&words);
        command.stdin(Stdio::from(OwnedFd::from(far.try_clone()?)));
        command.stderr(Stdio::from(OwnedFd::from(far.try_clone()?))).stdout(Stdio::from(OwnedFd::from(far)));
        Ok(EngineStream { socket, child: command.spawn()? })
    }

    /// Gives the children that have ended since the last call.
    pub fn reap(&mut self) -> Vec<(Key, Outcome)> {
        let mut ended = std::mem::take(&mut self.failed);
        self.running.retain(|key, running| {
            let Ok(Some(status)) = running.child.try_wait() else { return true };
            let said = if status.success() { String::new() } else { said(&mut running.stderr) };
            ended.push((*key, Outcome { verb: running.verb, success: status.success(), said }));
            false
        });
        ended
    }
}

/// Gives the error among what a command said, in one line.
fn said(file: &mut std::fs::File) -> String {
    let mut text = Vec::new();
    let _ = file.rewind().and_then(|()| file.take(SAID_BYTES_MAX).read_to_end(&mut text));
    let text = String::from_utf8_lossy(&text);
    let error = text.lines().find_map(|line| line.strip_prefix("error: "));
    error.or_else(|| text.lines().last()).unwrap_or("ended without a word").to_owned()
}
