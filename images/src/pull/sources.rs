//! Where a pull gets what from: the registry of the image, or a mirror of it for what has a digest.
//!
//! What a tag means is the registry's to say, because the name stays in the store and others trust it; a mirror's word
//! counts only where the caller allows it and the registry says nothing at all. Whatever the mirror does wrong, the
//! registry is asked instead and somebody hears of it; content is checked by its digest whoever sent it.

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use super::PullOptions;
use crate::credentials::Credential;
use crate::digest::Digest;
use crate::progress::Progress;
use crate::reference::Reference;
use crate::registry::{Access, BlobReader, Manifest, Notice, Registry, RegistryError, Timeouts, TokenProblem};

/// How long a registry has to say what a tag means where a mirror could say it too: for name, TCP and TLS, ...
const SCOUT_CONNECT: Duration = Duration::from_secs(8);
/// ... and for each answer. ...
const SCOUT_ANSWER: Duration = Duration::from_secs(15);
/// It is asked once more: the first pause is at most 2.5 times the backoff, the second at least 4 times.
const SCOUT_PATIENCE_BACKOFFS: u32 = 3;

/// The registry, opened when it is first needed, and its mirror.
pub(super) struct Sources<'a> {
    reference: &'a Reference,
    options: &'a PullOptions,
    insecure: bool,
    credential: Option<Credential>,
    progress: &'a dyn Progress,
    origin: OnceLock<Registry>,
    opening: Mutex<()>,
    mirror: Option<Registry>,
    /// The mirror gave no answer, or stopped in one: to wait for that once is enough for a pull.
    mirror_silent: Arc<AtomicBool>,
    cancelled: AtomicBool,
}

impl<'a> Sources<'a> {
    /// Looks whether there is a mirror of the registry; if not, connects to the registry itself.
    pub fn open(
        reference: &'a Reference,
        options: &'a PullOptions,
        credential: Option<Credential>,
        progress: &'a dyn Progress,
    ) -> Result<Sources<'a>, RegistryError> {
        let insecure = options.insecure_registries.iter().any(|name| name == reference.registry());
        let mut sources = Sources {
            reference,
            options,
            insecure,
            credential,
            progress,
            origin: OnceLock::new(),
            opening: Mutex::new(()),
            mirror: None,
            mirror_silent: Arc::default(),
            cancelled: AtomicBool::new(false),
        };
        sources.mirror = sources.find_mirror();
        if sources.mirror.is_none() {
            sources.origin()?;
        }
        Ok(sources)
    }

    fn find_mirror(&self) -> Option<Registry> {
        let access = self.options.mirror.as_ref()?;
        let opened =
            Registry::open_mirror(self.reference, access, self.options.timeouts, self.options.name_files.clone());
        match opened.and_then(|mirror| mirror.log_in(&|_| ()).map(|()| mirror)) {
            Ok(mirror) => Some(mirror),
            // There is none, or none of this registry: nothing is wrong.
            Err(RegistryError::Status { status: 404, .. }) => None,
            Err(error) => {
                self.passed_over(&error);
                None
            }
        }
    }

    /// Tells that the mirror failed; one that gave no answer is not asked again.
    pub fn mirror_failed(&self, error: &RegistryError) {
        if matches!(error, RegistryError::Cancelled) {
            return;
        }
        if matches!(error, RegistryError::Unreachable { .. } | RegistryError::Stalled { .. }) {
            self.mirror_silent.store(true, Ordering::Relaxed);
        }
        self.passed_over(error);
    }

    /// Tells that something of the mirror was of no use.
    pub fn passed_over(&self, error: &dyn std::fmt::Display) {
        let image = self.reference.familiar();
        self.progress.notice(&format!("the mirror is passed over for {image}: {error}"));
    }

    /// Gives the registry itself.
    pub fn origin(&self) -> Result<&Registry, RegistryError> {
        let _one = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(origin) = self.origin.get() {
            return Ok(origin);
        }
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(RegistryError::Cancelled);
        }
        let opened = self.open_origin(self.options.timeouts)?;
        let origin = self.origin.get_or_init(|| opened);
        // Who cancels sees the registry here, or is seen here: see `cancel`.
        fence(Ordering::SeqCst);
        if self.cancelled.load(Ordering::Relaxed) {
            origin.cancel();
            return Err(RegistryError::Cancelled);
        }
        Ok(origin)
    }

    fn open_origin(&self, timeouts: Timeouts) -> Result<Registry, RegistryError> {
        let mut options = self.options.registry(self.insecure, self.credential.clone(), Access::Pull);
        options.timeouts = timeouts;
        Registry::open(self.reference, options)
    }

    /// Whether a mirror is asked at all.
    pub fn has_mirror(&self) -> bool {
        self.mirror.is_some()
    }

    /// The mirror, as long as it answers.
    fn mirror(&self) -> Option<&Registry> {
        self.mirror.as_ref().filter(|_| !self.mirror_silent.load(Ordering::Relaxed))
    }

    /// Asks which digest a tag has; `None` when nobody can say without sending the manifest.
    ///
    /// The registry is given little time only where the mirror's word counts, and all of it when the mirror has none.
    pub fn resolve(&self, tag: &str, listen: &dyn Fn(Notice)) -> Result<Option<Digest>, RegistryError> {
        let names_tags = self.options.mirror.as_ref().is_some_and(|access| access.names_tags);
        let Some(mirror) = self.mirror().filter(|_| names_tags) else { return self.origin()?.resolve(tag, listen) };
        let default = self.options.timeouts;
        let hasty = Timeouts {
            connect: default.connect.min(SCOUT_CONNECT),
            headers: default.headers.min(SCOUT_ANSWER),
            patience: default.patience.min(default.backoff * SCOUT_PATIENCE_BACKOFFS),
            ..default
        };
        match self.open_origin(hasty).and_then(|origin| origin.resolve(tag, listen)) {
            Err(error) if is_silent(&error) => {}
            said => return said,
        }
        let digest = match mirror.resolve(tag, listen) {
            Ok(digest) => digest,
            Err(error) => {
                self.mirror_failed(&error);
                return self.origin()?.resolve(tag, listen);
            }
        };
        let image = self.reference.familiar();
        self.progress.notice(&format!("what {image} means is the mirror's word; its registry does not answer"));
        Ok(digest)
    }

    /// Fetches a manifest; the mirror is asked for those with a known digest, and by their tag first, so that it knows
    /// the tag when the registry is silent.
    pub fn manifest(
        &self,
        name: &str,
        expected: Option<&Digest>,
        listen: &dyn Fn(Notice),
    ) -> Result<Manifest, RegistryError> {
        let Some(digest) = expected else { return self.origin()?.manifest(name, None, listen) };
        let pinned = digest.to_string();
        if let Some(mirror) = self.mirror() {
            let by_name = match mirror.manifest(name, expected, listen) {
                // It may have asked what the tag means a moment before it was changed.
                Err(RegistryError::WrongDigest { .. }) if name != pinned => mirror.manifest(&pinned, expected, listen),
                given => given,
            };
            match by_name {
                Ok(manifest) => return Ok(manifest),
                Err(RegistryError::Cancelled) => return Err(RegistryError::Cancelled),
                Err(error) => self.mirror_failed(&error),
            }
        }
        self.origin()?.manifest(&pinned, expected, listen)
    }

    /// Opens the stream of a blob at the mirror, if there is one.
    pub fn mirrored(
        &self,
        digest: &Digest,
        size_bytes: u64,
        offset: u64,
        listen: &dyn Fn(Notice),
    ) -> Option<Result<BlobReader, RegistryError>> {
        Some(self.mirror()?.blob(digest, size_bytes, offset, listen))
    }

    /// Watches a stream of the mirror.
    pub fn watched(&self, reader: BlobReader) -> Watched {
        Watched { reader, mirror_silent: Arc::clone(&self.mirror_silent) }
    }

    /// The registry's `host[:port]`, for people.
    pub fn host(&self) -> &str {
        self.reference.registry_host()
    }

    /// Ends every request and every stream.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        // Either `origin` sees this, or this sees what it has opened.
        fence(Ordering::SeqCst);
        self.mirror.iter().chain(self.origin.get()).for_each(Registry::cancel);
    }
}

/// A stream of a mirror. When nothing more comes, the mirror is not asked again.
pub(super) struct Watched {
    reader: BlobReader,
    mirror_silent: Arc<AtomicBool>,
}

impl Read for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.reader.read(buffer).inspect_err(|error| {
            let why = error.get_ref().and_then(|why| why.downcast_ref::<RegistryError>());
            if matches!(why, Some(RegistryError::Stalled { .. })) {
                self.mirror_silent.store(true, Ordering::Relaxed);
            }
        })
    }
}

/// Tells whether nobody answered, or only by putting us off: all else is the registry's own answer.
fn is_silent(error: &RegistryError) -> bool {
    match error {
        RegistryError::Unreachable { .. } | RegistryError::Stalled { .. } | RegistryError::RateLimited { .. } => true,
        RegistryError::Status { status, .. } | RegistryError::Token { problem: TokenProblem::Status(status), .. } => {
            *status >= 500
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::{LayerSpace, Ownership};
    use crate::progress::NoProgress;

    #[test]
    fn a_registry_that_opens_while_the_pull_ends_is_not_used() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("port");
        let port = listener.local_addr().expect("address").port();
        let reference: Reference = format!("localhost:{port}/x:1").parse().expect("name");
        let options = PullOptions::new(LayerSpace { name: "none".to_owned(), ownership: Ownership::Squash });
        let sources = Sources {
            reference: &reference,
            options: &options,
            insecure: false,
            credential: None,
            progress: &NoProgress,
            origin: OnceLock::new(),
            opening: Mutex::new(()),
            mirror: None,
            mirror_silent: Arc::default(),
            cancelled: AtomicBool::new(false),
        };
        std::thread::scope(|scope| {
            let opening = scope.spawn(|| sources.origin().map(drop));
            let (stream, _) = listener.accept().expect("it is being opened");
            sources.cancel();
            // It speaks no TLS, which is no obstacle here.
            drop(stream);
            assert!(matches!(opening.join().expect("thread"), Err(RegistryError::Cancelled)));
        });
    }
}
