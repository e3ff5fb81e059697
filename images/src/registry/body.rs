//! One response body: bounded in size, in silence and in slowness.

use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::Response;

use super::RegistryError;
use super::transport::{Answer, Timeouts, host_of};

/// Reads a body piece by piece under the timeouts of a transport.
pub(super) struct Body {
    response: Response,
    host: String,
    timeouts: Timeouts,
    pace: Pace,
    got_bytes: u64,
}

/// Watches that a body is not sent more slowly than anybody honest would.
///
/// Only time spent waiting for the network counts: a slow disk on our side is not the server's fault.
struct Pace {
    waited: Duration,
    got_bytes: u64,
}

impl Body {
    pub fn new(answer: Answer, timeouts: Timeouts) -> Body {
        let host = host_of(answer.response.url());
        let pace = Pace { waited: Duration::ZERO, got_bytes: 0 };
        Body { response: answer.response, host, timeouts, pace, got_bytes: 0 }
    }

    /// Gives the next piece, or `None` at the end.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let start = Instant::now();
        let chunk = tokio::time::timeout(self.timeouts.idle, self.response.chunk()).await;
        let chunk = match chunk {
            Ok(Ok(chunk)) => chunk,
            Ok(Err(error)) => return Err(RegistryError::from_exchange(&self.host, error)),
            Err(_) => return Err(self.stalled()),
        };
        let Some(chunk) = chunk else { return Ok(None) };
        self.got_bytes += chunk.len() as u64;
        if !self.pace.keeps(start.elapsed(), chunk.len() as u64, &self.timeouts) {
            return Err(self.stalled());
        }
        Ok(Some(chunk))
    }

    /// Reads the whole body, which must not be longer than `max_bytes`.
    pub async fn read_all(mut self, what: &str, max_bytes: u64) -> Result<Vec<u8>, RegistryError> {
        let too_large = || RegistryError::TooLarge { host: self.host.clone(), what: what.to_owned(), max_bytes };
        if self.response.content_length().is_some_and(|length| length > max_bytes) {
            return Err(too_large());
        }
        let mut all = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            if self.got_bytes > max_bytes {
                return Err(RegistryError::TooLarge { host: self.host, what: what.to_owned(), max_bytes });
            }
            all.extend_from_slice(&chunk);
        }
        Ok(all)
    }

    /// Reads at most `max_bytes` of a body that explains an error; what is wrong with it is no news.
    pub async fn read_some(mut self, max_bytes: usize) -> Vec<u8> {
        let mut some = Vec::new();
        while let Ok(Some(chunk)) = self.chunk().await {
            some.extend_from_slice(&chunk[..chunk.len().min(max_bytes - some.len())]);
            if some.len() >= max_bytes {
                break;
            }
        }
        some
    }

    fn stalled(&self) -> RegistryError {
        RegistryError::Stalled { host: self.host.clone(), got_bytes: self.got_bytes }
    }
}

impl Pace {
    /// Counts `bytes` that took `waited`; false when a whole window was too slow.
    fn keeps(&mut self, waited: Duration, bytes: u64, timeouts: &Timeouts) -> bool {
        self.waited += waited;
        self.got_bytes += bytes;
        if self.waited < timeouts.rate_window {
            return true;
        }
        let wanted = self.waited.as_secs_f64() * timeouts.rate_min_bytes_per_second as f64;
        let fast_enough = self.got_bytes as f64 >= wanted;
        *self = Pace { waited: Duration::ZERO, got_bytes: 0 };
        fast_enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f28_a_drip_is_noticed_after_one_window() {
        let timeouts = Timeouts::default();
        let mut pace = Pace { waited: Duration::ZERO, got_bytes: 0 };
        for second in 1..60 {
            assert!(pace.keeps(Duration::from_secs(1), 1, &timeouts), "second {second}");
        }
        assert!(!pace.keeps(Duration::from_secs(1), 1, &timeouts));
        for _ in 0..1000 {
            assert!(pace.keeps(Duration::from_secs(1), 1024, &timeouts));
        }
    }
}
