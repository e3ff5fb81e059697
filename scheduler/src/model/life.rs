//! The states of an instance.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Where an instance is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    /// Waits for a provider.
    Pending,
    /// Has a provider, which has not said anything about it yet.
    Placed,
    /// The provider prepares it.
    Pulling,
    /// Runs.
    Running,
    /// Its provider is silent; it most likely still runs.
    Unknown,
    /// Its provider was silent for too long; it waits for it to return.
    Lost,
    /// Told to stop.
    Stopping,
    /// Stopped on request with its data kept where it ran; it can be started again, so its room stays reserved.
    Halted,
    /// Ended well or on request.
    Stopped,
    /// Ended badly and will not be tried again.
    Failed,
}

impl InstanceState {
    /// Tells whether nothing will happen to it any more.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Stopped | Self::Failed)
    }
}
