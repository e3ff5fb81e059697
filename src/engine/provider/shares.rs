//! What the owner lends, and to what. It is read anew for every decision, so the owner's word counts at once and
//! without the scheduler.

use std::path::Path;

use coracle_scheduler::model::{InstanceSpec, Resources};
use serde::{Deserialize, Serialize};

use super::policy::Policy;
use crate::engine::container::{self, ContainerError};

const FILE: &str = "shares.json";
const PAUSED: &str = "paused";
const DRAINED: &str = "drain";
/// So much of the free disk is offered when the owner does not say.
const DISK_PERCENT: u64 = 50;
/// Bytes a second that are offered when the owner does not say: what a usual cable carries.
const BANDWIDTH_BPS: u64 = 125_000_000;

/// Says why what is lent is not known.
#[derive(Debug, thiserror::Error)]
pub enum SharesError {
    #[error("cannot read what this provider lends")]
    File(#[from] std::io::Error),
    #[error("cannot understand what this provider lends")]
    Broken(#[from] serde_json::Error),
    #[error("cannot write down what this provider lends")]
    Write(#[from] ContainerError),
}

/// Is what the owner lends; absent means all there is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Shares {
    pub cpu_millis: Option<u64>,
    pub memory_bytes: Option<u64>,
    pub disk_bytes: Option<u64>,
    /// Bytes a second.
    pub bandwidth_bps: Option<u64>,
    /// Limits that this host cannot enforce do not keep an instance from starting.
    pub best_effort: bool,
    /// The network that instances get.
    pub network: Option<String>,
    /// Beginnings of image references that may run here; empty means all.
    pub images: Vec<String>,
    /// Images come from their registries, never through the scheduler's mirror.
    pub direct: bool,
    /// Names of the groups that may run something here; empty means all.
    pub groups: Vec<String>,
    /// When new work is welcome.
    pub policy: Policy,
}

impl Shares {
    /// Reads what the owner said; nothing said is all lent.
    pub fn read(folder: &Path) -> Result<Self, SharesError> {
        match fs_err::read(folder.join(FILE)) {
            Ok(text) => Ok(serde_json::from_slice(&text)?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes it down.
    pub fn write(&self, folder: &Path) -> Result<(), SharesError> {
        Ok(container::publish_json(folder, FILE, self, true)?)
    }

    /// Gives what is lent, never more than there is.
    pub fn offer(&self, root: &Path) -> Resources {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let whole = Resources {
            cpu_millis: u64::try_from(cpus).unwrap_or(1) * 1000,
            memory_bytes: super::facts::memory_bytes("MemTotal"),
            disk_bytes: super::facts::disk_free_bytes(root) / 100 * DISK_PERCENT,
            ..Resources::default()
        };
        let wanted = |asked: Option<u64>, there: u64| asked.unwrap_or(there).min(there);
        Resources {
            cpu_millis: wanted(self.cpu_millis, whole.cpu_millis),
            memory_bytes: wanted(self.memory_bytes, whole.memory_bytes),
            disk_bytes: wanted(self.disk_bytes, whole.disk_bytes),
            bandwidth_bps: self.bandwidth_bps.unwrap_or(BANDWIDTH_BPS),
            ..whole
        }
    }

    /// Says why an instance may not run here, if so.
    pub fn allow(&self, spec: &InstanceSpec, group: &str) -> Result<(), String> {
        if !self.groups.is_empty() && !self.groups.iter().any(|allowed| allowed == group) {
            return Err(format!("the owner of this provider does not allow the group {group}"));
        }
        if self.images.is_empty() || self.images.iter().any(|start| spec.image.starts_with(start)) {
            return Ok(());
        }
        Err(format!("the owner of this provider does not allow the image {}", spec.image))
    }
}

/// Tells whether the owner lets nothing new in.
pub fn is_paused(folder: &Path) -> bool {
    folder.join(PAUSED).exists()
}

/// Empties the machine by a time, in milliseconds since 1970; None lets work in again.
pub fn drain(folder: &Path, until_ms: Option<u64>) -> std::io::Result<()> {
    match until_ms {
        Some(until) => fs_err::write(folder.join(DRAINED), until.to_string()),
        None => match fs_err::remove_file(folder.join(DRAINED)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
    }
}

/// Gives the time that what is here has left when the machine is emptied; a file that cannot be read leaves none.
pub fn drain_ms(folder: &Path) -> Option<u64> {
    let text = fs_err::read_to_string(folder.join(DRAINED)).ok()?;
    Some(text.trim().parse().unwrap_or(0u64).saturating_sub(now_ms()))
}

/// Gives the time.
pub fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Lets nothing new in, or lets it in again.
pub fn pause(folder: &Path, paused: bool) -> std::io::Result<()> {
    if paused {
        return fs_err::write(folder.join(PAUSED), "");
    }
    match fs_err::remove_file(folder.join(PAUSED)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
