//! Images made byte by byte, for what no honest tool would make: hostile entries, odd configurations.

use std::collections::BTreeMap;
use std::io::Write;

use serde_json::{Value, json};
use tar::{EntryType, Header};

use super::tree;

/// Media types that the tests speak of.
pub mod media {
    pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    pub const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
}

/// A layer that is being written.
pub struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    /// Starts an empty layer.
    pub fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    /// Starts a layer that has busybox with its programs, accounts and the usual directories.
    pub fn busybox() -> Self {
        let busybox = fs_err::read("/bin/busybox").unwrap();
        let mut layer = Self::new();
        for dir in ["bin", "etc", "dev", "proc", "sys", "run", "var"] {
            layer = layer.dir(dir, 0o755);
        }
        layer = layer.dir("tmp", 0o1777).dir("root", 0o700);
        layer = layer.file("bin/busybox", 0o755, &busybox);
        for applet in APPLETS {
            layer = layer.symlink(&format!("bin/{applet}"), "busybox");
        }
        layer.file("etc/passwd", 0o644, b"root:x:0:0::/root:/bin/sh\ntester:x:1000:1000::/:/bin/sh\n").file(
            "etc/group",
            0o644,
            b"root:x:0:\ntester:x:1000:\n",
        )
    }

    /// Adds a regular file owned by root.
    pub fn file(self, path: &str, mode: u32, content: &[u8]) -> Self {
        self.owned(path, mode, 0, 0, content)
    }

    /// Adds a regular file with an owner.
    pub fn owned(self, path: &str, mode: u32, uid: u64, gid: u64, content: &[u8]) -> Self {
        let mut header = header(path, EntryType::Regular, mode, "");
        header.set_uid(uid);
        header.set_gid(gid);
        self.entry(header, content)
    }

    /// Adds a directory.
    pub fn dir(self, path: &str, mode: u32) -> Self {
        self.entry(header(&format!("{path}/"), EntryType::Directory, mode, ""), b"")
    }

    /// Adds a symbolic link.
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(header(path, EntryType::Symlink, 0o777, target), b"")
    }

    /// Adds a hard link.
    pub fn hardlink(self, path: &str, target: &str) -> Self {
        self.entry(header(path, EntryType::Link, 0o644, target), b"")
    }

    /// Adds an entry of any kind: fifo, device.
    pub fn special(self, path: &str, kind: EntryType, major: u32, minor: u32) -> Self {
        let mut header = header(path, kind, 0o666, "");
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        self.entry(header, b"")
    }

    /// Adds a header as it is, with its content.
    pub fn entry(mut self, mut header: Header, content: &[u8]) -> Self {
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    /// Gives the tar.
    pub fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

const APPLETS: [&str; 31] = [
    "sh",
    "cat",
    "ls",
    "id",
    "echo",
    "true",
    "false",
    "env",
    "pwd",
    "stat",
    "readlink",
    "touch",
    "mkdir",
    "rm",
    "ln",
    "cp",
    "mount",
    "umount",
    "grep",
    "sed",
    "sleep",
    "dd",
    "wc",
    "head",
    "hostname",
    "test",
    "printf",
    "chmod",
    "find",
    "sha256sum",
    "kill",
];

/// Writes name and link into the header as raw bytes: the tar crate would refuse the hostile ones.
pub fn header(path: &str, kind: EntryType, mode: u32, link: &str) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_600_000_000);
    let raw = header.as_old_mut();
    raw.name[..path.len()].copy_from_slice(path.as_bytes());
    raw.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header
}

/// Compresses as registries expect it.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Gives `sha256:HEX`.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", tree::sha256(bytes))
}

/// An image as a registry holds it.
#[derive(Clone, Default)]
pub struct Image {
    /// Blobs by digest.
    pub blobs: BTreeMap<String, Vec<u8>>,
    /// The manifest's bytes and media type.
    pub manifest: Vec<u8>,
    /// See `manifest`.
    pub media_type: String,
}

impl Image {
    /// Makes an honest image of layers and what goes under `config` in its configuration.
    pub fn new(layers: Vec<Vec<u8>>, config: &Value) -> Self {
        let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
        let configuration = json!({
            "architecture": "amd64", "os": "linux", "config": config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        Self::of(layers.iter().map(|layer| gzip(layer)).collect(), &configuration)
    }

    /// Makes an image of compressed layers and a whole configuration.
    pub fn of(layers: Vec<Vec<u8>>, configuration: &Value) -> Self {
        let mut image = Self { media_type: media::MANIFEST.to_owned(), ..Self::default() };
        let config = image.blob(media::CONFIG, configuration.to_string().into_bytes());
        let layers: Vec<Value> = layers.into_iter().map(|layer| image.blob(media::LAYER_GZIP, layer)).collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media::MANIFEST, "config": config, "layers": layers,
        });
        image.manifest = manifest.to_string().into_bytes();
        image
    }

    /// Stores a blob and gives its descriptor.
    pub fn blob(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest = digest(&bytes);
        let descriptor = json!({"mediaType": media_type, "digest": digest, "size": bytes.len()});
        self.blobs.insert(digest, bytes);
        descriptor
    }

    /// Changes the manifest's JSON.
    pub fn edit(mut self, change: impl FnOnce(&mut Value)) -> Self {
        let mut manifest = serde_json::from_slice(&self.manifest).unwrap();
        change(&mut manifest);
        self.manifest = manifest.to_string().into_bytes();
        self
    }

    /// Busybox and one layer above it.
    pub fn hostile(layer: Layer, config: &Value) -> Self {
        Self::new(vec![Layer::busybox().bytes(), layer.bytes()], config)
    }
}
