//! docker-archive: what `docker save` wrote for ten years.
//!
//! `manifest.json` lists images, each a configuration and layers, usually uncompressed. There is no
//! manifest, so one is made; it is the same for the same content, whoever wrote the archive.

use std::io::{self, Read};

use oci_spec::image::ImageConfiguration;
use serde::Deserialize;

use super::{LoadError, Loading};
use crate::digest::{Digest, HashingReader};
use crate::layer::Compression;
use crate::limits;
use crate::reference::Reference;
use crate::registry::manifest::{Descriptor, ImageDocument};
use crate::store::{Image, LayerIngest, MANIFEST_MEDIA_TYPE, converted};

/// One image of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

impl Loading<'_> {
    /// Loads all images of a docker-archive.
    pub(super) fn docker(&self) -> Result<Vec<Image>, LoadError> {
        let name = "manifest.json";
        let bytes = self.source.read(name, limits::MANIFEST_BYTES_MAX)?;
        let items: Vec<Item> =
            serde_json::from_slice(&bytes).map_err(|source| LoadError::Json { name: name.into(), source })?;
        if items.len() > limits::INDEX_ENTRIES_MAX {
            return Err(LoadError::TooLarge { name: name.into(), max_bytes: limits::MANIFEST_BYTES_MAX });
        }
        self.check_count(items.len())?;
        items.iter().map(|item| self.docker_image(item)).collect()
    }

    fn docker_image(&self, item: &Item) -> Result<Image, LoadError> {
        let names = item.repo_tags.iter().flatten().map(|name| name.parse::<Reference>());
        let names = names.collect::<Result<Vec<_>, _>>().map_err(|source| LoadError::Name { source })?;
        let bytes = self.source.read(&item.config, limits::CONFIG_BYTES_MAX)?;
        let config: ImageConfiguration =
            serde_json::from_slice(&bytes).map_err(|source| LoadError::Json { name: item.config.clone(), source })?;
        let diff_ids = config.rootfs().diff_ids();
        let layers = item.layers.as_deref().unwrap_or_default();
        if diff_ids.len() != layers.len() || layers.len() > limits::LAYERS_MAX {
            return Err(LoadError::LayerCount { diff_ids: diff_ids.len(), layers: layers.len() });
        }
        let id = Digest::of(&bytes);
        self.store.write_blob(&id, &bytes)?;
        let mut document = ImageDocument {
            media_type: MANIFEST_MEDIA_TYPE.into(),
            config: Descriptor { digest: id, size_bytes: bytes.len() as u64, media_type: String::new() },
            layers: Vec::new(),
        };
        for (diff_id, member) in diff_ids.iter().zip(layers) {
            let diff_id: Digest = diff_id.parse().map_err(|source| LoadError::DiffId { source })?;
            document.layers.push(self.docker_layer(&diff_id, member)?);
        }
        let manifest = converted(&document).map_err(|source| LoadError::Json { name: item.config.clone(), source })?;
        let digest = Digest::of(&manifest);
        self.store.write_blob(&digest, &manifest)?;
        self.publish(&digest, MANIFEST_MEDIA_TYPE, None, &names)
    }

    fn docker_layer(&self, diff_id: &Digest, member: &str) -> Result<(Descriptor, Compression), LoadError> {
        let window = self.source.open_member(member)?;
        let failed = |source| LoadError::Io { op: "read", path: member.into(), source };
        let compression = window.sniff().map_err(failed)?;
        let size_bytes = window.size_bytes();
        let blob = if compression == Compression::Plain {
            diff_id.clone()
        } else {
            let mut reader = HashingReader::new(window.skip_to(0), diff_id.algorithm());
            io::copy(&mut reader, &mut io::sink()).map_err(failed)?;
            reader.finish().0
        };
        let ingest = LayerIngest { blob: &blob, size_bytes, diff_id, compression, space: &self.options.space };
        let mut open = |offset| Ok(Box::new(window.skip_to(offset)) as Box<dyn Read + Send>);
        self.store.ingest_layer(&ingest, &mut open, self.progress)?;
        Ok((Descriptor { digest: blob, size_bytes, media_type: compression.media_type().into() }, compression))
    }
}
