//! One sealed copy of the program for all shims of a state directory (A01): who starts a container asks those that
//! run already. Without that each shim would keep a copy of its own in memory.

use std::path::{Path, PathBuf};

use coracle_runtime::container::Identity;
use coracle_runtime::seal::{self, SealError};

use super::containers::read_json;
use super::record::State;
use super::{container, default_state};

/// Names the latest shim that runs from a copy.
const OFFER: &str = "program.json";
/// So many containers are asked where that one is gone; reading their states must not take longer than a copy.
const ASKED_MAX: usize = 64;

/// Re-executes the program where a container could write to its file, from a copy that is there already if any is.
///
/// # Errors
/// Those of [`seal::ensure_sealed`].
pub fn protect(root: Option<&PathBuf>) -> Result<(), SealError> {
    // No state directory, no containers.
    let root = default_state(root.cloned()).unwrap_or_default();
    let latest = std::iter::once_with(|| read_json::<Identity>(&root.join(OFFER))).flatten();
    let others = std::iter::once_with(|| watchers(&root)).flatten();
    seal::ensure_sealed(latest.chain(others))
}

/// Lists the processes that watch over containers.
fn watchers(root: &Path) -> impl Iterator<Item = Identity> + use<> {
    let entries = fs_err::read_dir(root.join("containers")).into_iter().flatten();
    let states = entries.filter_map(|entry| read_json::<State>(&entry.ok()?.path().join("state.json")));
    states.take(ASKED_MAX).map(|state| state.watcher)
}

/// Offers the copy that this process runs from to those who come later.
pub fn offer(root: &Path) {
    if seal::is_sealed()
        && let Ok(own) = Identity::of(rustix::process::getpid().as_raw_pid())
    {
        // Without it they look at the containers' states.
        let _ = container::publish_json(root, OFFER, &own, false);
    }
}
