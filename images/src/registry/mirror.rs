//! How to reach a mirror: another registry that answers for the one an image is from.
//!
//! A mirror has no say in what an image is: what comes from it must have the digest that the registry named, also where
//! it is asked by tag so that it learns the tag. Its word on what a tag means counts only where the caller allows it. It
//! is trusted with nothing, and asked with short patience, because the registry itself is there to be asked instead.

use std::path::PathBuf;
use std::time::Duration;

use super::tls::{CertificateError, HostCertificates};
use super::transport::Timeouts;

/// For name, TCP and TLS of a mirror: less than for a registry, which is there to be asked instead.
const CONNECT_MAX: Duration = Duration::from_secs(8);
/// For a mirror's first byte; it may have to ask the registry first, which has about as long.
const ANSWER_MAX: Duration = Duration::from_secs(45);
/// For pauses that it asks for itself when it has too much to do.
const PATIENCE: Duration = Duration::from_secs(3);

/// Where a mirror is and how it knows us.
#[derive(Clone)]
pub struct MirrorAccess {
    /// `host[:port]`.
    pub host: String,
    /// Whether it speaks http without TLS; for this machine only.
    pub plain: bool,
    /// The authorities that its certificate must come from, PEM; nobody else's is taken.
    pub authorities: Vec<u8>,
    /// Our own certificate and its key, PEM.
    pub own: Option<Vec<u8>>,
    /// What we show it.
    pub token: String,
    /// Where all of this is kept, for errors.
    pub path: PathBuf,
    /// Whether its word on what a tag means counts where the registry says nothing at all.
    pub names_tags: bool,
}

impl MirrorAccess {
    /// Whom we trust and who we are there.
    pub(super) fn certificates(&self) -> Result<HostCertificates, CertificateError> {
        HostCertificates::given(&self.path, &self.authorities, self.own.as_deref())
    }

    /// How long it is waited for; `registry` is how long a registry would be.
    pub(super) fn timeouts(&self, registry: Timeouts) -> Timeouts {
        Timeouts { connect: CONNECT_MAX, headers: ANSWER_MAX, patience: PATIENCE, ..registry }
    }
}

impl std::fmt::Debug for MirrorAccess {
    // Key and token stay out of every log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MirrorAccess").field("host", &self.host).finish_non_exhaustive()
    }
}
