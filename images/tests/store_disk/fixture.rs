//! Small images made from bytes, and a store in a temporary directory.

use std::cell::Cell;
use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};

use coracle_images::store::Ingested;
use coracle_images::{
    Compression, Digest, Image, IngestError, LayerIngest, LayerSpace, NoProgress, Ownership, Publication, SourceError,
    Store, remove_tree,
};

use crate::evil_tar::EvilTar;

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

pub fn squashed() -> LayerSpace {
    LayerSpace { name: "squashed".into(), ownership: Ownership::Squash }
}

/// A store that is removed in the end, with whatever modes its layers have.
pub struct Scratch {
    pub top: PathBuf,
    pub store: Store,
}

impl Scratch {
    pub fn new() -> Scratch {
        let top = tempfile::tempdir().expect("temp dir").keep();
        let store = Store::open(&top.join("root")).expect("store");
        Scratch { top, store }
    }

    pub fn root(&self) -> PathBuf {
        self.top.join("root")
    }

    /// Names in a directory below the root.
    pub fn list(&self, directory: &str) -> Vec<String> {
        let entries = fs_err::read_dir(self.root().join(directory)).into_iter().flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Names of the unpacked layers.
    pub fn layers(&self) -> Vec<String> {
        self.list("layers/squashed").into_iter().filter(|name| !name.starts_with(".implicit-")).collect()
    }

    /// Asserts that nothing half done lies around.
    pub fn check_clean(&self) {
        assert_eq!(self.list("images/partial"), [""; 0], "partial downloads");
        for space in self.list("layers") {
            let names = self.list(&format!("layers/{space}")).into_iter();
            let hidden = names.filter(|name| name.starts_with('.') && !name.starts_with(".implicit-"));
            assert_eq!(hidden.collect::<Vec<_>>(), [""; 0], "unfinished layers");
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove_tree(&self.top).expect("remove the test's directory");
    }
}

/// A layer as a registry has it.
#[derive(Clone)]
pub struct FakeLayer {
    pub blob: Vec<u8>,
    pub digest: Digest,
    pub diff_id: Digest,
    pub compression: Compression,
}

impl FakeLayer {
    pub fn new(archive: &[u8], compression: Compression) -> FakeLayer {
        let blob = match compression {
            Compression::Plain => archive.to_vec(),
            Compression::Gzip => gzip(archive),
            Compression::Zstd => zstd::encode_all(archive, 3).expect("zstd"),
        };
        FakeLayer { digest: Digest::of(&blob), diff_id: Digest::of(archive), blob, compression }
    }

    /// A layer with one file.
    pub fn with_file(name: &str, content: &str) -> FakeLayer {
        FakeLayer::new(&EvilTar::new().file(name, content).end(), Compression::Gzip)
    }

    pub fn ingest(&self, store: &Store) -> Result<Ingested, IngestError> {
        self.ingest_from(store, &mut |offset| Ok(from(&self.blob, offset)))
    }

    pub fn ingest_from(
        &self,
        store: &Store,
        open: &mut dyn FnMut(u64) -> Result<Box<dyn Read + Send>, SourceError>,
    ) -> Result<Ingested, IngestError> {
        let space = squashed();
        let layer = LayerIngest {
            blob: &self.digest,
            size_bytes: self.blob.len() as u64,
            diff_id: &self.diff_id,
            compression: self.compression,
            space: &space,
        };
        store.ingest_layer(&layer, open, &NoProgress)
    }

    pub fn directory(&self, root: &Path) -> PathBuf {
        root.join("layers/squashed").join(self.diff_id.hex())
    }
}

pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).expect("write");
    encoder.finish().expect("finish")
}

/// Bytes from an offset on, as a source.
pub fn from(bytes: &[u8], offset: u64) -> Box<dyn Read + Send> {
    let rest = bytes[usize::try_from(offset).expect("offset")..].to_vec();
    Box::new(Cursor::new(rest))
}

/// A source that gives some bytes and then breaks.
pub fn breaking(bytes: &[u8], offset: u64, length: usize) -> Box<dyn Read + Send> {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _buffer: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::ConnectionReset.into())
        }
    }
    let start = usize::try_from(offset).expect("offset");
    let end = (start + length).min(bytes.len());
    Box::new(Cursor::new(bytes[start..end].to_vec()).chain(Broken))
}

/// An image as a registry has it.
pub struct FakeImage {
    pub layers: Vec<FakeLayer>,
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
    pub media_type: &'static str,
}

impl FakeImage {
    pub fn new(layers: &[FakeLayer]) -> FakeImage {
        FakeImage::of_kind(layers, OCI_MANIFEST)
    }

    pub fn of_kind(layers: &[FakeLayer], media_type: &'static str) -> FakeImage {
        let diff_ids: Vec<String> = layers.iter().map(|layer| layer.diff_id.to_string()).collect();
        let history: Vec<_> = layers
            .iter()
            .map(|_| serde_json::json!({"created_by": "test", "created": "2026-01-01T00:00:00Z"}))
            .collect();
        let config = serde_json::json!({
            "created": "2026-01-01T00:00:00Z", "architecture": "amd64", "os": "linux", "config": {"Env": ["A=1"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}, "history": history,
        });
        let config = serde_json::to_vec(&config).expect("json");
        let is_docker = media_type == DOCKER_MANIFEST;
        let config_type = if is_docker {
            "application/vnd.docker.container.image.v1+json"
        } else {
            "application/vnd.oci.image.config.v1+json"
        };
        let described: Vec<_> = layers
            .iter()
            .map(|layer| {
                let media_type = match (is_docker, layer.compression) {
                    (true, Compression::Gzip) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
                    (true, _) => "application/vnd.docker.image.rootfs.diff.tar",
                    (false, compression) => compression.media_type(),
                };
                serde_json::json!({"mediaType": media_type, "digest": layer.digest.to_string(), "size": layer.blob.len()})
            })
            .collect();
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": media_type, "layers": described,
            "config": {"mediaType": config_type, "digest": Digest::of(&config).to_string(), "size": config.len()},
        });
        let manifest = serde_json::to_vec_pretty(&manifest).expect("json");
        FakeImage { layers: layers.to_vec(), config, manifest, media_type }
    }

    /// Brings everything in and gives it a name.
    pub fn add(&self, store: &Store, name: Option<&str>) -> Image {
        let _keep = store.keep().expect("keep");
        for blob in [&self.config, &self.manifest] {
            ingest_blob(store, blob).expect("blob");
        }
        for layer in &self.layers {
            layer.ingest(store).expect("layer");
        }
        self.publish(store, name).expect("publish")
    }

    pub fn publish(&self, store: &Store, name: Option<&str>) -> Result<Image, coracle_images::StoreError> {
        let reference = name.map(|name| name.parse().expect("reference"));
        store.publish_image(&Publication {
            reference: reference.as_ref(),
            manifest: &Digest::of(&self.manifest),
            media_type: self.media_type,
            index: None,
        })
    }

    pub fn id(&self) -> Digest {
        Digest::of(&self.config)
    }
}

pub fn ingest_blob(store: &Store, bytes: &[u8]) -> Result<Vec<u8>, IngestError> {
    store.ingest_blob(&Digest::of(bytes), bytes.len() as u64, 1 << 20, &mut |offset| Ok(from(bytes, offset)))
}

/// A source that must not be asked, and counts whether it was.
pub fn forbidden(calls: &Cell<u32>) -> impl FnMut(u64) -> Result<Box<dyn Read + Send>, SourceError> + '_ {
    move |_| {
        calls.set(calls.get() + 1);
        Err("the source must not be opened".into())
    }
}

/// Bytes that do not compress, the same every time.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).flatten().take(length).collect()
}
