//! Makes an image visible under a name, once everything it needs is here.

use std::collections::BTreeMap;

use serde::Serialize;

use super::index::{Entry, MANIFEST_MEDIA_TYPE};
use super::lock::{self, Share};
use super::{Image, Store, StoreError, sync_directory};
use crate::digest::Digest;
use crate::reference::Reference;
use crate::registry::manifest::{Descriptor, ImageDocument};

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

impl Store {
    /// Makes an image visible.
    ///
    /// # Errors
    /// When a blob is missing or the manifest or the configuration is not valid; nothing is
    /// visible then.
    pub fn publish_image(&self, publication: &Publication<'_>) -> Result<Image, StoreError> {
        let _keep = self.keep()?;
        let document = self.read_manifest(publication.manifest, Some(publication.media_type))?;
        let blobs = document.layers.iter().map(|(layer, _)| layer).chain([&document.config]);
        for blob in blobs {
            if !self.has_blob(&blob.digest, blob.size_bytes) {
                return Err(StoreError::BlobMissing { digest: blob.digest.clone() });
            }
        }
        let entry = if document.media_type == MANIFEST_MEDIA_TYPE {
            let size = self.read_blob(publication.manifest)?.len() as u64;
            Entry::new(publication.manifest, size).with_origin(None, publication.index)
        } else {
            let bytes = converted(&document)
                .map_err(|source| StoreError::Config { digest: publication.manifest.clone(), source })?;
            let digest = Digest::of(&bytes);
            self.write_blob(&digest, &bytes)?;
            Entry::new(&digest, bytes.len() as u64).with_origin(Some(publication.manifest), publication.index)
        };
        let entry = entry.with_name(publication.reference);
        // An unreadable configuration must not become visible.
        let image = self.load_image(&entry)?;
        self.inherit_everywhere(&image)?;
        sync_directory(&self.images().join("blobs").join(publication.manifest.algorithm().name()))?;
        self.change_index(|index| {
            index.put(entry);
            Ok(())
        })?;
        self.with_names(image)
    }

    /// Gives an image one more name; another image that has it loses it.
    pub fn tag(&self, image: &Image, name: &Reference) -> Result<(), StoreError> {
        self.change_index(|index| {
            let known = index.manifests.iter().find(|entry| entry.original().as_ref() == Some(&image.manifest));
            let known = known.ok_or_else(|| StoreError::NoSuchImage { name: image.id.to_string() })?;
            let entry = known.clone().with_name(Some(name));
            index.put(entry);
            Ok(())
        })
    }

    /// Writes a blob whose digest was made from these bytes.
    pub(crate) fn write_blob(&self, digest: &Digest, bytes: &[u8]) -> Result<(), StoreError> {
        if self.has_blob(digest, bytes.len() as u64) {
            return Ok(());
        }
        let _lock = lock::acquire(&self.blob_lock_path(digest), Share::Exclusive, || ())?;
        self.publish_bytes(digest, bytes)
    }
}

/// An OCI manifest with the same configuration and layers.
pub(crate) fn converted(document: &ImageDocument) -> Result<Vec<u8>, serde_json::Error> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Manifest<'a> {
        schema_version: u32,
        media_type: &'a str,
        config: Pointer<'a>,
        layers: Vec<Pointer<'a>>,
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        annotations: BTreeMap<String, String>,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Pointer<'a> {
        media_type: &'a str,
        digest: String,
        size: u64,
    }
    fn point<'a>(media_type: &'a str, to: &Descriptor) -> Pointer<'a> {
        Pointer { media_type, digest: to.digest.to_string(), size: to.size_bytes }
    }
    serde_json::to_vec(&Manifest {
        schema_version: 2,
        media_type: MANIFEST_MEDIA_TYPE,
        config: point("application/vnd.oci.image.config.v1+json", &document.config),
        layers: document.layers.iter().map(|(layer, compression)| point(compression.media_type(), layer)).collect(),
        annotations: BTreeMap::new(),
    })
}
