//! The pool's own certificate authority: it signs agents' keys when they join and again every day (S04).
//!
//! An agent makes its key and keeps it. Of its signing request only the public key is used; what the certificate says
//! is decided here: the provider's id as a URI, for clients only, for a day. The certificate file may hold more
//! authorities than the one that signs: all of them are trusted, so that a new one can take over while agents still
//! have certificates of the old one.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};

use super::secret::hex;
use crate::model::ProviderId;

/// How a provider is named in its certificate, before its id.
pub const PROVIDER_URI: &str = "urn:coracle:provider:";
/// How long an agent's certificate lasts.
pub const AGENT_LIFE: std::time::Duration = std::time::Duration::from_secs(24 * 3600);
/// Clocks of agents may be behind by so much.
const SKEW: Duration = Duration::minutes(10);
/// How long an authority lasts.
const AUTHORITY_LIFE: Duration = Duration::days(20 * 365);
/// How long a server's certificate lasts; making a new one is one command.
const SERVER_LIFE: Duration = Duration::days(5 * 365);
/// Bytes of a signing request; an RSA key of 8192 bits needs three thousand.
const REQUEST_BYTES: usize = 8 * 1024;

/// Says what is wrong with an authority or with what it should sign.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file cannot be read or made.
    #[error("cannot use the authority's files")]
    File(#[from] std::io::Error),
    /// A file is not PEM of a certificate.
    #[error("cannot read {}", path.display())]
    Pem {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// Key or certificate cannot sign.
    #[error("cannot sign with the authority in {}", path.display())]
    Unusable {
        /// Where it is.
        path: PathBuf,
        /// Why.
        source: rcgen::Error,
    },
    /// There is one already.
    #[error("there is an authority in {} already", .0.display())]
    Exists(PathBuf),
    /// What an agent sent is no signing request with a good signature.
    #[error("not a signing request")]
    Request(#[source] rcgen::Error),
    /// It is longer than any honest one.
    #[error("not a signing request")]
    Long,
}

/// Where an authority's certificates and key are, as PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorityFiles {
    /// The one that signs, and others that are trusted.
    pub certificates: PathBuf,
    /// The key of the one that signs.
    pub key: PathBuf,
}

impl AuthorityFiles {
    /// Names the files in a folder.
    pub fn in_folder(folder: &Path) -> Self {
        Self { certificates: folder.join("ca.crt"), key: folder.join("ca.key") }
    }
}

/// An authority that is ready to sign.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    trusted: Vec<CertificateDer<'static>>,
    life: Duration,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority of {} certificates", self.trusted.len())
    }
}

/// A certificate for an agent.
pub struct Signed {
    /// As PEM.
    pub certificate: String,
    /// SHA-256 of its public key in hex.
    pub key: String,
}

/// Digests a public key as it is in a certificate: the content of the bit string.
pub fn key_digest(key: &[u8]) -> String {
    hex(&Sha256::digest(key))
}

fn private(path: &Path, text: &str) -> Result<(), AuthorityError> {
    use fs_err::os::unix::fs::OpenOptionsExt as _;
    use std::io::Write as _;
    let mut file = fs_err::OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    Ok(file.sync_all()?)
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn lasts(params: &mut CertificateParams, life: Duration) {
    let now = OffsetDateTime::now_utc();
    (params.not_before, params.not_after) = (now - SKEW, now + life);
}

impl Authority {
    /// Reads an authority. `life` is how long an agent's certificate lasts.
    pub fn open(files: &AuthorityFiles, life: std::time::Duration) -> Result<Self, AuthorityError> {
        let pem = |source| AuthorityError::Pem { path: files.certificates.clone(), source };
        let trusted = CertificateDer::pem_file_iter(&files.certificates).map_err(pem)?;
        let trusted: Vec<_> = trusted.collect::<Result<_, _>>().map_err(pem)?;
        let unusable = |source| AuthorityError::Unusable { path: files.certificates.clone(), source };
        let signs = trusted.first().ok_or_else(|| unusable(rcgen::Error::CouldNotParseCertificate))?;
        let key = KeyPair::from_pem(&fs_err::read_to_string(&files.key)?).map_err(unusable)?;
        let issuer = Issuer::from_ca_cert_der(signs, key).map_err(unusable)?;
        Ok(Self { issuer, trusted, life: Duration::try_from(life).unwrap_or(Duration::DAY) })
    }

    /// Makes a new authority in a folder.
    pub fn make(files: &AuthorityFiles) -> Result<(), AuthorityError> {
        if files.certificates.exists() || files.key.exists() {
            return Err(AuthorityError::Exists(files.certificates.clone()));
        }
        let unusable = |source| AuthorityError::Unusable { path: files.certificates.clone(), source };
        let key = KeyPair::generate().map_err(unusable)?;
        let mut params = named("coracle pool");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        lasts(&mut params, AUTHORITY_LIFE);
        let certificate = params.self_signed(&key).map_err(unusable)?;
        private(&files.key, &key.serialize_pem())?;
        private(&files.certificates, &certificate.pem())
    }

    /// Makes a key and a certificate for the scheduler itself, by these names and addresses.
    pub fn make_server(&self, names: &[String], certificate: &Path, key: &Path) -> Result<(), AuthorityError> {
        let unusable = |source| AuthorityError::Unusable { path: certificate.to_owned(), source };
        let mut params = named("coracle scheduler");
        for name in names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into().map_err(unusable)?),
            });
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        lasts(&mut params, SERVER_LIFE);
        let pair = KeyPair::generate().map_err(unusable)?;
        let signed = params.signed_by(&pair, &self.issuer).map_err(unusable)?;
        private(key, &pair.serialize_pem())?;
        private(certificate, &signed.pem())
    }

    /// Lists the certificates that sign agents' ones.
    pub fn trusted(&self) -> &[CertificateDer<'static>] {
        &self.trusted
    }

    /// Checks a signing request and returns the digest of its key: whoever made it has the key.
    pub fn read(request: &str) -> Result<(CertificateSigningRequestParams, String), AuthorityError> {
        if request.len() > REQUEST_BYTES {
            return Err(AuthorityError::Long);
        }
        let request = CertificateSigningRequestParams::from_pem(request).map_err(AuthorityError::Request)?;
        let key = key_digest(request.public_key.der_bytes());
        Ok((request, key))
    }

    /// Signs a provider's key. Nothing that the request says is kept but the key.
    pub fn sign(
        &self,
        request: CertificateSigningRequestParams,
        provider: ProviderId,
    ) -> Result<Signed, AuthorityError> {
        let mut params = named(&provider.to_string());
        let uri = format!("{PROVIDER_URI}{provider}");
        params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().map_err(AuthorityError::Request)?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        lasts(&mut params, self.life);
        let key = key_digest(request.public_key.der_bytes());
        let request = CertificateSigningRequestParams { params, public_key: request.public_key };
        let signed = request.signed_by(&self.issuer).map_err(AuthorityError::Request)?;
        Ok(Signed { certificate: signed.pem(), key })
    }
}
