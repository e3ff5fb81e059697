//! What an instance may ask for beside its image and its room: how its process is begun, and limits that are not
//! reserved.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How the process is begun; what is absent is the image's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ProcessOptions {
    /// Program that replaces the image's entry point.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<String>,
    /// User and group, by name or number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Working directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Host name inside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Signal that stops it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// Its root filesystem cannot be written.
    pub read_only: bool,
    /// An init reaps processes and passes signals on.
    pub init: bool,
    /// Places in memory, `PATH[:OPTIONS]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tmpfs: Vec<String>,
    /// Capabilities that it does not get.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cap_drop: Vec<String>,
    /// Bytes of /dev/shm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shm_bytes: Option<u64>,
    /// Command that tells whether it is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_command: Option<String>,
    /// Time between two such looks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_interval_ms: Option<u64>,
    /// The image's own health check is not run.
    pub no_health_check: bool,
}

impl ProcessOptions {
    /// Lists every text, for the bounds that hold for all of a spec.
    pub fn texts(&self) -> Vec<&String> {
        let plain =
            [&self.entrypoint, &self.user, &self.workdir, &self.hostname, &self.stop_signal, &self.health_command];
        plain.into_iter().flatten().chain(&self.tmpfs).chain(&self.cap_drop).collect()
    }
}

/// Limits that nobody reserves. Those of the resources hold hard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LimitOptions {
    /// Bytes of memory that are left to it when others run short.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 1152921504606846976u64)]
    pub memory_soft_bytes: Option<u64>,
    /// Processes and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 4194304)]
    pub pids: Option<u64>,
    /// Weight against others when processors are short, 2 to 262144.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 2, maximum = 262144)]
    pub cpu_weight: Option<u64>,
    /// Weight against others at block devices, 10 to 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 10, maximum = 1000)]
    pub io_weight: Option<u64>,
    /// Runs also where a limit cannot be enforced; else it is refused there by the limit's name.
    pub best_effort: bool,
}

impl LimitOptions {
    /// Names a number that makes no sense.
    pub fn wrong(&self) -> Option<&'static str> {
        let outside = |value: Option<u64>, range: std::ops::RangeInclusive<u64>| {
            value.is_some_and(|value| !range.contains(&value))
        };
        [
            ("memory_soft_bytes is above 2^60", outside(self.memory_soft_bytes, 1..=super::Resources::LIMIT)),
            ("pids is not between 1 and 4194304", outside(self.pids, 1..=PIDS_MAX)),
            ("cpu_weight is not between 2 and 262144", outside(self.cpu_weight, 2..=262_144)),
            ("io_weight is not between 10 and 1000", outside(self.io_weight, 10..=1_000)),
        ]
        .into_iter()
        .find_map(|(what, wrong)| wrong.then_some(what))
    }
}

/// The most that a kernel gives numbers to (proc_sys_kernel(5), pid_max).
const PIDS_MAX: u64 = 4_194_304;
