//! What this host offers to rootless containers, and the command that mends what it lacks.

use std::path::Path;

use serde::Serialize;

/// One fact about the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fact {
    /// A stable name, e.g. `subordinate-ids`.
    pub name: &'static str,
    /// What was found, in a few words.
    pub value: String,
    /// What is missing, if anything.
    pub missing: Option<Missing>,
}

/// Something the host lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// Whether containers cannot run at all without it.
    pub fatal: bool,
    /// What does not work.
    pub effect: String,
    /// The command that mends it.
    pub fix: String,
}

/// Everything found out about the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HostFacts {
    /// In the order in which they are shown.
    pub facts: Vec<Fact>,
}

impl HostFacts {
    /// The fact of this name.
    pub fn get(&self, name: &str) -> Option<&Fact> {
        self.facts.iter().find(|fact| fact.name == name)
    }
}

/// Finds out. `state` is where layers and containers are kept; overlayfs is tried there.
pub fn probe(state: &Path) -> HostFacts {
    let _ = state;
    HostFacts { facts: Vec::new() }
}

/// Whether overlayfs can be mounted in a user namespace with its writable layer in this directory.
pub fn overlay_works(directory: &Path) -> bool {
    let _ = directory;
    false
}
