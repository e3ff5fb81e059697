//! What is written down about a container: the record of what was asked, the state of its latest run
//! and how that ended. Plain data with versions; reading and writing is `container` and `containers`.
//!
//! Invariant: a run has a number. `exit.json` speaks of the run it names, so a state without an exit of
//! the same number is a run that has not ended, or whose watcher was killed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use coracle_runtime::cgroup::Cgroup;
use coracle_runtime::container::Identity;
use coracle_runtime::{IdMap, Rootfs};
use serde::{Deserialize, Serialize};

use super::isolation::Isolation;
use super::network::Plan;
use super::ports::PortMapping;
use super::quota::DiskLimit;

/// The form of the files in a container's directory; a higher number is refused, not guessed (F41).
pub const VERSION: u32 = 1;
/// docker stop's time between the stop signal and SIGKILL.
pub const STOP_TIMEOUT_S: u64 = 10;
/// What is written down of a run whose end nobody saw: docker's code for a killed process.
pub const UNKNOWN_EXIT_CODE: i32 = 137;

/// Is what is kept about a container as long as it exists.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    pub version: u32,
    pub id: String,
    pub name: Option<String>,
    /// As it was asked for.
    pub image: String,
    pub image_id: String,
    /// The whole command, entry point first.
    pub argv: Vec<String>,
    pub auto_remove: bool,
    pub stop_signal: Option<String>,
    #[serde(default = "default_stop_timeout_s")]
    pub stop_timeout_s: u64,
    /// The map under which the writable layer was written.
    pub idmap: IdMap,
    /// Nanoseconds since the epoch.
    pub created_ns: u64,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// `-t` and `-i` as the container was made with.
    #[serde(default)]
    pub tty: bool,
    #[serde(default)]
    pub open_stdin: bool,
    /// Standard input is closed when the first client that was attached has no more.
    #[serde(default)]
    pub stdin_once: bool,
    #[serde(default)]
    pub init: bool,
    /// What it shares with the host, and what is set in its namespaces.
    #[serde(default, skip_serializing_if = "Isolation::is_default")]
    pub isolation: Isolation,
    /// Ports that were exposed by word, as docker writes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exposed: Vec<String>,
    #[serde(default)]
    pub hostname: String,
    #[serde(default)]
    pub restart: RestartPolicy,
    #[serde(default)]
    pub health: Option<HealthCheck>,
    #[serde(default)]
    pub log: LogOptions,
    /// Limits that this host cannot enforce are reported, not refused.
    #[serde(default)]
    pub best_effort_limits: bool,
    #[serde(default)]
    pub mounts: Vec<MountRecord>,
    /// What the container may write at most.
    #[serde(default)]
    pub disk: Option<DiskLimit>,
    /// The root filesystem and the network that every start gets.
    pub rootfs: Rootfs,
    pub network: Plan,
}

fn default_stop_timeout_s() -> u64 {
    STOP_TIMEOUT_S
}

impl Record {
    /// Gives the published ports.
    pub fn ports(&self) -> &[PortMapping] {
        self.network.outside().map_or(&[], |pasta| &pasta.ports)
    }

    /// Gives the name, or the short id where there is none.
    pub fn called(&self) -> &str {
        self.name.as_deref().unwrap_or_else(|| super::container::short_id(&self.id))
    }
}

/// Is one mount of a container, for listings.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct MountRecord {
    /// bind, volume or tmpfs.
    pub kind: String,
    /// A named volume's name.
    #[serde(default)]
    pub name: Option<String>,
    pub source: Option<PathBuf>,
    pub destination: PathBuf,
    pub read_only: bool,
}

/// Says what happens after a container has ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    #[default]
    No,
    /// After a code other than 0, at most this often; None has no limit.
    OnFailure(Option<u32>),
    Always,
    UnlessStopped,
}

/// Says that a restart policy was not understood.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid restart policy {0:?}: expected no, on-failure[:N], always or unless-stopped")]
pub struct RestartPolicyError(String);

impl std::str::FromStr for RestartPolicy {
    type Err = RestartPolicyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.split_once(':') {
            None => match text {
                "no" | "" => Self::No,
                "on-failure" => Self::OnFailure(None),
                "always" => Self::Always,
                "unless-stopped" => Self::UnlessStopped,
                _ => return Err(RestartPolicyError(text.to_owned())),
            },
            Some(("on-failure", count)) => {
                let count: u32 = count.parse().map_err(|_| RestartPolicyError(text.to_owned()))?;
                // Docker's 0 means no limit.
                Self::OnFailure((count > 0).then_some(count))
            }
            Some(_) => return Err(RestartPolicyError(text.to_owned())),
        })
    }
}

impl std::fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::No => f.write_str("no"),
            Self::OnFailure(None) => f.write_str("on-failure"),
            Self::OnFailure(Some(count)) => write!(f, "on-failure:{count}"),
            Self::Always => f.write_str("always"),
            Self::UnlessStopped => f.write_str("unless-stopped"),
        }
    }
}

/// Is how a container is asked whether it is well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// What is run inside; a shell command has been put behind `/bin/sh -c`.
    pub argv: Vec<String>,
    pub interval: Duration,
    pub timeout: Duration,
    /// Failures before this has passed do not count.
    pub start_period: Duration,
    /// Between two checks until the first that succeeds, in that time.
    #[serde(default)]
    pub start_interval: Option<Duration>,
    pub retries: u32,
}

/// Says where the output goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogOptions {
    pub driver: LogDriver,
    /// A file that has grown past this is rotated; None lets it grow.
    pub max_size_bytes: Option<u64>,
    /// How many files there are, the current one included.
    pub max_files: u32,
}

/// Names a log driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogDriver {
    JsonFile,
    None,
}

/// A flood fills two of these and no more; docker has no limit, and hosts run full by it.
const LOG_SIZE_BYTES: u64 = 64 << 20;
const LOG_FILES: u32 = 2;

impl Default for LogOptions {
    fn default() -> Self {
        Self { driver: LogDriver::JsonFile, max_size_bytes: Some(LOG_SIZE_BYTES), max_files: LOG_FILES }
    }
}

/// Is where the latest run of a container stands; written by its watcher alone.
#[derive(Debug, Serialize, Deserialize)]
pub struct State {
    pub version: u32,
    /// Counts the starts, from 1.
    pub run: u64,
    pub phase: Phase,
    /// The container's first process, once there is one.
    pub init: Option<Identity>,
    /// The shim, or `coracle run` in the foreground.
    pub watcher: Identity,
    /// There is no shim: nothing can be attached to and nothing is logged.
    pub foreground: bool,
    /// Nanoseconds since the epoch.
    pub started_ns: u64,
    /// How often the restart policy has started it since the last command did.
    pub restarts: u32,
    /// Where its limits are, on a host that gives a cgroup.
    #[serde(default)]
    pub cgroup: Option<Cgroup>,
}

/// Says what the watcher is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    Starting,
    Running,
    /// Waits before it starts the container once more.
    Restarting,
}

/// Is how a run of a container ended.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct ExitRecord {
    pub version: u32,
    pub run: u64,
    /// As a shell reports it: 128 + n after signal n.
    pub exit_code: i32,
    /// Nanoseconds since the epoch.
    pub finished_ns: u64,
    #[serde(default)]
    pub oom_killed: bool,
    /// The watcher was killed, or the machine went down: the code is a guess.
    #[serde(default)]
    pub unknown: bool,
    /// Its shim will start it once more.
    #[serde(default)]
    pub restarting: bool,
    /// Its shim was told to end by SIGTERM, which `stop` does not do: mostly the machine goes down.
    #[serde(default)]
    pub terminated: bool,
    /// Why it could not be started, or what is known about an unknown end.
    #[serde(default)]
    pub error: Option<String>,
}

/// Is what the latest health checks said; written by the shim.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Health {
    /// starting, healthy or unhealthy.
    pub status: String,
    pub failing_streak: u32,
    /// The latest results, oldest first.
    pub log: Vec<HealthResult>,
}

/// Is one answer to a health check.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HealthResult {
    pub started_ns: u64,
    pub ended_ns: u64,
    /// -1 after the time limit.
    pub exit_code: i32,
    pub output: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restart_policies() {
        for text in ["no", "on-failure", "on-failure:3", "always", "unless-stopped"] {
            assert_eq!(text.parse::<RestartPolicy>().unwrap().to_string(), text);
        }
        assert_eq!("on-failure:0".parse(), Ok(RestartPolicy::OnFailure(None)));
        for bad in ["sometimes", "always:3", "on-failure:x", "on-failure:-1", "No"] {
            assert!(bad.parse::<RestartPolicy>().is_err(), "{bad}");
        }
    }
}
