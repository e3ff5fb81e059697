//! Taking names and images away, and collecting what no image needs any more.
//!
//! The index entries are the only roots. The collector runs alone (`locks/store`, exclusively): when
//! a pull is under way it does nothing and says so, and the next collection does the work. Layers
//! are renamed away before they are taken apart, so nobody sees half of one.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::index::{Entry, Index};
use super::lock::{self, Share};
use super::target::{IMPLICIT_PREFIX, REMOVING_PREFIX};
use super::{Store, StoreError};
use crate::digest::Digest;
use crate::reference::Reference;
use crate::removal::remove_tree;

/// Broken downloads are kept for the next attempt; after a day nobody is coming back for them.
const PARTIAL_AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// What a removal did.
#[derive(Debug, Default)]
pub struct Removed {
    /// Names that are gone.
    pub untagged: Vec<Reference>,
    /// Images that are gone (their ids).
    pub deleted: Vec<Digest>,
    /// Bytes of blobs that were freed; unpacked layers are not counted.
    pub freed_bytes: u64,
    /// A pull was under way, so that blobs and layers stay until the next collection.
    pub postponed: bool,
    /// What could not be removed, such as layers of another id map.
    pub failures: Vec<(PathBuf, io::Error)>,
}

impl Store {
    /// Takes a name from an image, or the image away with all its names, and collects garbage.
    /// Runs in the user namespace of the layers.
    ///
    /// A name that is not the image's last is only taken away. An image that `in_use` knows stays;
    /// with `force` it loses its names. By id, several names need `force`.
    ///
    /// # Errors
    /// When there is no such image, or one of the rules above forbids it; nothing has changed then.
    pub fn remove(
        &self,
        name_or_id: &str,
        force: bool,
        in_use: &dyn Fn(&Digest) -> bool,
    ) -> Result<Removed, StoreError> {
        let mut removed = Removed::default();
        let missing = || StoreError::NoSuchImage { name: name_or_id.to_owned() };
        let entry = self.find_entry(name_or_id)?.ok_or_else(missing)?;
        // A damaged image can be removed, but nothing can be in use then.
        let id = entry.manifest().and_then(|digest| self.read_manifest(&digest, None).ok());
        let id = id.map(|document| document.config.digest);
        let by_name = entry
            .name()
            .filter(|name| name_or_id.parse::<Reference>().is_ok_and(|reference| reference.to_string() == *name));
        let by_name = by_name.map(str::to_owned);
        self.change_index(|index| {
            let names = index.manifests.iter().filter(|other| other.is_same_image(&entry));
            let names: Vec<String> = names.filter_map(|other| Some(other.name()?.to_owned())).collect();
            let taken = match &by_name {
                Some(name) if names.len() > 1 => std::slice::from_ref(name),
                _ => names.as_slice(),
            };
            let last = taken.len() == names.len();
            if let (true, Some(id)) = (last, &id) {
                let used = in_use(id);
                if used && !force {
                    return Err(StoreError::InUse { id: id.clone() });
                }
                if by_name.is_none() && names.len() > 1 && !force {
                    return Err(StoreError::SeveralNames { id: id.clone(), count: names.len() });
                }
            }
            take_away(index, &entry, taken, last && !id.as_ref().is_some_and(in_use));
            removed.untagged = taken.iter().filter_map(|name| name.parse().ok()).collect();
            let gone = !index.manifests.iter().any(|other| other.is_same_image(&entry));
            removed.deleted.extend(id.clone().filter(|_| gone));
            Ok(())
        })?;
        self.collect_into(&mut removed)?;
        Ok(removed)
    }

    /// Removes everything that no image needs.
    pub fn collect(&self) -> Result<Removed, StoreError> {
        let mut removed = Removed::default();
        self.collect_into(&mut removed)?;
        Ok(removed)
    }

    fn collect_into(&self, removed: &mut Removed) -> Result<(), StoreError> {
        let Some(_alone) = lock::try_acquire(&self.lock_path("store"), Share::Exclusive)? else {
            removed.postponed = true;
            return Ok(());
        };
        let (blobs, layers) = self.needed()?;
        let images = self.images();
        for algorithm in entries(&images.join("blobs"))? {
            let directory = images.join("blobs").join(&algorithm);
            for name in entries(&directory)? {
                if !blobs.contains(&(algorithm.clone(), name.clone())) {
                    remove_file(&directory.join(name), removed);
                }
            }
        }
        for name in entries(&images.join("partial"))? {
            let path = images.join("partial").join(name);
            if is_older(&path, PARTIAL_AGE_MAX) {
                remove_file(&path, removed);
            }
        }
        for space in entries(&self.layers_root())? {
            self.collect_space(&self.layers_root().join(space), &layers, removed)?;
        }
        // Nobody holds or waits for these: whoever does has `store` shared before.
        for name in entries(&images.join("locks"))? {
            if name != "store" && name != "index" {
                let path = images.join("locks").join(name);
                keep_failure(fs_err::remove_file(&path), &path, removed);
            }
        }
        Ok(())
    }

    fn collect_space(&self, space: &Path, needed: &HashSet<OsString>, removed: &mut Removed) -> Result<(), StoreError> {
        for name in entries(space)?.into_iter().filter(|name| !needed.contains(name)) {
            let path = space.join(&name);
            let is_hidden = name.as_encoded_bytes().starts_with(b".");
            let doomed = if is_hidden {
                path
            } else {
                let mut new_name = OsString::from(REMOVING_PREFIX);
                new_name.push(&name);
                let new_path = space.join(new_name);
                // Left over from a collection that was killed after this very layer came again.
                keep_failure(remove_tree(&new_path), &new_path, removed);
                if let Err(error) = fs_err::rename(&path, &new_path) {
                    removed.failures.push((path, error));
                    continue;
                }
                new_path
            };
            keep_failure(remove_tree(&doomed), &doomed, removed);
        }
        Ok(())
    }

    /// Blobs (algorithm and name) and layer directories that images need.
    #[expect(clippy::type_complexity, reason = "two plain sets of file names, used in one place")]
    fn needed(&self) -> Result<(HashSet<(OsString, OsString)>, HashSet<OsString>), StoreError> {
        let mut blobs = HashSet::new();
        let mut layers = HashSet::new();
        let mut need = |digest: &Digest| {
            blobs.insert((OsString::from(digest.algorithm().name()), OsString::from(digest.hex())));
        };
        for entry in self.read_index()?.manifests {
            [entry.manifest(), entry.original(), entry.index()].iter().flatten().for_each(&mut need);
            let image = self.load_image(&entry)?;
            need(&image.id);
            for layer in image.layers {
                need(&layer.blob);
                layers.insert(OsString::from(layer.diff_id.hex()));
                layers.insert(OsString::from(format!("{IMPLICIT_PREFIX}{}", layer.diff_id.hex())));
            }
        }
        Ok((blobs, layers))
    }
}

fn take_away(index: &mut Index, entry: &Entry, names: &[String], with_image: bool) {
    for name in names {
        index.take_name(name);
    }
    if with_image {
        index.manifests.retain(|other| !other.is_same_image(entry));
    }
}

fn entries(directory: &Path) -> Result<Vec<OsString>, StoreError> {
    let failed = |source| StoreError::Io { op: "list", path: directory.to_path_buf(), source };
    match fs_err::read_dir(directory) {
        Ok(entries) => entries.map(|entry| Ok(entry.map_err(failed)?.file_name())).collect(),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
    }
}

fn is_older(path: &Path, age: Duration) -> bool {
    let modified = fs_err::symlink_metadata(path).and_then(|metadata| metadata.modified());
    let elapsed = modified.ok().and_then(|modified| SystemTime::now().duration_since(modified).ok());
    elapsed.is_some_and(|elapsed| elapsed > age)
}

fn remove_file(path: &Path, removed: &mut Removed) {
    let size = fs_err::symlink_metadata(path).map_or(0, |metadata| metadata.len());
    if keep_failure(fs_err::remove_file(path), path, removed) {
        removed.freed_bytes += size;
    }
}

fn keep_failure(result: io::Result<()>, path: &Path, removed: &mut Removed) -> bool {
    match result {
        Ok(()) => true,
        Err(error) => {
            removed.failures.push((path.to_path_buf(), error));
            false
        }
    }
}
