//! The blocking face of the registry client.
//!
//! A [`Registry`] owns one thread that runs a current-thread async runtime; every other thread asks
//! it and waits. Blobs travel from there to their readers through channels of
//! [`CHUNKS_BUFFERED`] pieces: that bound, times the size of hyper's read buffer (about 400 KiB),
//! times the number of parallel blobs, is the memory a pull takes for the network.

use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use bytes::{Buf, Bytes};
use reqwest::Method;
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE};
use tokio::runtime::{Builder, Handle};
use tokio::sync::{mpsc, oneshot, watch};

use super::body::Body;
use super::challenge::TokenHost;
use super::destination::Reach;
use super::dns::NameFiles;
use super::mirror::MirrorAccess;
use super::session::{Mirrored, Notices, Session, SessionOptions};
use super::transport::{Answer, Proxies, Timeouts, Transport, TransportOptions};
use super::{RegistryError, transport};
use crate::credentials::Credential;
use crate::digest::{Algorithm, Digest, Hasher};
use crate::limits::MANIFEST_BYTES_MAX;
use crate::reference::Reference;

/// How many pieces of a blob wait for their reader.
const CHUNKS_BUFFERED: usize = 8;
/// The header in which registries repeat the digest of a manifest.
const CONTENT_DIGEST: &str = "docker-content-digest";

/// How to talk to one registry.
#[derive(Debug, Clone)]
pub struct RegistryOptions {
    /// How long to wait for what.
    pub timeouts: Timeouts,
    /// Which proxies to use.
    pub proxies: Proxies,
    /// Directories with `<host[:port]>/*.crt`.
    pub certs_dirs: Vec<PathBuf>,
    /// Whether a certificate of our own in there is shown to the registry.
    pub shows_certificate: bool,
    /// Where names are looked up.
    pub name_files: NameFiles,
    /// Whether the user named this registry insecure; this machine always is.
    pub insecure: bool,
    /// Token servers on other hosts than their registry.
    pub token_hosts: Vec<TokenHost>,
    /// What opens the registry.
    pub credential: Option<Credential>,
    /// What is going to be done there.
    pub access: Access,
}

/// What a registry is asked to allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// Reading the repository.
    Pull,
    /// Reading and writing it, and reading others whose blobs may be mounted.
    Push {
        /// Repositories of the same registry.
        from: Vec<String>,
    },
    /// Nothing but knowing who we are.
    Login,
}

impl Access {
    /// The scopes of the token specification.
    fn scope(&self, repository: &str) -> String {
        match self {
            Access::Pull => format!("repository:{repository}:pull"),
            Access::Push { from } => {
                let own = format!("repository:{repository}:pull,push");
                let others = from.iter().map(|other| format!(" repository:{other}:pull"));
                std::iter::once(own).chain(others).collect()
            }
            Access::Login => String::new(),
        }
    }
}

/// Something worth telling a person who waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// A request failed for a passing reason and is made again after a pause.
    Waiting {
        /// The pause.
        milliseconds: u64,
    },
}

/// A manifest as received.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// The bytes, which are the truth.
    pub bytes: Vec<u8>,
    /// Their digest: the one asked for, else SHA-256.
    pub digest: Digest,
    /// The `Content-Type` header.
    pub content_type: Option<String>,
}

/// One repository on one registry, for any number of threads.
pub struct Registry {
    pub(super) session: Arc<Session>,
    host: String,
    handle: Handle,
    pub(super) cancelled: Arc<AtomicBool>,
    cancel: watch::Sender<bool>,
    /// Dropping it ends the thread.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Registry {
    /// Connects to the registry of `reference`.
    pub fn open(reference: &Reference, options: RegistryOptions) -> Result<Registry, RegistryError> {
        let transport_options = TransportOptions {
            timeouts: options.timeouts,
            proxies: options.proxies,
            certs_dirs: options.certs_dirs,
            shows_certificate: options.shows_certificate,
            name_files: options.name_files,
            only: None,
        };
        let transport = Transport::new(reference.registry_host(), reference.registry(), transport_options)?;
        let loopback = transport.base().host().as_ref().and_then(Reach::of_host) == Some(Reach::Loopback);
        let may_be_plain = options.insecure || loopback;
        let session_options = SessionOptions {
            registry: reference.registry().to_owned(),
            repository: reference.repository().to_owned(),
            image: reference.to_string(),
            credential: options.credential,
            token_hosts: options.token_hosts,
            scope: options.access.scope(reference.repository()),
            mirrored: None,
        };
        Self::begin(transport, session_options, may_be_plain)
    }

    /// Connects to a mirror of the registry of `reference`.
    ///
    /// The mirror gets its own token and nothing of the registry's: no credentials, no certificates, no proxy.
    pub fn open_mirror(
        reference: &Reference,
        mirror: &MirrorAccess,
        timeouts: Timeouts,
        name_files: NameFiles,
    ) -> Result<Registry, RegistryError> {
        let refused = |source| RegistryError::Certificates { registry: mirror.host.clone(), source };
        let only = mirror.certificates().map_err(refused)?;
        let transport_options = TransportOptions {
            timeouts: mirror.timeouts(timeouts),
            proxies: Proxies::default(),
            certs_dirs: Vec::new(),
            shows_certificate: false,
            name_files,
            only: Some(only),
        };
        let mut transport = Transport::new(&mirror.host, &mirror.host, transport_options)?;
        if mirror.plain {
            transport.use_plain_http();
        }
        let mut authorization = HeaderValue::from_str(&format!("Bearer {}", mirror.token))
            .map_err(|_| RegistryError::Unauthorized { registry: mirror.host.clone(), rejected: true })?;
        authorization.set_sensitive(true);
        let session_options = SessionOptions {
            registry: mirror.host.clone(),
            repository: reference.repository().to_owned(),
            image: reference.to_string(),
            credential: None,
            token_hosts: Vec::new(),
            scope: String::new(),
            mirrored: Some(Mirrored { namespace: reference.registry().to_owned(), authorization }),
        };
        Self::begin(transport, session_options, false)
    }

    fn begin(
        transport: Transport,
        session_options: SessionOptions,
        may_be_plain: bool,
    ) -> Result<Registry, RegistryError> {
        let (handle, stop, thread) = start_runtime()?;
        let opening = Session::open(transport, session_options, may_be_plain);
        let (sender, receiver) = oneshot::channel();
        handle.spawn(async move {
            // The receiver waits below.
            let _ = sender.send(opening.await);
        });
        let session = Arc::new(receiver.blocking_recv().map_err(|_| RegistryError::Cancelled)??);
        Ok(Registry {
            host: transport::host_of(session.transport.base()),
            session,
            handle,
            cancelled: Arc::default(),
            cancel: watch::Sender::new(false),
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Asks which digest `name` (a tag or a digest) has, which costs a registry's user nothing.
    ///
    /// `None` when the registry does not say.
    pub fn resolve(&self, name: &str, listen: &dyn Fn(Notice)) -> Result<Option<Digest>, RegistryError> {
        let (session, name) = (self.session.clone(), name.to_owned());
        let answer = self.wait(listen, async move |notices| {
            match session.manifest(Method::HEAD, &name, &notices).await {
                // Some registries have no HEAD; GET will tell.
                Err(RegistryError::Status { status: 405 | 501, .. }) => Ok(None),
                Err(error) => Err(error),
                Ok(answer) => Ok(Some(stated_digest(&answer))),
            }
        })?;
        Ok(answer.flatten())
    }

    /// Fetches the manifest called `name`, which must have the digest `expected`, when given.
    pub fn manifest(
        &self,
        name: &str,
        expected: Option<&Digest>,
        listen: &dyn Fn(Notice),
    ) -> Result<Manifest, RegistryError> {
        let (session, name, expected) = (self.session.clone(), name.to_owned(), expected.cloned());
        let host = self.host.clone();
        self.wait(listen, async move |notices| {
            let answer = session.manifest(Method::GET, &name, &notices).await?;
            let content_type = answer.response.headers().get(CONTENT_TYPE);
            let content_type = content_type.and_then(|value| value.to_str().ok()).map(str::to_owned);
            let stated = stated_digest(&answer);
            let body = Body::new(answer, session.transport.timeouts);
            let bytes = body.read_all("a manifest", MANIFEST_BYTES_MAX).await?;
            let algorithm = expected.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
            let digest = hash(algorithm, &bytes);
            for wanted in [expected, stated].into_iter().flatten() {
                if wanted.algorithm() == algorithm && wanted != digest {
                    let what = "a manifest".to_owned();
                    return Err(RegistryError::WrongDigest { host, what, expected: wanted, actual: digest });
                }
            }
            Ok(Manifest { bytes, digest, content_type })
        })
    }

    /// Opens the stream of a blob at `offset`.
    ///
    /// A registry that cannot start there starts at the beginning, and the part before `offset` is
    /// dropped on the way.
    pub fn blob(
        &self,
        digest: &Digest,
        size_bytes: u64,
        offset: u64,
        listen: &dyn Fn(Notice),
    ) -> Result<BlobReader, RegistryError> {
        let (sender, chunks) = mpsc::channel(CHUNKS_BUFFERED);
        let (session, digest) = (self.session.clone(), digest.clone());
        let mut cancel = self.cancel.subscribe();
        let skipped = self.wait(listen, async move |notices| {
            let (answer, skip) = open_blob(&session, &digest, size_bytes, offset, &notices).await?;
            let body = Body::new(answer, session.transport.timeouts);
            tokio::spawn(async move {
                tokio::select! {
                    () = pump(body, skip, sender) => {}
                    // Either way the stream ends here; its reader knows from the flag.
                    _ = cancel.wait_for(|cancelled| *cancelled) => {}
                }
            });
            Ok(skip)
        })?;
        Ok(BlobReader { chunks, current: Bytes::new(), skipped, cancelled: self.cancelled.clone() })
    }

    /// Opens the stream of a whole blob of which only the registry knows the size; `None` where it does not say.
    pub fn blob_of_its_size(
        &self,
        digest: &Digest,
        listen: &dyn Fn(Notice),
    ) -> Result<Option<(u64, BlobReader)>, RegistryError> {
        let (sender, chunks) = mpsc::channel(CHUNKS_BUFFERED);
        let (session, name) = (self.session.clone(), digest.to_string());
        let mut cancel = self.cancel.subscribe();
        let size = self.wait(listen, async move |notices| {
            let answer = session.blob(&name, HeaderMap::new(), &notices).await?;
            let size = answer.response.content_length();
            let body = Body::new(answer, session.transport.timeouts);
            tokio::spawn(async move {
                tokio::select! {
                    () = pump(body, 0, sender) => {}
                    // Either way the stream ends here; its reader knows from the flag.
                    _ = cancel.wait_for(|cancelled| *cancelled) => {}
                }
            });
            Ok(size)
        })?;
        let reader = BlobReader { chunks, current: Bytes::new(), skipped: 0, cancelled: self.cancelled.clone() };
        Ok(size.map(|size| (size, reader)))
    }

    /// Learns whether the registry takes the credentials.
    pub fn log_in(&self, listen: &dyn Fn(Notice)) -> Result<(), RegistryError> {
        let session = self.session.clone();
        self.wait(listen, async move |notices| session.log_in(&notices).await)
    }

    /// Ends every request and every stream with [`RegistryError::Cancelled`].
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        self.cancel.send_replace(true);
    }

    /// The registry's `host[:port]`, for people.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Runs `work` on the runtime's thread and waits for it here, passing notices on.
    pub(super) fn wait<T, F>(
        &self,
        listen: &dyn Fn(Notice),
        work: impl FnOnce(Notices) -> F,
    ) -> Result<T, RegistryError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, RegistryError>> + Send + 'static,
    {
        let (notices, mut heard) = mpsc::unbounded_channel();
        let (sender, receiver) = oneshot::channel();
        let work = work(Notices(Some(notices)));
        let mut cancel = self.cancel.subscribe();
        self.handle.spawn(async move {
            let outcome = tokio::select! {
                outcome = work => outcome,
                _ = cancel.wait_for(|cancelled| *cancelled) => Err(RegistryError::Cancelled),
            };
            // The receiver waits below.
            let _ = sender.send(outcome);
        });
        // Ends when the work is over and has dropped its sender.
        while let Some(notice) = heard.blocking_recv() {
            listen(notice);
        }
        receiver.blocking_recv().unwrap_or(Err(RegistryError::Cancelled))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.cancel();
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed already.
            let _ = thread.join();
        }
    }
}

/// The bytes of a blob from an offset on; ends early when the connection does.
pub struct BlobReader {
    chunks: mpsc::Receiver<Result<Bytes, RegistryError>>,
    current: Bytes,
    skipped: u64,
    cancelled: Arc<AtomicBool>,
}

impl BlobReader {
    /// How many bytes the registry sends once more because it cannot start at an offset.
    pub fn skipped_bytes(&self) -> u64 {
        self.skipped
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(io::Error::other(RegistryError::Cancelled));
            }
            match self.chunks.blocking_recv() {
                Some(Ok(chunk)) => self.current = chunk,
                Some(Err(error)) => return Err(io::Error::other(error)),
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

/// Gets the response whose body holds the blob; also how much of it lies before `offset`.
async fn open_blob(
    session: &Session,
    digest: &Digest,
    size_bytes: u64,
    offset: u64,
    notices: &Notices,
) -> Result<(Answer, u64), RegistryError> {
    let name = digest.to_string();
    if offset > 0 {
        let mut headers = HeaderMap::new();
        let range = format!("bytes={offset}-");
        headers.insert(RANGE, HeaderValue::from_str(&range).unwrap_or(HeaderValue::from_static("bytes=0-")));
        match session.blob(&name, headers, notices).await {
            Ok(answer) if answer.response.status().as_u16() == 206 => {
                if continues(&answer, offset, size_bytes) {
                    return Ok((answer, 0));
                }
            }
            Ok(answer) => return whole(answer, digest, size_bytes).map(|answer| (answer, offset)),
            // Some servers and caches fail at ranges; they get one chance without.
            Err(RegistryError::Status { status: 400 | 405..=416, .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let answer = session.blob(&name, HeaderMap::new(), notices).await?;
    whole(answer, digest, size_bytes).map(|answer| (answer, offset))
}

/// Checks that a whole body has the announced length, as far as the header says.
fn whole(answer: Answer, digest: &Digest, size_bytes: u64) -> Result<Answer, RegistryError> {
    match answer.response.content_length() {
        Some(length_bytes) if length_bytes != size_bytes => {
            Err(RegistryError::WrongLength { host: answer.host(), digest: digest.clone(), length_bytes, size_bytes })
        }
        _ => Ok(answer),
    }
}

/// Tells whether a 206 is the part from `offset` to the end.
fn continues(answer: &Answer, offset: u64, size_bytes: u64) -> bool {
    let range = answer.response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let Some((part, total)) = range.and_then(|range| range.strip_prefix("bytes ")?.split_once('/')) else {
        return false;
    };
    let Some((first, last)) = part.split_once('-') else { return false };
    let total_fits = total == "*" || total.parse() == Ok(size_bytes);
    total_fits && first.parse() == Ok(offset) && last.parse::<u64>().is_ok_and(|last| last + 1 == size_bytes)
}

/// Moves a body into the channel of its reader, without its first `skip` bytes.
async fn pump(mut body: Body, mut skip: u64, sender: mpsc::Sender<Result<Bytes, RegistryError>>) {
    loop {
        let piece = match body.chunk().await {
            Ok(Some(mut chunk)) => {
                let dropped = skip.min(chunk.len() as u64);
                skip -= dropped;
                chunk.advance(usize::try_from(dropped).unwrap_or(chunk.len()));
                if chunk.is_empty() {
                    continue;
                }
                Ok(chunk)
            }
            Ok(None) => return,
            Err(error) => Err(error),
        };
        let is_last = piece.is_err();
        // Nobody reads any more: the ingest has enough or has failed.
        if sender.send(piece).await.is_err() || is_last {
            return;
        }
    }
}

fn stated_digest(answer: &Answer) -> Option<Digest> {
    answer.response.headers().get(CONTENT_DIGEST)?.to_str().ok()?.parse().ok()
}

fn hash(algorithm: Algorithm, bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::new(algorithm);
    hasher.update(bytes);
    hasher.finish()
}

type Runtime = (Handle, oneshot::Sender<()>, JoinHandle<()>);

fn start_runtime() -> Result<Runtime, RegistryError> {
    let runtime = Builder::new_current_thread().enable_all().build().map_err(RegistryError::SetUp)?;
    let handle = runtime.handle().clone();
    let (stop, stopped) = oneshot::channel::<()>();
    let thread = std::thread::Builder::new()
        .name("registry".to_owned())
        .spawn(move || {
            // Ends when the sender is dropped; nothing is ever sent.
            let _ = runtime.block_on(stopped);
        })
        .map_err(RegistryError::SetUp)?;
    Ok((handle, stop, thread))
}
