//! Images as the engine sees them: present or pulled, unpacked for the id map that is needed.

use std::path::{Path, PathBuf};

use coracle_images::author::AuthorError;
use coracle_images::{
    Digest, Image, IngestError, LoadError, LoadOptions, Platform, Progress, PullError, PushError, Reference, SaveError,
    SaveFormat, load, pull, save,
};
use coracle_runtime::IdMap;
use serde::{Deserialize, Serialize};

use super::events::{self, Kind};
use super::options::PullPolicy;
use super::{Engine, EngineError, containers, elsewhere, layer_space, provider, registry};

/// Says what went wrong with an image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error(transparent)]
    Reference(#[from] coracle_images::reference::ReferenceError),
    #[error(transparent)]
    Pull(#[from] PullError),
    #[error(transparent)]
    Unpack(#[from] IngestError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Save(#[from] SaveError),
    #[error(transparent)]
    Push(#[from] PushError),
    #[error(transparent)]
    Author(#[from] AuthorError),
}

/// Is what a removal took away: names and image ids.
#[derive(Debug, Serialize, Deserialize)]
pub struct RemovedImage {
    pub untagged: Vec<String>,
    pub deleted: Vec<String>,
}

impl Engine {
    /// Gives an image and its layers, bottom first, unpacked for `idmap`; asks the registry as `policy` says.
    pub fn ready_image(
        &self,
        name: &str,
        policy: PullPolicy,
        platform: Option<&Platform>,
        idmap: &IdMap,
        progress: &dyn Progress,
    ) -> Result<(Image, Vec<PathBuf>), EngineError> {
        let present = match policy {
            PullPolicy::Always => None,
            PullPolicy::Missing | PullPolicy::Never => self.store.find(name)?,
        };
        let fitting = present.filter(|image| platform.is_none_or(|wanted| image.platform == *wanted));
        let image = match (fitting, policy) {
            (Some(image), _) => image,
            (None, PullPolicy::Never) => return Err(EngineError::NoImage(name.to_owned())),
            (None, _) => self.pull(name, platform, idmap, progress)?,
        };
        if platform.is_none() && image.platform != Platform::host() {
            return Err(EngineError::WrongPlatform {
                image: name.to_owned(),
                found: image.platform.to_string(),
                wanted: Platform::host().to_string(),
            });
        }
        let layers = self.unpacked(&image, idmap, progress)?;
        Ok((image, layers))
    }

    /// Gives the directories of an image's layers, unpacking from the blobs what is not there yet.
    fn unpacked(&self, image: &Image, idmap: &IdMap, progress: &dyn Progress) -> Result<Vec<PathBuf>, EngineError> {
        let space = layer_space(idmap);
        if let Some(layers) = self.store.layers(image, &space)? {
            return Ok(layers);
        }
        elsewhere::call(idmap, || Ok(self.store.unpack(image, &space, progress).map_err(ImageError::from)?))
    }

    /// Pulls an image from its registry.
    pub fn pull(
        &self,
        name: &str,
        platform: Option<&Platform>,
        idmap: &IdMap,
        progress: &dyn Progress,
    ) -> Result<Image, EngineError> {
        let reference: Reference = name.parse().map_err(ImageError::from)?;
        let mut options = registry::options(idmap);
        options.platform = platform.cloned();
        options.mirror = provider::mirror::access();
        let told = Told { progress, root: &self.root, image: reference.familiar() };
        let id: String = elsewhere::call(idmap, || {
            let image = pull(&self.store, &reference, &options, &told).map_err(ImageError::from)?;
            Ok(image.id.to_string())
        })?;
        let image = self.store.find(&id)?.ok_or(EngineError::UnknownImage(id))?;
        events::emit(&self.root, Kind::Image, "pull", &image.id.to_string(), &[("name", &reference.familiar())]);
        Ok(image)
    }

    /// Gives an image another name.
    pub fn tag(&self, name: &str, target: &Reference) -> Result<(), EngineError> {
        let image = self.store.find(name)?.ok_or_else(|| EngineError::UnknownImage(name.to_owned()))?;
        self.store.tag(&image, target)?;
        events::emit(&self.root, Kind::Image, "tag", &image.id.to_string(), &[("name", &target.familiar())]);
        Ok(())
    }

    /// Removes an image, or one of its names.
    pub fn remove_image(&self, name: &str, force: bool) -> Result<RemovedImage, EngineError> {
        let used: Vec<String> = containers::list(&self.root).into_iter().map(|found| found.record.image_id).collect();
        let idmap = self.idmap(coracle_runtime::UserNs::Auto)?;
        let removed: RemovedImage = elsewhere::call(&idmap, || {
            let in_use = |id: &Digest| used.contains(&id.to_string());
            let removed = self.store.remove(name, force, &in_use)?;
            Ok(RemovedImage {
                untagged: removed.untagged.iter().map(Reference::familiar).collect(),
                deleted: removed.deleted.iter().map(Digest::to_string).collect(),
            })
        })?;
        for name in &removed.untagged {
            events::emit(&self.root, Kind::Image, "untag", name, &[("name", name)]);
        }
        for id in &removed.deleted {
            events::emit(&self.root, Kind::Image, "delete", id, &[("name", id)]);
        }
        Ok(removed)
    }

    /// Takes the images of an archive or layout in; gives what to call each, and what their names meant before (A46).
    pub fn load(
        &self,
        source: &Path,
        tag: Option<Reference>,
        idmap: &IdMap,
        progress: &dyn Progress,
    ) -> Result<Vec<Loaded>, EngineError> {
        let options = LoadOptions { tag, space: layer_space(idmap) };
        let before = self.store.list()?;
        let loaded: Vec<Loaded> = elsewhere::call(idmap, || {
            let images = load(&self.store, source, &options, progress).map_err(ImageError::from)?;
            let moved = |image: &Image| {
                let others = before.iter().filter(|old| old.id != image.id);
                let pairs = others.flat_map(|old| old.names.iter().map(|name| (name, old.id.to_string())));
                let taken = pairs.filter(|(name, _)| image.names.contains(name));
                taken.map(|(name, id)| (name.familiar(), id)).collect()
            };
            let one = |image: &Image| Loaded { id: image.id.to_string(), name: called(image), moved: moved(image) };
            Ok(images.iter().map(one).collect())
        })?;
        for image in &loaded {
            events::emit(&self.root, Kind::Image, "load", &image.id, &[("name", &image.name)]);
        }
        Ok(loaded)
    }

    /// Writes images into an archive or a layout directory.
    pub fn save(&self, names: &[String], format: SaveFormat, target: Option<&Path>) -> Result<(), EngineError> {
        let mut images = Vec::new();
        for name in names {
            let image = self.store.find(name)?.ok_or_else(|| EngineError::UnknownImage(name.clone()))?;
            let reference: Option<Reference> = name.parse().ok().filter(|parsed| image.names.contains(parsed));
            images.push((image, reference));
        }
        Ok(save(&self.store, &images, format, target).map_err(ImageError::from)?)
    }
}

/// Hears about a pull, and tells as an event what went another way than it should have.
struct Told<'a> {
    progress: &'a dyn Progress,
    root: &'a Path,
    image: String,
}

impl Progress for Told<'_> {
    fn begin(&self, what: &str, total_bytes: u64) {
        self.progress.begin(what, total_bytes);
    }

    fn advance(&self, what: &str, bytes: u64) {
        self.progress.advance(what, bytes);
    }

    fn phase(&self, what: &str, text: &str) {
        self.progress.phase(what, text);
    }

    fn finish(&self, what: &str, text: &str) {
        self.progress.finish(what, text);
    }

    fn notice(&self, text: &str) {
        events::emit(self.root, Kind::Image, "mirror", &self.image, &[("reason", text)]);
        self.progress.notice(text);
    }
}

/// Is an image that was loaded.
#[derive(Debug, Serialize, Deserialize)]
pub struct Loaded {
    pub id: String,
    /// What to call it.
    pub name: String,
    /// Names that meant another image before, with that image's id.
    pub moved: Vec<(String, String)>,
}

fn called(image: &Image) -> String {
    image.names.first().map_or_else(|| image.id.to_string(), Reference::familiar)
}
