//! No backend is trusted before a write beyond its limit was seen to fail.
//!
//! That it was seen is kept in `disk-proofs.json` for this kernel, this boot and this program.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use coracle_runtime::{Rootfs, host};
use coracle_shim::disk::{self, Disk, DiskOptions, Kind};

use super::Backend;
use crate::report::chain;

/// Enough for overlayfs, little to write.
const TRIAL_BYTES: u64 = 1 << 20;
const TRIAL_INODES: u64 = 64;
const FILE: &str = "disk-proofs.json";
/// Proofs of earlier boots are of no use.
const KEPT_MAX: usize = 64;

/// Demands that `/dev/fuse` opens and a limit on our own filesystem holds.
pub fn passthrough(root: &Path) -> Result<(), String> {
    let opened = fs_err::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    // The commonest reason, in few words.
    opened.map_err(|error| chain(&error))?;
    once(root, &key(root, Backend::Fuse.word())?, || attempt(root, Kind::Passthrough))
}

/// Demands that a limit in memory holds below overlayfs.
pub fn memory(root: &Path) -> Result<(), String> {
    once(root, &key(root, Backend::Tmpfs.word())?, || attempt(root, Kind::Memory))
}

/// Names what a proof holds for.
pub fn key(root: &Path, what: &str) -> Result<String, String> {
    let read = |path: &str| fs_err::read_to_string(path).map_err(|error| chain(&error));
    let boot = read("/proc/sys/kernel/random/boot_id")?;
    let device = fs_err::metadata(root).map_err(|error| chain(&error))?.dev();
    Ok(format!("{what} {} {device} {}", boot.trim(), env!("CARGO_PKG_VERSION")))
}

/// Does what proves something unless it was proved before. A failure is not kept: it may be mended.
pub fn once(root: &Path, key: &str, prove: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    let file = root.join(FILE);
    let known = fs_err::read(&file).ok().and_then(|text| serde_json::from_slice::<BTreeSet<String>>(&text).ok());
    let mut known = known.unwrap_or_default();
    if known.contains(key) {
        return Ok(());
    }
    prove()?;
    if known.len() >= KEPT_MAX {
        known.clear();
    }
    known.insert(key.to_owned());
    // Without it everything is proved again next time, by this container's directory at the latest.
    if let Ok(text) = serde_json::to_vec(&known) {
        let draft = root.join(format!(".{FILE}-{}", rustix::process::getpid().as_raw_pid()));
        let _ = fs_err::write(&draft, text).and_then(|()| fs_err::rename(&draft, &file));
    }
    Ok(())
}

fn attempt(root: &Path, kind: Kind) -> Result<(), String> {
    let place = scratch(root).map_err(|error| chain(&error))?;
    let result = make(&place, kind).map_err(|error| chain(&error)).and_then(|(options, rootfs)| {
        host::limit_holds(&rootfs, TRIAL_BYTES, || {
            let disk = Disk::start(&options, rustix::process::getpid().as_raw_pid())?;
            // It ends with the mount, which ends with this process.
            disk.map(std::mem::forget).map_err(std::io::Error::other)
        })
        .map_err(|failure| chain(&failure))
    });
    // What overlayfs makes in its work directory is ours, without any right.
    let work = place.join("disk/work/work");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    let _ = fs_err::set_permissions(work, open);
    let _ = fs_err::remove_dir_all(&place);
    result
}

/// Makes a directory for a trial, which the caller removes.
pub fn scratch(root: &Path) -> std::io::Result<std::path::PathBuf> {
    let place = root.join(format!(".disk-trial-{}", rustix::process::getpid().as_raw_pid()));
    // Of a process of this number that was killed.
    let _ = fs_err::remove_dir_all(&place);
    fs_err::create_dir(&place)?;
    Ok(place)
}

fn make(place: &Path, kind: Kind) -> std::io::Result<(DiskOptions, Rootfs)> {
    let orphans = disk::ORPHANS.to_string_lossy();
    for name in ["lower", "lower/removed", "disk", "disk/upper", "disk/work", &format!("disk/{orphans}"), "mounted"] {
        fs_err::create_dir(place.join(name))?;
    }
    fs_err::write(place.join("lower/removed/inner"), "")?;
    let mounted = place.join("mounted");
    let options = DiskOptions {
        kind,
        backing: place.join("disk"),
        mount_point: mounted.clone(),
        volumes: Vec::new(),
        usage: place.join("usage"),
        limit_bytes: TRIAL_BYTES,
        limit_inodes: TRIAL_INODES,
    };
    let (upper, work) = (mounted.join("upper"), mounted.join("work"));
    Ok((options, Rootfs::Overlay { lower: vec![place.join("lower")], upper, work, volatile: false }))
}
