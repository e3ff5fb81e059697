//! Reading manifests and indexes, and choosing the one for a platform.
//!
//! The bytes are the truth: digests are over them as received, and whatever a reader could
//! understand in two ways is refused (security.md A50): a document that is index and image at once,
//! doubled keys, a media type that differs between header, document and descriptor, schema 1.
//! Descriptors become [`Descriptor`]s, whose digests are parsed and whose sizes are bounded, before
//! anything is asked for by them.

use oci_distribution::manifest::{
    IMAGE_CONFIG_MEDIA_TYPE, IMAGE_DOCKER_CONFIG_MEDIA_TYPE, IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE,
    ImageIndexEntry, OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE, OciDescriptor, OciImageIndex, OciImageManifest,
};
use serde::de::IgnoredAny;

use super::strict_json;
use crate::digest::Digest;
use crate::layer::Compression;
use crate::limits::{ANNOTATIONS_BYTES_MAX, CONFIG_BYTES_MAX, INDEX_ENTRIES_MAX, LAYERS_MAX, MANIFEST_BYTES_MAX};
use crate::platform::Platform;

/// The media types that are asked for, best first.
pub const ACCEPTED: [&str; 4] =
    [OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE, IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE];
/// Types under which static file servers offer anything; they state nothing.
const UNSTATED: [&str; 3] = ["application/json", "application/octet-stream", "text/plain"];
/// What the platform of an attestation is called.
const UNKNOWN_OS: &str = "unknown";

/// Why a manifest is refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or JSON that two parsers could read differently.
    #[error("the manifest is not valid JSON")]
    Json(#[source] serde_json::Error),
    /// Both an index and an image.
    #[error("the manifest claims to be an index and an image at once")]
    Confused,
    /// Docker's schema 1, which cannot be verified.
    #[error("the manifest has the obsolete schema 1; the image must be pushed again")]
    Schema1,
    /// Some other kind of object.
    #[error("{} is not a container image", media_type.escape_debug())]
    NotAnImage {
        /// Its media type.
        media_type: String,
    },
    /// Header, document and descriptor do not agree.
    #[error("the manifest is called {} and {}", one.escape_debug(), other.escape_debug())]
    TypeMismatch {
        /// What one says.
        one: String,
        /// What another says.
        other: String,
    },
    /// A field has a value that cannot be.
    #[error("the manifest has an invalid {field}")]
    Invalid {
        /// Which field.
        field: &'static str,
    },
    /// More of something than any image has.
    #[error("the manifest has too many or too large {what}")]
    TooMuch {
        /// Of what.
        what: &'static str,
    },
    /// A layer that lives elsewhere (security.md A60).
    #[error("layer {digest} must be fetched from a foreign URL, which is refused")]
    Foreign {
        /// The layer.
        digest: Digest,
    },
    /// A layer of a kind that cannot be unpacked.
    #[error("layer {digest} has the unsupported type {}", media_type.escape_debug())]
    LayerType {
        /// The layer.
        digest: Digest,
        /// Its type.
        media_type: String,
    },
}

/// A checked pointer to content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// What the content must hash to.
    pub digest: Digest,
    /// How long it must be.
    pub size_bytes: u64,
    /// What it says it is.
    pub media_type: String,
}

/// A parsed manifest.
#[derive(Debug, Clone)]
pub enum Document {
    /// One image.
    Image(ImageDocument),
    /// A choice of images.
    Index(IndexDocument),
}

/// What a single image consists of.
#[derive(Debug, Clone)]
pub struct ImageDocument {
    /// The media type, settled.
    pub media_type: String,
    /// The configuration.
    pub config: Descriptor,
    /// Bottom to top.
    pub layers: Vec<(Descriptor, Compression)>,
}

/// A choice of images.
#[derive(Debug, Clone)]
pub struct IndexDocument {
    /// In the order of the index.
    pub entries: Vec<IndexEntry>,
}

/// One line of an index.
#[derive(Debug, Clone)]
pub struct IndexEntry {
    /// Where the manifest is.
    pub descriptor: Descriptor,
    /// What it is for; indexes of indexes often do not say.
    pub platform: Option<Platform>,
}

/// The fields that decide what a document is.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: Option<u64>,
    media_type: Option<String>,
    manifests: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
    config: Option<IgnoredAny>,
    fs_layers: Option<IgnoredAny>,
}

/// Parses a manifest that was served as `content_type` and, for an entry of an index, described as
/// `described`.
pub fn parse(bytes: &[u8], content_type: Option<&str>, described: Option<&str>) -> Result<Document, ManifestError> {
    strict_json::check(bytes).map_err(ManifestError::Json)?;
    let shape: Shape = serde_json::from_slice(bytes).map_err(ManifestError::Json)?;
    let is_index = shape.manifests.is_some();
    let is_image = shape.layers.is_some() || shape.config.is_some();
    if shape.schema_version == Some(1) || shape.fs_layers.is_some() {
        return Err(ManifestError::Schema1);
    }
    if is_index && is_image {
        return Err(ManifestError::Confused);
    }
    if shape.schema_version != Some(2) {
        return Err(ManifestError::Invalid { field: "schemaVersion" });
    }
    let media_type = settle_type(content_type, described, shape.media_type.as_deref(), is_index)?;
    match media_type.as_str() {
        OCI_IMAGE_INDEX_MEDIA_TYPE | IMAGE_MANIFEST_LIST_MEDIA_TYPE if is_index => {
            let index = serde_json::from_slice(bytes).map_err(ManifestError::Json)?;
            index_document(index).map(Document::Index)
        }
        OCI_IMAGE_MEDIA_TYPE | IMAGE_MANIFEST_MEDIA_TYPE if is_image => {
            let image = serde_json::from_slice(bytes).map_err(ManifestError::Json)?;
            image_document(image, media_type).map(Document::Image)
        }
        _ if ACCEPTED.contains(&media_type.as_str()) => Err(ManifestError::Confused),
        _ => Err(ManifestError::NotAnImage { media_type }),
    }
}

/// Brings the up to three statements about the type together; all that are made must agree.
fn settle_type(
    header: Option<&str>,
    described: Option<&str>,
    field: Option<&str>,
    is_index: bool,
) -> Result<String, ManifestError> {
    let header = header.map(|value| value.split(';').next().unwrap_or_default().trim());
    let header = header.filter(|value| !value.is_empty() && !UNSTATED.contains(value));
    let mut settled: Option<&str> = None;
    for stated in [header, described, field].into_iter().flatten() {
        match settled {
            Some(earlier) if earlier != stated => {
                return Err(ManifestError::TypeMismatch { one: earlier.to_owned(), other: stated.to_owned() });
            }
            _ => settled = Some(stated),
        }
    }
    // OCI documents need not name their type; their keys do, and only one kind of keys is there.
    let by_keys = if is_index { OCI_IMAGE_INDEX_MEDIA_TYPE } else { OCI_IMAGE_MEDIA_TYPE };
    Ok(settled.unwrap_or(by_keys).to_owned())
}

fn image_document(image: OciImageManifest, media_type: String) -> Result<ImageDocument, ManifestError> {
    check_annotations(image.annotations.as_ref())?;
    if image.layers.len() > LAYERS_MAX {
        return Err(ManifestError::TooMuch { what: "layers" });
    }
    let is_config =
        [IMAGE_CONFIG_MEDIA_TYPE, IMAGE_DOCKER_CONFIG_MEDIA_TYPE].contains(&image.config.media_type.as_str());
    if !is_config {
        return Err(ManifestError::NotAnImage { media_type: image.config.media_type });
    }
    let config = descriptor(&image.config)?;
    if config.size_bytes > CONFIG_BYTES_MAX {
        return Err(ManifestError::TooMuch { what: "configuration" });
    }
    let mut layers = Vec::with_capacity(image.layers.len());
    for layer in &image.layers {
        let checked = descriptor(layer)?;
        let compression = Compression::from_media_type(&checked.media_type).ok_or_else(|| {
            ManifestError::LayerType { digest: checked.digest.clone(), media_type: checked.media_type.clone() }
        })?;
        layers.push((checked, compression));
    }
    Ok(ImageDocument { media_type, config, layers })
}

fn index_document(index: OciImageIndex) -> Result<IndexDocument, ManifestError> {
    check_annotations(index.annotations.as_ref())?;
    if index.manifests.len() > INDEX_ENTRIES_MAX {
        return Err(ManifestError::TooMuch { what: "entries" });
    }
    let entries = index.manifests.iter().map(index_entry).collect::<Result<_, _>>()?;
    Ok(IndexDocument { entries })
}

fn index_entry(entry: &ImageIndexEntry) -> Result<IndexEntry, ManifestError> {
    check_annotations(entry.annotations.as_ref())?;
    let platform = entry.platform.as_ref().map(|platform| {
        let (os, architecture) = (platform.os.to_string(), platform.architecture.to_string());
        Platform::from_parts(&os, &architecture, platform.variant.as_deref())
    });
    let descriptor = checked(&entry.digest, entry.size, &entry.media_type)?;
    Ok(IndexEntry { descriptor, platform })
}

fn descriptor(raw: &OciDescriptor) -> Result<Descriptor, ManifestError> {
    check_annotations(raw.annotations.as_ref())?;
    let descriptor = checked(&raw.digest, raw.size, &raw.media_type)?;
    if raw.urls.as_ref().is_some_and(|urls| !urls.is_empty()) {
        return Err(ManifestError::Foreign { digest: descriptor.digest });
    }
    Ok(descriptor)
}

fn checked(digest: &str, size: i64, media_type: &str) -> Result<Descriptor, ManifestError> {
    let digest = digest.parse().map_err(|_| ManifestError::Invalid { field: "digest" })?;
    let size_bytes = u64::try_from(size).map_err(|_| ManifestError::Invalid { field: "size" })?;
    Ok(Descriptor { digest, size_bytes, media_type: media_type.to_owned() })
}

fn check_annotations(annotations: Option<&std::collections::BTreeMap<String, String>>) -> Result<(), ManifestError> {
    let total: usize = annotations.into_iter().flatten().map(|(key, value)| key.len() + value.len()).sum();
    if total > ANNOTATIONS_BYTES_MAX { Err(ManifestError::TooMuch { what: "annotations" }) } else { Ok(()) }
}

impl IndexEntry {
    /// Tells whether this entry is an index itself.
    pub fn is_index(&self) -> bool {
        let media_type = self.descriptor.media_type.as_str();
        [OCI_IMAGE_INDEX_MEDIA_TYPE, IMAGE_MANIFEST_LIST_MEDIA_TYPE].contains(&media_type)
    }

    /// Tells whether this entry is an image that can be fetched.
    fn is_image(&self) -> bool {
        let media_type = self.descriptor.media_type.as_str();
        let fits = self.descriptor.size_bytes <= MANIFEST_BYTES_MAX;
        fits && [OCI_IMAGE_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE].contains(&media_type)
    }
}

impl IndexDocument {
    /// Lists the entries worth trying for `wanted`, best first; the index's order breaks ties.
    pub fn candidates(&self, wanted: &Platform) -> Vec<&IndexEntry> {
        let rank = |entry: &IndexEntry| match &entry.platform {
            Some(offered) => wanted.preference(offered),
            // Only the image's own configuration can tell.
            None => Some(0),
        };
        let usable = self.entries.iter().filter(|entry| entry.is_image() || entry.is_index());
        let mut ranked: Vec<_> = usable.filter_map(|entry| Some((rank(entry)?, entry))).collect();
        ranked.sort_by_key(|(rank, _)| std::cmp::Reverse(*rank));
        ranked.into_iter().map(|(_, entry)| entry).collect()
    }

    /// Lists what the index offers, for people.
    pub fn platforms(&self) -> impl Iterator<Item = &Platform> {
        let stated = self.entries.iter().filter_map(|entry| entry.platform.as_ref());
        stated.filter(|platform| platform.os() != UNKNOWN_OS)
    }
}
