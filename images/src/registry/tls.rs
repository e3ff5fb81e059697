//! Which certificates a connection trusts.
//!
//! The system's roots (`SSL_CERT_FILE` and `SSL_CERT_DIR` are honoured by rustls-native-certs) plus,
//! for the registry itself, the authorities in `certs.d` directories, laid out as Docker and Podman
//! do: `<dir>/<host[:port]>/*.crt` are authorities, `*.cert` with `*.key` is our own certificate.
//! Verification is never switched off (security.md A64).

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

/// The largest certificate file; the bundle of all public authorities is 220 KiB.
const FILE_SIZE_MAX: u64 = 1 << 20;
/// The most files read from one `certs.d/<host>` directory.
const FILES_MAX: usize = 64;

/// A `certs.d` directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("cannot read certificates for the registry")]
    Read(#[source] std::io::Error),
    /// A file holds no PEM certificate or key, or a broken one.
    #[error("{} holds no usable PEM certificate or key", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
    },
    /// rustls refuses the combination.
    #[error("the certificates in {} cannot be used", path.display())]
    Refused {
        /// The directory or file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
}

/// What one registry's `certs.d` directories hold.
#[derive(Default)]
pub struct HostCertificates {
    authorities: Vec<(PathBuf, CertificateDer<'static>)>,
    own: Option<(PathBuf, Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
}

impl HostCertificates {
    /// Takes authorities, and a certificate of our own with its key, from PEM texts; `path` is for errors.
    pub fn given(path: &Path, authorities: &[u8], own: Option<&[u8]>) -> Result<HostCertificates, CertificateError> {
        let broken = || CertificateError::Parse { path: path.to_owned() };
        let read = |text: &[u8]| CertificateDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>();
        let authorities = read(authorities).map_err(|_| broken())?;
        let authorities = authorities.into_iter().map(|der| (path.to_owned(), der)).collect();
        let mut given = HostCertificates { authorities, own: None };
        if let Some(text) = own {
            let key = PrivateKeyDer::from_pem_slice(text).map_err(|_| broken())?;
            given.own = Some((path.to_owned(), read(text).map_err(|_| broken())?, key));
        }
        Ok(given)
    }

    /// Reads the directory named `host` (with its port, when it has one) under each of `dirs`; our own certificate
    /// and its key only `with_own`.
    pub fn read(dirs: &[PathBuf], host: &str, with_own: bool) -> Result<HostCertificates, CertificateError> {
        let mut found = HostCertificates::default();
        for dir in dirs {
            found.read_dir(&dir.join(host), with_own)?;
        }
        Ok(found)
    }

    fn read_dir(&mut self, dir: &Path, with_own: bool) -> Result<(), CertificateError> {
        use std::io::ErrorKind;
        let entries = match fs_err::read_dir(dir) {
            Ok(entries) => entries,
            // Other people's directories are often closed to us; then they are not meant for us.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {
                return Ok(());
            }
            Err(error) => return Err(CertificateError::Read(error)),
        };
        let mut paths = Vec::new();
        for entry in entries.take(FILES_MAX) {
            paths.push(entry.map_err(CertificateError::Read)?.path());
        }
        paths.sort();
        for path in paths {
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("crt") => {
                    let certificates = read_certificates(&path)?;
                    self.authorities.extend(certificates.into_iter().map(|der| (path.clone(), der)));
                }
                Some("cert") if with_own && self.own.is_none() => {
                    let key_path = path.with_extension("key");
                    let key = PrivateKeyDer::from_pem_slice(&read_file(&key_path)?)
                        .map_err(|_| CertificateError::Parse { path: key_path })?;
                    self.own = Some((path.clone(), read_certificates(&path)?, key));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Loads the system's roots; a host without any gives an empty store, and every handshake fails.
pub fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

/// Builds the client side of TLS: `roots` plus what `certs.d` holds for this host.
pub fn client_config(roots: RootCertStore, host: HostCertificates) -> Result<ClientConfig, CertificateError> {
    let mut roots = roots;
    for (path, der) in host.authorities {
        roots.add(der).map_err(|source| CertificateError::Refused { path, source })?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|source| CertificateError::Refused { path: PathBuf::new(), source })?
        .with_root_certificates(roots);
    let mut config = match host.own {
        Some((path, chain, key)) => {
            builder.with_client_auth_cert(chain, key).map_err(|source| CertificateError::Refused { path, source })?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let text = read_file(path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(CertificateError::Parse { path: path.to_owned() }),
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, CertificateError> {
    let file = fs_err::File::open(path).map_err(CertificateError::Read)?;
    let mut text = Vec::new();
    file.take(FILE_SIZE_MAX).read_to_end(&mut text).map_err(CertificateError::Read)?;
    Ok(text)
}
