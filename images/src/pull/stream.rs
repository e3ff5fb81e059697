//! One blob on its way: opened again after it broke, within bounds.
//!
//! The store asks for the stream again at the byte where it stopped. Here it is decided how long to
//! pause, and when a registry is too unsteady: each new stream must bring a piece worth having, and
//! starting over (a registry without ranges) is not allowed for ever.

use std::io::Read;

use super::Pull;
use crate::registry::BlobReader;
use crate::registry::manifest::Descriptor;
use crate::registry::{self, RegistryError};
use crate::store::SourceError;

/// A reconnected stream that brings less than this before it breaks again counts as a failure.
const STEADY_BYTES: u64 = 64 << 10;
/// How many failures in a row end a download.
const FAILURES_MAX: u32 = 5;
/// How often one blob may be started over because its registry has no ranges.
const RESTARTS_MAX: u32 = 2;

/// Opens one blob as often as it takes, within bounds.
pub(super) struct Stream<'a> {
    pull: &'a Pull<'a>,
    descriptor: &'a Descriptor,
    last_offset: Option<u64>,
    failures: u32,
    restarts: u32,
    mirror: MirrorUse,
}

/// What a stream has to do with the mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MirrorUse {
    /// It comes first.
    Wanted,
    /// It sent something.
    Used,
    /// It sent something, and does no more.
    UsedUp,
    /// It is not asked.
    Never,
}

impl<'a> Stream<'a> {
    pub fn new(pull: &'a Pull<'a>, descriptor: &'a Descriptor) -> Stream<'a> {
        Stream { pull, descriptor, last_offset: None, failures: 0, restarts: 0, mirror: MirrorUse::Wanted }
    }

    /// The same, from the registry itself and nobody else.
    pub fn unmirrored(pull: &'a Pull<'a>, descriptor: &'a Descriptor) -> Stream<'a> {
        Stream { mirror: MirrorUse::Never, ..Stream::new(pull, descriptor) }
    }

    /// Whether a part of the blob came from a mirror.
    pub fn was_mirrored(&self) -> bool {
        matches!(self.mirror, MirrorUse::Used | MirrorUse::UsedUp)
    }

    /// Opens the blob at the mirror; a mirror that failed once is not asked again for this blob.
    fn open_mirrored(&mut self, offset: u64, listen: &dyn Fn(registry::Notice)) -> Option<BlobReader> {
        let Descriptor { digest, size_bytes, .. } = self.descriptor;
        match self.mirror {
            MirrorUse::Wanted => {}
            MirrorUse::Used => {
                self.mirror = MirrorUse::UsedUp;
                let reason = format!("it broke off blob {digest} at byte {offset}");
                self.pull.sources.passed_over(&reason);
                return None;
            }
            MirrorUse::UsedUp | MirrorUse::Never => return None,
        }
        match self.pull.sources.mirrored(digest, *size_bytes, offset, listen)? {
            Ok(reader) => {
                self.mirror = MirrorUse::Used;
                Some(reader)
            }
            Err(error) => {
                self.mirror = MirrorUse::Never;
                self.pull.sources.mirror_failed(&error);
                None
            }
        }
    }

    pub fn open(&mut self, offset: u64) -> Result<Box<dyn Read + Send>, SourceError> {
        let Descriptor { digest, size_bytes, .. } = self.descriptor;
        let what = digest.short();
        let unsteady =
            || RegistryError::Unsteady { host: self.pull.sources.host().to_owned(), digest: digest.clone(), offset };
        if let Some(last) = self.last_offset {
            self.failures = if offset >= last + STEADY_BYTES { 1 } else { self.failures + 1 };
            if self.failures > FAILURES_MAX {
                return Err(Box::new(unsteady()));
            }
            self.pull.progress.phase(what, "continuing after a broken connection");
            std::thread::sleep(registry::backoff(self.pull.options.timeouts.backoff, self.failures));
        }
        let pull = self.pull;
        let listen = |notice| pull.tell(what, notice);
        let reader = match self.open_mirrored(offset, &listen) {
            Some(reader) => reader,
            None => pull.sources.origin()?.blob(digest, *size_bytes, offset, &listen)?,
        };
        if reader.skipped_bytes() > 0 {
            self.restarts += 1;
            if self.restarts > RESTARTS_MAX {
                return Err(Box::new(unsteady()));
            }
        }
        self.last_offset = Some(offset);
        Ok(match self.mirror {
            MirrorUse::Used => Box::new(pull.sources.watched(reader)),
            _ => Box::new(reader),
        })
    }
}
