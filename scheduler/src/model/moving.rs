//! An instance between two providers.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{OldAllocation, ProviderId};

/// A move to another provider with everything that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Moving {
    /// Only this provider will do.
    pub to: Option<ProviderId>,
    /// It ran before and is to run afterwards.
    pub resume: bool,
    /// Its provider is being emptied: the move waits for room and is tried again.
    pub patient: bool,
    /// Tries that came to nothing because data could not be carried over.
    pub failures: u32,
    /// Where the data is until the new provider has all of it; none until the instance stands still. One of the
    /// given-up allocations, which is not told to end before that.
    pub source: Option<OldAllocation>,
}
