//! OCI image layouts, as directories or in archives.

use std::io::Read;

use oci_spec::image::ImageConfiguration;

use super::{LoadError, Loading};
use crate::digest::Digest;
use crate::limits;
use crate::platform::Platform;
use crate::reference::Reference;
use crate::registry::manifest::{self, Descriptor, Document, ImageDocument, ManifestError};
use crate::store::{Image, Index, LayerIngest, NAME_ANNOTATION};

/// Where containerd, and Docker since 25, write the full name; `ref.name` is only the tag then.
const CONTAINERD_NAME_ANNOTATION: &str = "io.containerd.image.name";

/// An image that was found, through indexes or not.
struct Found {
    manifest: Descriptor,
    document: ImageDocument,
    index: Option<Digest>,
}

impl Loading<'_> {
    /// Loads all images of a layout.
    pub(super) fn layout(&self) -> Result<Vec<Image>, LoadError> {
        let name = "index.json";
        let bytes = self.source.read(name, limits::MANIFEST_BYTES_MAX)?;
        let refuse = |source| LoadError::Manifest { name: name.into(), source };
        let Document::Index(checked) = manifest::parse(&bytes, None, None).map_err(refuse)? else {
            return Err(refuse(ManifestError::Confused));
        };
        let index: Index =
            serde_json::from_slice(&bytes).map_err(|source| LoadError::Json { name: name.into(), source })?;
        let mut found: Vec<(Found, Vec<Reference>)> = Vec::new();
        for (entry, annotated) in checked.entries.iter().zip(&index.manifests) {
            let Some(image) = self.resolve(&entry.descriptor, limits::INDEX_NESTING_MAX)? else { continue };
            let stated = annotated.annotations.get(CONTAINERD_NAME_ANNOTATION);
            let stated = stated.or_else(|| annotated.annotations.get(NAME_ANNOTATION).filter(|name| is_full(name)));
            let name = stated.map(|name| name.parse::<Reference>()).transpose();
            let name = name.map_err(|source| LoadError::Name { source })?;
            match found.iter_mut().find(|(known, _)| known.manifest.digest == image.manifest.digest) {
                Some((_, names)) => names.extend(name),
                None => found.push((image, name.into_iter().collect())),
            }
        }
        if found.is_empty() {
            return Err(LoadError::Platform);
        }
        self.check_count(found.len())?;
        found.iter().map(|(image, names)| self.layout_image(image, names)).collect()
    }

    /// Follows a descriptor to an image for this host.
    fn resolve(&self, descriptor: &Descriptor, depth: usize) -> Result<Option<Found>, LoadError> {
        let name = descriptor.digest.to_string();
        let refuse = |source| LoadError::Manifest { name: name.clone(), source };
        let bytes = self.source.read(&blob_name(&descriptor.digest), limits::MANIFEST_BYTES_MAX)?;
        match manifest::parse(&bytes, None, Some(&descriptor.media_type)).map_err(refuse)? {
            Document::Image(document) => {
                let manifest = Descriptor { size_bytes: bytes.len() as u64, ..descriptor.clone() };
                Ok(Some(Found { manifest, document, index: None }))
            }
            Document::Index(_) if depth == 0 => Err(refuse(ManifestError::TooMuch { what: "nested indexes" })),
            Document::Index(index) => {
                for entry in index.candidates(&Platform::host()) {
                    if let Some(found) = self.resolve(&entry.descriptor, depth - 1)? {
                        return Ok(Some(Found { index: Some(descriptor.digest.clone()), ..found }));
                    }
                }
                Ok(None)
            }
        }
    }

    fn layout_image(&self, image: &Found, names: &[Reference]) -> Result<Image, LoadError> {
        let document = &image.document;
        let config = self.small_blob(&document.config, limits::CONFIG_BYTES_MAX)?;
        let config: ImageConfiguration = serde_json::from_slice(&config)
            .map_err(|source| LoadError::Json { name: document.config.digest.to_string(), source })?;
        let diff_ids = config.rootfs().diff_ids();
        if diff_ids.len() != document.layers.len() {
            return Err(LoadError::LayerCount { diff_ids: diff_ids.len(), layers: document.layers.len() });
        }
        for (diff_id, (layer, compression)) in diff_ids.iter().zip(&document.layers) {
            let diff_id: Digest = diff_id.parse().map_err(|source| LoadError::DiffId { source })?;
            let ingest = LayerIngest {
                blob: &layer.digest,
                size_bytes: layer.size_bytes,
                diff_id: &diff_id,
                compression: *compression,
                space: &self.options.space,
            };
            let mut open = |offset| self.open_blob(&layer.digest, offset);
            self.store.ingest_layer(&ingest, &mut open, self.progress)?;
        }
        self.small_blob(&image.manifest, limits::MANIFEST_BYTES_MAX)?;
        self.publish(&image.manifest.digest, &document.media_type, image.index.as_ref(), names)
    }

    fn small_blob(&self, blob: &Descriptor, max_bytes: u64) -> Result<Vec<u8>, LoadError> {
        let mut open = |offset| self.open_blob(&blob.digest, offset);
        Ok(self.store.ingest_blob(&blob.digest, blob.size_bytes, max_bytes, &mut open)?)
    }

    fn open_blob(&self, digest: &Digest, offset: u64) -> Result<Box<dyn Read + Send>, crate::store::SourceError> {
        Ok(Box::new(self.source.open_member(&blob_name(digest))?.skip_to(offset)))
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

/// Whether an annotation is a whole name; some writers put only a tag there.
fn is_full(name: &str) -> bool {
    name.contains([':', '/', '@'])
}
