//! Takes images out of files: docker-archive, oci-archive, OCI layout directory.
//!
//! What a file claims is believed as little as what a registry claims: ids and digests are computed,
//! names inside only say where to look in the same file (security.md A51). The layers take the same
//! way as those of a pull, through [`Store::ingest_layer`].

mod docker;
mod layout;
mod source;

use std::io;
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::layer::LayerSpace;
use crate::progress::Progress;
use crate::reference::{Reference, ReferenceError};
use crate::registry::manifest::ManifestError;
use crate::store::{Image, IngestError, Publication, Store, StoreError};
use crate::unpack::UnpackError;
use source::Source;

/// How to load.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// The name to give; names that the file claims are not used then.
    pub tag: Option<Reference>,
    /// Where layers are unpacked to.
    pub space: LayerSpace,
}

/// Why an image cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each text says what the variant means")]
pub enum LoadError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Ingest(#[from] IngestError),
    #[error("cannot {op} {}", path.display())]
    Io {
        op: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is no image archive", path.display())]
    Archive {
        path: PathBuf,
        #[source]
        source: UnpackError,
    },
    #[error("{} has neither a manifest.json nor an index.json", path.display())]
    NoImages { path: PathBuf },
    #[error("{} has too many members", path.display())]
    TooManyMembers { path: PathBuf },
    #[error("the archive has no {}", name.escape_debug())]
    Missing { name: String },
    #[error("{} in the archive is larger than {max_bytes} bytes", name.escape_debug())]
    TooLarge { name: String, max_bytes: u64 },
    #[error("{} in the archive is not valid", name.escape_debug())]
    Json {
        name: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("{name} in the archive is refused")]
    Manifest {
        name: String,
        #[source]
        source: ManifestError,
    },
    #[error("the archive has an image for another platform only")]
    Platform,
    #[error("the archive holds {count} images, only one can be given a name")]
    SeveralImages { count: usize },
    #[error("the configuration lists {diff_ids} layers, the archive {layers}")]
    LayerCount { diff_ids: usize, layers: usize },
    #[error("a layer digest of the configuration is not valid")]
    DiffId {
        #[source]
        source: crate::digest::DigestError,
    },
    #[error("the archive gives its image a name that is none")]
    Name {
        #[source]
        source: ReferenceError,
    },
}

/// Loads every image of the file, directory or standard input (`/dev/stdin`) at `path`. An index
/// over several platforms gives the one for this host.
///
/// # Errors
/// Images before the one that failed stay.
pub fn load(
    store: &Store,
    path: &Path,
    options: &LoadOptions,
    progress: &dyn Progress,
) -> Result<Vec<Image>, LoadError> {
    let source = Source::open(path, store)?;
    let _keep = store.keep()?;
    let loading = Loading { store, source: &source, options, progress };
    // Docker writes both since version 25; the index keeps the manifest's digest.
    if source.contains("index.json") && source.contains("oci-layout") {
        loading.layout()
    } else if source.contains("manifest.json") {
        loading.docker()
    } else {
        Err(LoadError::NoImages { path: path.to_path_buf() })
    }
}

/// One call of [`load`].
struct Loading<'a> {
    store: &'a Store,
    source: &'a Source,
    options: &'a LoadOptions,
    progress: &'a dyn Progress,
}

impl Loading<'_> {
    /// Makes an image visible under all its names.
    fn publish(
        &self,
        manifest: &Digest,
        media_type: &str,
        index: Option<&Digest>,
        names: &[Reference],
    ) -> Result<Image, LoadError> {
        let names = self.options.tag.as_ref().map_or(names, std::slice::from_ref);
        let publication = Publication { reference: names.first(), manifest, media_type, index };
        let mut image = self.store.publish_image(&publication)?;
        for name in names.iter().skip(1) {
            self.store.tag(&image, name)?;
        }
        image.names.extend(names.iter().filter(|name| !image.names.contains(name)).cloned().collect::<Vec<_>>());
        image.names.sort();
        Ok(image)
    }

    fn check_count(&self, count: usize) -> Result<(), LoadError> {
        if count > 1 && self.options.tag.is_some() { Err(LoadError::SeveralImages { count }) } else { Ok(()) }
    }
}
