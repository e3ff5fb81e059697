//! The way of a blob into the store.
//!
//! A layer is fetched, hashed, kept, decompressed, hashed again and unpacked in one pass, and gets
//! its names only after both digests matched and everything was synced. What a broken download left
//! is read again from disk, through the same pass, and the rest fetched.

use std::error::Error;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::inherit::inherit;
use super::lock::{self, Share};
use super::pipeline::{self, PassError};
use super::stream::{BlobStream, Origin, SourceFailed, StreamFailure};
use super::target::Target;
use super::{Image, Store, StoreError, make_directories, sync_directory};
use crate::digest::Digest;
use crate::layer::{Compression, Layer, LayerSpace};
use crate::progress::Progress;
use crate::unpack::{UnpackError, UnpackReport, Unpacked};

/// Whatever keeps a source of bytes from being opened; the caller's own error type.
pub type SourceError = Box<dyn Error + Send + Sync>;

/// Opens the stream of a blob at a byte offset. An error ends the ingest; a stream that breaks or
/// ends early makes the store call this again with the new offset, at most
/// [`SOURCE_REOPENS_MAX`](crate::limits::SOURCE_REOPENS_MAX) times in a row without progress.
/// Waiting between attempts is up to the function.
pub type OpenSource<'a> = dyn FnMut(u64) -> Result<Box<dyn Read + Send>, SourceError> + 'a;

/// One layer that is to come in.
#[derive(Debug, Clone, Copy)]
pub struct LayerIngest<'a> {
    /// Digest of the blob as it is transferred.
    pub blob: &'a Digest,
    /// Size of the blob, from its descriptor.
    pub size_bytes: u64,
    /// Digest of the uncompressed archive, from the image configuration.
    pub diff_id: &'a Digest,
    /// From the media type; the bytes must agree.
    pub compression: Compression,
    /// Where it is unpacked to.
    pub space: &'a LayerSpace,
}

/// What an ingest did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ingested {
    /// Blob and layer were here, or another process has just brought them.
    Present,
    /// The layer was here, only the blob was not.
    BlobOnly,
    /// The layer was unpacked.
    Unpacked(UnpackReport),
}

/// Why a blob did not get into the store.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each text says what the variant means")]
pub enum IngestError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot fetch blob {digest}")]
    Source {
        digest: Digest,
        #[source]
        source: SourceError,
    },
    #[error("blob {digest} is {size_bytes} bytes, the limit is {max_bytes}")]
    TooLarge { digest: Digest, size_bytes: u64, max_bytes: u64 },
    #[error("blob {digest} is longer than the {size_bytes} bytes that were announced")]
    TooLong { digest: Digest, size_bytes: u64 },
    #[error("blob {expected} arrived with different content ({actual})")]
    WrongDigest { expected: Digest, actual: Digest },
    #[error("layer {blob} unpacks to {actual}, the image promises {expected}")]
    WrongDiffId { blob: Digest, expected: Digest, actual: Digest },
    #[error("layer {digest} is called {declared} and is {found}")]
    WrongCompression { digest: Digest, declared: Compression, found: Compression },
    #[error("layer {digest} is damaged")]
    Decode {
        digest: Digest,
        #[source]
        source: io::Error,
    },
    #[error("cannot unpack layer {digest}")]
    Unpack {
        digest: Digest,
        #[source]
        source: UnpackError,
    },
    #[error("cannot start a thread for layer {digest}")]
    Thread {
        digest: Digest,
        #[source]
        source: io::Error,
    },
}

impl Store {
    /// Takes one layer blob in a single pass: fetch, hash, keep, decompress, unpack, publish.
    ///
    /// Waits while another process works on the same blob or layer, then finds the work done. A
    /// blob that is here already is unpacked without calling `open`.
    pub fn ingest_layer(
        &self,
        layer: &LayerIngest<'_>,
        open: &mut OpenSource<'_>,
        progress: &dyn Progress,
    ) -> Result<Ingested, IngestError> {
        let max_bytes = self.limits().blob_bytes_max;
        if layer.size_bytes > max_bytes {
            let (digest, size_bytes) = (layer.blob.clone(), layer.size_bytes);
            return Err(IngestError::TooLarge { digest, size_bytes, max_bytes });
        }
        let what = layer.blob.short();
        progress.begin(what, layer.size_bytes);
        let result = self.ingest_locked(layer, open, progress);
        progress.finish(
            what,
            match &result {
                Ok(Ingested::Present) => "already here",
                Ok(_) => "done",
                Err(_) => "failed",
            },
        );
        result
    }

    /// Takes a small blob (configuration, manifest, index), verifies and publishes it.
    pub fn ingest_blob(
        &self,
        digest: &Digest,
        size_bytes: u64,
        max_bytes: u64,
        open: &mut OpenSource<'_>,
    ) -> Result<Vec<u8>, IngestError> {
        if size_bytes > max_bytes {
            return Err(IngestError::TooLarge { digest: digest.clone(), size_bytes, max_bytes });
        }
        let _keep = self.keep()?;
        let _lock = lock::acquire(&self.blob_lock_path(digest), Share::Exclusive, || ())?;
        if self.has_blob(digest, size_bytes) {
            match self.read_blob(digest) {
                Ok(bytes) => return Ok(bytes),
                Err(StoreError::BlobDamaged { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mut stream = BlobStream::new(digest, size_bytes, Origin::Source { open, keep: None });
        let mut bytes = Vec::new();
        // A failure stays in the stream, and finishing it brings it out.
        let _ = stream.read_to_end(&mut bytes);
        stream.finish(digest).map_err(|failure| self.stream_error(digest, size_bytes, failure))?;
        self.publish_bytes(digest, &bytes)?;
        Ok(bytes)
    }

    /// Unpacks what is not unpacked yet of an image that is in the store; returns its directories
    /// as [`Store::layers`] does.
    pub fn unpack(
        &self,
        image: &Image,
        space: &LayerSpace,
        progress: &dyn Progress,
    ) -> Result<Vec<PathBuf>, IngestError> {
        let _keep = self.keep()?;
        for layer in &image.layers {
            let Layer { blob, size_bytes, diff_id, compression } = layer;
            let ingest = LayerIngest { blob, size_bytes: *size_bytes, diff_id, compression: *compression, space };
            let missing = || StoreError::BlobMissing { digest: blob.clone() };
            self.ingest_layer(&ingest, &mut |_| Err(missing().into()), progress)?;
        }
        inherit(&self.space_root(space)?, image)?;
        let missing = || StoreError::NoSuchImage { name: image.id.to_string() };
        Ok(self.layers(image, space)?.ok_or_else(missing)?)
    }

    fn ingest_locked(
        &self,
        layer: &LayerIngest<'_>,
        open: &mut OpenSource<'_>,
        progress: &dyn Progress,
    ) -> Result<Ingested, IngestError> {
        let waiting = || progress.phase(layer.blob.short(), "waiting for another coracle");
        let _keep = self.keep()?;
        let _blob = lock::acquire(&self.blob_lock_path(layer.blob), Share::Exclusive, waiting)?;
        let space = self.space_root(layer.space)?;
        let lock_name = format!("{}--{}", layer.diff_id.hex(), layer.space.name);
        let _layer = lock::acquire(&self.lock_path(&lock_name), Share::Exclusive, waiting)?;
        make_directories(&space)?;
        let target = Target::new(&space, layer.diff_id);
        let has_layer = target.is_published();
        if self.has_blob(layer.blob, layer.size_bytes) {
            if has_layer {
                return Ok(Ingested::Present);
            }
            let file = self.open_blob(layer.blob)?;
            progress.phase(layer.blob.short(), "unpacking");
            match self.pass(layer, Some(&target), Origin::File(file), progress) {
                // The disk lost it; fetch it again.
                Err(IngestError::WrongDigest { .. } | IngestError::TooLong { .. }) => {}
                other => return other,
            }
        }
        self.fetch(layer, (!has_layer).then_some(&target), open, progress)
    }

    /// Fetches a blob, beginning with what an earlier attempt left. When that turns out to be
    /// damaged (a crash of the machine may leave zeros), it is fetched from the start, once.
    fn fetch(
        &self,
        layer: &LayerIngest<'_>,
        target: Option<&Target>,
        open: &mut OpenSource<'_>,
        progress: &dyn Progress,
    ) -> Result<Ingested, IngestError> {
        let path = self.partial_path(layer.blob);
        loop {
            let (file, kept_bytes) = open_partial(&path, layer.size_bytes)?;
            progress.phase(layer.blob.short(), "downloading");
            let origin = Origin::Source { open: &mut *open, keep: Some((file, kept_bytes)) };
            let error = match self.pass(layer, target, origin, progress) {
                // Worth going on with next time.
                Err(error @ IngestError::Source { .. }) => return Err(error),
                Err(error) => error,
                Ok(done) => return Ok(done),
            };
            // A failure here would only hide the first one.
            let _ = fs_err::remove_file(&path);
            let is_data = matches!(
                error,
                IngestError::WrongDigest { .. }
                    | IngestError::Decode { .. }
                    | IngestError::WrongCompression { .. }
                    | IngestError::Unpack { source: UnpackError::Archive { .. } | UnpackError::Entry { .. }, .. }
            );
            if kept_bytes == 0 || !is_data {
                return Err(error);
            }
        }
    }

    /// Runs one pass and publishes what came out of it.
    fn pass(
        &self,
        layer: &LayerIngest<'_>,
        target: Option<&Target>,
        origin: Origin<'_, '_>,
        progress: &dyn Progress,
    ) -> Result<Ingested, IngestError> {
        let is_new_blob = matches!(origin, Origin::Source { .. });
        let directory = target.map(Target::prepare).transpose()?;
        let mut stream = BlobStream::new(layer.blob, layer.size_bytes, origin);
        stream.report_to(progress, layer.blob.short());
        let done = pipeline::run(&mut stream, layer, self.limits(), directory);
        let published = self.judge(layer, done, stream).and_then(|unpacked| {
            progress.phase(layer.blob.short(), "syncing");
            if is_new_blob {
                self.publish_partial(layer.blob)?;
            }
            target.map_or(Ok(()), |target| target.publish(&unpacked.implicit))?;
            Ok(target.map_or(Ingested::BlobOnly, |_| Ingested::Unpacked(unpacked.report)))
        });
        if let (Err(_), Some(target)) = (&published, target) {
            target.discard();
        }
        published
    }

    /// Decides what a pass came to. The source's failure explains all others; a wrong digest
    /// explains damaged data.
    fn judge(
        &self,
        layer: &LayerIngest<'_>,
        done: Result<(Digest, Unpacked), PassError>,
        mut stream: BlobStream<'_, '_>,
    ) -> Result<Unpacked, IngestError> {
        let stream_error = |failure| self.stream_error(layer.blob, layer.size_bytes, failure);
        if let Some(failure) = stream.take_failure() {
            return Err(stream_error(failure));
        }
        let is_resumed = stream.is_resumed();
        let (diff_id, unpacked) = match done {
            Ok(done) => {
                stream.finish(layer.blob).map_err(stream_error)?;
                done
            }
            Err(error) => {
                // What was kept is the likelier culprit, and fetching the rest would not tell more.
                if error.is_about_data()
                    && !is_resumed
                    && let Err(failure @ StreamFailure::WrongDigest(_)) = stream.finish(layer.blob)
                {
                    return Err(stream_error(failure));
                }
                return Err(pass_error(layer, error));
            }
        };
        if diff_id != *layer.diff_id {
            let (blob, expected) = (layer.blob.clone(), layer.diff_id.clone());
            return Err(IngestError::WrongDiffId { blob, expected, actual: diff_id });
        }
        Ok(unpacked)
    }

    fn stream_error(&self, digest: &Digest, size_bytes: u64, failure: StreamFailure) -> IngestError {
        let digest = digest.clone();
        match failure {
            StreamFailure::Source(source) => IngestError::Source { digest, source },
            StreamFailure::TooLong => IngestError::TooLong { digest, size_bytes },
            StreamFailure::WrongDigest(actual) => IngestError::WrongDigest { expected: digest, actual },
            StreamFailure::Keep(source) => {
                IngestError::Store(StoreError::Io { op: "write", path: self.partial_path(&digest), source })
            }
        }
    }

    /// Gives a verified download its name.
    fn publish_partial(&self, digest: &Digest) -> Result<(), StoreError> {
        let (from, to) = (self.partial_path(digest), self.blob_path(digest));
        let failed = |op| {
            let path = to.clone();
            move |source| StoreError::Io { op, path, source }
        };
        let directory = to.parent().unwrap_or(&to);
        make_directories(directory)?;
        fs_err::File::open(&from).and_then(|file| file.sync_all()).map_err(failed("sync"))?;
        fs_err::rename(&from, &to).map_err(failed("publish"))?;
        sync_directory(directory)
    }

    /// Writes and names a blob; the caller holds its lock.
    pub(super) fn publish_bytes(&self, digest: &Digest, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.blob_path(digest);
        make_directories(path.parent().unwrap_or(&path))?;
        let name = self.partial_path(digest);
        self.replace_file(&path, &name, bytes)
    }

    pub(super) fn blob_lock_path(&self, digest: &Digest) -> PathBuf {
        self.lock_path(&format!("{}-{}", digest.algorithm().name(), digest.hex()))
    }
}

fn pass_error(layer: &LayerIngest<'_>, error: PassError) -> IngestError {
    let digest = layer.blob.clone();
    match error {
        PassError::Source => IngestError::Source { digest, source: Box::new(SourceFailed) },
        PassError::Decode(source) => IngestError::Decode { digest, source },
        PassError::Compression(found) => IngestError::WrongCompression { digest, declared: layer.compression, found },
        PassError::Unpack(source) => IngestError::Unpack { digest, source },
        PassError::Thread(source) => IngestError::Thread { digest, source },
    }
}

/// Opens what an earlier attempt left of a blob, or an empty file. Longer than the blob is useless.
fn open_partial(path: &Path, size_bytes: u64) -> Result<(fs_err::File, u64), StoreError> {
    use fs_err::os::unix::fs::OpenOptionsExt;
    let failed = |source| StoreError::Io { op: "open", path: path.to_path_buf(), source };
    let mut options = fs_err::OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(path).map_err(failed)?;
    let kept_bytes = file.metadata().map_err(failed)?.len();
    if kept_bytes <= size_bytes {
        return Ok((file, kept_bytes));
    }
    file.set_len(0).map_err(failed)?;
    Ok((file, 0))
}
