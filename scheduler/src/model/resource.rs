//! Amounts: what a provider offers, what an instance reserves, what it used.
//!
//! Integers only, so that sums are exact and a rebuilt index equals the kept one.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Amounts of everything that is reserved. A missing field is zero: nothing asked, nothing offered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Resources {
    /// Thousandths of a core.
    #[schema(maximum = 1152921504606846976u64)]
    pub cpu_millis: u64,
    /// Bytes of memory.
    #[schema(maximum = 1152921504606846976u64)]
    pub memory_bytes: u64,
    /// Bytes of disk: writable layer and local volumes.
    #[schema(maximum = 1152921504606846976u64)]
    pub disk_bytes: u64,
    /// Bytes a second, the larger of both directions.
    #[schema(maximum = 1152921504606846976u64)]
    pub bandwidth_bps: u64,
    /// Whole GPUs.
    #[schema(maximum = 1152921504606846976u64)]
    pub gpus: u64,
}

impl Resources {
    /// Any single amount above 2^60 is refused: sums of 16 of them still fit, and no machine has so much.
    pub const LIMIT: u64 = 1 << 60;

    /// Lists the dimensions by name.
    pub fn dimensions(&self) -> [(&'static str, u64); 5] {
        [
            ("cpu", self.cpu_millis),
            ("memory", self.memory_bytes),
            ("disk", self.disk_bytes),
            ("bandwidth", self.bandwidth_bps),
            ("gpus", self.gpus),
        ]
    }

    fn zip(&self, other: &Self, with: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            cpu_millis: with(self.cpu_millis, other.cpu_millis),
            memory_bytes: with(self.memory_bytes, other.memory_bytes),
            disk_bytes: with(self.disk_bytes, other.disk_bytes),
            bandwidth_bps: with(self.bandwidth_bps, other.bandwidth_bps),
            gpus: with(self.gpus, other.gpus),
        }
    }

    /// Adds each dimension.
    pub fn plus(&self, other: &Self) -> Self {
        self.zip(other, u64::saturating_add)
    }

    /// Subtracts each dimension, not below zero.
    pub fn minus(&self, other: &Self) -> Self {
        self.zip(other, u64::saturating_sub)
    }

    /// Takes the smaller of each dimension.
    pub fn min_with(&self, other: &Self) -> Self {
        self.zip(other, u64::min)
    }

    /// Tells whether every dimension is at most that of `room`.
    pub fn fits(&self, room: &Self) -> bool {
        self.shortage(room).is_none()
    }

    /// Names the first dimension that does not fit into `room`, and by how much.
    pub fn shortage(&self, room: &Self) -> Option<(&'static str, u64)> {
        let pairs = self.dimensions().into_iter().zip(room.dimensions());
        pairs.into_iter().find(|(want, have)| want.1 > have.1).map(|(want, have)| (want.0, want.1 - have.1))
    }

    /// Returns the largest used part of `total` over the dimensions that exist, in thousandths.
    pub fn dominant_permille(&self, total: &Self) -> u32 {
        let parts = self.dimensions().into_iter().zip(total.dimensions()).filter(|(_, total)| total.1 > 0);
        let most = parts.map(|(used, total)| u128::from(used.1) * 1000 / u128::from(total.1)).max().unwrap_or(0);
        u32::try_from(most).unwrap_or(u32::MAX)
    }

    /// Tells whether every dimension is below [`Self::LIMIT`].
    pub fn is_sane(&self) -> bool {
        self.dimensions().iter().all(|(_, amount)| *amount <= Self::LIMIT)
    }
}

/// What an allocation has used so far; every number only grows while the allocation lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Usage {
    /// CPU time in milliseconds, as reported by the provider and never more than it reserved.
    pub cpu_ms: u64,
    /// Reserved memory times time, in MiB-seconds, reckoned by the scheduler.
    pub memory_mib_s: u64,
    /// Reserved disk times time, in MiB-seconds, reckoned by the scheduler.
    pub disk_mib_s: u64,
    /// Bytes over the network in both directions, as reported.
    pub network_bytes: u64,
}

impl Usage {
    /// Adds two records.
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            cpu_ms: self.cpu_ms.saturating_add(other.cpu_ms),
            memory_mib_s: self.memory_mib_s.saturating_add(other.memory_mib_s),
            disk_mib_s: self.disk_mib_s.saturating_add(other.disk_mib_s),
            network_bytes: self.network_bytes.saturating_add(other.network_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortage_names_the_dimension_and_the_amount() {
        let want = Resources { cpu_millis: 500, memory_bytes: 300, ..Default::default() };
        let room = Resources { cpu_millis: 500, memory_bytes: 100, ..Default::default() };
        assert_eq!(want.shortage(&room), Some(("memory", 200)));
        assert!(room.fits(&want));
        assert_eq!(room.dominant_permille(&want), 1000);
        assert_eq!(Resources::default().dominant_permille(&Resources::default()), 0);
    }
}
