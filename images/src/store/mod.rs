//! Images on disk.
//!
//! ```text
//! <root>/                        0700, so that setuid files of images reach nobody else (A32)
//!   images/                      an OCI image layout; skopeo and umoci read it
//!     oci-layout  index.json     which images there are: the only roots of garbage collection
//!     blobs/<algorithm>/<hex>    verified before they get this name
//!     partial/<algorithm>-<hex>  downloads that are going on or were broken off
//!     locks/                     flock(2) files: store, index, one per blob and layer
//!   layers/<space>/<diff id>/    unpacked layers, complete and verified
//!   layers/<space>/.implicit-*   which directories of a layer inherit from the layers below
//!   layers/<space>/.unpacking-*  layers on their way in; removed by the next who holds their lock
//!   layers/<space>/.removing-*   layers on their way out; removed by the next collection
//! ```
//!
//! Everything gets its name by rename after it is whole and synced, so a kill at any moment leaves
//! a usable store. Readers take no locks. Writers hold `locks/store` shared ([`KeepGuard`]) from
//! their first blob until the index names it; the collector takes it exclusively.

mod find;
mod index;
mod ingest;
mod inherit;
mod lock;
mod pipeline;
mod publish;
mod remove;
mod stream;
mod target;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;
use rustix::fs::{CWD, Mode};
use rustix::io::Errno;

pub use find::HistoryEntry;
pub(crate) use index::{Index, MANIFEST_MEDIA_TYPE, NAME_ANNOTATION};
pub use ingest::{IngestError, Ingested, LayerIngest, OpenSource, SourceError};
pub use publish::Publication;
pub(crate) use publish::converted;
pub use remove::Removed;

use crate::digest::{Digest, DigestError};
use crate::layer::{Layer, LayerSpace};
use crate::limits::Limits;
use crate::platform::Platform;
use crate::reference::Reference;
use crate::registry::manifest::ManifestError;
use lock::{Lock, Share};

/// Images on disk.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    limits: Limits,
}

/// Holds off garbage collection while it lives. A pull takes it before its first ingest and drops
/// it after [`Store::publish_image`].
#[derive(Debug)]
pub struct KeepGuard {
    _lock: Lock,
}

/// An image in the store.
#[derive(Debug, Clone)]
pub struct Image {
    /// Digest of the configuration: the image id.
    pub id: Digest,
    /// Digest of the manifest as received: what a digest pin means.
    pub manifest: Digest,
    /// The index through which the manifest was chosen.
    pub index: Option<Digest>,
    /// Names, sorted; empty for an image whose names have moved on.
    pub names: Vec<Reference>,
    /// What to run and how it was made.
    pub config: ImageConfiguration,
    /// Bottom to top.
    pub layers: Vec<Layer>,
    /// Sum of the layer blobs.
    pub size_bytes: u64,
    /// What it runs on.
    pub platform: Platform,
}

/// Why the store cannot do something.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each text says what the variant means")]
pub enum StoreError {
    #[error("cannot {op} {}", path.display())]
    Io {
        op: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is damaged", path.display())]
    Damaged {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{} is an image layout of an unknown version", path.display())]
    LayoutVersion { path: PathBuf },
    #[error("blob {digest} is missing")]
    BlobMissing { digest: Digest },
    #[error("blob {digest} is damaged; pull the image again")]
    BlobDamaged { digest: Digest },
    #[error("manifest {digest} is refused")]
    Manifest {
        digest: Digest,
        #[source]
        source: ManifestError,
    },
    #[error("{digest} is an index, not an image")]
    NotAnImage { digest: Digest },
    #[error("configuration {digest} is not valid")]
    Config {
        digest: Digest,
        #[source]
        source: serde_json::Error,
    },
    #[error("configuration {digest} has a bad layer digest")]
    DiffId {
        digest: Digest,
        #[source]
        source: DigestError,
    },
    #[error("configuration {digest} lists {diff_ids} layers, the manifest {layers}")]
    LayerCount { digest: Digest, diff_ids: usize, layers: usize },
    #[error("{} is no name for a layer space", name.escape_debug())]
    SpaceName { name: String },
    #[error("image id {prefix} means {count} images")]
    Ambiguous { prefix: String, count: usize },
    #[error("no such image: {}", name.escape_debug())]
    NoSuchImage { name: String },
    #[error("image {} is used by a container", id.short())]
    InUse { id: Digest },
    #[error("image {} has {count} names", id.short())]
    SeveralNames { id: Digest, count: usize },
}

/// Nobody but the owner.
const PRIVATE_DIRECTORY: Mode = Mode::RWXU;

impl Store {
    /// Opens or makes a store below `root`.
    pub fn open(root: &Path) -> Result<Store, StoreError> {
        Store::open_with(root, Limits::default())
    }

    /// Opens or makes a store with other bounds.
    pub fn open_with(root: &Path, limits: Limits) -> Result<Store, StoreError> {
        let store = Store { root: root.to_path_buf(), limits };
        let images = store.images();
        if fs_err::symlink_metadata(images.join("index.json")).is_ok() {
            return store.check_version().map(|()| store);
        }
        for directory in [root.to_path_buf(), store.layers_root(), images.clone()] {
            make_directories(&directory)?;
        }
        for directory in ["blobs", "blobs/sha256", "partial", "locks"] {
            make_directories(&images.join(directory))?;
        }
        let _lock = lock::acquire(&store.lock_path("index"), Share::Exclusive, || ())?;
        let layout = images.join("oci-layout");
        store.replace_file(&layout, &images.join("partial/oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        if fs_err::symlink_metadata(images.join("index.json")).is_err() {
            store.write_index(&Index::empty())?;
        }
        Ok(store)
    }

    /// Holds off garbage collection.
    pub fn keep(&self) -> Result<KeepGuard, StoreError> {
        let lock = lock::acquire(&self.lock_path("store"), Share::Shared, || ())?;
        Ok(KeepGuard { _lock: lock })
    }

    /// The directory that the store was opened with.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The OCI image layout.
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    fn layers_root(&self) -> PathBuf {
        self.root.join("layers")
    }

    fn space_root(&self, space: &LayerSpace) -> Result<PathBuf, StoreError> {
        if !space.is_valid() {
            return Err(StoreError::SpaceName { name: space.name.clone() });
        }
        Ok(self.layers_root().join(&space.name))
    }

    /// Where a blob is once it is whole.
    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.images().join("blobs").join(digest.algorithm().name()).join(digest.hex())
    }

    fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.images().join("partial").join(format!("{}-{}", digest.algorithm().name(), digest.hex()))
    }

    fn lock_path(&self, name: &str) -> PathBuf {
        self.images().join("locks").join(name)
    }

    fn check_version(&self) -> Result<(), StoreError> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Layout {
            image_layout_version: String,
        }
        let path = self.images().join("oci-layout");
        let bytes = fs_err::read(&path).map_err(|source| StoreError::Io { op: "read", path: path.clone(), source })?;
        let layout: Layout =
            serde_json::from_slice(&bytes).map_err(|source| StoreError::Damaged { path: path.clone(), source })?;
        if layout.image_layout_version == "1.0.0" { Ok(()) } else { Err(StoreError::LayoutVersion { path }) }
    }

    /// Puts a small file in place of another by sync and rename. Callers hold the lock that makes
    /// `temporary` theirs alone.
    fn replace_file(&self, path: &Path, temporary: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let failed = |op, path: &Path| {
            let path = path.to_path_buf();
            move |source| StoreError::Io { op, path, source }
        };
        let mut file = create_private(temporary)?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed("write", temporary))?;
        fs_err::rename(temporary, path).map_err(failed("replace", path))?;
        sync_directory(path.parent().unwrap_or(path))
    }
}

/// Makes a file that only its owner reads, or empties an old one.
fn create_private(path: &Path) -> Result<fs_err::File, StoreError> {
    use fs_err::os::unix::fs::OpenOptionsExt;
    let mut options = fs_err::OpenOptions::new();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path).map_err(|source| StoreError::Io { op: "create", path: path.to_path_buf(), source })
}

/// Makes a private directory and those above it.
fn make_directories(path: &Path) -> Result<(), StoreError> {
    match rustix::fs::mkdirat(CWD, path, PRIVATE_DIRECTORY) {
        Ok(()) | Err(Errno::EXIST) => return Ok(()),
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(StoreError::Io { op: "create", path: path.to_path_buf(), source: errno.into() }),
    }
    if let Some(parent) = path.parent() {
        make_directories(parent)?;
    }
    rustix::fs::mkdirat(CWD, path, PRIVATE_DIRECTORY)
        .or_else(|errno| if errno == Errno::EXIST { Ok(()) } else { Err(errno) })
        .map_err(|errno| StoreError::Io { op: "create", path: path.to_path_buf(), source: errno.into() })
}

/// Makes renames in a directory durable.
fn sync_directory(path: &Path) -> Result<(), StoreError> {
    let failed = |source| StoreError::Io { op: "sync", path: path.to_path_buf(), source };
    fs_err::File::open(path).and_then(|directory| directory.sync_all()).map_err(failed)
}
