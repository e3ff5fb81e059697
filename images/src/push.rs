//! From an image in the store to a name on a registry.
//!
//! Order: the layers in parallel, the configuration, then the manifest, exactly as it was received,
//! so that its digest stays what it was. A push that is killed leaves blobs there that the next one
//! finds, and nothing here.

use std::io::{self, Read};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::credentials::{self, CredentialError};
use crate::digest::Digest;
use crate::limits::PARALLEL_MAX;
use crate::progress::Progress;
use crate::pull::PullOptions;
use crate::reference::Reference;
use crate::registry::manifest::Descriptor;
use crate::registry::{Access, BlobUpload, Notice, Registry, RegistryError, RegistryOptions, UploadError, Uploaded};
use crate::store::{Image, Store, StoreError};

/// Why an image could not be pushed.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The registry did not take it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The login files cannot be used.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A blob of ours cannot be read.
    #[error("cannot read blob {digest}")]
    Read {
        /// The blob.
        digest: Digest,
        /// Why.
        source: io::Error,
    },
    /// A digest is what content has, not what it can be given.
    #[error("{image} names a digest; push to a tag")]
    Pinned {
        /// The destination.
        image: String,
    },
}

impl From<UploadError> for PushError {
    fn from(error: UploadError) -> Self {
        match error {
            UploadError::Registry(error) => PushError::Registry(error),
            UploadError::Read { digest, source } => PushError::Read { digest, source },
        }
    }
}

/// What is on the registry now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// The manifest's digest.
    pub digest: Digest,
    /// The manifest's size.
    pub size_bytes: u64,
}

/// Connects to the registry of `reference` for what `access` says.
pub(crate) fn open(reference: &Reference, options: &PullOptions, access: Access) -> Result<Registry, PushError> {
    let credential = credentials::find(&options.login_files, reference)?;
    let insecure = options.insecure_registries.iter().any(|name| name == reference.registry());
    Ok(Registry::open(reference, options.registry(insecure, credential, access))?)
}

impl PullOptions {
    /// The part of the options that is about the connection.
    pub(crate) fn registry(
        &self,
        insecure: bool,
        credential: Option<credentials::Credential>,
        access: Access,
    ) -> RegistryOptions {
        RegistryOptions {
            timeouts: self.timeouts,
            proxies: self.proxies.clone(),
            certs_dirs: self.certs_dirs.clone(),
            shows_certificate: self.shows_certificate,
            name_files: self.name_files.clone(),
            insecure,
            token_hosts: self.token_hosts.clone(),
            credential,
            access,
        }
    }
}

/// Puts `image` on the registry under `reference`.
pub fn push(
    store: &Store,
    image: &Image,
    reference: &Reference,
    options: &PullOptions,
    progress: &dyn Progress,
) -> Result<Pushed, PushError> {
    if reference.digest().is_some() {
        return Err(PushError::Pinned { image: reference.to_string() });
    }
    let _keep = store.keep()?;
    let bytes = store.read_blob(&image.manifest)?;
    let document = store.read_manifest(&image.manifest, None)?;
    // Repositories of this registry that have, or had, the image's layers.
    let neighbours = image.names.iter().filter(|name| name.registry() == reference.registry());
    let mut from: Vec<String> = neighbours.map(|name| name.repository().to_owned()).collect();
    from.retain(|name| name != reference.repository());
    from.dedup();
    let registry = open(reference, options, Access::Push { from: from.clone() })?;
    let push = Push { store, registry: &registry, from: from.first().map(String::as_str), progress };
    let mut layers: Vec<&Descriptor> = Vec::new();
    for (layer, _) in &document.layers {
        // Images repeat small layers.
        if !layers.contains(&layer) {
            layers.push(layer);
        }
    }
    layers.sort_by_key(|layer| std::cmp::Reverse(layer.size_bytes));
    push.all(&layers, options.parallel)?;
    push.blob(&document.config)?;
    let pushed = Pushed { digest: image.manifest.clone(), size_bytes: bytes.len() as u64 };
    let name = reference.tag().unwrap_or("latest");
    registry.put_manifest(name, &document.media_type, bytes, &|notice| push.tell(name, notice))?;
    Ok(pushed)
}

/// One push under way.
struct Push<'a> {
    store: &'a Store,
    registry: &'a Registry,
    from: Option<&'a str>,
    progress: &'a dyn Progress,
}

impl Push<'_> {
    /// Sends several blobs at a time; the first failure ends all of them.
    fn all(&self, blobs: &[&Descriptor], parallel: usize) -> Result<(), PushError> {
        let next = AtomicUsize::new(0);
        let failure = Mutex::new(None);
        let work = || {
            while let Some(blob) = blobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(error) = self.blob(blob) {
                    next.store(blobs.len(), Ordering::Relaxed);
                    // The others fail because they are told to; only the first reason counts.
                    if let Ok(mut failure) = failure.lock() {
                        failure.get_or_insert(error);
                    }
                    self.registry.cancel();
                    return;
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..parallel.clamp(1, PARALLEL_MAX).min(blobs.len()) {
                scope.spawn(work);
            }
            work();
        });
        match failure.into_inner() {
            Ok(Some(error)) => Err(error),
            _ => Ok(()),
        }
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<(), PushError> {
        let Descriptor { digest, size_bytes, .. } = descriptor;
        let what = digest.short();
        self.progress.begin(what, *size_bytes);
        self.progress.phase(what, "uploading");
        let open = || -> io::Result<Box<dyn Read + Send>> {
            Ok(Box::new(self.store.open_blob(digest).map_err(io::Error::other)?))
        };
        let sent = |bytes| self.progress.advance(what, bytes);
        let upload = BlobUpload { digest, size_bytes: *size_bytes, from: self.from, open: &open, sent: &sent };
        let outcome = self.registry.upload(&upload, &|notice| self.tell(what, notice));
        self.progress.finish(
            what,
            match &outcome {
                Ok(Uploaded::Present) => "already there",
                Ok(Uploaded::Mounted) => "mounted",
                Ok(Uploaded::Sent) => "done",
                Err(_) => "failed",
            },
        );
        Ok(outcome.map(drop)?)
    }

    fn tell(&self, what: &str, notice: Notice) {
        let Notice::Waiting { milliseconds } = notice;
        let text = format!("waiting {:.1} s for {}", milliseconds as f64 / 1000.0, self.registry.host());
        self.progress.phase(what, &text);
    }
}
