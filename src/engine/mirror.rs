//! The pull-through mirror's way to registries: the scheduler crate's `Upstream`, by this program's own registry client.
//!
//! Registries are asked without credentials, or with those of a file that the administrator names for it; never with
//! those of whoever runs the scheduler, because every member of the pool may read what comes back.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use coracle_images::registry::{Registry, RegistryError, Timeouts};
use coracle_images::{Digest, LayerSpace, Ownership, PullError, PullOptions, Reference};
use coracle_scheduler::mirror::name::Repository;
use coracle_scheduler::mirror::{MirrorError, Source, Upstream};

use super::registry;

/// For name, TCP and TLS.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// For each answer: who asks the mirror has 45 seconds, and can ask the registry.
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// For pauses before a request is made again.
const PATIENCE: Duration = Duration::from_secs(2);
/// Repositories to which a connection and a token are kept.
const OPEN_MAX: usize = 16;
/// For so long.
const OPEN_FOR: Duration = Duration::from_secs(300);

/// Is the registries that are asked.
pub struct Registries {
    options: PullOptions,
    open: Mutex<BTreeMap<String, (Instant, Arc<Registry>)>>,
}

impl Registries {
    /// Takes proxies and authorities from the environment, and credentials from `login` only.
    pub fn new(login: Option<PathBuf>) -> Self {
        let mut options = PullOptions {
            timeouts: Timeouts { connect: CONNECT_MAX, headers: ANSWER_MAX, patience: PATIENCE, ..Timeouts::default() },
            // Nothing is unpacked.
            ..PullOptions::new(LayerSpace { name: "none".to_owned(), ownership: Ownership::Squash })
        };
        registry::from_environment(&mut options);
        options.login_files = login.into_iter().collect();
        options.shows_certificate = false;
        Self { options, open: Mutex::default() }
    }

    fn registry(&self, at: &Repository) -> Result<Arc<Registry>, MirrorError> {
        let name = at.to_string();
        let mut old = Vec::new();
        {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            let gone: Vec<String> =
                open.iter().filter(|(_, (at, _))| at.elapsed() > OPEN_FOR).map(|(name, _)| name.clone()).collect();
            old.extend(gone.into_iter().filter_map(|name| open.remove(&name)));
            if let Some((_, registry)) = open.get(&name) {
                return Ok(Arc::clone(registry));
            }
        }
        drop(old);
        let reference: Reference = name.parse().map_err(|_| MirrorError::NotThere("image"))?;
        if reference.registry() != at.registry || !reference.repository().ends_with(&at.name) {
            return Err(MirrorError::NotThere("image"));
        }
        let fresh = Arc::new(
            coracle_images::pull::connect(&reference, &self.options).map_err(|error| refused(error, "image"))?,
        );
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() < OPEN_MAX {
            open.insert(name, (Instant::now(), Arc::clone(&fresh)));
        }
        Ok(fresh)
    }

    /// Asks a registry; one that failed is opened anew the next time.
    fn ask<T>(
        &self,
        at: &Repository,
        what: &'static str,
        work: impl FnOnce(&Arc<Registry>) -> Result<T, RegistryError>,
    ) -> Result<T, MirrorError> {
        let registry = self.registry(at)?;
        work(&registry).map_err(|error| {
            let gone = self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&at.to_string());
            drop(gone);
            refused(PullError::Registry(error), what)
        })
    }
}

fn refused(error: PullError, what: &'static str) -> MirrorError {
    let text = error.to_string();
    let PullError::Registry(error) = error else { return MirrorError::Unusable(text) };
    match error {
        RegistryError::UnknownImage { .. } | RegistryError::Denied { .. } | RegistryError::Unauthorized { .. } => {
            MirrorError::NotThere(what)
        }
        RegistryError::Status { status: 404, .. } => MirrorError::NotThere(what),
        RegistryError::RateLimited { retry_after_seconds, .. } => {
            MirrorError::Limited { retry_after_s: retry_after_seconds }
        }
        RegistryError::Unreachable { .. }
        | RegistryError::Tls { .. }
        | RegistryError::Stalled { .. }
        | RegistryError::Status { status: 500.., .. }
        | RegistryError::Cancelled => MirrorError::Silent(text),
        _ => MirrorError::Unusable(text),
    }
}

fn digest(text: &str) -> Result<Digest, MirrorError> {
    text.parse().map_err(|_| MirrorError::NotThere("digest"))
}

/// Is a blob with the connection that it comes by.
struct Held {
    reader: Box<dyn Read + Send>,
    _registry: Arc<Registry>,
}

impl Read for Held {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.reader.read(buffer)
    }
}

impl Upstream for Registries {
    fn resolve(&self, at: &Repository, tag: &str) -> Result<Option<String>, MirrorError> {
        let found = self.ask(at, "image", |registry| registry.resolve(tag, &|_| ()))?;
        Ok(found.map(|digest| digest.to_string()))
    }

    fn manifest(&self, at: &Repository, reference: &str) -> Result<Vec<u8>, MirrorError> {
        let expected = if reference.contains(':') { Some(digest(reference)?) } else { None };
        let found = self.ask(at, "image", |registry| registry.manifest(reference, expected.as_ref(), &|_| ()))?;
        Ok(found.bytes)
    }

    fn blob(&self, at: &Repository, blob: &str) -> Result<Source, MirrorError> {
        let digest = digest(blob)?;
        let found = self.ask(at, "blob", |registry| {
            let opened = registry.blob_of_its_size(&digest, &|_| ())?;
            Ok(opened.map(|(size, reader)| (size, held(reader, registry))))
        })?;
        found.ok_or_else(|| MirrorError::Unusable(format!("it does not say how large blob {blob} is")))
    }

    fn rest(&self, at: &Repository, blob: &str, size: u64, offset: u64) -> Result<Source, MirrorError> {
        let digest = digest(blob)?;
        let opened =
            self.ask(at, "blob", |registry| Ok(held(registry.blob(&digest, size, offset, &|_| ())?, registry)))?;
        Ok((size, opened))
    }
}

fn held(reader: impl Read + Send + 'static, registry: &Arc<Registry>) -> Box<dyn Read + Send> {
    Box::new(Held { reader: Box::new(reader), _registry: Arc::clone(registry) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_see_nothing_of_who_runs_the_scheduler() {
        let options = Registries::new(None).options;
        assert!(!options.shows_certificate && options.login_files.is_empty());
        assert!(!options.certs_dirs.is_empty(), "authorities are trusted all the same");
        let login = PathBuf::from("/etc/login.json");
        assert_eq!(Registries::new(Some(login.clone())).options.login_files, [login]);
    }
}
