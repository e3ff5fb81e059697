//! The agent's key and certificate. The key is made here, stays in one private file and never travels.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::dial::{self, DialError};

/// Says why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read or written.
    #[error("cannot keep the agent's key and certificate")]
    File(#[from] std::io::Error),
    /// The key cannot be made or read.
    #[error("cannot use the agent's key")]
    Key(#[from] rcgen::Error),
    /// The scheduler gave something else, or a certificate for another key.
    #[error("what the scheduler gave is no certificate for this agent's key")]
    Foreign,
    /// The authorities cannot be used.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// No HTTP client can be made of it.
    #[error("cannot speak TLS with the agent's certificate")]
    Tls(#[source] reqwest::Error),
}

/// A key, and the certificate that the scheduler gave for it.
pub struct Identity {
    folder: PathBuf,
    key: KeyPair,
    certificate: Option<(String, u64, u64)>,
}

/// Writes a private file, durable and whole.
pub(super) fn write(path: &Path, text: &str) -> Result<(), std::io::Error> {
    use fs_err::os::unix::fs::OpenOptionsExt as _;
    use std::io::Write as _;
    let fresh = path.with_extension("new");
    let _ = fs_err::remove_file(&fresh);
    let mut file = fs_err::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs_err::rename(&fresh, path)
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Reads from when to when a certificate lasts, if it is one for this key.
fn validity(pem: &str, key: &KeyPair) -> Option<(u64, u64)> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).ok()?;
    let own = parsed.public_key().subject_public_key.data.as_ref() == key.public_key_raw();
    let time = |at: x509_parser::time::ASN1Time| u64::try_from(at.timestamp()).ok();
    own.then_some((time(parsed.validity().not_before)?, time(parsed.validity().not_after)?))
}

impl Identity {
    /// Reads the identity in a folder; makes the key when there is none.
    pub fn open(folder: &Path) -> Result<Self, IdentityError> {
        let path = folder.join("agent.key");
        let key = match fs_err::read_to_string(&path) {
            Ok(text) => KeyPair::from_pem(&text)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let key = KeyPair::generate()?;
                write(&path, &key.serialize_pem())?;
                key
            }
            Err(error) => return Err(error.into()),
        };
        let pem = fs_err::read_to_string(folder.join("agent.crt")).ok();
        let certificate = pem.and_then(|pem| validity(&pem, &key).map(|(from, to)| (pem, from, to)));
        Ok(Self { folder: folder.to_owned(), key, certificate })
    }

    /// Asks for a certificate: the public key, signed by the key.
    pub fn request(&self) -> Result<String, IdentityError> {
        Ok(CertificateParams::default().serialize_request(&self.key)?.pem()?)
    }

    /// Keeps a certificate.
    pub fn keep(&mut self, certificate: String) -> Result<(), IdentityError> {
        let (from, to) = validity(&certificate, &self.key).ok_or(IdentityError::Foreign)?;
        write(&self.folder.join("agent.crt"), &certificate)?;
        self.certificate = Some((certificate, from, to));
        Ok(())
    }

    /// Tells whether it is time for a new certificate: two thirds of the old one's life are over, or there is none.
    pub fn is_due(&self) -> bool {
        self.certificate.as_ref().is_none_or(|(_, from, to)| seconds() >= from + (to - from) * 2 / 3)
    }

    /// Gives certificate and key as one PEM text, while the certificate lasts.
    pub fn pem(&self) -> Option<String> {
        let (certificate, _, to) = self.certificate.as_ref()?;
        (seconds() < *to).then(|| format!("{certificate}{}", self.key.serialize_pem()))
    }

    /// Makes an HTTP client that trusts these authorities only, and shows the certificate while it lasts.
    pub fn http(&self, authorities: &str) -> Result<reqwest::Client, IdentityError> {
        let mut builder = dial::builder(authorities)?.https_only(true);
        if let Some(pem) = self.pem() {
            builder = builder.identity(reqwest::Identity::from_pem(pem.as_bytes()).map_err(IdentityError::Tls)?);
        }
        builder.build().map_err(IdentityError::Tls)
    }
}
