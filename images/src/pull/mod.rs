//! From a name to an image in the store.
//!
//! Order: the manifest (through indexes, by platform), its configuration, then the layers in
//! parallel, each in one pass through [`Store::ingest_layer`]; the name is given last. Whatever was
//! whole stays when a pull fails or is killed, and the next pull goes on from there.
//!
//! The caller is in the user namespace that the layer space belongs to. Nothing here is async.

mod error;
mod options;
mod sources;
mod stream;

use std::io::{Cursor, Read};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use oci_spec::image::ImageConfiguration;

pub use error::PullError;
pub use options::PullOptions;
use sources::Sources;
use stream::Stream;

use crate::credentials;
use crate::digest::Digest;
use crate::limits::{CONFIG_BYTES_MAX, INDEX_NESTING_MAX, INDEXES_FETCHED_MAX, MANIFEST_BYTES_MAX, PARALLEL_MAX};
use crate::platform::Platform;
use crate::progress::Progress;
use crate::reference::Reference;
use crate::registry::manifest::{self, Descriptor, Document, ImageDocument, IndexDocument, ManifestError};
use crate::registry::{Access, Manifest, Notice, Registry};
use crate::store::{Image, IngestError, LayerIngest, Publication, SourceError, Store};

/// Pulls `reference` into `store`, unpacked in the layer space of `options`.
pub fn pull(
    store: &Store,
    reference: &Reference,
    options: &PullOptions,
    progress: &dyn Progress,
) -> Result<Image, PullError> {
    let wanted = options.platform.clone().unwrap_or_else(Platform::host);
    if reference.digest().is_some()
        && let Some(image) = present(store, reference, &wanted, options)?
    {
        return Ok(image);
    }
    let credential = credentials::find(&options.login_files, reference)?;
    let sources = Sources::open(reference, options, credential, progress)?;
    let pull = Pull { store, sources: &sources, reference, wanted, options, progress };
    if let Some(image) = pull.unchanged()? {
        return Ok(image);
    }
    let _keep = store.keep()?;
    pull.run()
}

/// Connects to the registry of `reference` for reading, as a pull does.
pub fn connect(reference: &Reference, options: &PullOptions) -> Result<Registry, PullError> {
    let credential = credentials::find(&options.login_files, reference)?;
    let insecure = options.insecure_registries.iter().any(|name| name == reference.registry());
    Ok(Registry::open(reference, options.registry(insecure, credential, Access::Pull))?)
}

/// Finds a pinned image that needs no registry at all: right platform, every layer unpacked.
fn present(
    store: &Store,
    pinned: &Reference,
    wanted: &Platform,
    options: &PullOptions,
) -> Result<Option<Image>, PullError> {
    let Some(image) = store.find(&pinned.to_string())? else { return Ok(None) };
    let unpacked = store.layers(&image, &options.space)?.is_some();
    Ok((unpacked && platform_of(&image.config) == *wanted).then_some(image))
}

/// One pull under way.
struct Pull<'a> {
    store: &'a Store,
    sources: &'a Sources<'a>,
    reference: &'a Reference,
    wanted: Platform,
    options: &'a PullOptions,
    progress: &'a dyn Progress,
}

/// What a name led to.
struct Chosen {
    manifest: Manifest,
    document: ImageDocument,
    /// The index that was the registry's first answer, when it was one.
    index: Option<Digest>,
}

impl Pull<'_> {
    /// Asks whether the image that is here is still the one, which is free where pulls are counted.
    fn unchanged(&self) -> Result<Option<Image>, PullError> {
        let Some(tag) = self.reference.tag().filter(|_| self.reference.digest().is_none()) else { return Ok(None) };
        if self.store.find(&self.reference.to_string())?.is_none() {
            return Ok(None);
        }
        let Some(digest) = self.sources.resolve(tag, &|notice| self.tell(&self.reference.familiar(), notice))? else {
            return Ok(None);
        };
        let pinned = self.reference.pinned(digest);
        let Some(image) = present(self.store, &pinned, &self.wanted, self.options)? else { return Ok(None) };
        if !image.names.contains(self.reference) {
            self.store.tag(&image, self.reference)?;
        }
        Ok(Some(image))
    }

    fn run(&self) -> Result<Image, PullError> {
        let chosen = self.choose()?;
        let config = self.config(&chosen.document.config)?;
        self.check_config(&chosen.document, &config)?;
        self.layers(&chosen.document, &config)?;
        let bytes = &chosen.manifest.bytes;
        let mut open = |offset: u64| -> Result<Box<dyn Read + Send>, SourceError> {
            let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or_default();
            Ok(Box::new(Cursor::new(rest.to_vec())))
        };
        self.store.ingest_blob(&chosen.manifest.digest, bytes.len() as u64, MANIFEST_BYTES_MAX, &mut open)?;
        let image = self.store.publish_image(&Publication {
            reference: Some(self.reference),
            manifest: &chosen.manifest.digest,
            media_type: &chosen.document.media_type,
            index: chosen.index.as_ref(),
        })?;
        Ok(image)
    }

    /// Follows the name, through indexes, to the manifest for the platform.
    fn choose(&self) -> Result<Chosen, PullError> {
        let (name, pin) = match (self.reference.digest(), self.reference.tag()) {
            (Some(digest), _) => (digest.to_string(), Some(digest)),
            (None, Some(tag)) => (tag.to_owned(), None),
            (None, None) => ("latest".to_owned(), None),
        };
        // What comes from a mirror must have a digest that somebody else named.
        let resolved = match pin {
            None if self.sources.has_mirror() => {
                self.sources.resolve(&name, &|notice| self.tell(&self.reference.familiar(), notice))?
            }
            _ => None,
        };
        let (manifest, document) = match &resolved {
            Some(digest) => self.fetch(&name, Some(digest), None)?,
            None => self.fetch(&name, pin, None)?,
        };
        match document {
            Document::Image(document) => Ok(Chosen { manifest, document, index: None }),
            Document::Index(index) => {
                let mut search = Search { fetched: 0, available: Vec::new() };
                let found = self.search(&index, INDEX_NESTING_MAX, &mut search)?;
                let (image, document) = found.ok_or_else(|| PullError::WrongPlatform {
                    image: self.reference.to_string(),
                    wanted: self.wanted.clone(),
                    available: search.available,
                })?;
                Ok(Chosen { manifest: image, document, index: Some(manifest.digest) })
            }
        }
    }

    /// Looks through `index` and, at most `depth` levels down, the indexes it names.
    fn search(
        &self,
        index: &IndexDocument,
        depth: usize,
        search: &mut Search,
    ) -> Result<Option<(Manifest, ImageDocument)>, PullError> {
        let too_nested = || PullError::TooNested { image: self.reference.to_string() };
        for platform in index.platforms() {
            if !search.available.contains(platform) {
                search.available.push(platform.clone());
            }
        }
        for entry in index.candidates(&self.wanted) {
            if entry.is_index() && depth <= 1 {
                return Err(too_nested());
            }
            search.fetched += 1;
            if search.fetched > INDEXES_FETCHED_MAX {
                return Err(too_nested());
            }
            let descriptor = &entry.descriptor;
            let name = descriptor.digest.to_string();
            let (manifest, document) = self.fetch(&name, Some(&descriptor.digest), Some(descriptor))?;
            match document {
                Document::Image(document) => return Ok(Some((manifest, document))),
                Document::Index(inner) => {
                    if let Some(found) = self.search(&inner, depth - 1, search)? {
                        return Ok(Some(found));
                    }
                }
            }
        }
        Ok(None)
    }

    fn fetch(
        &self,
        name: &str,
        expected: Option<&Digest>,
        described: Option<&Descriptor>,
    ) -> Result<(Manifest, Document), PullError> {
        let refuse = |source| PullError::Manifest { image: self.reference.to_string(), source };
        let manifest =
            self.sources.manifest(name, expected, &|notice| self.tell(&self.reference.familiar(), notice))?;
        if described.is_some_and(|descriptor| descriptor.size_bytes != manifest.bytes.len() as u64) {
            return Err(refuse(ManifestError::Invalid { field: "size" }));
        }
        let described = described.map(|descriptor| descriptor.media_type.as_str());
        let document = manifest::parse(&manifest.bytes, manifest.content_type.as_deref(), described).map_err(refuse)?;
        Ok((manifest, document))
    }

    fn config(&self, descriptor: &Descriptor) -> Result<ImageConfiguration, PullError> {
        let bytes = self.whole(descriptor, |stream| {
            let (digest, size_bytes) = (&descriptor.digest, descriptor.size_bytes);
            self.store.ingest_blob(digest, size_bytes, CONFIG_BYTES_MAX, &mut |offset| stream.open(offset))
        })?;
        ImageConfiguration::from_reader(bytes.as_slice())
            .map_err(|source| PullError::Config { image: self.reference.to_string(), source })
    }

    /// Takes a blob in; one that is not what it should be because of the mirror is taken from the registry.
    fn whole<T>(
        &self,
        descriptor: &Descriptor,
        ingest: impl Fn(&mut Stream<'_>) -> Result<T, IngestError>,
    ) -> Result<T, IngestError> {
        let mut stream = Stream::new(self, descriptor);
        match ingest(&mut stream) {
            Err(error @ (IngestError::WrongDigest { .. } | IngestError::TooLong { .. })) if stream.was_mirrored() => {
                self.sources.passed_over(&error);
                ingest(&mut Stream::unmirrored(self, descriptor))
            }
            outcome => outcome,
        }
    }

    fn check_config(&self, document: &ImageDocument, config: &ImageConfiguration) -> Result<(), PullError> {
        let (layers, described) = (document.layers.len(), config.rootfs().diff_ids().len());
        if layers != described {
            return Err(PullError::LayerCount { image: self.reference.to_string(), layers, described });
        }
        let platform = platform_of(config);
        // Some builders leave the fields empty; then there is nothing to compare.
        let unstated = platform.os().is_empty() || platform.architecture().is_empty();
        if !unstated && self.wanted.preference(&platform).is_none() {
            return Err(PullError::WrongPlatform {
                image: self.reference.to_string(),
                wanted: self.wanted.clone(),
                available: vec![platform],
            });
        }
        Ok(())
    }

    /// Takes every layer in, several at a time; the first failure ends all of them.
    fn layers(&self, document: &ImageDocument, config: &ImageConfiguration) -> Result<(), PullError> {
        let mut jobs = Vec::with_capacity(document.layers.len());
        for ((descriptor, compression), diff_id) in document.layers.iter().zip(config.rootfs().diff_ids()) {
            let diff_id: Digest = diff_id.parse().map_err(|_| PullError::Manifest {
                image: self.reference.to_string(),
                source: ManifestError::Invalid { field: "diff_id" },
            })?;
            let job = (descriptor, *compression, diff_id);
            // Images repeat small layers.
            if !jobs.contains(&job) {
                jobs.push(job);
            }
        }
        // The largest first, so that none of them is left alone at the end.
        jobs.sort_by_key(|(descriptor, ..)| std::cmp::Reverse(descriptor.size_bytes));
        let next = AtomicUsize::new(0);
        let failure = Mutex::new(None);
        let work = || {
            while let Some((descriptor, compression, diff_id)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                let layer = LayerIngest {
                    blob: &descriptor.digest,
                    size_bytes: descriptor.size_bytes,
                    diff_id,
                    compression: *compression,
                    space: &self.options.space,
                };
                let outcome = self.whole(descriptor, |stream| {
                    self.store.ingest_layer(&layer, &mut |offset| stream.open(offset), self.progress)
                });
                if let Err(error) = outcome {
                    next.store(jobs.len(), Ordering::Relaxed);
                    // The others fail because they are told to; only the first reason counts.
                    if let Ok(mut failure) = failure.lock() {
                        failure.get_or_insert(error);
                    }
                    self.sources.cancel();
                    return;
                }
            }
        };
        let threads = self.options.parallel.clamp(1, PARALLEL_MAX).min(jobs.len());
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
        match failure.into_inner() {
            Ok(Some(error)) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Passes on that the registry makes us wait.
    fn tell(&self, what: &str, notice: Notice) {
        let Notice::Waiting { milliseconds } = notice;
        let text = format!("waiting {:.1} s for {}", milliseconds as f64 / 1000.0, self.sources.host());
        self.progress.phase(what, &text);
    }
}

/// How a search through indexes is going.
struct Search {
    fetched: usize,
    available: Vec<Platform>,
}

fn platform_of(config: &ImageConfiguration) -> Platform {
    let (os, architecture) = (config.os().to_string(), config.architecture().to_string());
    Platform::from_parts(&os, &architecture, config.variant().as_deref())
}
