//! `index.json`: which images there are and what they are called.
//!
//! The file is the one of the OCI image layout, so that skopeo and umoci read it. A name is the
//! standard annotation `org.opencontainers.image.ref.name` and is always the canonical form. Docker
//! schema 2 manifests have no place in a layout (skopeo 1.9.3 does not find them, umoci 0.4.7
//! refuses them); for those an entry points to an OCI manifest made by us, and our own annotation
//! to the original, which is what digest pins mean.
//!
//! The file is replaced by rename under the `index` lock; readers need no lock.

use std::collections::BTreeMap;
use std::io::Read;

use serde::{Deserialize, Serialize};

use super::lock::{self, Share};
use super::{Store, StoreError};
use crate::digest::Digest;
use crate::limits;
use crate::reference::Reference;

/// The name of an image.
pub(crate) const NAME_ANNOTATION: &str = "org.opencontainers.image.ref.name";
/// The manifest as the registry served it, where it differs from the entry's own.
const ORIGINAL_ANNOTATION: &str = "coracle.manifest.original";
/// The index through which the image was chosen.
const INDEX_ANNOTATION: &str = "coracle.manifest.index";
/// Media type of the file itself.
pub(crate) const INDEX_MEDIA_TYPE: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of every entry.
pub(crate) const MANIFEST_MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// The whole file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    media_type: Option<String>,
    pub manifests: Vec<Entry>,
}

/// One image under one name, or under none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Entry {
    pub media_type: String,
    digest: String,
    pub size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    platform: Option<serde_json::Value>,
}

impl Index {
    /// An index without entries.
    pub fn empty() -> Index {
        Index { schema_version: 2, media_type: Some(INDEX_MEDIA_TYPE.into()), manifests: Vec::new() }
    }

    /// Takes a name away from every entry. An image that loses its last name stays, nameless.
    pub fn take_name(&mut self, name: &str) {
        for at in (0..self.manifests.len()).rev() {
            if self.manifests[at].name() == Some(name) {
                self.take_name_at(at);
            }
        }
    }

    /// Adds an entry unless the same is there; a nameless entry of the same image is replaced.
    pub fn put(&mut self, entry: Entry) {
        if let Some(name) = entry.name().map(str::to_owned) {
            self.take_name(&name);
            self.manifests.retain(|other| other.digest != entry.digest || other.name().is_some());
            self.manifests.push(entry);
        } else if !self.manifests.iter().any(|other| other.digest == entry.digest) {
            self.manifests.push(entry);
        }
    }

    fn take_name_at(&mut self, at: usize) {
        let others = self.manifests.iter().filter(|other| other.digest == self.manifests[at].digest);
        if others.count() > 1 {
            self.manifests.remove(at);
        } else {
            self.manifests[at].annotations.remove(NAME_ANNOTATION);
        }
    }
}

impl Entry {
    /// Describes a manifest.
    pub fn new(digest: &Digest, size: u64) -> Entry {
        Entry {
            media_type: MANIFEST_MEDIA_TYPE.into(),
            digest: digest.to_string(),
            size,
            annotations: BTreeMap::new(),
            platform: None,
        }
    }

    /// Sets or takes away the name.
    pub fn with_name(mut self, name: Option<&Reference>) -> Entry {
        self.annotations.remove(NAME_ANNOTATION);
        self.annotations.extend(name.map(|name| (NAME_ANNOTATION.to_owned(), name.to_string())));
        self
    }

    /// Remembers where the manifest came from.
    pub fn with_origin(mut self, original: Option<&Digest>, index: Option<&Digest>) -> Entry {
        let pairs = [(ORIGINAL_ANNOTATION, original), (INDEX_ANNOTATION, index)];
        self.annotations
            .extend(pairs.into_iter().filter_map(|(key, digest)| Some((key.to_owned(), digest?.to_string()))));
        self
    }

    /// The name as text.
    pub fn name(&self) -> Option<&str> {
        self.annotations.get(NAME_ANNOTATION).map(String::as_str)
    }

    /// The OCI manifest in this store; `None` for a digest that is none.
    pub fn manifest(&self) -> Option<Digest> {
        self.digest.parse().ok()
    }

    /// The manifest as it was served.
    pub fn original(&self) -> Option<Digest> {
        match self.annotations.get(ORIGINAL_ANNOTATION) {
            Some(original) => original.parse().ok(),
            None => self.manifest(),
        }
    }

    /// The index through which it was chosen.
    pub fn index(&self) -> Option<Digest> {
        self.annotations.get(INDEX_ANNOTATION)?.parse().ok()
    }

    /// Whether both are the same image, names aside.
    pub fn is_same_image(&self, other: &Entry) -> bool {
        self.digest == other.digest
    }

    /// Whether a pin on `digest` means this image.
    pub fn answers_to(&self, digest: &Digest) -> bool {
        [self.manifest(), self.original(), self.index()].iter().flatten().any(|known| known == digest)
    }
}

impl Store {
    /// Reads the index as it is now.
    pub(crate) fn read_index(&self) -> Result<Index, StoreError> {
        let path = self.images().join("index.json");
        let failed = |source| StoreError::Io { op: "read", path: path.clone(), source };
        let mut bytes = Vec::new();
        let file = fs_err::File::open(&path).map_err(failed)?;
        file.take(limits::STORE_INDEX_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
        serde_json::from_slice(&bytes).map_err(|source| StoreError::Damaged { path: path.clone(), source })
    }

    /// Changes the index under its lock. Nothing is written when `change` fails or changes nothing.
    pub(super) fn change_index<T>(
        &self,
        change: impl FnOnce(&mut Index) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let _lock = lock::acquire(&self.lock_path("index"), Share::Exclusive, || ())?;
        let mut index = self.read_index()?;
        let before = index.manifests.clone();
        let result = change(&mut index)?;
        if index.manifests != before {
            self.write_index(&index)?;
        }
        Ok(result)
    }

    pub(super) fn write_index(&self, index: &Index) -> Result<(), StoreError> {
        let path = self.images().join("index.json");
        let bytes = serde_json::to_vec(index);
        let bytes = bytes.map_err(|source| StoreError::Damaged { path: path.clone(), source })?;
        self.replace_file(&path, &self.images().join("partial/index.json"), &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(content: &str, name: Option<&str>) -> Entry {
        let name = name.map(|name| name.parse().expect("reference"));
        Entry::new(&Digest::of(content.as_bytes()), 1).with_name(name.as_ref())
    }

    fn names(index: &Index) -> Vec<(Digest, Option<&str>)> {
        index.manifests.iter().map(|entry| (entry.manifest().expect("digest"), entry.name())).collect()
    }

    #[test]
    fn a_name_moves() {
        let (one, two) = (Digest::of(b"one"), Digest::of(b"two"));
        let name = Some("docker.io/library/a:latest");
        let mut index = Index::empty();
        index.put(entry("one", Some("a")));
        index.put(entry("one", Some("a")));
        assert_eq!(names(&index), [(one.clone(), name)]);
        index.put(entry("two", Some("a")));
        assert_eq!(names(&index), [(one.clone(), None), (two.clone(), name)]);
        index.put(entry("one", Some("b")));
        index.put(entry("one", None));
        assert_eq!(names(&index), [(two.clone(), name), (one.clone(), Some("docker.io/library/b:latest"))]);
        index.put(entry("one", Some("a")));
        assert_eq!(index.manifests.len(), 3);
        index.take_name("docker.io/library/b:latest");
        assert_eq!(names(&index), [(two, None), (one, name)]);
    }
}
