//! Reading the store: images by name or id, their blobs, their unpacked layers.
//!
//! Everything small is verified whenever it is read: a digest that does not match is damage of the
//! disk or somebody else's hand, never content.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;

use oci_spec::image::ImageConfiguration;
use rustix::fs::{self, CWD, FileType, Mode, OFlags};

use super::index::Entry;
use super::{Image, Store, StoreError};
use crate::digest::{Digest, Hasher};
use crate::layer::{Layer, LayerSpace};
use crate::limits;
use crate::platform::Platform;
use crate::reference::Reference;
use crate::registry::manifest::{self, Document, ImageDocument};
use crate::unpack;

/// Shortest part of an image id that finds it; shorter ones are more likely names.
const ID_PREFIX_MIN: usize = 4;

/// One step of how an image was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    /// When, as the builder wrote it.
    pub created: Option<String>,
    /// The command, as the builder wrote it.
    pub created_by: Option<String>,
    /// The builder's remark.
    pub comment: Option<String>,
    /// What the step added; `None` for steps that only changed the configuration.
    pub layer: Option<Layer>,
}

impl Image {
    /// The steps of the image's history, oldest first. Layers that the history does not mention
    /// come last.
    pub fn history(&self) -> Vec<HistoryEntry> {
        let mut layers = self.layers.iter().cloned();
        let stated = self.config.history().as_ref().map_or(&[][..], |history| history);
        let mut entries: Vec<HistoryEntry> = stated
            .iter()
            .map(|step| HistoryEntry {
                created: step.created().clone(),
                created_by: step.created_by().clone(),
                comment: step.comment().clone(),
                layer: if step.empty_layer().unwrap_or(false) { None } else { layers.next() },
            })
            .collect();
        entries.extend(layers.map(|layer| HistoryEntry {
            created: None,
            created_by: None,
            comment: None,
            layer: Some(layer),
        }));
        entries
    }
}

impl Store {
    /// Finds an image by name, name with digest, full id, or the first digits of its id.
    ///
    /// # Errors
    /// When the digits fit several images, or the image's blobs are damaged.
    pub fn find(&self, name_or_id: &str) -> Result<Option<Image>, StoreError> {
        match self.find_entry(name_or_id)? {
            Some(entry) => Ok(Some(self.with_names(self.load_image(&entry)?)?)),
            None => Ok(None),
        }
    }

    /// Lists all images, in the order in which they came.
    ///
    /// # Errors
    /// When an image is damaged.
    pub fn list(&self) -> Result<Vec<Image>, StoreError> {
        let mut images: Vec<(Entry, Image)> = Vec::new();
        for entry in self.read_index()?.manifests {
            let name = entry.name().and_then(|name| name.parse::<Reference>().ok());
            match images.iter_mut().find(|(known, _)| known.is_same_image(&entry)) {
                Some((_, image)) => image.names.extend(name),
                None => {
                    let mut image = self.load_image(&entry)?;
                    image.names.extend(name);
                    images.push((entry, image));
                }
            }
        }
        let sorted = images.into_iter().map(|(_, mut image)| {
            image.names.sort();
            image
        });
        Ok(sorted.collect())
    }

    /// Finds the directories of an image's unpacked layers, bottom to top; `None` if any is not
    /// unpacked in that space. Layers below one whose root is opaque are not needed and left out.
    pub fn layers(&self, image: &Image, space: &LayerSpace) -> Result<Option<Vec<PathBuf>>, StoreError> {
        let root = self.space_root(space)?;
        let mut directories = Vec::with_capacity(image.layers.len());
        for layer in &image.layers {
            let path = root.join(layer.diff_id.hex());
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let failed = |source| StoreError::Io { op: "open", path: path.clone(), source };
            let directory = match fs::openat(CWD, &path, flags, Mode::empty()) {
                Ok(directory) => directory,
                Err(rustix::io::Errno::NOENT) => return Ok(None),
                Err(errno) => return Err(failed(errno.into())),
            };
            if unpack::is_opaque(rustix::fd::AsFd::as_fd(&directory)).map_err(failed)? {
                directories.clear();
            }
            directories.push(path);
        }
        Ok(Some(directories))
    }

    /// Opens a blob to read it as it is, unverified.
    pub fn open_blob(&self, digest: &Digest) -> Result<fs_err::File, StoreError> {
        let path = self.blob_path(digest);
        match fs_err::File::open(&path) {
            Ok(file) => Ok(file),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(StoreError::BlobMissing { digest: digest.clone() })
            }
            Err(source) => Err(StoreError::Io { op: "open", path, source }),
        }
    }

    /// Reads and verifies a small blob: a manifest or a configuration.
    pub fn read_blob(&self, digest: &Digest) -> Result<Vec<u8>, StoreError> {
        let max = limits::MANIFEST_BYTES_MAX.max(limits::CONFIG_BYTES_MAX);
        let file = self.open_blob(digest)?;
        let mut bytes = Vec::new();
        let failed = |source| StoreError::Io { op: "read", path: self.blob_path(digest), source };
        file.take(max + 1).read_to_end(&mut bytes).map_err(failed)?;
        let mut hasher = Hasher::new(digest.algorithm());
        hasher.update(&bytes);
        if hasher.finish() == *digest { Ok(bytes) } else { Err(StoreError::BlobDamaged { digest: digest.clone() }) }
    }

    /// Whether a blob of that size is here.
    pub(crate) fn has_blob(&self, digest: &Digest, size_bytes: u64) -> bool {
        let Ok(stat) = fs::lstat(self.blob_path(digest)) else { return false };
        FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            && u64::try_from(stat.st_size).is_ok_and(|size| size == size_bytes)
    }

    /// Reads and checks an image manifest.
    pub(crate) fn read_manifest(&self, digest: &Digest, media_type: Option<&str>) -> Result<ImageDocument, StoreError> {
        let bytes = self.read_blob(digest)?;
        let refuse = |source| StoreError::Manifest { digest: digest.clone(), source };
        match manifest::parse(&bytes, media_type, None).map_err(refuse)? {
            Document::Image(document) => Ok(document),
            Document::Index(_) => Err(StoreError::NotAnImage { digest: digest.clone() }),
        }
    }

    /// Reads what an entry points to; leaves the names empty.
    pub(super) fn load_image(&self, entry: &Entry) -> Result<Image, StoreError> {
        let refuse = || StoreError::NoSuchImage { name: format!("{entry:?}") };
        let digest = entry.manifest().ok_or_else(refuse)?;
        let document = self.read_manifest(&digest, Some(&entry.media_type))?;
        let id = document.config.digest.clone();
        let bytes = self.read_blob(&id)?;
        let config: ImageConfiguration =
            serde_json::from_slice(&bytes).map_err(|source| StoreError::Config { digest: id.clone(), source })?;
        let diff_ids = config.rootfs().diff_ids();
        if diff_ids.len() != document.layers.len() {
            let (diff_ids, layers) = (diff_ids.len(), document.layers.len());
            return Err(StoreError::LayerCount { digest: id, diff_ids, layers });
        }
        let mut layers = Vec::with_capacity(diff_ids.len());
        for (diff_id, (layer, compression)) in diff_ids.iter().zip(&document.layers) {
            let diff_id = diff_id.parse().map_err(|source| StoreError::DiffId { digest: id.clone(), source })?;
            let (blob, size_bytes) = (layer.digest.clone(), layer.size_bytes);
            layers.push(Layer { diff_id, blob, compression: *compression, size_bytes });
        }
        let (os, architecture) = (config.os().to_string(), config.architecture().to_string());
        Ok(Image {
            id,
            manifest: entry.original().ok_or_else(refuse)?,
            index: entry.index(),
            names: Vec::new(),
            size_bytes: layers.iter().map(|layer| layer.size_bytes).sum(),
            platform: Platform::from_parts(&os, &architecture, config.variant().as_deref()),
            config,
            layers,
        })
    }

    /// Fills in the names that an image has now.
    pub(super) fn with_names(&self, mut image: Image) -> Result<Image, StoreError> {
        let index = self.read_index()?;
        let same = index.manifests.iter().filter(|entry| entry.original().as_ref() == Some(&image.manifest));
        image.names = same.filter_map(|entry| entry.name()?.parse().ok()).collect();
        image.names.sort();
        Ok(image)
    }

    /// Finds the index entry that a name or id means.
    pub(super) fn find_entry(&self, name_or_id: &str) -> Result<Option<Entry>, StoreError> {
        let entries = self.read_index()?.manifests;
        if let Ok(reference) = name_or_id.parse::<Reference>() {
            let found = match reference.digest() {
                Some(digest) => entries.iter().find(|entry| entry.answers_to(digest)),
                None => {
                    let name = reference.to_string();
                    entries.iter().find(|entry| entry.name() == Some(&name))
                }
            };
            if let Some(entry) = found {
                return Ok(Some(entry.clone()));
            }
        }
        self.find_by_id(name_or_id, &entries)
    }

    fn find_by_id(&self, id: &str, entries: &[Entry]) -> Result<Option<Entry>, StoreError> {
        let prefix = id.strip_prefix("sha256:").unwrap_or(id);
        let is_hex = prefix.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !is_hex || prefix.len() < ID_PREFIX_MIN {
            return Ok(None);
        }
        let mut found: BTreeMap<Digest, &Entry> = BTreeMap::new();
        for entry in entries {
            let digests = [entry.manifest(), entry.original()];
            if digests.iter().flatten().any(|digest| digest.hex() == prefix) {
                return Ok(Some(entry.clone()));
            }
            let [Some(manifest), _] = digests else { continue };
            let Ok(document) = self.read_manifest(&manifest, Some(&entry.media_type)) else { continue };
            if document.config.digest.hex().starts_with(prefix) {
                found.entry(document.config.digest).or_insert(entry);
            }
        }
        match found.len() {
            0 | 1 => Ok(found.into_values().next().cloned()),
            count => Err(StoreError::Ambiguous { prefix: prefix.to_owned(), count }),
        }
    }
}
