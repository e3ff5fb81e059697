//! Rate limits: token buckets in a table of fixed size (S16).
//!
//! A key is hashed into the table with a secret, so that the memory is bounded whatever is thrown at it and nobody
//! can aim at somebody else's bucket. Two keys that fall together share a bucket.

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Mutex, PoisonError};

/// Buckets of one limiter.
const BUCKETS: usize = 16_384;

/// How fast a bucket fills, and how much it holds.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Requests a second.
    pub per_s: f64,
    /// Requests at once.
    pub burst: f64,
}

/// A table of buckets.
#[derive(Debug)]
pub struct Limiter {
    rate: Rate,
    hasher: RandomState,
    buckets: Mutex<Vec<(f64, u64)>>,
}

impl Limiter {
    /// Makes a table of full buckets.
    pub fn new(rate: Rate) -> Self {
        Self { rate, hasher: RandomState::new(), buckets: Mutex::new(vec![(rate.burst, 0); BUCKETS]) }
    }

    /// Takes one from the bucket of a key, or tells in how many seconds there will be one.
    pub fn take(&self, key: impl Hash, now_ms: u64) -> Result<(), u64> {
        let place = usize::try_from(self.hasher.hash_one(key) % BUCKETS as u64).unwrap_or(0);
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let (level, at) = &mut buckets[place];
        let elapsed = now_ms.saturating_sub(*at) as f64 / 1000.0;
        *level = (*level + elapsed * self.rate.per_s).min(self.rate.burst);
        *at = now_ms;
        if *level >= 1.0 {
            *level -= 1.0;
            return Ok(());
        }
        let wait = std::time::Duration::try_from_secs_f64((1.0 - *level) / self.rate.per_s);
        Err(wait.map_or(u64::MAX, |wait| wait.as_secs() + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s16_a_bucket_empties_and_fills_and_the_table_does_not_grow() {
        let limiter = Limiter::new(Rate { per_s: 2.0, burst: 3.0 });
        assert_eq!((0..5).filter(|_| limiter.take("a", 1_000).is_ok()).count(), 3);
        assert_eq!(limiter.take("a", 1_000), Err(1));
        assert_eq!(limiter.take("a", 1_500), Ok(()));
        for key in 0..1_000_000u64 {
            let _ = limiter.take(key, 2_000);
        }
        assert_eq!(limiter.buckets.lock().map(|buckets| buckets.len()).ok(), Some(BUCKETS));
    }
}
