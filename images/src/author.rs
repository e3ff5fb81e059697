//! Images that are made here: by commit, from a container's changes, and by import, from an archive.
//!
//! A layer is first written whole into a nameless file of the store, because its digests are in its
//! name and known only at the end; a kill leaves nothing of it. From there it takes the same way as
//! the layers of a pull, so what was packed is checked by unpacking it, and the image becomes visible
//! at the very end.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};

use rustix::fs::{CWD, Mode, OFlags, openat};
use serde::{Deserialize, Serialize};

use crate::decompression::{Decoder, sniff};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::layer::{Compression, LayerSpace};
use crate::limits;
use crate::progress::Progress;
use crate::reference::Reference;
use crate::registry::manifest::{Descriptor, ImageDocument};
use crate::store::{
    Image, IngestError, LayerIngest, MANIFEST_MEDIA_TYPE, Publication, SourceError, Store, StoreError, converted,
};

/// What goes through memory at once.
const BUFFER_BYTES: usize = 256 << 10;
/// A layer is written once and read often, but a person waits for a commit: half way to the best.
const GZIP_LEVEL: u32 = 4;

/// Why an image could not be made.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each text says what the variant means")]
pub enum AuthorError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Ingest(#[from] IngestError),
    #[error("cannot write the layer")]
    Write(#[source] io::Error),
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    #[error("the archive is compressed with {0}, which is not implemented; decompress it first")]
    Compression(&'static str),
    #[error("the image would have more than {} layers", limits::LAYERS_MAX)]
    TooManyLayers,
    #[error("cannot describe the image")]
    Json(#[source] serde_json::Error),
}

/// A layer in a nameless file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DraftLayer {
    /// Of the file.
    blob: String,
    size_bytes: u64,
    /// Of the archive.
    diff_id: String,
    compression: DraftCompression,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum DraftCompression {
    Plain,
    Gzip,
    Zstd,
}

impl From<Compression> for DraftCompression {
    fn from(compression: Compression) -> Self {
        match compression {
            Compression::Plain => Self::Plain,
            Compression::Gzip => Self::Gzip,
            Compression::Zstd => Self::Zstd,
        }
    }
}

impl From<DraftCompression> for Compression {
    fn from(compression: DraftCompression) -> Self {
        match compression {
            DraftCompression::Plain => Self::Plain,
            DraftCompression::Gzip => Self::Gzip,
            DraftCompression::Zstd => Self::Zstd,
        }
    }
}

impl DraftLayer {
    /// Gives the digest of the uncompressed archive, for the configuration.
    pub fn diff_id(&self) -> &str {
        &self.diff_id
    }
}

/// Opens a nameless file of the store.
pub fn scratch(store: &Store) -> Result<File, AuthorError> {
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    let opened = openat(CWD, store.images().join("partial"), flags, Mode::RUSR | Mode::WUSR);
    opened.map(File::from).map_err(|errno| AuthorError::Write(errno.into()))
}

/// Writes a compressed layer into `file`; `fill` writes the archive.
pub fn write_layer<T, E: From<AuthorError>>(
    file: &File,
    fill: impl FnOnce(&mut dyn Write) -> Result<T, E>,
) -> Result<(T, DraftLayer), E> {
    let blob = Hashing::new(io::BufWriter::with_capacity(BUFFER_BYTES, file));
    let encoder = flate2::write::GzEncoder::new(blob, flate2::Compression::new(GZIP_LEVEL));
    let mut archive = Hashing::new(encoder);
    let given = fill(&mut archive)?;
    let (encoder, diff_id, _) = archive.finish();
    let finish = || {
        let (mut out, blob, size_bytes) = encoder.finish()?.finish();
        out.flush()?;
        Ok((blob, size_bytes))
    };
    let (blob, size_bytes) = finish().map_err(AuthorError::Write)?;
    let draft = DraftLayer {
        blob: blob.to_string(),
        size_bytes,
        diff_id: diff_id.to_string(),
        compression: Compression::Gzip.into(),
    };
    Ok((given, draft))
}

/// Takes an archive, compressed or not, into `file` as it is.
pub fn take_archive(file: &File, mut from: impl Read) -> Result<DraftLayer, AuthorError> {
    let mut out = Hashing::new(io::BufWriter::with_capacity(BUFFER_BYTES, file));
    io::copy(&mut from, &mut out).map_err(AuthorError::Write)?;
    let (mut out, blob, size_bytes) = out.finish();
    out.flush().map_err(AuthorError::Write)?;
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, rewound(file, 0).map_err(AuthorError::Read)?);
    let start = reader.fill_buf().map_err(AuthorError::Read)?;
    match start {
        [0xfd, b'7', b'z', b'X', b'Z', ..] => return Err(AuthorError::Compression("xz")),
        [b'B', b'Z', b'h', ..] => return Err(AuthorError::Compression("bzip2")),
        _ => {}
    }
    let compression = sniff(start);
    let mut diff = Hashing::new(io::sink());
    let mut decoder = Decoder::new(compression, reader).map_err(AuthorError::Read)?;
    io::copy(&mut decoder, &mut diff).map_err(AuthorError::Read)?;
    let (_, diff_id, _) = diff.finish();
    let (blob, diff_id) = (blob.to_string(), diff_id.to_string());
    Ok(DraftLayer { blob, size_bytes, diff_id, compression: compression.into() })
}

/// What an image is made of.
pub struct Work<'a> {
    /// The image below.
    pub base: Option<&'a Image>,
    /// The new layer and the file that holds it.
    pub layer: (&'a File, &'a DraftLayer),
    /// The whole configuration, diff ids included.
    pub config: &'a [u8],
    /// The name, if any.
    pub name: Option<&'a Reference>,
    /// Where the layer is unpacked to; the caller is in the user namespace that it belongs to.
    pub space: &'a LayerSpace,
}

/// Makes an image and gives it.
pub fn make(store: &Store, work: &Work<'_>, progress: &dyn Progress) -> Result<Image, AuthorError> {
    let _keep = store.keep()?;
    let (file, draft) = work.layer;
    let below = work.base.map(|base| base.layers.as_slice()).unwrap_or_default();
    if below.len() >= limits::LAYERS_MAX {
        return Err(AuthorError::TooManyLayers);
    }
    // They were made from digests a moment ago.
    let parse = |text: &str| text.parse::<Digest>().map_err(|error| AuthorError::Read(io::Error::other(error)));
    let (blob, diff_id) = (parse(&draft.blob)?, parse(&draft.diff_id)?);
    let (size_bytes, compression) = (draft.size_bytes, Compression::from(draft.compression));
    let ingest = LayerIngest { blob: &blob, size_bytes, diff_id: &diff_id, compression, space: work.space };
    let mut open = |offset: u64| -> Result<Box<dyn Read + Send>, SourceError> { Ok(Box::new(rewound(file, offset)?)) };
    store.ingest_layer(&ingest, &mut open, progress)?;
    let id = Digest::of(work.config);
    store.write_blob(&id, work.config)?;
    let describe =
        |digest: &Digest, size_bytes| Descriptor { digest: digest.clone(), size_bytes, media_type: String::new() };
    let mut layers: Vec<(Descriptor, Compression)> =
        below.iter().map(|layer| (describe(&layer.blob, layer.size_bytes), layer.compression)).collect();
    layers.push((describe(&blob, size_bytes), compression));
    let config = describe(&id, work.config.len() as u64);
    let document = ImageDocument { media_type: MANIFEST_MEDIA_TYPE.into(), config, layers };
    let manifest = converted(&document).map_err(AuthorError::Json)?;
    let digest = Digest::of(&manifest);
    store.write_blob(&digest, &manifest)?;
    let media_type = MANIFEST_MEDIA_TYPE;
    Ok(store.publish_image(&Publication { reference: work.name, manifest: &digest, media_type, index: None })?)
}

fn rewound(file: &File, offset: u64) -> io::Result<File> {
    let mut file = file.try_clone()?;
    file.seek(SeekFrom::Start(offset))?;
    Ok(file)
}

/// Hashes and counts what goes through.
struct Hashing<W> {
    inner: W,
    hasher: Hasher,
    bytes: u64,
}

impl<W: Write> Hashing<W> {
    fn new(inner: W) -> Self {
        Self { inner, hasher: Hasher::new(Algorithm::Sha256), bytes: 0 }
    }

    fn finish(self) -> (W, Digest, u64) {
        (self.inner, self.hasher.finish(), self.bytes)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..length]);
        self.bytes += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
