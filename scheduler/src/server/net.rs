//! Connections: how many, how slow, encrypted or not (S14).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use super::peer::Peer;

/// Numbers about connections.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Connections at once from one address.
    pub per_address: usize,
    /// How long the head of a request may take, and a connection may idle.
    pub header_time: Duration,
    /// How long a TLS handshake may take.
    pub handshake_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // Every agent of a large pool holds one.
            connections: 20_000,
            // A lab behind one address.
            per_address: 2_000,
            header_time: Duration::from_secs(10),
            handshake_time: Duration::from_secs(10),
        }
    }
}

/// Bytes of a request's head.
const HEAD_BYTES: usize = 16 * 1024;
/// Wait after an accept that failed for lack of files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Certificate and key as PEM files.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The certificate and those that sign it.
    pub certificates: PathBuf,
    /// The key.
    pub key: PathBuf,
}

impl TlsFiles {
    /// Names the files in a folder.
    pub fn in_folder(folder: &Path) -> Self {
        Self { certificates: folder.join("server.crt"), key: folder.join("server.key") }
    }
}

/// Says why TLS cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read as PEM.
    #[error("cannot read {}", path.display())]
    Pem {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// Certificate and key do not go together, or are not what rustls takes.
    #[error("cannot use {}", path.display())]
    Use {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
}

/// Reads certificate and key. TLS 1.2 is the least that is spoken.
pub fn acceptor(files: &TlsFiles, signers: Option<&[CertificateDer<'static>]>) -> Result<TlsAcceptor, TlsError> {
    let pem = |path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::Pem { path, source }
    };
    let certificates: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(&files.certificates).map_err(pem(&files.certificates))?.collect();
    let certificates = certificates.map_err(pem(&files.certificates))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(pem(&files.key))?;
    let unusable = |source| TlsError::Use { path: files.certificates.clone(), source };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?;
    let builder = match signers {
        None => builder.with_no_client_auth(),
        Some(signers) => builder.with_client_cert_verifier(verifier(signers, provider, files)?),
    };
    let mut config = builder.with_single_cert(certificates, key).map_err(unusable)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Lets people in without a certificate, and agents with a good one; a bad one ends the handshake.
fn verifier(
    signers: &[CertificateDer<'static>],
    provider: Arc<rustls::crypto::CryptoProvider>,
    files: &TlsFiles,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let unusable = |source| TlsError::Use { path: files.certificates.clone(), source };
    let mut roots = rustls::RootCertStore::empty();
    for signer in signers {
        roots.add(signer.clone()).map_err(unusable)?;
    }
    let built = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).allow_unauthenticated().build();
    let built = built.map_err(|error| unusable(rustls::Error::General(error.to_string())))?;
    Ok(built)
}

/// Counts connections by address.
#[derive(Debug, Default)]
struct Addresses(Mutex<BTreeMap<IpAddr, usize>>);

/// One connection's place in the counts.
struct Place {
    addresses: Arc<Addresses>,
    peer: IpAddr,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.addresses.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.peer);
            }
        }
    }
}

fn place(addresses: &Arc<Addresses>, peer: IpAddr, most: usize, permit: OwnedSemaphorePermit) -> Option<Place> {
    let mut counts = addresses.0.lock().unwrap_or_else(PoisonError::into_inner);
    let count = counts.entry(peer).or_default();
    (*count < most).then(|| {
        *count += 1;
        Place { addresses: Arc::clone(addresses), peer, _permit: permit }
    })
}

/// Accepts connections until the task is dropped, and all conversations with it.
pub async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, router: Router, limits: Limits) {
    let room = Arc::new(Semaphore::new(limits.connections));
    let addresses = Arc::new(Addresses::default());
    // Dropping the set ends every conversation.
    let mut conversations = tokio::task::JoinSet::new();
    loop {
        while conversations.try_join_next().is_some() {}
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(_) => {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // No room: the connection is closed at once, before it costs anything.
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else { continue };
        let Some(place) = place(&addresses, peer.ip(), limits.per_address, permit) else { continue };
        let (tls, router) = (tls.clone(), router.clone());
        conversations.spawn(async move {
            let _place = place;
            converse(stream, peer, tls, router, limits).await;
        });
    }
}

async fn converse(stream: TcpStream, peer: SocketAddr, tls: Option<TlsAcceptor>, router: Router, limits: Limits) {
    let _ = stream.set_nodelay(true);
    match tls {
        None => speak(stream, peer, None, router, limits).await,
        Some(tls) => {
            let shaken = tokio::time::timeout(limits.handshake_time, tls.accept(stream)).await;
            if let Ok(Ok(stream)) = shaken {
                let shown = stream.get_ref().1.peer_certificates().and_then(|shown| Peer::read(shown.first()?));
                speak(stream, peer, shown.map(Arc::new), router, limits).await;
            }
        }
    }
}

fn head_bytes(headers: &axum::http::HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len()).sum()
}

async fn speak(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    shown: Option<Arc<Peer>>,
    router: Router,
    limits: Limits,
) {
    let service = hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(peer);
        if let Some(shown) = &shown {
            request.extensions_mut().insert(Arc::clone(shown));
        }
        let router = router.clone();
        async move {
            // The read buffer is larger than what it was asked to hold, so the head is measured here as well.
            if head_bytes(request.headers()) > HEAD_BYTES {
                let status = axum::http::StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
                let problem =
                    super::Problem::new(status, "headers", format!("headers have at most {HEAD_BYTES} bytes"));
                return Ok(axum::response::IntoResponse::into_response(problem));
            }
            router.oneshot(request.map(axum::body::Body::new)).await
        }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_time)
        .max_buf_size(2 * HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
}
