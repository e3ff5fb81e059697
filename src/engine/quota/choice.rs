//! Which backend a limit gets: the first that can and was seen to hold, or the one that was named.

use std::path::Path;

use coracle_runtime::IdMap;

use super::{Backend, DiskLimit, DiskSize, QuotaError, project, proof};
use crate::engine::elsewhere::is_identity;
use crate::engine::provider::facts::memory_bytes;

/// What a container writes into memory is bounded by this part of what is available on the host.
const HOST_MEMORY_PART: u64 = 4;
/// And by this part of its own limit: its programs need the rest.
const OWN_MEMORY_PART: u64 = 2;

/// Is everything that decides.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The state directory: what is written is below it.
    pub root: &'a Path,
    pub idmap: &'a IdMap,
    pub size: DiskSize,
    /// Nothing of it is wanted after its end.
    pub ephemeral: bool,
    /// The container's own memory limit.
    pub memory_bytes: Option<u64>,
    /// It has anonymous volumes, which the limit covers.
    pub own_volumes: bool,
    /// A soft limit is better than none.
    pub best_effort: bool,
}

/// Chooses who enforces a limit.
pub fn choose(wanted: &Wanted<'_>) -> Result<DiskLimit, QuotaError> {
    if let Some(backend) = wanted.size.backend {
        return offer(backend, wanted).map_err(|reason| QuotaError::Refused { backend, reason });
    }
    let mut refused = Vec::new();
    let soft = [Backend::Watch].into_iter().filter(|_| wanted.best_effort);
    for backend in Backend::HARD.into_iter().chain(soft) {
        match offer(backend, wanted) {
            Ok(limit) => return Ok(limit),
            Err(reason) => refused.push((backend, reason)),
        }
    }
    Err(QuotaError::NoBackend { refused })
}

/// Chooses who enforces the limit of a volume: what outlives containers and is charged where it lies.
pub fn choose_for_volume(root: &Path, idmap: &IdMap, size: DiskSize) -> Result<DiskLimit, QuotaError> {
    let (ephemeral, memory_bytes, own_volumes, best_effort) = (false, None, true, false);
    choose(&Wanted { root, idmap, size, ephemeral, memory_bytes, own_volumes, best_effort })
}

/// Gives the limit as a backend would keep it, or says why it cannot.
fn offer(backend: Backend, wanted: &Wanted<'_>) -> Result<DiskLimit, String> {
    let size = wanted.size;
    let limit = DiskLimit { bytes: size.bytes, inodes: size.inodes(), backend, slot: None };
    match backend {
        Backend::Project => {
            if is_identity(wanted.idmap) {
                return Err("without a user namespace a container could leave its project".to_owned());
            }
            Ok(DiskLimit { inodes: project::offer(wanted.root, &size)?, ..limit })
        }
        Backend::Btrfs => {
            if wanted.own_volumes {
                return Err("in an anonymous volume subvolumes could be made that do not count".to_owned());
            }
            project::offer_group(wanted.root, &size)?;
            Ok(limit)
        }
        Backend::Tmpfs => {
            if !wanted.ephemeral {
                return Err("only with --rm, because it loses what was written".to_owned());
            }
            if wanted.own_volumes {
                return Err("anonymous volumes outlive it".to_owned());
            }
            fits_memory(wanted)?;
            proof::memory(wanted.root)?;
            Ok(limit)
        }
        Backend::Fuse => {
            proof::passthrough(wanted.root)?;
            Ok(limit)
        }
        Backend::Watch if wanted.best_effort => Ok(limit),
        Backend::Watch => Err("it is soft: only with --limits=best-effort".to_owned()),
    }
}

/// Says whether some backend probably holds, for a caller with threads, who may not try.
pub fn is_likely(root: &Path) -> bool {
    let set_up = [Backend::Project, Backend::Btrfs].iter().any(|backend| project::sizes(root, *backend).is_ok());
    set_up || fs_err::OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok()
}

fn fits_memory(wanted: &Wanted<'_>) -> Result<(), String> {
    let available = memory_bytes("MemAvailable") / HOST_MEMORY_PART;
    let own = wanted.memory_bytes.map_or(u64::MAX, |bytes| bytes / OWN_MEMORY_PART);
    if wanted.size.bytes <= available.min(own) {
        return Ok(());
    }
    Err(format!("more than {} of memory is too much", available.min(own)))
}

/// Is a backend, and why it cannot be had if it cannot.
pub type Offer = (Backend, Result<(), String>);

/// Tells what each backend could do for a `--rm` container of this size, for `coracle info`.
pub fn offers(root: &Path, idmap: &IdMap) -> Vec<Offer> {
    /// Small, so that memory is not what decides.
    const SIZE: DiskSize = DiskSize { bytes: 1 << 20, inodes: None, backend: None };
    let each = Backend::HARD.into_iter().map(|backend| {
        let works = match backend {
            // Whatever the size is.
            Backend::Project | Backend::Btrfs => project::sizes(root, backend).map(drop),
            _ => {
                let (ephemeral, memory_bytes, own_volumes, best_effort) = (true, None, false, false);
                let wanted = Wanted { root, idmap, size: SIZE, ephemeral, memory_bytes, own_volumes, best_effort };
                offer(backend, &wanted).map(drop)
            }
        };
        (backend, works)
    });
    each.collect()
}
