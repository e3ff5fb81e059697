//! This program's own commands as children of the agent, at most one per allocation at a time.

use std::collections::BTreeMap;
use std::io::{Read, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use coracle_scheduler::agent::EngineStream;
use coracle_scheduler::model::{InstanceSpec, StreamKind};
use rustix::process::{Pid, Signal, kill_process};

use super::{Key, Shares, container_name};

/// The label that every container of a pool carries.
pub const LABEL: &str = "coracle.pool.instance";
/// So much of what a failed command says goes to the scheduler.
const SAID_BYTES_MAX: u64 = 2048;

/// Is what a child does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Run,
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
}

/// Is the children that have not ended.
pub struct Children {
    root: PathBuf,
    running: BTreeMap<Key, Running>,
    failed: Vec<(Key, Outcome)>,
}

impl Children {
    /// Begins without any.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), running: BTreeMap::new(), failed: Vec::new() }
    }

    /// Says what is being done about an allocation.
    pub fn verb(&self, key: Key) -> Option<Verb> {
        self.running.get(&key).map(|running| running.verb)
    }

    /// Pulls what is missing and starts the container.
    pub fn run(&mut self, key: Key, spec: &InstanceSpec, shares: &Shares) {
        self.spawn(key, Verb::Run, &run_arguments(key, spec, shares));
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
        match self.try_spawn(arguments) {
            Ok((child, stderr)) => {
                self.running.insert(key, Running { verb, child, stderr });
            }
            Err(error) => self.failed.push((key, Outcome { verb, success: false, said: error.to_string() })),
        }
    }

    fn try_spawn(&self, arguments: &[String]) -> std::io::Result<(Child, std::fs::File)> {
        let stderr = std::fs::File::from(rustix::fs::memfd_create("stderr", rustix::fs::MemfdFlags::CLOEXEC)?);
        let mut command = self.command(arguments);
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
    pub fn stream(&self, key: Key, kind: &StreamKind) -> std::io::Result<EngineStream> {
        let mut words = vec!["logs".to_owned()];
        match kind {
            StreamKind::Logs { follow, tail } => {
                words.extend(follow.then(|| "--follow".to_owned()));
                words.extend(tail.map(|lines| format!("--tail={lines}")));
                words.push(container_name(key));
            }
            StreamKind::Ssh => return Err(std::io::Error::other("this agent has no SSH server")),
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

/// Says an instance in words of `coracle run`.
fn run_arguments(key: Key, spec: &InstanceSpec, shares: &Shares) -> Vec<String> {
    let mut words: Vec<String> = vec!["run".into(), "-d".into(), "--name".into(), container_name(key)];
    let mut add = |flag: &str, value: String| words.extend([format!("{flag}={value}")]);
    add("--label", format!("{LABEL}={}", key.0));
    for (name, value) in &spec.labels {
        add("--label", format!("{name}={value}"));
    }
    for entry in &spec.env {
        add("--env", entry.clone());
    }
    let asked = &spec.resources;
    if asked.cpu_millis > 0 {
        add("--cpus", format!("{}.{:03}", asked.cpu_millis / 1000, asked.cpu_millis % 1000));
    }
    if asked.memory_bytes > 0 {
        add("--memory", asked.memory_bytes.to_string());
    }
    for port in &spec.ports {
        add("--publish", format!("{}:{}", port.host, port.container));
    }
    for mount in &spec.volumes {
        add("--volume", format!("pool-{}:{}", mount.volume, mount.path));
    }
    if shares.best_effort {
        add("--limits", "best-effort".into());
    }
    if let Some(network) = &shares.network {
        add("--network", network.clone());
    }
    words.push("--".into());
    words.push(spec.image.clone());
    words.extend(spec.command.iter().cloned());
    words
}

#[cfg(test)]
mod tests {
    use coracle_scheduler::model::{InstanceId, Port, Resources};

    use super::*;

    #[test]
    fn an_instance_is_one_command_line() {
        let spec = InstanceSpec {
            image: "busybox:1".into(),
            command: vec!["sh".into(), "-c".into(), "--rm".into()],
            env: vec!["A=b c".into()],
            resources: Resources { cpu_millis: 1500, memory_bytes: 64 << 20, ..Resources::default() },
            ports: vec![Port { host: 8080, container: 80 }],
            ..InstanceSpec::default()
        };
        let words = run_arguments((InstanceId::new(1), 3), &spec, &Shares::default());
        let name = "pool-00000000000000000000000001-3";
        let expected = [
            "run",
            "-d",
            "--name",
            name,
            "--label=coracle.pool.instance=00000000000000000000000001",
            "--env=A=b c",
            "--cpus=1.500",
            "--memory=67108864",
            "--publish=8080:80",
            "--",
            "busybox:1",
            "sh",
            "-c",
            "--rm",
        ];
        assert_eq!(words, expected);
    }
}
