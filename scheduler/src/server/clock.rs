//! The scheduler's time: the wall clock at the start, then the monotonic one.
//!
//! A wall clock that jumps while the scheduler runs moves no lease (F17); the core keeps time from going back over a
//! restart.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// A clock that never goes back.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    wall_ms: u64,
    start: Instant,
}

impl Clock {
    /// Reads the wall clock once.
    pub fn start() -> Self {
        Self { wall_ms: wall_ms(), start: Instant::now() }
    }

    /// Returns milliseconds since 1970, as far as this process knows.
    pub fn now_ms(&self) -> u64 {
        self.wall_ms + u64::try_from(self.start.elapsed().as_millis()).unwrap_or(0)
    }
}

/// Reads the wall clock: milliseconds since 1970.
pub fn wall_ms() -> u64 {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(wall.as_millis()).unwrap_or(0)
}
