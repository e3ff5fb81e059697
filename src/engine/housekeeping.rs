//! Making room: what is here and not used, how much it takes, and how to take it away.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use coracle_images::{Digest, Image, Reference};
use coracle_runtime::UserNs;
use serde::{Deserialize, Serialize};

use super::containers::{self, Container};
use super::{Engine, EngineError, elsewhere, events, lifecycle, usage, volumes};

/// What is in the state directory, apart from locks: all of it is made by us and none of it by a person.
const OWN: [&str; 9] = [
    "containers",
    "volumes",
    "layers",
    "images",
    "names",
    "autoremove",
    "events.jsonl",
    "events.jsonl.1",
    "events.jsonl.lock",
];

/// Is what a pruning took away.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Pruned {
    /// Ids of containers, names and ids of images.
    pub gone: Vec<String>,
    /// Bytes that are free now.
    pub bytes: u64,
}

/// Removes the containers that do not run and that `meant` chooses.
pub fn prune_containers(engine: &Engine, meant: &dyn Fn(&Container) -> bool) -> Result<Pruned, EngineError> {
    let mut pruned = Pruned::default();
    for container in containers::list(engine.root()) {
        if container.status().is_active() || !meant(&container) {
            continue;
        }
        let bytes = usage::written_bytes(&container).unwrap_or(0);
        match lifecycle::remove(engine, container.id(), false) {
            Ok(()) => {
                pruned.bytes += bytes;
                pruned.gone.push(container.record.id.clone());
            }
            // Started, or removed by somebody else, this moment.
            Err(EngineError::ContainerRuns(_) | EngineError::UnknownContainer(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(pruned)
}

/// Removes the images that no container uses and that `meant` chooses: those without a name, or all.
pub fn prune_images(engine: &Engine, all: bool, meant: &dyn Fn(&Image) -> bool) -> Result<Pruned, EngineError> {
    let used = used_images(engine);
    let idmap = engine.idmap(UserNs::Auto)?;
    let doomed: Vec<Digest> = engine
        .store()
        .list()?
        .into_iter()
        .filter(|image| (all || image.names.is_empty()) && !used.contains(&image.id.to_string()) && meant(image))
        .map(|image| image.id)
        .collect();
    let pruned = elsewhere::call(&idmap, || {
        let layers = engine.root().join("layers");
        let before = usage::tree_bytes(&layers);
        let mut pruned = Pruned::default();
        for id in &doomed {
            let in_use = |id: &Digest| used.contains(&id.to_string());
            let removed = engine.store().remove(&id.to_string(), true, &in_use)?;
            pruned.gone.extend(removed.untagged.iter().map(|name| format!("untagged: {}", Reference::familiar(name))));
            pruned.gone.extend(removed.deleted.iter().map(|id| format!("deleted: {id}")));
            pruned.bytes += removed.freed_bytes;
        }
        // What killed pulls and removals left.
        pruned.bytes += engine.store().collect()?.freed_bytes;
        pruned.bytes += before.saturating_sub(usage::tree_bytes(&layers));
        Ok(pruned)
    })?;
    for gone in &pruned.gone {
        if let Some(id) = gone.strip_prefix("deleted: ") {
            events::emit(engine.root(), events::Kind::Image, "delete", id, &[]);
        }
    }
    Ok(pruned)
}

fn used_images(engine: &Engine) -> BTreeSet<String> {
    containers::list(engine.root()).into_iter().map(|container| container.record.image_id).collect()
}

/// Is how much one thing takes.
#[derive(Debug, Clone)]
pub struct Usage {
    pub name: String,
    /// Whether it runs, or something uses it.
    pub active: bool,
    pub bytes: u64,
}

/// Is how much everything takes.
#[derive(Debug)]
pub struct DiskUsage {
    pub images: Vec<Usage>,
    /// All images together; layers are shared, so this is less than the sum.
    pub images_bytes: u64,
    /// What would be free without the images that nothing uses.
    pub images_free_bytes: u64,
    pub containers: Vec<Usage>,
    pub volumes: Vec<Usage>,
}

/// Measures everything: blobs and unpacked layers of images, writable layers, volumes.
pub fn disk_usage(engine: &Engine) -> Result<DiskUsage, EngineError> {
    let used = used_images(engine);
    let images = engine.store().list()?;
    let ids: BTreeSet<String> =
        images.iter().flat_map(|image| &image.layers).map(|layer| layer.diff_id.hex().to_owned()).collect();
    let idmap = engine.idmap(UserNs::Auto)?;
    let unpacked: BTreeMap<String, u64> = elsewhere::call(&idmap, || Ok(unpacked_bytes(engine.root(), &ids)))?;
    let layer_bytes = |layer: &coracle_images::Layer| {
        layer.size_bytes + unpacked.get(layer.diff_id.hex()).copied().unwrap_or_default()
    };
    let total = |wanted: &dyn Fn(&Image) -> bool| -> u64 {
        let layers = images.iter().filter(|image| wanted(image)).flat_map(|image| &image.layers);
        let unique: BTreeMap<&str, u64> = layers.map(|layer| (layer.diff_id.hex(), layer_bytes(layer))).collect();
        unique.values().sum()
    };
    let is_used = |image: &Image| used.contains(&image.id.to_string());
    let images_bytes = total(&|_| true);
    let rows = images.iter().map(|image| Usage {
        name: image.names.first().map_or_else(|| image.id.short().to_owned(), Reference::familiar),
        active: is_used(image),
        bytes: image.layers.iter().map(&layer_bytes).sum(),
    });
    let containers = containers::list(engine.root());
    let mut container_rows = Vec::new();
    for container in &containers {
        let (name, active) = (container.record.called().to_owned(), container.status().is_active());
        container_rows.push(Usage { name, active, bytes: usage::written_bytes(container)? });
    }
    let mut volume_rows = Vec::new();
    for volume in volumes::list(engine.root()) {
        let name = volume.record.name.clone();
        let active = !volumes::users_of(engine.root(), &name).is_empty();
        volume_rows.push(Usage { name, active, bytes: volumes::size(engine, &volume)? });
    }
    Ok(DiskUsage {
        images_free_bytes: images_bytes - total(&is_used),
        images: rows.collect(),
        images_bytes,
        containers: container_rows,
        volumes: volume_rows,
    })
}

/// Gives what each unpacked layer takes, over all spaces.
fn unpacked_bytes(root: &Path, ids: &BTreeSet<String>) -> BTreeMap<String, u64> {
    let spaces = fs_err::read_dir(root.join("layers")).into_iter().flatten().flatten();
    let mut bytes = BTreeMap::new();
    for space in spaces.map(|entry| entry.path()) {
        for id in ids {
            *bytes.entry(id.clone()).or_default() += usage::tree_bytes(&space.join(id));
        }
    }
    bytes
}

/// Removes every container, volume and image and the state directory itself; gives what is left there
/// because it is not ours. Containers that run are ended first.
pub fn reset(engine: &Engine) -> Result<Vec<PathBuf>, EngineError> {
    for container in containers::list(engine.root()) {
        lifecycle::remove(engine, container.id(), true)?;
    }
    let idmap = engine.idmap(UserNs::Auto)?;
    elsewhere::call(&idmap, || {
        for name in OWN {
            coracle_images::remove_tree(&engine.root().join(name)).map_err(EngineError::State)?;
        }
        Ok(())
    })?;
    let left: Vec<PathBuf> =
        fs_err::read_dir(engine.root()).map_err(EngineError::State)?.flatten().map(|entry| entry.path()).collect();
    if left.is_empty() {
        fs_err::remove_dir(engine.root()).map_err(EngineError::State)?;
    }
    Ok(left)
}
