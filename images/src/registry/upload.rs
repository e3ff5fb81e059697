//! Giving content to a registry: blobs first, the manifest that names them last.
//!
//! A blob that the registry has is not sent; one that another repository of the same registry has is
//! mounted from there. A small blob goes up in one request. A large one is streamed in one request
//! too, because registries disagree about the size of chunks (one wants 5 MiB at least, another
//! takes 4 MiB at most); only when that fails, the next attempt is made in chunks. The registry
//! checks the digest, so a damaged blob of ours is refused there.
//!
//! Where an upload goes on is the registry's word and is treated like a redirect: credentials are
//! not sent to another origin (security.md A62).

use std::io::{self, Read};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Method, Url};
use tokio::sync::mpsc;

use super::client::{Notice, Registry};
use super::destination;
use super::session::{Notices, Session, Subject};
use super::transport::{Answer, Follow, Request, host_of};
use super::{DestinationProblem, RegistryError};
use crate::digest::Digest;
use crate::limits::{ATTEMPTS_MAX, UPLOAD_CHUNK_BYTES, UPLOAD_CHUNK_BYTES_MAX};

/// One read of a blob that is being streamed.
const PIECE_BYTES: usize = 256 << 10;
/// How many pieces wait for the network.
const PIECES_BUFFERED: usize = 4;
/// In which a registry says how small a chunk may be.
const CHUNK_MIN: &str = "oci-chunk-min-length";
const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// Opens a blob from its beginning, as often as it takes.
pub type OpenBlob<'a> = dyn Fn() -> io::Result<Box<dyn Read + Send>> + Sync + 'a;

/// What became of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Uploaded {
    /// It was there.
    Present,
    /// The registry took it from another repository.
    Mounted,
    /// It was sent.
    Sent,
}

/// Why a blob did not get there.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each text says what the variant means")]
pub enum UploadError {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error("cannot read blob {digest}")]
    Read {
        digest: Digest,
        #[source]
        source: io::Error,
    },
}

/// One blob that is to go up.
#[derive(Clone, Copy)]
pub struct BlobUpload<'a> {
    /// What it must hash to.
    pub digest: &'a Digest,
    /// Its length.
    pub size_bytes: u64,
    /// A repository of the same registry that may have it.
    pub from: Option<&'a str>,
    /// Its content.
    pub open: &'a OpenBlob<'a>,
    /// Hears how many bytes have left; after a failed attempt counting starts again.
    pub sent: &'a (dyn Fn(u64) + Sync),
}

/// Where an upload goes on.
enum Started {
    Mounted,
    At { url: Url, chunk_bytes: usize },
}

impl Registry {
    /// Gives a blob to the registry unless it has it.
    pub fn upload(&self, blob: &BlobUpload<'_>, listen: &dyn Fn(Notice)) -> Result<Uploaded, UploadError> {
        let (session, digest) = (self.session.clone(), blob.digest.clone());
        if self.wait(listen, async move |notices| session.has_blob(&digest, &notices).await)? {
            return Ok(Uploaded::Present);
        }
        let mut attempt = 0;
        loop {
            attempt += 1;
            let (session, digest) = (self.session.clone(), blob.digest.clone());
            let from = blob.from.map(str::to_owned);
            let started =
                self.wait(listen, async move |notices| session.start(&digest, from.as_deref(), &notices).await)?;
            let (url, chunk_bytes) = match started {
                Started::Mounted => return Ok(Uploaded::Mounted),
                Started::At { url, chunk_bytes } => (url, chunk_bytes),
            };
            let outcome = if blob.size_bytes <= UPLOAD_CHUNK_BYTES as u64 || attempt > 1 {
                self.in_chunks(blob, url, chunk_bytes, listen)
            } else {
                self.in_one(blob, url, listen)
            };
            match outcome {
                Err(UploadError::Registry(error)) if attempt < ATTEMPTS_MAX && may_repeat(&error) => {}
                other => return other.map(|()| Uploaded::Sent),
            }
        }
    }

    /// Gives a manifest its name there; returns the digest that the registry says it has.
    pub fn put_manifest(
        &self,
        name: &str,
        media_type: &str,
        bytes: Vec<u8>,
        listen: &dyn Fn(Notice),
    ) -> Result<(), RegistryError> {
        let (session, name) = (self.session.clone(), name.to_owned());
        let media_type = HeaderValue::from_str(media_type).unwrap_or(OCTETS);
        self.wait(listen, async move |notices| {
            let mut request = Request::new(Method::PUT, session.url(&format!("manifests/{name}")), Follow::No);
            request.headers.insert(CONTENT_TYPE, media_type);
            request.body = Some(bytes.into());
            session.request(&request, Subject::Upload, &notices).await.map(drop)
        })
    }

    /// Streams the whole blob in one request.
    fn in_one(&self, blob: &BlobUpload<'_>, url: Url, listen: &dyn Fn(Notice)) -> Result<(), UploadError> {
        let failed = |source| UploadError::Read { digest: blob.digest.clone(), source };
        let mut reader = (blob.open)().map_err(failed)?;
        let (sender, receiver) = mpsc::channel(PIECES_BUFFERED);
        let (session, size_bytes) = (self.session.clone(), blob.size_bytes);
        let url = finishing(url, blob.digest);
        let cancelled = self.cancelled.clone();
        std::thread::scope(|scope| {
            let feeder = scope.spawn(move || {
                loop {
                    let mut piece = vec![0u8; PIECE_BYTES];
                    let length = match reader.read(&mut piece) {
                        Ok(0) => return Ok(()),
                        Ok(length) => length,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                        Err(error) => return Err(error),
                    };
                    piece.truncate(length);
                    // The request has ended: why is known there.
                    if cancelled.load(Ordering::Relaxed) || sender.blocking_send(Bytes::from(piece)).is_err() {
                        return Ok(());
                    }
                    (blob.sent)(length as u64);
                }
            });
            let sent = self.wait(listen, async move |_| session.stream(url, size_bytes, receiver).await);
            match feeder.join() {
                Ok(Err(source)) => Err(failed(source)),
                _ => Ok(sent?),
            }
        })
    }

    fn in_chunks(
        &self,
        blob: &BlobUpload<'_>,
        mut url: Url,
        chunk_bytes: usize,
        listen: &dyn Fn(Notice),
    ) -> Result<(), UploadError> {
        let failed = |source| UploadError::Read { digest: blob.digest.clone(), source };
        let mut reader = (blob.open)().map_err(failed)?;
        let mut offset = 0u64;
        loop {
            let mut chunk = Vec::new();
            reader.by_ref().take(chunk_bytes as u64).read_to_end(&mut chunk).map_err(failed)?;
            let length = chunk.len() as u64;
            let is_last = offset + length >= blob.size_bytes || length == 0;
            let session = self.session.clone();
            if is_last {
                let url = finishing(url, blob.digest);
                self.wait(listen, async move |notices| {
                    session.send_piece(Method::PUT, url, chunk, (offset > 0).then_some(offset), &notices).await
                })?;
                (blob.sent)(length);
                return Ok(());
            }
            url = self.wait(listen, async move |notices| {
                let answer = session.send_piece(Method::PATCH, url, chunk, Some(offset), &notices).await?;
                session.next_place(&answer).await
            })?;
            (blob.sent)(length);
            offset += length;
        }
    }
}

impl Session {
    async fn has_blob(&self, digest: &Digest, notices: &Notices) -> Result<bool, RegistryError> {
        let request = Request::new(Method::HEAD, self.url(&format!("blobs/{digest}")), Follow::Yes);
        match self.request(&request, Subject::Blob, notices).await {
            Ok(_) => Ok(true),
            // A repository that does not exist yet, or a registry without HEAD.
            Err(RegistryError::Status { status: 404 | 405 | 501, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Opens an upload, or mounts the blob where that is possible.
    async fn start(&self, digest: &Digest, from: Option<&str>, notices: &Notices) -> Result<Started, RegistryError> {
        let mut url = self.url("blobs/uploads/");
        if let Some(from) = from {
            url.query_pairs_mut().append_pair("mount", &digest.to_string()).append_pair("from", from);
        }
        let mut request = Request::new(Method::POST, url, Follow::No);
        request.body = Some(Bytes::new());
        let answer = self.request(&request, Subject::Upload, notices).await?;
        if answer.response.status().as_u16() == 201 {
            return Ok(Started::Mounted);
        }
        let least = answer.response.headers().get(CHUNK_MIN).and_then(|value| value.to_str().ok()?.parse().ok());
        let chunk_bytes = least.unwrap_or(0).clamp(UPLOAD_CHUNK_BYTES, UPLOAD_CHUNK_BYTES_MAX);
        Ok(Started::At { url: self.next_place(&answer).await?, chunk_bytes })
    }

    /// Reads where the upload goes on.
    async fn next_place(&self, answer: &Answer) -> Result<Url, RegistryError> {
        let refuse = |problem| RegistryError::Redirect { host: answer.host(), problem };
        let location = answer.response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let location = location.ok_or_else(|| refuse(DestinationProblem::NoLocation))?;
        destination::redirect(answer.response.url(), location, self.transport.reach().await).map_err(refuse)
    }

    async fn send_piece(
        &self,
        method: Method,
        url: Url,
        piece: Vec<u8>,
        offset: Option<u64>,
        notices: &Notices,
    ) -> Result<Answer, RegistryError> {
        let mut headers = HeaderMap::from_iter([(CONTENT_TYPE, OCTETS)]);
        if let (Some(offset), false) = (offset, piece.is_empty()) {
            let range = format!("{offset}-{}", offset + piece.len() as u64 - 1);
            headers.extend(HeaderValue::from_str(&range).map(|range| (CONTENT_RANGE, range)));
        }
        let request = Request { headers, body: Some(piece.into()), ..Request::new(method, url, Follow::No) };
        self.request(&request, Subject::Upload, notices).await
    }

    /// Sends a stream; the time between two pieces is limited, not the whole.
    async fn stream(&self, url: Url, size_bytes: u64, pieces: mpsc::Receiver<Bytes>) -> Result<(), RegistryError> {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, OCTETS)]);
        let request = Request { headers, ..Request::new(Method::PUT, url, Follow::No) };
        let authorization = self.authorization().await.filter(|_| self.is_home(&request));
        let taken = Arc::new(AtomicU64::new(0));
        let body = reqwest::Body::wrap_stream(Pieces { pieces, taken: taken.clone() });
        let mut sending = Box::pin(self.transport.send_stream(&request, authorization.as_ref(), size_bytes, body));
        let (mut idle, mut before) = (self.transport.timeouts.idle, 0);
        let answer = loop {
            match tokio::time::timeout(idle, &mut sending).await {
                Ok(answer) => break answer?,
                Err(_) => {
                    let got_bytes = taken.load(Ordering::Relaxed);
                    if got_bytes == before {
                        return Err(RegistryError::Stalled { host: host_of(&request.url), got_bytes });
                    }
                    before = got_bytes;
                    if got_bytes == size_bytes {
                        // All is sent; what the registry does with it takes as long as a large blob takes.
                        idle = self.transport.timeouts.idle * FINISHING_FACTOR;
                    }
                }
            }
        };
        self.settle(answer, Subject::Upload).await.map(drop)
    }
}

/// How much longer than between two pieces a registry may take to answer at the end.
const FINISHING_FACTOR: u32 = 10;

/// The pieces of a blob on their way into a request.
struct Pieces {
    pieces: mpsc::Receiver<Bytes>,
    taken: Arc<AtomicU64>,
}

impl futures_core::Stream for Pieces {
    type Item = Result<Bytes, io::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.pieces.poll_recv(context).map(|piece| {
            let piece = piece?;
            self.taken.fetch_add(piece.len() as u64, Ordering::Relaxed);
            Some(Ok(piece))
        })
    }
}

/// The address that completes an upload.
fn finishing(mut url: Url, digest: &Digest) -> Url {
    url.query_pairs_mut().append_pair("digest", &digest.to_string());
    url
}

/// Whether another attempt, in chunks, may succeed.
fn may_repeat(error: &RegistryError) -> bool {
    match error {
        // An expired token, a lost upload, too large for one request, a registry that is busy.
        RegistryError::Status { status: 404 | 408 | 411 | 413 | 416 | 500..=599, .. } => true,
        RegistryError::Denied { authenticated, .. } => *authenticated,
        other => other.is_passing(),
    }
}
