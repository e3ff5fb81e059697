//! What a person can ask of one container, as plain data: the command line (and later the APIs)
//! fill it, the engine reads it.

use std::path::PathBuf;
use std::time::Duration;

use coracle_images::Platform;
use coracle_runtime::UserNs;

use super::isolation::Isolation;
use super::limits::LimitOptions;
use super::mounts::MountRequest;
use super::networks::{Attachment, Rate};
use super::ports::PortMapping;
use super::quota::DiskAsk;
use super::record::{LogOptions, RestartPolicy};
use super::size::Ulimit;

/// Is everything `coracle run` can be told, with Docker's meanings.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    pub image: String,
    /// Replaces the image's CMD when not empty.
    pub command: Vec<String>,
    pub name: Option<String>,
    pub hostname: Option<String>,
    pub auto_remove: bool,
    pub terminal: Terminal,
    pub env: Vec<EnvEntry>,
    pub mounts: Vec<MountRequest>,
    pub volumes_from: Vec<VolumesFrom>,
    pub workdir: Option<String>,
    pub user: Option<String>,
    pub group_add: Vec<String>,
    /// `Some("")` clears the image's ENTRYPOINT.
    pub entrypoint: Option<String>,
    pub read_only: bool,
    pub init: bool,
    pub network: Network,
    /// How much of the network it may use.
    pub net_rate: Option<Rate>,
    pub publish: Vec<PortMapping>,
    pub publish_all: bool,
    /// What `-P` publishes beside what the image exposes.
    pub expose: Vec<PortMapping>,
    pub dns: Vec<String>,
    pub dns_search: Vec<String>,
    pub dns_options: Vec<String>,
    /// `NAME:IP` pairs for /etc/hosts.
    pub add_hosts: Vec<(String, String)>,
    pub cap_add: Vec<String>,
    pub cap_drop: Vec<String>,
    pub security: SecurityOptions,
    pub userns: UserNsChoice,
    pub ulimits: Vec<Ulimit>,
    pub shm_size_bytes: Option<u64>,
    pub stop_signal: Option<String>,
    /// Seconds between the stop signal and SIGKILL.
    pub stop_timeout_s: Option<u64>,
    /// `-d`: the container gets a shim of its own and the command returns.
    pub detach: bool,
    /// `-a`: the streams of the caller that are attached; None is all.
    pub attach: Option<Attached>,
    /// Something was asked for that only a shim does, such as a log.
    pub wants_shim: bool,
    /// Where the container's id is written.
    pub cid_file: Option<PathBuf>,
    pub labels: Vec<(String, String)>,
    pub restart: RestartPolicy,
    pub log: LogOptions,
    pub health: HealthOptions,
    pub pull: PullPolicy,
    pub platform: Option<Platform>,
    pub limits: LimitOptions,
    pub isolation: Isolation,
    /// What may be written at most.
    pub disk: DiskAsk,
    /// -1000 to 1000: how readily the kernel kills it when the whole machine runs out of memory.
    pub oom_score_adj: Option<i32>,
}

impl RunOptions {
    /// Leaves the container to its shim.
    pub fn set_detached(&mut self, detach: bool) {
        self.detach = detach;
    }
}

/// Is what a person says about health checks; what is not said is the image's, then docker's default.
#[derive(Debug, Clone, Default)]
pub struct HealthOptions {
    /// `--no-healthcheck`.
    pub disabled: bool,
    /// A command for the container's shell.
    pub command: Option<String>,
    pub interval: Option<Duration>,
    pub timeout: Option<Duration>,
    pub start_period: Option<Duration>,
    pub start_interval: Option<Duration>,
    pub retries: Option<u32>,
}

/// Is the streams that `-a` names; standard input follows `-i`, as in docker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attached {
    pub stdout: bool,
    pub stderr: bool,
}

/// Is one `--volumes-from CONTAINER[:ro]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumesFrom {
    pub container: String,
    pub read_only: bool,
}

impl std::str::FromStr for VolumesFrom {
    type Err = VolumesFromError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (container, mode) = text.split_once(':').unwrap_or((text, "rw"));
        match mode {
            "rw" | "ro" if !container.is_empty() => {
                Ok(Self { container: container.to_owned(), read_only: mode == "ro" })
            }
            _ => Err(VolumesFromError(text.to_owned())),
        }
    }
}

/// Says that a `--volumes-from` was not understood.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid volumes {0:?}: expected CONTAINER[:ro]")]
pub struct VolumesFromError(String);

/// Says which streams of the caller the container gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Terminal {
    /// `-i`: the caller's standard input, else /dev/null.
    pub interactive: bool,
    /// `-t`: a pseudo terminal of its own.
    pub tty: bool,
}

/// Is one `-e`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvEntry {
    Set {
        name: String,
        value: String,
    },
    /// `-e NAME` where the caller has no NAME: removes what the image sets.
    Unset {
        name: String,
    },
}

/// Names the network a container gets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Network {
    /// pasta where it is installed, the host's network where not, said aloud.
    #[default]
    Auto,
    None,
    Host,
    Pasta,
    /// The network of another container.
    Container(String),
    /// User-defined ones.
    Named(Vec<Attachment>),
}

/// When the registry is asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PullPolicy {
    Always,
    #[default]
    Missing,
    Never,
}

/// Is what `--security-opt` can change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecurityOptions {
    pub no_new_privileges: bool,
    pub seccomp: SeccompChoice,
}

impl Default for SecurityOptions {
    fn default() -> Self {
        Self { no_new_privileges: true, seccomp: SeccompChoice::Default }
    }
}

/// Names the seccomp profile.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum SeccompChoice {
    #[default]
    Default,
    Unconfined,
    File(PathBuf),
}

/// Wraps the runtime's choice so that it has a default.
#[derive(Debug, Clone, Copy)]
pub struct UserNsChoice(pub UserNs);

impl Default for UserNsChoice {
    fn default() -> Self {
        Self(UserNs::Auto)
    }
}

/// Says why a `--security-opt` was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid security option {option:?}: {reason}")]
pub struct SecurityOptionError {
    option: String,
    reason: &'static str,
}

impl SecurityOptions {
    /// Applies one `--security-opt`; what cannot be applied is an error, never ignored.
    pub fn apply(&mut self, option: &str) -> Result<(), SecurityOptionError> {
        let fail = |reason| SecurityOptionError { option: option.to_owned(), reason };
        let (key, value) = match option.split_once(['=', ':']) {
            Some((key, value)) => (key, Some(value)),
            None => (option, None),
        };
        match (key, value) {
            ("no-new-privileges", None | Some("true")) => self.no_new_privileges = true,
            ("no-new-privileges", Some("false")) => self.no_new_privileges = false,
            ("seccomp", Some("unconfined")) => self.seccomp = SeccompChoice::Unconfined,
            ("seccomp", Some(path)) if !path.is_empty() => self.seccomp = SeccompChoice::File(path.into()),
            // There is no SELinux labelling to switch off, so the wish is already met.
            ("label", Some("disable")) => {}
            ("apparmor" | "label", _) => return Err(fail("an ordinary user cannot apply it")),
            _ => return Err(fail("not implemented")),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn security_options() {
        let mut options = SecurityOptions::default();
        assert!(options.no_new_privileges, "on unless relaxed");
        options.apply("no-new-privileges:false").unwrap();
        assert!(!options.no_new_privileges);
        options.apply("seccomp=unconfined").unwrap();
        assert_eq!(options.seccomp, SeccompChoice::Unconfined);
        for bad in ["apparmor=x", "label=type:x", "seccomp", "seccomp=", "wat", "no-new-privileges=maybe"] {
            assert!(options.apply(bad).is_err(), "{bad}");
        }
    }
}
