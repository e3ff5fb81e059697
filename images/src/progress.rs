//! How long work tells somebody how far it is.
//!
//! The images crate prints nothing; whoever calls it passes a [`Progress`].

/// Hears about long work. `what` is a short digest or a file name and identifies one line of it.
pub trait Progress: Sync {
    /// Work on `what` starts and has `total_bytes` to go, 0 when unknown.
    fn begin(&self, what: &str, total_bytes: u64);
    /// `bytes` more are done.
    fn advance(&self, what: &str, bytes: u64);
    /// Says what is happening to `what` now, such as `waiting for another pull`.
    fn phase(&self, what: &str, text: &str);
    /// Work on `what` is over.
    fn finish(&self, what: &str, text: &str);
    /// Something went another way than it should have, and the work goes on.
    fn notice(&self, _text: &str) {}
}

/// Listens to nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn begin(&self, _what: &str, _total_bytes: u64) {}
    fn advance(&self, _what: &str, _bytes: u64) {}
    fn phase(&self, _what: &str, _text: &str) {}
    fn finish(&self, _what: &str, _text: &str) {}
}
