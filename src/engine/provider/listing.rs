//! What the pool has on this machine, for its owner.

use std::path::Path;

use serde::Serialize;

use super::commands::LABEL;
use super::container_name;
use super::ledger::{Ledger, LedgerError};
use crate::engine::containers;
use crate::engine::quota;

/// Is what an owner is told of an instance on this machine.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Here {
    /// Its container.
    pub name: String,
    pub image: String,
    pub status: &'static str,
    /// What it uses of its disk limit, if it has one, and who keeps that.
    pub disk: Option<quota::DiskUsage>,
}

/// Lists what is here, for the owner.
pub fn list(root: &Path, folder: &Path) -> Result<Vec<Here>, LedgerError> {
    let ledger = Ledger::open(&folder.join("allocations"))?;
    let entries = ledger.keys().filter_map(|key| Some((key, ledger.get(key)?)));
    Ok(entries
        .filter(|(_, entry)| !entry.forgotten)
        .map(|(key, entry)| {
            let name = container_name(key);
            let container = containers::find(root, &name).ok();
            let status = container.as_ref().map_or("pulling", |container| container.status().word());
            Here {
                name,
                image: entry.spec.image.clone(),
                status: if entry.end.is_some() { "exited" } else { status },
                disk: container.as_ref().and_then(quota::usage),
            }
        })
        .collect())
}

/// Names every container that the pool has here, by what the containers say themselves.
pub fn containers_here(root: &Path) -> Vec<String> {
    let all = containers::list(root).into_iter().filter(|container| container.record.labels.contains_key(LABEL));
    all.map(|container| container.record.id).collect()
}
