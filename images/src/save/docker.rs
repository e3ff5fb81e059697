//! docker-archive: configurations, uncompressed layers, and `manifest.json` that lists them.

use std::collections::HashSet;
use std::io::{self, BufReader, Read};

use serde::Serialize;

use super::output::Output;
use super::{Item, SaveError};
use crate::decompression::Decoder;
use crate::digest::HashingReader;
use crate::layer::Layer;
use crate::reference::Reference;
use crate::store::Store;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ManifestItem {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

/// Writes all images.
pub(super) fn write(store: &Store, items: &[Item<'_>], output: &mut Output) -> Result<(), SaveError> {
    let mut manifest = Vec::new();
    let mut written = HashSet::new();
    for item in items {
        let image = item.image;
        for layer in &image.layers {
            if written.insert(&layer.diff_id) {
                write_layer(store, layer, output)?;
            }
        }
        let config = format!("{}.json", image.id.hex());
        if written.insert(&image.id) {
            let bytes = store.read_blob(&image.id)?;
            output.put(&config, bytes.len() as u64, &mut bytes.as_slice())?;
        }
        // A digest has no place there.
        let names = item.names.iter().filter(|name| name.digest().is_none());
        manifest.push(ManifestItem {
            config,
            repo_tags: names.map(|name| Reference::familiar(name)).collect(),
            layers: image.layers.iter().map(member_name).collect(),
        });
    }
    let bytes = serde_json::to_vec(&manifest).map_err(|source| SaveError::Json { source })?;
    output.put("manifest.json", bytes.len() as u64, &mut bytes.as_slice())
}

fn member_name(layer: &Layer) -> String {
    format!("{}.tar", layer.diff_id.hex())
}

/// A tar header comes before its body and has the size in it, so the layer is decompressed twice:
/// the first time to check and measure it.
fn write_layer(store: &Store, layer: &Layer, output: &mut Output) -> Result<(), SaveError> {
    let failed = |source| SaveError::Read { digest: layer.blob.clone(), source };
    let mut reader = HashingReader::new(decompressed(store, layer)?, layer.diff_id.algorithm());
    io::copy(&mut reader, &mut io::sink()).map_err(failed)?;
    let (diff_id, size_bytes) = reader.finish();
    if diff_id != layer.diff_id {
        return Err(SaveError::Layer { digest: layer.blob.clone() });
    }
    output.put(&member_name(layer), size_bytes, &mut decompressed(store, layer)?)
}

fn decompressed(store: &Store, layer: &Layer) -> Result<impl Read + use<>, SaveError> {
    let file = BufReader::with_capacity(1 << 18, store.open_blob(&layer.blob)?);
    Decoder::new(layer.compression, file).map_err(|source| SaveError::Read { digest: layer.blob.clone(), source })
}
