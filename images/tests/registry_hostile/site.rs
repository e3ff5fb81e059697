//! An image, a registry that serves it properly except where a test interferes, and a place to pull to.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coracle_images::registry::{NameFiles, Timeouts};
use coracle_images::{
    Digest, Image, LayerSpace, NoProgress, Ownership, PullError, PullOptions, Reference, Store, pull,
};
use serde_json::{Value, json};

use crate::server::{Identity, Reply, Seen, Server};

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// What a registry has. Everything is served under its digest; names point to manifests.
#[derive(Debug, Clone, Default)]
pub struct Content {
    pub blobs: BTreeMap<String, Vec<u8>>,
    /// By tag or digest: media type and bytes.
    pub manifests: BTreeMap<String, (String, Vec<u8>)>,
}

/// One image, built of plain tar layers.
#[derive(Debug, Clone)]
pub struct Made {
    pub manifest: Value,
    pub config: Value,
    pub layers: Vec<Vec<u8>>,
}

/// Makes a tar archive with one file.
pub fn layer(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(1_000_000_000);
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_data(&mut header, name, content).expect("entry");
    builder.into_inner().expect("archive")
}

/// Makes bytes that do not repeat and do not compress.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).flatten().take(length).collect()
}

pub fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl Made {
    /// Makes an image for this host out of `layers`.
    pub fn new(layers: Vec<Vec<u8>>) -> Made {
        Made::for_architecture(host_architecture(), layers)
    }

    pub fn for_architecture(architecture: &str, layers: Vec<Vec<u8>>) -> Made {
        let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
        let config = json!({
            "architecture": architecture, "os": "linux", "config": {"Cmd": ["/x"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let bytes = config.to_string().into_bytes();
        let descriptors: Vec<Value> = layers.iter().map(|layer| descriptor(OCI_LAYER, layer)).collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": descriptor(OCI_CONFIG, &bytes), "layers": descriptors,
        });
        Made { manifest, config, layers }
    }

    /// A small image with the file `hello`.
    pub fn small() -> Made {
        Made::new(vec![layer("hello", b"hello\n")])
    }

    pub fn manifest_bytes(&self) -> Vec<u8> {
        self.manifest.to_string().into_bytes()
    }

    /// The name under which the site serves it by default.
    pub fn content(&self, tag: &str) -> Content {
        let mut content = Content::default();
        content.add(tag, self);
        content
    }
}

pub fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(bytes).to_string(), "size": bytes.len()})
}

impl Content {
    pub fn add(&mut self, tag: &str, made: &Made) {
        self.add_blob(made.config.to_string().into_bytes());
        for layer in &made.layers {
            self.add_blob(layer.clone());
        }
        self.add_manifest(tag, OCI_MANIFEST, made.manifest_bytes());
    }

    pub fn add_blob(&mut self, bytes: Vec<u8>) {
        self.blobs.insert(Digest::of(&bytes).to_string(), bytes);
    }

    pub fn add_manifest(&mut self, tag: &str, media_type: &str, bytes: Vec<u8>) {
        let digest = Digest::of(&bytes).to_string();
        self.manifests.insert(digest, (media_type.to_owned(), bytes.clone()));
        self.manifests.insert(tag.to_owned(), (media_type.to_owned(), bytes));
    }

    /// Answers as a good registry does.
    pub fn serve(&self, seen: &Seen) -> Reply {
        let path = seen.path.split('?').next().unwrap_or_default();
        if path == "/v2/" {
            return Reply::new(200);
        }
        if let Some((_, name)) = path.split_once("/manifests/") {
            return match self.manifests.get(name) {
                Some((media_type, bytes)) => Reply::new(200)
                    .header("Content-Type", media_type)
                    .header("Docker-Content-Digest", Digest::of(bytes).to_string())
                    .body(bytes.clone()),
                None => Reply::new(404).body(r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"x"}]}"#),
            };
        }
        let blob = path.split_once("/blobs/").and_then(|(_, digest)| self.blobs.get(digest));
        let Some(blob) = blob else { return Reply::new(404) };
        let from = seen.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        match from {
            Some(from) => {
                let from: usize = from;
                let range = format!("bytes {from}-{}/{}", blob.len() - 1, blob.len());
                Reply::new(206).header("Content-Range", range).body(&blob[from..])
            }
            None => Reply::new(200).body(blob.clone()),
        }
    }
}

/// A registry on a port of its own.
pub struct Site {
    pub server: Server,
    content: Arc<Mutex<Content>>,
}

impl Site {
    pub fn new(content: Content) -> Site {
        Site::with(content, |_, proper| proper)
    }

    /// Serves `content`, every answer bent by `bend`.
    pub fn with(content: Content, bend: impl Fn(&Seen, Reply) -> Reply + Send + Sync + 'static) -> Site {
        let content = Arc::new(Mutex::new(content));
        let shared = content.clone();
        let server = Server::plain(move |seen| {
            let proper = shared.lock().expect("content").serve(seen);
            bend(seen, proper)
        });
        Site { server, content }
    }

    pub fn tls(content: Content, identity: &Identity) -> Site {
        let content = Arc::new(Mutex::new(content));
        let shared = content.clone();
        let server = Server::tls(identity, move |seen| shared.lock().expect("content").serve(seen));
        Site { server, content }
    }

    pub fn replace(&self, content: Content) {
        *self.content.lock().expect("content") = content;
    }

    pub fn image(&self, rest: &str) -> Reference {
        format!("localhost:{}/{rest}", self.server.port).parse().expect("name")
    }
}

/// A store in a directory of its own, and options that never wait long.
pub struct Place {
    pub dir: tempfile::TempDir,
    pub store: Store,
    pub options: PullOptions,
}

impl Place {
    pub fn new() -> Place {
        let dir = tempfile::tempdir().expect("tempdir");
        let store = Store::open(&dir.path().join("store")).expect("store");
        let space = LayerSpace { name: "squashed".to_owned(), ownership: Ownership::Squash };
        let mut options = PullOptions::new(space);
        options.certs_dirs = vec![dir.path().join("certs.d")];
        options.name_files = NameFiles { hosts: dir.path().join("hosts"), resolv_conf: dir.path().join("resolv.conf") };
        options.timeouts = Timeouts {
            connect: Duration::from_secs(5),
            headers: Duration::from_millis(1500),
            idle: Duration::from_millis(700),
            rate_window: Duration::from_secs(2),
            rate_min_bytes_per_second: 1024,
            backoff: Duration::from_millis(10),
            ..Timeouts::default()
        };
        Place { dir, store, options }
    }

    pub fn pull(&self, reference: &Reference) -> Result<Image, PullError> {
        pull(&self.store, reference, &self.options, &NoProgress)
    }

    /// Pulls and expects to be refused.
    pub fn refused(&self, reference: &Reference) -> PullError {
        match self.pull(reference) {
            Ok(image) => panic!("{reference} was pulled as {}", image.id),
            Err(error) => {
                self.assert_nothing_published();
                error
            }
        }
    }

    pub fn assert_nothing_published(&self) {
        assert!(self.store.list().expect("list").is_empty(), "a failed pull left an image behind");
    }

    /// Writes a login file with `user:password` for each of `hosts`.
    pub fn log_in(&mut self, hosts: &[&str]) {
        let auths: BTreeMap<&str, Value> =
            hosts.iter().map(|host| (*host, json!({"auth": "dXNlcjpwYXNzd29yZA=="}))).collect();
        let path = self.dir.path().join("config.json");
        fs_err::write(&path, json!({ "auths": auths }).to_string()).expect("login file");
        self.options.login_files = vec![path];
    }

    /// Trusts an authority for `host`.
    pub fn trust(&self, host: &str, identity: &Identity) {
        let dir = self.dir.path().join("certs.d").join(host);
        fs_err::create_dir_all(&dir).expect("certs.d");
        fs_err::write(dir.join("ca.crt"), &identity.authority_pem).expect("ca.crt");
    }

    pub fn name_host(&self, name: &str, address: &str) {
        let path = self.options.name_files.hosts.clone();
        let old = fs_err::read_to_string(&path).unwrap_or_default();
        fs_err::write(&path, format!("{old}{address} {name}\n")).expect("hosts");
    }

    /// The content of a file of the topmost layer that has it.
    pub fn read(&self, image: &Image, path: &str) -> Vec<u8> {
        let layers = self.store.layers(image, &self.options.space).expect("layers").expect("unpacked");
        let found: Option<PathBuf> = layers.iter().rev().map(|layer| layer.join(path)).find(|path| path.exists());
        fs_err::read(found.expect(path)).expect(path)
    }
}

/// The header that `user:password` makes.
pub const BASIC: &str = "Basic dXNlcjpwYXNzd29yZA==";
