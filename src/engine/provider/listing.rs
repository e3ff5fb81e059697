//! What the pool has on this machine, for its owner.

use std::path::Path;

use super::commands::LABEL;
use super::container_name;
use super::ledger::{Ledger, LedgerError};
use crate::engine::containers;

/// Lists what is here, for the owner: what it is called, its image and what has become of it.
pub fn list(root: &Path, folder: &Path) -> Result<Vec<(String, String, &'static str)>, LedgerError> {
    let ledger = Ledger::open(&folder.join("allocations"))?;
    let entries = ledger.keys().filter_map(|key| Some((key, ledger.get(key)?)));
    Ok(entries
        .filter(|(_, entry)| !entry.forgotten)
        .map(|(key, entry)| {
            let name = container_name(key);
            let status = containers::find(root, &name).map_or("pulling", |container| container.status().word());
            (name, entry.spec.image.clone(), if entry.end.is_some() { "exited" } else { status })
        })
        .collect())
}

/// Names every container that the pool has here, by what the containers say themselves.
pub fn containers_here(root: &Path) -> Vec<String> {
    let all = containers::list(root).into_iter().filter(|container| container.record.labels.contains_key(LABEL));
    all.map(|container| container.record.id).collect()
}
