//! The client side of the OCI Distribution protocol.
//!
//! ```text
//! Registry (blocking face, owns one thread with a small async runtime)
//!   '- Session   one repository: scheme, credentials, token, retries
//!        '- Transport   one request: redirects hop by hop, timeouts, two HTTP clients
//!             |- Names (dns), tls, destination   where a request may go, whom it trusts
//!             '- Body   one response: idle timeout, slowest rate, size limit
//! ```
//! A registry is hostile until a digest proves otherwise. Credentials belong to one
//! `scheme://host:port`; they never follow a redirect or a realm to another one. This is why the
//! client of oci-distribution, which sends them wherever a registry points, is not used here; its
//! manifest types are.
//!
//! tokio is used nowhere else in this crate.

mod body;
mod challenge;
mod client;
mod destination;
mod dns;
mod fault;
pub mod manifest;
mod mirror;
mod session;
mod strict_json;
mod tls;
mod token;
mod transport;
mod upload;

use std::time::Duration;

pub use challenge::{RealmProblem, TokenHost};
pub use client::{Access, BlobReader, Manifest, Notice, Registry, RegistryOptions};
pub use destination::DestinationProblem;
pub use dns::NameFiles;
pub use fault::{Fault, TlsFault};
pub use mirror::MirrorAccess;
pub use tls::CertificateError;
pub use token::TokenProblem;
pub use transport::{Proxies, Timeouts};
pub use upload::{BlobUpload, OpenBlob, UploadError, Uploaded};

use crate::digest::Digest;

/// Why a registry did not give what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The registry has no such image.
    #[error("{image} is not on the registry{}", Detail(code))]
    UnknownImage {
        /// The image's full name.
        image: String,
        /// The registry's error code, such as `MANIFEST_UNKNOWN`.
        code: Option<String>,
    },
    /// The registry will not show the image: it is private, or it does not exist.
    #[error("access to {image} is denied{}", Detail(code))]
    Denied {
        /// The image's full name.
        image: String,
        /// Whether credentials were sent.
        authenticated: bool,
        /// The registry's error code.
        code: Option<String>,
    },
    /// The registry wants a user name and password and has none, or refuses those it got.
    #[error("{registry} {}", if *.rejected { "refuses the credentials" } else { "asks for credentials" })]
    Unauthorized {
        /// The registry as `host[:port]`.
        registry: String,
        /// Whether credentials were sent.
        rejected: bool,
    },
    /// No answer came.
    #[error("cannot reach {host}: {fault}")]
    Unreachable {
        /// The host that was asked.
        host: String,
        /// What happened.
        fault: Fault,
        /// The whole story.
        source: Option<reqwest::Error>,
    },
    /// The other side cannot be trusted.
    #[error("cannot make a safe connection to {host}: {fault}")]
    Tls {
        /// The host that was asked.
        host: String,
        /// What is wrong.
        fault: TlsFault,
        /// The whole story.
        source: Option<reqwest::Error>,
    },
    /// Too many requests.
    #[error("{registry} limits the rate of requests{}", RateText(*retry_after_seconds, remaining))]
    RateLimited {
        /// The registry as `host[:port]`.
        registry: String,
        /// When the registry says to come back.
        retry_after_seconds: Option<u64>,
        /// The `ratelimit-remaining` header.
        remaining: Option<String>,
    },
    /// An answer that makes no sense here.
    #[error("{host} answered {status} to a request for {what}{}", Detail(code))]
    Status {
        /// The host that answered.
        host: String,
        /// What was asked for.
        what: String,
        /// The HTTP status.
        status: u16,
        /// The registry's error code.
        code: Option<String>,
    },
    /// A redirect to where we will not go.
    #[error("{host} redirects to a place that {problem}")]
    Redirect {
        /// The host that sent the redirect.
        host: String,
        /// Why we will not.
        problem: DestinationProblem,
    },
    /// The registry names a token server that may not see us.
    #[error("{registry} asks for a token from {realm}, which {problem}")]
    Realm {
        /// The registry as `host[:port]`.
        registry: String,
        /// Scheme and host of the realm.
        realm: String,
        /// What is wrong with it.
        problem: RealmProblem,
    },
    /// The token server's answer is unusable.
    #[error("{host} gives no usable token: {problem}")]
    Token {
        /// The token server.
        host: String,
        /// What is wrong.
        problem: TokenProblem,
    },
    /// Data stopped coming, or comes too slowly to be honest.
    #[error("{host} sends nothing, or too slowly ({got_bytes} bytes so far)")]
    Stalled {
        /// The host.
        host: String,
        /// What had arrived.
        got_bytes: u64,
    },
    /// More data than allowed or announced.
    #[error("{what} from {host} is larger than {max_bytes} bytes")]
    TooLarge {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// The limit or the announced size.
        max_bytes: u64,
    },
    /// The answer's length is not the one that was announced.
    #[error("{host} offers {length_bytes} bytes for blob {digest} of {size_bytes} bytes")]
    WrongLength {
        /// The host.
        host: String,
        /// The blob.
        digest: Digest,
        /// What the answer would have.
        length_bytes: u64,
        /// What it should have.
        size_bytes: u64,
    },
    /// Content that is not what its digest says.
    #[error("{what} from {host} has digest {actual}, not {expected}")]
    WrongDigest {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// What was asked for.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// A download that broke too often.
    #[error("{host} broke off the download of blob {digest} too often (at byte {offset})")]
    Unsteady {
        /// The host.
        host: String,
        /// The blob.
        digest: Digest,
        /// Where it stopped last.
        offset: u64,
    },
    /// The host name cannot be part of a URL.
    #[error("{registry} is not a host")]
    BadHost {
        /// The registry.
        registry: String,
    },
    /// Certificates for this registry cannot be used.
    #[error("cannot prepare a safe connection to {registry}")]
    Certificates {
        /// The registry.
        registry: String,
        /// Why.
        source: CertificateError,
    },
    /// A proxy setting is not a URL.
    #[error("the proxy setting {value} is not a valid proxy")]
    Proxy {
        /// The setting, without a password.
        value: String,
    },
    /// The HTTP client or its thread cannot be set up.
    #[error("cannot set up the registry client")]
    SetUp(#[source] std::io::Error),
    /// Another part of the same pull failed.
    #[error("the pull was given up")]
    Cancelled,
}

impl RegistryError {
    /// Sorts a failed exchange with `host` into the right variant.
    pub(crate) fn from_exchange(host: &str, error: reqwest::Error) -> RegistryError {
        let fault = Fault::of(&error);
        // The URL may hold a signature; the host is already said.
        let source = Some(error.without_url());
        match fault {
            Fault::Tls(fault) => RegistryError::Tls { host: host.to_owned(), fault, source },
            fault => RegistryError::Unreachable { host: host.to_owned(), fault, source },
        }
    }

    pub(crate) fn timed_out(host: &str) -> RegistryError {
        RegistryError::Unreachable { host: host.to_owned(), fault: Fault::TimedOut, source: None }
    }

    /// Tells whether the same request may succeed a little later.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            RegistryError::Unreachable { fault, .. } => fault.is_passing(),
            RegistryError::Stalled { .. } => true,
            _ => false,
        }
    }
}

/// Waits longer each time, up to a factor of 32, with a little disorder so that many pullers part.
pub(crate) fn backoff(base: Duration, attempt: u32) -> Duration {
    let grown = base.saturating_mul(1 << attempt.min(5));
    // The clock is random enough to spread retries.
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    grown + grown.mul_f64(f64::from(clock.subsec_micros() % 1000) / 4000.0)
}

/// Shows a registry's own error code, when there is one.
struct Detail<'a>(&'a Option<String>);

impl std::fmt::Display for Detail<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(code) => write!(f, " ({code})"),
            None => Ok(()),
        }
    }
}

struct RateText<'a>(Option<u64>, &'a Option<String>);

impl std::fmt::Display for RateText<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RateText(Some(seconds), _) => write!(f, "; it says to come back in {seconds} s"),
            RateText(None, Some(remaining)) => write!(f, "; remaining: {remaining}"),
            RateText(None, None) => Ok(()),
        }
    }
}
