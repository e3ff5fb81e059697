//! The state's own generator: SHA-256 in counter mode over a secret seed.
//!
//! Deterministic for a seed (simulation, replay), unguessable without it (S10).

use sha2::{Digest, Sha256};

/// A generator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Random {
    seed: [u8; 32],
    count: u64,
}

impl Random {
    pub(super) fn new(seed: [u8; 32]) -> Self {
        Self { seed, count: 0 }
    }

    fn next(&mut self) -> u128 {
        self.count += 1;
        let digest = Sha256::new().chain_update(self.seed).chain_update(self.count.to_le_bytes()).finalize();
        let mut half = [0u8; 16];
        half.copy_from_slice(&digest[..16]);
        u128::from_le_bytes(half)
    }

    /// Makes an id: 48 bits of time, 80 bits nobody can guess.
    pub(super) fn id(&mut self, now_ms: u64) -> u128 {
        u128::from(now_ms & 0xffff_ffff_ffff) << 80 | self.next() >> 48
    }

    /// Makes a number.
    pub(super) fn number(&mut self) -> u64 {
        (self.next() >> 64) as u64
    }
}
