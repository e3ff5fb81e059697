//! A pull-through mirror: what agents pull is fetched from its registry once, kept, and given to the next who asks.
//!
//! Only registries on a list are mirrored. They are asked by the scheduler's own client ([`Upstream`]), without
//! credentials or with the scheduler's own, never an agent's. Content is verified before it is kept, and once more
//! each time it is read from the disk. What a tag means is asked again after [`TAG_FRESH`]; while its registry does
//! not answer, what it meant last goes on. Every asker of what is missing waits for one fetch.

mod flight;
pub mod name;
mod places;
mod shelf;
mod tag;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::Semaphore;

pub use flight::{Body, Piece};
use flight::{Flight, Flights};
use name::{Content, Repository, Wanted};
use places::{Each, Place};
use shelf::Shelf;
use tag::Tags;

use crate::model::ProviderId;
use crate::server::{Log, wall_ms};

/// Longest manifest, what registries accept.
pub const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// Bytes of content that are kept unless the administrator says otherwise: some dozen large images.
pub const CAP_BYTES: u64 = 20 << 30;
/// How long what a tag means is believed without asking again.
pub const TAG_FRESH: Duration = Duration::from_secs(30);
/// How long a registry that did not answer is not asked for the same thing again.
const PAUSE: Duration = Duration::from_secs(5);
/// Blobs that are fetched from registries at once; each is a thread and a connection.
const FETCHES_MAX: usize = 8;
/// Of which one agent may have begun: as many as one pull of an image asks for. More wait for their turn.
const FETCHES_OF_ONE_MAX: usize = 3;
/// Manifests and tags that registries are asked for at once, beside blobs: slow layers keep nobody waiting.
const ASKED_MAX: usize = 8;
/// How long an asker waits for the registry's answer, and for its turn.
const ANSWER_MAX: Duration = Duration::from_secs(40);
/// Content that flows to agents at once: each holds a file and some pieces in memory.
const SERVED_MAX: usize = 512;
/// Of which to one agent: four images at once, of which three parts each.
const SERVED_TO_ONE_MAX: usize = 12;

/// Why the folder of a mirror cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    /// A file cannot be read or written.
    #[error("cannot use the mirror's folder {}", path.display())]
    File {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is one already.
    #[error("another scheduler uses the mirror's folder {}", path.display())]
    Taken {
        /// The folder.
        path: PathBuf,
    },
}

/// Why there is nothing to give.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MirrorError {
    /// The registry has no such thing, or does not show it to the mirror.
    #[error("the registry has no such {0}, or it is not public")]
    NotThere(&'static str),
    /// The registry puts the mirror off.
    #[error("the registry limits the rate of requests")]
    Limited {
        /// When it says to come back.
        retry_after_s: Option<u64>,
    },
    /// The registry does not answer, or with an error of its own.
    #[error("the registry does not answer: {0}")]
    Silent(String),
    /// The registry's answer cannot be used.
    #[error("what the registry answers cannot be used: {0}")]
    Unusable(String),
    /// Larger than all that is kept.
    #[error("{0} bytes are more than this mirror keeps")]
    TooLarge(u64),
    /// Nobody waits for it any more.
    #[error("who wanted it has gone")]
    Deserted,
    /// Everybody wants something.
    #[error("the mirror has too much to do")]
    Busy,
    /// The own disk fails.
    #[error("the mirror cannot keep it: {0}")]
    Disk(String),
}

/// A blob from a registry: its size, and its bytes from where was asked.
pub type Source = (u64, Box<dyn Read + Send>);

/// The way to registries. Calls block.
pub trait Upstream: Send + Sync + 'static {
    /// Asks which digest a tag has; `None` where the registry does not say.
    fn resolve(&self, at: &Repository, tag: &str) -> Result<Option<String>, MirrorError>;
    /// Fetches a manifest by tag or digest, of at most [`MANIFEST_BYTES_MAX`].
    fn manifest(&self, at: &Repository, reference: &str) -> Result<Vec<u8>, MirrorError>;
    /// Opens a blob.
    fn blob(&self, at: &Repository, digest: &str) -> Result<Source, MirrorError>;
    /// Opens a blob of known size again where it broke.
    fn rest(&self, at: &Repository, digest: &str, size: u64, offset: u64) -> Result<Source, MirrorError>;
}

/// What a mirror is made with.
#[derive(Clone, Debug)]
pub struct MirrorOptions {
    /// Where content is kept.
    pub folder: PathBuf,
    /// How much of it.
    pub cap_bytes: u64,
    /// The registries that are mirrored, as `host[:port]`.
    pub registries: Vec<String>,
    /// What is logged.
    pub log: Log,
}

/// What was counted since the start.
#[derive(Debug, Default)]
pub struct Counts {
    /// Answered from the disk.
    pub hits: AtomicU64,
    /// Fetched from a registry.
    pub misses: AtomicU64,
    /// Waited for another asker's fetch.
    pub shared: AtomicU64,
    /// Tags of which the last known meaning was given.
    pub stale: AtomicU64,
    /// Kept content that was something else when it was read.
    pub damaged: AtomicU64,
    /// Bytes that came from registries.
    pub fetched_bytes: AtomicU64,
    /// Bytes that went to agents.
    pub served_bytes: AtomicU64,
}

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// A manifest to give.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// What it is.
    pub content: Content,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What it says it is.
    pub media_type: String,
    /// The registry did not answer; this is what the tag meant last.
    pub stale: bool,
}

/// One thing that several may ask for at once: who holds it asks for all. Inside is how that failed, and when.
type Turn = tokio::sync::Mutex<Option<(Instant, MirrorError)>>;

/// A mirror.
pub struct Mirror {
    options: MirrorOptions,
    upstream: Arc<dyn Upstream>,
    shelf: Arc<Shelf>,
    tags: Tags,
    flights: Flights,
    turns: Mutex<BTreeMap<String, Weak<Turn>>>,
    asked: Arc<Semaphore>,
    fetches: Arc<Semaphore>,
    fetches_of: Each,
    served: Arc<Semaphore>,
    served_to: Each,
    /// What was counted.
    pub counts: Counts,
}

impl std::fmt::Debug for Mirror {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mirror").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Mirror {
    /// Opens what an earlier scheduler has left.
    pub fn open(options: MirrorOptions, upstream: Arc<dyn Upstream>) -> Result<Arc<Self>, ShelfError> {
        let shelf = Shelf::open(&options.folder, options.cap_bytes)?;
        let tags = Tags::open(&shelf).map_err(|source| ShelfError::File { path: options.folder.clone(), source })?;
        Ok(Arc::new(Self {
            options,
            upstream,
            shelf,
            tags,
            flights: Flights::default(),
            turns: Mutex::default(),
            asked: Arc::new(Semaphore::new(ASKED_MAX)),
            fetches: Arc::new(Semaphore::new(FETCHES_MAX)),
            fetches_of: Each::default(),
            served: Arc::new(Semaphore::new(SERVED_MAX)),
            served_to: Each::default(),
            counts: Counts::default(),
        }))
    }

    /// Tells whether a registry is mirrored.
    pub fn mirrors(&self, registry: &str) -> bool {
        self.options.registries.iter().any(|mirrored| mirrored == registry)
    }

    /// How many bytes are kept, and how often something made room.
    pub fn held(&self) -> (u64, u64) {
        (self.shelf.held_bytes(), self.shelf.evicted.load(Ordering::Relaxed))
    }

    fn say(&self, event: &str, at: &Repository, what: &str, reason: &str) {
        let fields = json!({ "image": at.to_string(), "what": what, "reason": reason });
        self.options.log.line("warn", event, wall_ms(), fields);
    }

    /// Asks a registry for something small on a thread that may wait, in turn.
    async fn ask<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Mirror) -> Result<T, MirrorError> + Send + 'static,
    ) -> Result<T, MirrorError> {
        let (this, places) = (Arc::clone(self), Arc::clone(&self.asked));
        let asked = async move {
            let turn = places.acquire_owned().await.map_err(|_| MirrorError::Busy)?;
            let worked = tokio::task::spawn_blocking(move || {
                let _turn = turn;
                work(&this)
            });
            worked.await.map_err(|_| MirrorError::Busy)?
        };
        tokio::time::timeout(ANSWER_MAX, asked).await.unwrap_or_else(|_| {
            Err(MirrorError::Silent(format!("nothing came within {} seconds", ANSWER_MAX.as_secs())))
        })
    }

    fn turn(&self, what: String) -> Arc<Turn> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = turns.get(&what).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::new(Turn::default());
        turns.insert(what, Arc::downgrade(&turn));
        turn
    }

    /// Gives a manifest.
    pub async fn manifest(self: &Arc<Self>, at: Repository, wanted: Wanted) -> Result<Manifest, MirrorError> {
        let (content, stale) = match wanted {
            Wanted::Content(content) => (content, false),
            Wanted::Tag(tag) => self.meaning(&at, &tag).await?,
        };
        let bytes = self.manifest_bytes(&at, &content).await?;
        count(&self.counts.served_bytes, bytes.len() as u64);
        let media_type = media_type(&bytes)?;
        Ok(Manifest { content, bytes, media_type, stale })
    }

    async fn kept_manifest(self: &Arc<Self>, at: &Repository, content: &Content) -> Option<Vec<u8>> {
        let (shelf, wanted) = (Arc::clone(&self.shelf), content.clone());
        let found = tokio::task::spawn_blocking(move || shelf.read(&wanted)).await.ok()??;
        if found.is_err() {
            count(&self.counts.damaged, 1);
            self.say("mirror-damaged", at, &content.to_string(), "the file is something else by now");
        }
        found.ok()
    }

    async fn manifest_bytes(self: &Arc<Self>, at: &Repository, content: &Content) -> Result<Vec<u8>, MirrorError> {
        if let Some(bytes) = self.kept_manifest(at, content).await {
            count(&self.counts.hits, 1);
            return Ok(bytes);
        }
        let turn = self.turn(format!("{at}@{content}"));
        let mut failed = turn.lock().await;
        if let Some((_, error)) = failed.as_ref().filter(|(when, _)| when.elapsed() < PAUSE) {
            return Err(error.clone());
        }
        if let Some(bytes) = self.kept_manifest(at, content).await {
            count(&self.counts.shared, 1);
            return Ok(bytes);
        }
        let (place, wanted) = (at.clone(), content.clone());
        let fetched = self.ask(move |mirror| mirror.fetch_manifest(&place, &wanted.to_string(), Some(&wanted))).await;
        *failed = fetched.as_ref().err().map(|error| (Instant::now(), error.clone()));
        fetched.map(|(_, bytes)| bytes)
    }

    /// Fetches a manifest and keeps it.
    fn fetch_manifest(
        &self,
        at: &Repository,
        reference: &str,
        expected: Option<&Content>,
    ) -> Result<(Content, Vec<u8>), MirrorError> {
        let kept_bytes = expected.and_then(|expected| self.shelf.size_bytes(expected));
        if kept_bytes.is_some_and(|bytes| bytes > MANIFEST_BYTES_MAX) {
            return Err(MirrorError::NotThere("manifest"));
        }
        count(&self.counts.misses, 1);
        let bytes = self.upstream.manifest(at, reference)?;
        count(&self.counts.fetched_bytes, bytes.len() as u64);
        if bytes.len() as u64 > MANIFEST_BYTES_MAX {
            return Err(MirrorError::Unusable(format!("a manifest of more than {MANIFEST_BYTES_MAX} bytes")));
        }
        let content = match expected {
            Some(expected) if expected.is(&bytes) => expected.clone(),
            Some(expected) => return Err(MirrorError::Unusable(format!("it is not {expected}"))),
            None => Content::of(&bytes),
        };
        media_type(&bytes)?;
        if let Err(error) = self.shelf.add(&content, &bytes) {
            self.say("mirror-disk", at, &content.to_string(), &error.to_string());
        }
        Ok((content, bytes))
    }

    /// Finds out what a tag means, and whether that is only what it meant last.
    async fn meaning(self: &Arc<Self>, at: &Repository, tag: &str) -> Result<(Content, bool), MirrorError> {
        let name = format!("{at}:{tag}");
        if let Some(content) = self.tags.fresh(&name, TAG_FRESH) {
            return Ok((content, false));
        }
        let turn = self.turn(name.clone());
        let mut failed = turn.lock().await;
        if let Some(content) = self.tags.fresh(&name, TAG_FRESH) {
            return Ok((content, false));
        }
        let known = self.tags.last(&name);
        let put_off = failed.as_ref().filter(|(when, _)| when.elapsed() < PAUSE).map(|(_, error)| error.clone());
        let put_off = put_off.or_else(|| self.tags.silent(&name, PAUSE));
        let asked = match put_off {
            Some(error) => Err(error),
            None => {
                let (place, tag) = (at.clone(), tag.to_owned());
                self.ask(move |mirror| mirror.ask_meaning(&place, &tag)).await
            }
        };
        match asked {
            Ok(content) => {
                let (this, meant) = (Arc::clone(self), content.clone());
                let kept = tokio::task::spawn_blocking(move || this.tags.keep(&this.shelf, &name, &meant)).await;
                if let Ok(Err(error)) = kept {
                    self.say("mirror-disk", at, tag, &error.to_string());
                }
                *failed = None;
                Ok((content, false))
            }
            // It is gone or private now: who asks hears so.
            Err(error @ MirrorError::NotThere(_)) => {
                let this = Arc::clone(self);
                let _ = tokio::task::spawn_blocking(move || this.tags.forget(&this.shelf, &name)).await;
                *failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
            Err(error) => {
                let Some(content) = known.filter(|content| self.shelf.has(content)) else {
                    *failed = Some((Instant::now(), error.clone()));
                    return Err(error);
                };
                if self.tags.silent(&name, PAUSE).is_none() {
                    self.say("mirror-stale", at, tag, &error.to_string());
                }
                self.tags.was_silent(&name, error);
                count(&self.counts.stale, 1);
                Ok((content, true))
            }
        }
    }

    fn ask_meaning(&self, at: &Repository, tag: &str) -> Result<Content, MirrorError> {
        let said = self.upstream.resolve(at, tag)?;
        match said.as_deref().and_then(Content::parse) {
            Some(content) => Ok(content),
            None => Ok(self.fetch_manifest(at, tag, None)?.0),
        }
    }

    /// Gives a place for content to flow to an agent.
    fn place_for(&self, asker: ProviderId) -> Option<Place> {
        let own = self.served_to.of(asker, SERVED_TO_ONE_MAX).try_acquire_owned().ok()?;
        Some((own, Arc::clone(&self.served).try_acquire_owned().ok()?))
    }

    async fn kept(self: &Arc<Self>, content: &Content) -> Option<(std::fs::File, u64)> {
        let (shelf, wanted) = (Arc::clone(&self.shelf), content.clone());
        tokio::task::spawn_blocking(move || shelf.get(&wanted)).await.ok()?
    }

    /// Gives a blob: from the disk, or as it comes.
    pub async fn blob(
        self: &Arc<Self>,
        at: Repository,
        wanted: Content,
        asker: ProviderId,
    ) -> Result<Body, MirrorError> {
        let place = self.place_for(asker).ok_or(MirrorError::Busy)?;
        if let Some((file, size_bytes)) = self.kept(&wanted).await {
            count(&self.counts.hits, 1);
            return Ok(Body::kept(Arc::clone(self), at, wanted, Arc::new(file), size_bytes, place));
        }
        let (mut listener, new) = self.flights.join(&wanted);
        match new {
            Some(flight) => {
                let (this, at, content) = (Arc::clone(self), at.clone(), wanted.clone());
                tokio::spawn(async move { this.fly(at, content, flight, asker).await });
            }
            None => count(&self.counts.shared, 1),
        }
        let begun = tokio::time::timeout(ANSWER_MAX, Flight::begun(&mut listener)).await;
        let begun = begun.unwrap_or_else(|_| Err(MirrorError::Silent("it is not their turn yet".to_owned())))?;
        Ok(Body::coming(Arc::clone(self), at, wanted, begun, listener, place))
    }

    /// Waits until a blob may be fetched; `None` when nobody waits for it any more.
    async fn fetch_turn(&self, content: &Content, flight: &Flight, asker: ProviderId) -> Option<Place> {
        let own = self.fetches_of.of(asker, FETCHES_OF_ONE_MAX);
        loop {
            let turn = async {
                let own = Arc::clone(&own).acquire_owned().await.ok()?;
                Some((own, Arc::clone(&self.fetches).acquire_owned().await.ok()?))
            };
            tokio::select! {
                biased;
                () = flight.deserted() => if self.flights.give_up(content, flight) { return None },
                turn = turn => return turn,
            }
        }
    }

    /// Fetches a blob for everybody who waits, and for those to come.
    async fn fly(self: Arc<Self>, at: Repository, content: Content, flight: Arc<Flight>, asker: ProviderId) {
        // The last fetch may have landed in between.
        if let Some((file, size_bytes)) = self.kept(&content).await {
            count(&self.counts.shared, 1);
            self.flights.land(&content, &flight);
            return flight.is_there(file, size_bytes);
        }
        let Some(turn) = self.fetch_turn(&content, &flight, asker).await else { return };
        count(&self.counts.misses, 1);
        let (this, flying) = (Arc::clone(&self), Arc::clone(&flight));
        let (place, wanted) = (at.clone(), content.clone());
        let flown = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            flight::fly(&this, &place, &wanted, &flying)
        });
        let outcome = flown.await.unwrap_or(Err(MirrorError::Busy));
        if let Err(error) = &outcome {
            self.say("mirror-fetch", &at, &content.to_string(), &error.to_string());
        }
        // On the shelf first: who comes in between finds it there or here.
        self.flights.land(&content, &flight);
        flight.land(outcome);
    }
}

/// The kinds of manifests that agents understand.
const MEDIA_TYPES: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// Reads what a manifest says it is; one that says nothing is an index or an image by its keys.
fn media_type(bytes: &[u8]) -> Result<String, MirrorError> {
    #[derive(serde::Deserialize)]
    struct Shape {
        #[serde(default, rename = "mediaType")]
        media_type: Option<String>,
        #[serde(default)]
        manifests: Option<serde::de::IgnoredAny>,
    }
    let shape: Shape =
        serde_json::from_slice(bytes).map_err(|_| MirrorError::Unusable("a manifest that is none".to_owned()))?;
    let by_keys = if shape.manifests.is_some() { MEDIA_TYPES[0] } else { MEDIA_TYPES[1] };
    let said = shape.media_type.unwrap_or_else(|| by_keys.to_owned());
    if MEDIA_TYPES.contains(&said.as_str()) {
        return Ok(said);
    }
    Err(MirrorError::Unusable("a manifest of another kind than images have".to_owned()))
}
