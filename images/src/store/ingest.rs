//! The way of a blob into the store.

use std::error::Error;
use std::io::{self, Read};
use std::path::PathBuf;

use crate::digest::{Digest, DigestError};
use crate::layer::{Compression, LayerSpace};
use crate::progress::Progress;
use crate::store::{Store, StoreError};

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

/// Why a blob did not get into the store.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each text says what the variant means")]
pub enum IngestError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot fetch blob {digest}")]
    Source { digest: Digest, #[source] source: SourceError },
    #[error("blob {digest} is {size_bytes} bytes, the limit is {max_bytes}")]
    TooLarge { digest: Digest, size_bytes: u64, max_bytes: u64 },
    #[error("blob {digest} is longer than the {size_bytes} bytes that were announced")]
    TooLong { digest: Digest, size_bytes: u64 },
    #[error("blob {expected} arrived with different content ({actual})")]
    WrongDigest { expected: Digest, actual: Digest },
}

impl Store {
    /// Takes one layer blob in a single pass.
    pub fn ingest_layer(
        &self,
        _layer: &LayerIngest<'_>,
        _open: &mut OpenSource<'_>,
        _progress: &dyn Progress,
    ) -> Result<(), IngestError> {
        unimplemented!("seam first, body follows within minutes")
    }

    /// Takes a small blob (configuration, manifest, index), verifies and publishes it.
    pub fn ingest_blob(
        &self,
        _digest: &Digest,
        _size_bytes: u64,
        _max_bytes: u64,
        _open: &mut OpenSource<'_>,
    ) -> Result<Vec<u8>, IngestError> {
        unimplemented!("seam first, body follows within minutes")
    }
}
