//! OCI image layouts. Every image is written with an OCI manifest, also one that came with Docker's.

use std::collections::{BTreeMap, HashSet};

use super::output::Output;
use super::{Item, SaveError};
use crate::digest::{Digest, HashingReader};
use crate::store::{Index, NAME_ANNOTATION, Store, StoreError};

/// Docker and containerd look here for the full name, podman in the standard annotation.
const CONTAINERD_NAME_ANNOTATION: &str = "io.containerd.image.name";

/// Writes all images.
pub(super) fn write(store: &Store, items: &[Item<'_>], output: &mut Output) -> Result<(), SaveError> {
    let layout = br#"{"imageLayoutVersion":"1.0.0"}"#;
    output.put("oci-layout", layout.len() as u64, &mut layout.as_slice())?;
    let mut index = Index::empty();
    let mut written: HashSet<Digest> = HashSet::new();
    for item in items {
        let image = item.image;
        let missing = || StoreError::NoSuchImage { name: image.id.to_string() };
        let known = store.read_index()?.manifests;
        let known = known.into_iter().find(|entry| entry.original().as_ref() == Some(&image.manifest));
        let mut entry = known.ok_or_else(missing)?;
        let manifest = entry.manifest().ok_or_else(missing)?;
        for (digest, size_bytes) in image.layers.iter().map(|layer| (&layer.blob, layer.size_bytes)) {
            if written.insert(digest.clone()) {
                write_blob(store, digest, size_bytes, output)?;
            }
        }
        for digest in [&image.id, &manifest] {
            if written.insert(digest.clone()) {
                let bytes = store.read_blob(digest)?;
                output.put(&member_name(digest), bytes.len() as u64, &mut bytes.as_slice())?;
            }
        }
        entry.annotations = BTreeMap::new();
        if item.names.is_empty() {
            index.manifests.push(entry);
            continue;
        }
        for name in &item.names {
            let mut named = entry.clone();
            for key in [NAME_ANNOTATION, CONTAINERD_NAME_ANNOTATION] {
                named.annotations.insert(key.to_owned(), name.to_string());
            }
            index.manifests.push(named);
        }
    }
    let bytes = serde_json::to_vec(&index).map_err(|source| SaveError::Json { source })?;
    output.put("index.json", bytes.len() as u64, &mut bytes.as_slice())
}

fn write_blob(store: &Store, digest: &Digest, size_bytes: u64, output: &mut Output) -> Result<(), SaveError> {
    let mut reader = HashingReader::new(store.open_blob(digest)?, digest.algorithm());
    output.put(&member_name(digest), size_bytes, &mut reader)?;
    let (actual, count) = reader.finish();
    if actual == *digest && count == size_bytes { Ok(()) } else { Err(SaveError::Layer { digest: digest.clone() }) }
}

fn member_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}
