//! The certificate that the other end of a connection has shown.
//!
//! rustls has checked that the pool's authority signed it for a client, and that it had not ended when the connection
//! began. What is left is whose it is and whether it has ended since: looked at by each request.

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;

use super::authority::{PROVIDER_URI, key_digest};
use crate::model::ProviderId;

/// Whose certificate it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The provider of the one URI in it; a certificate with none or with others is nobody's.
    pub provider: Option<ProviderId>,
    /// SHA-256 of the public key in hex.
    pub key: String,
    /// When it ends.
    pub ends_ms: u64,
}

impl Peer {
    /// Reads a certificate.
    pub fn read(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let names = parsed.subject_alternative_name().ok()?.map(|names| names.value.general_names.as_slice());
        let provider = match names {
            Some([GeneralName::URI(uri)]) => uri.strip_prefix(PROVIDER_URI).and_then(|id| id.parse().ok()),
            _ => None,
        };
        let ends_s = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        let key = key_digest(&parsed.public_key().subject_public_key.data);
        Some(Self { provider, key, ends_ms: ends_s.saturating_mul(1000) })
    }

    /// Tells whether it is this provider's, made for the key it joined with, and still lasts.
    pub fn is(&self, provider: ProviderId, key: &str, now_ms: u64) -> bool {
        self.provider == Some(provider) && self.key == key && now_ms < self.ends_ms
    }
}
