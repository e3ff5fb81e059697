//! The store.

mod ingest;

use std::path::Path;

use oci_spec::image::ImageConfiguration;

pub use ingest::{IngestError, LayerIngest, OpenSource, SourceError};

use crate::digest::Digest;
use crate::layer::Layer;
use crate::reference::Reference;

/// Images on disk.
#[derive(Debug)]
pub struct Store {}

/// Holds off garbage collection while it lives. A pull takes it before its first ingest and drops
/// it after [`Store::publish_image`].
#[derive(Debug)]
pub struct KeepGuard {}

/// What [`Store::publish_image`] makes visible. Every blob that the manifest names must be in the
/// store already.
#[derive(Debug, Clone, Copy)]
pub struct Publication<'a> {
    /// The name that will mean this image; the image that had it before loses it.
    pub reference: Option<&'a Reference>,
    /// Digest of the manifest's bytes as received; already ingested with `ingest_blob`.
    pub manifest: &'a Digest,
    /// Media type that the manifest was served with.
    pub media_type: &'a str,
    /// What the registry answered for the reference, when that was an index: a pin on it finds
    /// the image too.
    pub index: Option<&'a Digest>,
}

/// An image in the store.
#[derive(Debug, Clone)]
pub struct Image {
    /// Digest of the configuration: the image id.
    pub id: Digest,
    /// Digest of the manifest as received.
    pub manifest: Digest,
    /// Names, sorted; empty for an image whose names have moved on.
    pub names: Vec<Reference>,
    /// What to run and how it was made.
    pub config: ImageConfiguration,
    /// Bottom to top.
    pub layers: Vec<Layer>,
    /// Sum of the blobs.
    pub size_bytes: u64,
}

/// Why the store cannot do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {}

impl Store {
    /// Opens or makes a store below `root`.
    pub fn open(_root: &Path) -> Result<Store, StoreError> {
        unimplemented!("seam first")
    }

    /// Holds off garbage collection.
    pub fn keep(&self) -> Result<KeepGuard, StoreError> {
        unimplemented!("seam first")
    }

    /// Makes an image visible.
    pub fn publish_image(&self, _publication: &Publication<'_>) -> Result<Image, StoreError> {
        unimplemented!("seam first")
    }
}
