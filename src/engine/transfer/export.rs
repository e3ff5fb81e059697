//! `export` and `diff`: a container's whole root filesystem, and what is different in it.

use std::io::{BufWriter, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use coracle_images::diff::{Change, changes};
use coracle_images::inventory;
use coracle_images::pack::{PackOptions, Style, pack};
use coracle_runtime::Rootfs;
use rustix::fs::{FileType, Stat};

use super::{Copied, Purpose, Root, TransferError, with_root};
use crate::engine::containers::{self, Container};
use crate::engine::launching::INVENTORY;
use crate::engine::quota::Backend;
use crate::engine::{Engine, EngineError, elsewhere};

const BUFFER_BYTES: usize = 128 << 10;

/// Writes the root filesystem as an archive; mount points are there, what is mounted is not.
pub fn export(engine: &Engine, wanted: &str, out: OwnedFd) -> Result<Copied, EngineError> {
    let container = containers::find(engine.root(), wanted)?;
    let work = |root: &Root| {
        let top = root.fd.try_clone().map_err(TransferError::Pipe)?;
        let options =
            PackOptions { name: b"", style: Style::Plain, cross_mounts: false, owner: None, leave_out: &|_| false };
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, std::fs::File::from(out));
        let report = pack(top, &options, &mut out).map_err(TransferError::from)?;
        out.flush().map_err(TransferError::Pipe)?;
        Ok(Copied { entries: report.entries, left_out: report.sockets })
    };
    with_root(engine, &container, Purpose::RootOnly, work, || ()).map(|(copied, ())| copied)
}

/// Lists what the container changed of its image, by path.
pub fn diff(engine: &Engine, wanted: &str) -> Result<Vec<(Change, Vec<u8>)>, EngineError> {
    let container = containers::find(engine.root(), wanted)?;
    let stubs = mount_points(&container);
    let leave_out = |path: &[u8], stat: &Stat| is_stub(&stubs, path, stat);
    if let Some(copy) = copied(&container) {
        return elsewhere::call(&container.record.idmap, || {
            let before = fs_err::read(container.path.join(INVENTORY))?;
            Ok(inventory::changes(copy, &before, &leave_out).map_err(TransferError::from)?)
        });
    }
    let (lower, upper) = layers(&container)?;
    elsewhere::call(&container.record.idmap, || Ok(changes(lower, upper, &leave_out).map_err(TransferError::from)?))
}

/// Gives the root filesystem of a container that has a copy of its image, because overlayfs was refused.
pub fn copied(container: &Container) -> Option<&PathBuf> {
    match &container.record.rootfs {
        Rootfs::Directory(path) if container.path.join(INVENTORY).exists() => Some(path),
        _ => None,
    }
}

/// Gives the layers below and the writable one.
pub fn layers(container: &Container) -> Result<(&[PathBuf], &PathBuf), TransferError> {
    let in_memory = container.record.disk.as_ref().is_some_and(|limit| limit.backend == Backend::Tmpfs);
    match &container.record.rootfs {
        Rootfs::Overlay { .. } if in_memory => Err(TransferError::InMemory(container.record.called().to_owned())),
        Rootfs::Overlay { lower, upper, .. } => Ok((lower, upper)),
        Rootfs::Directory(_) => Err(TransferError::NoOverlay(container.record.called().to_owned())),
    }
}

/// Gives every path that something of ours is mounted on: where the image has nothing there, an empty
/// file or directory was made for it, which is no change of the container's.
pub fn mount_points(container: &Container) -> Vec<Vec<u8>> {
    let spec: Option<oci_spec::runtime::Spec> = containers::read_json(&container.path.join("config.json"));
    let mounts = spec.and_then(|spec| spec.mounts().clone()).unwrap_or_default();
    let mut paths: Vec<Vec<u8>> =
        mounts.iter().map(|mount| mount.destination().as_os_str().as_encoded_bytes().to_vec()).collect();
    paths.extend([b"/dev".to_vec(), b"/proc".to_vec(), b"/sys".to_vec()]);
    paths
}

/// Says whether something (by absolute path) is such an empty mount point.
pub fn is_stub(mount_points: &[Vec<u8>], path: &[u8], stat: &Stat) -> bool {
    let empty = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => stat.st_size == 0,
        // Two names of its own and no directory in it; one with files is not made by us.
        FileType::Directory => stat.st_nlink <= 2,
        _ => false,
    };
    empty && mount_points.iter().any(|point| point == path)
}
