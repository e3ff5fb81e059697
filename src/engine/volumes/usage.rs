//! Who uses a volume.

use std::path::Path;

use crate::engine::containers;

/// Gives the ids of the containers whose record names the volume.
pub fn users_of(root: &Path, name: &str) -> Vec<String> {
    let names = |container: &containers::Container| {
        container.record.mounts.iter().any(|mount| mount.kind == "volume" && mount.name.as_deref() == Some(name))
    };
    containers::list(root).into_iter().filter(names).map(|container| container.record.id).collect()
}
