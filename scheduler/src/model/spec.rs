//! What a client asks for: instances, services, jobs; and the bounds on all of it.
//!
//! `normalise` moves Swarm's `constraint:` and `affinity:` entries from the environment into their fields; `validate`
//! is the only gate through which a spec enters the state (A86: one spec must not starve the scheduler).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{LimitOptions, Name, ProcessOptions, Resources, SecretMount, VolumeId};
use crate::expr::Expr;

/// Bounds on specs. Each is far above what people use and far below what hurts.
pub mod limits {
    /// Longest image reference: Docker's 255 for the name, 128 for the tag, 71 for a digest, and slack.
    pub const IMAGE_BYTES: usize = 512;
    /// Entries of command, environment, labels, expressions, ports or volumes.
    pub const ENTRIES: usize = 256;
    /// Expressions are evaluated for each candidate, so they have a tighter bound.
    pub const EXPRESSIONS: usize = 32;
    /// Bytes of one entry.
    pub const ENTRY_BYTES: usize = 8 * 1024;
    /// Bytes of one expression.
    pub const EXPRESSION_BYTES: usize = 1024;
    /// Bytes of all texts of one spec together: a pool of 100,000 must fit in memory.
    pub const SPEC_BYTES: usize = 128 * 1024;
    /// Largest priority.
    pub const PRIORITY: u8 = 100;
    /// Longest life of an instance: nobody comes back for it after a quarter of a year.
    pub const TTL_MS: u64 = 90 * 24 * 3_600_000;
    /// Life when none is asked.
    pub const DEFAULT_TTL_MS: u64 = 7 * 24 * 3_600_000;
    /// Shortest life that is not a mistake.
    pub const TTL_MIN_MS: u64 = 1_000;
    /// Replicas of one service, members of one array.
    pub const COUNT: u32 = 10_000;
    /// Members of a gang are placed in one step.
    pub const GANG: u32 = 256;
    /// Jobs that one job may wait for.
    pub const DEPENDENCIES: usize = 32;
    /// Restarts of one instance, retries of one job member.
    pub const RESTARTS: u32 = 1_000;
}

/// Says which part of a spec is refused, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct SpecError {
    /// The field.
    pub field: &'static str,
    /// The reason.
    pub reason: String,
}

fn refuse<T>(field: &'static str, reason: impl Into<String>) -> Result<T, SpecError> {
    Err(SpecError { field, reason: reason.into() })
}

/// How to choose among providers that match.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// The least loaded.
    #[default]
    Spread,
    /// The most loaded that still has room.
    Binpack,
    /// Any.
    Random,
    /// The one with the fewest recent troubles.
    Reliable,
    /// The one with the lowest price.
    Cheapest,
}

/// How an instance takes part in the competition for capacity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Counts against the quota; moved only by a higher priority that may preempt.
    #[default]
    Normal,
    /// Uses capacity nobody else wants just now; gives way to anyone in seconds; not charged to the quota.
    Backfill,
}

/// How well known a provider is. The order is the order of trust.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// Just joined.
    #[default]
    New,
    /// Has a history.
    Rated,
    /// Looked at by the pool's administrator.
    Audited,
    /// Belongs to the pool's own organisation.
    Org,
}

/// What happens to an instance whose provider is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "policy", deny_unknown_fields)]
pub enum OnLoss {
    /// Start a new one elsewhere; the old one is stopped if its provider returns.
    #[default]
    Replace,
    /// Wait for the provider.
    Keep,
    /// The agent itself stops it after this long without the scheduler; only then is it replaced, so two never run.
    StopAfter {
        /// Time without contact.
        #[schema(minimum = 1000)]
        after_ms: u64,
    },
}

/// Whether an instance that ended is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "policy", deny_unknown_fields)]
pub enum Restart {
    /// Never.
    #[default]
    Never,
    /// After an exit code other than 0, so many times.
    OnFailure {
        /// Most restarts.
        max: u32,
    },
    /// After any exit.
    Always,
}

/// A port of the provider that the instance wants for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// On the provider; 0 is not allowed.
    #[schema(minimum = 1)]
    pub host: u16,
    /// In the container.
    #[schema(minimum = 1)]
    pub container: u16,
}

/// A local volume at a place in the container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeMount {
    /// Which volume.
    pub volume: VolumeId,
    /// Absolute path in the container.
    pub path: String,
}

/// One instance as asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct InstanceSpec {
    /// Docker image reference.
    pub image: String,
    /// Command and arguments; empty means the image's own.
    pub command: Vec<String>,
    /// `NAME=value` entries; `constraint:` and `affinity:` entries are taken out as Swarm did.
    pub env: Vec<String>,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// What is reserved.
    pub resources: Resources,
    /// How its process is begun.
    pub process: ProcessOptions,
    /// Limits beside what is reserved.
    pub limits: LimitOptions,
    /// Ports of the provider.
    pub ports: Vec<Port>,
    /// Expressions over the provider's facts.
    pub constraints: Vec<String>,
    /// Expressions over what else is on the provider.
    pub affinities: Vec<String>,
    /// How to choose.
    pub strategy: Strategy,
    /// 0 to 100, larger goes first; absent means 50.
    #[schema(maximum = 100)]
    pub priority: Option<u8>,
    /// Normal or backfill.
    pub class: Class,
    /// May stop instances whose priority is at least 10 lower.
    pub preempts: bool,
    /// The least trusted provider that may run it.
    pub min_tier: Tier,
    /// What happens when the provider is lost.
    pub on_loss: OnLoss,
    /// When an unreachable provider counts as lost for this instance; absent means the pool's default.
    pub lost_after_ms: Option<u64>,
    /// Whether it is started again.
    pub restart: Restart,
    /// How long it may live; absent means seven days.
    pub ttl_ms: Option<u64>,
    /// Time between the polite and the final signal.
    pub stop_grace_ms: Option<u64>,
    /// Local volumes. An instance with volumes is not moved by itself.
    pub volumes: Vec<VolumeMount>,
    /// Secrets of the group. `min_tier` says which machines may see them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretMount>,
}

impl InstanceSpec {
    /// The priority with its default.
    pub fn priority(&self) -> u8 {
        self.priority.unwrap_or(50)
    }

    /// Moves expressions from the environment into their fields, as Swarm's API did.
    pub fn normalise(&mut self) {
        let (mut kept, env) = (Vec::new(), std::mem::take(&mut self.env));
        for entry in env {
            if let Some(text) = entry.strip_prefix("constraint:") {
                self.constraints.push(text.to_owned());
            } else if let Some(text) = entry.strip_prefix("affinity:") {
                self.affinities.push(text.to_owned());
            } else {
                kept.push(entry);
            }
        }
        self.env = kept;
    }

    /// Checks every bound and every expression.
    pub fn validate(&self) -> Result<(), SpecError> {
        self.validate_texts()?;
        if !self.resources.is_sane() {
            return refuse("resources", "an amount above 2^60");
        }
        if self.priority() > limits::PRIORITY {
            return refuse("priority", "above 100");
        }
        if self.ttl_ms.is_some_and(|ttl| !(limits::TTL_MIN_MS..=limits::TTL_MS).contains(&ttl)) {
            return refuse("ttl_ms", "not between a second and 90 days");
        }
        for (field, value) in [("lost_after_ms", self.lost_after_ms), ("stop_grace_ms", self.stop_grace_ms)] {
            if value.is_some_and(|value| value > limits::TTL_MS) {
                return refuse(field, "above 90 days");
            }
        }
        if let OnLoss::StopAfter { after_ms } = self.on_loss
            && !(limits::TTL_MIN_MS..=limits::TTL_MS).contains(&after_ms)
        {
            return refuse("on_loss", "after_ms is not between a second and 90 days");
        }
        if let Restart::OnFailure { max } = self.restart
            && max > limits::RESTARTS
        {
            return refuse("restart", "more than 1000 restarts");
        }
        if let Some(wrong) = self.limits.wrong() {
            return refuse("limits", wrong);
        }
        self.validate_places()
    }

    fn validate_places(&self) -> Result<(), SpecError> {
        let mut hosts: Vec<u16> = self.ports.iter().map(|port| port.host).collect();
        hosts.sort_unstable();
        if hosts.first() == Some(&0) || self.ports.iter().any(|port| port.container == 0) {
            return refuse("ports", "port 0");
        }
        if hosts.windows(2).any(|pair| pair[0] == pair[1]) {
            return refuse("ports", "one host port twice");
        }
        for mount in &self.volumes {
            let plain = mount.path.split('/').all(|part| part != ".." && part != ".");
            if !mount.path.starts_with('/') || !plain || mount.path.contains('\0') {
                return refuse("volumes", format!("{:?} is not a plain absolute path", mount.path));
            }
        }
        for mount in &self.secrets {
            let plain = |name: &String| {
                let first = name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
                first && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            };
            let path =
                |path: &String| path.starts_with('/') && !path.split('/').any(|part| part == ".." || part == ".");
            let good = match (&mount.env, &mount.file) {
                (Some(name), None) => plain(name),
                (None, Some(file)) => path(file) && file.len() > 1,
                _ => false,
            };
            if !good {
                return refuse("secrets", "each wants either env, a variable's name, or file, a plain absolute path");
            }
        }
        for (field, list) in [("constraints", &self.constraints), ("affinities", &self.affinities)] {
            if list.len() > limits::EXPRESSIONS {
                return refuse(field, format!("more than {} expressions", limits::EXPRESSIONS));
            }
            for text in list {
                Expr::parse(text).map_err(|error| SpecError { field, reason: error.to_string() })?;
            }
        }
        Ok(())
    }

    fn validate_texts(&self) -> Result<(), SpecError> {
        let image_ok = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:@[]+".contains(&byte);
        if self.image.is_empty() || self.image.len() > limits::IMAGE_BYTES || !self.image.bytes().all(image_ok) {
            return refuse("image", "not an image reference");
        }
        let secrets = self.secrets.iter().flat_map(|mount| mount.env.iter().chain(&mount.file));
        let lists: [(&'static str, Vec<&String>); 6] = [
            ("command", self.command.iter().collect()),
            ("env", self.env.iter().collect()),
            ("labels", self.labels.iter().flat_map(|(key, value)| [key, value]).collect()),
            ("volumes", self.volumes.iter().map(|mount| &mount.path).collect()),
            ("secrets", secrets.collect()),
            ("process", self.process.texts()),
        ];
        let mut total = 0;
        for (field, list) in lists {
            if list.len() > 2 * limits::ENTRIES || (field != "labels" && list.len() > limits::ENTRIES) {
                return refuse(field, format!("more than {} entries", limits::ENTRIES));
            }
            for text in list {
                total += text.len();
                if text.len() > limits::ENTRY_BYTES || text.contains('\0') {
                    return refuse(field, "an entry is too long or holds a NUL");
                }
            }
        }
        if self.ports.len() > limits::ENTRIES {
            return refuse("ports", format!("more than {} entries", limits::ENTRIES));
        }
        if let Some(entry) = self.env.iter().find(|entry| entry.split_once('=').is_none_or(|(name, _)| name.is_empty()))
        {
            return refuse("env", format!("{:?} is not NAME=value", entry.chars().take(40).collect::<String>()));
        }
        if total > limits::SPEC_BYTES { refuse("spec", "more than 128 KiB of text") } else { Ok(()) }
    }
}

/// A number of equal instances that is kept up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceSpec {
    /// Unique among the group's services.
    pub name: Name,
    /// What each replica is.
    pub template: InstanceSpec,
    /// How many; ignored for a global service.
    #[serde(default)]
    #[schema(maximum = 10000)]
    pub replicas: u32,
    /// One on every provider that matches.
    #[serde(default)]
    pub global: bool,
    /// How many are replaced at once by an update; absent means one.
    #[serde(default)]
    pub max_parallel: Option<u32>,
    /// How long a new replica must be healthy before the next is replaced.
    #[serde(default)]
    pub healthy_ms: u64,
}

impl ServiceSpec {
    /// Checks every bound.
    pub fn validate(&self) -> Result<(), SpecError> {
        if self.replicas > limits::COUNT {
            return refuse("replicas", format!("more than {}", limits::COUNT));
        }
        if self.max_parallel == Some(0) {
            return refuse("max_parallel", "zero would never update");
        }
        if self.healthy_ms > limits::TTL_MS {
            return refuse("healthy_ms", "above 90 days");
        }
        self.template.validate()
    }
}

/// Work that ends: an array of equal members.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// Unique among the group's unfinished jobs.
    pub name: Name,
    /// What each member is; `CORACLE_INDEX` is added to its environment.
    pub template: InstanceSpec,
    /// Members of the array; absent means one.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 10000)]
    pub count: Option<u32>,
    /// How many members may be unfinished at once; absent means 256.
    #[serde(default)]
    #[schema(minimum = 1)]
    pub parallel: Option<u32>,
    /// How often a failed member is tried again.
    #[serde(default)]
    #[schema(maximum = 1000)]
    pub retries: u32,
    /// How long one try may run.
    #[serde(default)]
    pub time_limit_ms: Option<u64>,
    /// Jobs that must have succeeded before.
    #[serde(default)]
    pub depends_on: Vec<super::JobId>,
    /// All members are placed together or not at all.
    #[serde(default)]
    pub gang: bool,
}

impl JobSpec {
    /// Unfinished members when nothing is asked: enough for any pool of this size, few enough for one commit.
    pub const DEFAULT_PARALLEL: u32 = 256;

    /// Members of the array.
    pub fn count(&self) -> u32 {
        self.count.unwrap_or(1)
    }

    /// Checks every bound.
    pub fn validate(&self) -> Result<(), SpecError> {
        let most = if self.gang { limits::GANG } else { limits::COUNT };
        if !(1..=most).contains(&self.count()) {
            return refuse("count", format!("not between 1 and {most}"));
        }
        if self.parallel == Some(0) || self.parallel.is_some_and(|parallel| parallel > limits::COUNT) {
            return refuse("parallel", format!("not between 1 and {}", limits::COUNT));
        }
        if self.retries > limits::RESTARTS {
            return refuse("retries", "more than 1000");
        }
        if self.time_limit_ms.is_some_and(|limit| !(limits::TTL_MIN_MS..=limits::TTL_MS).contains(&limit)) {
            return refuse("time_limit_ms", "not between a second and 90 days");
        }
        if self.depends_on.len() > limits::DEPENDENCIES {
            return refuse("depends_on", format!("more than {} jobs", limits::DEPENDENCIES));
        }
        self.template.validate()
    }
}
