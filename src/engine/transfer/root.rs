//! The root directory of a container, running or not.

use std::os::fd::OwnedFd;

use coracle_runtime::tree::{self, Bound};
use rustix::fs::{CWD, Mode, OFlags, openat};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::TransferError;
use crate::engine::container::ContainerDir;
use crate::engine::containers::Container;
use crate::engine::record::Record;
use crate::engine::{Engine, EngineError, elsewhere};

/// What is going to be done with the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Everything the container sees is read.
    Read,
    /// Something is written.
    Write,
    /// The root filesystem alone is read, without what is mounted in it.
    RootOnly,
}

/// Is a container's root: what a lookup may not leave.
pub struct Root {
    pub fd: OwnedFd,
}

/// Where the root comes from.
enum From<'a> {
    /// The root of a running container, as its first process sees it.
    Running(OwnedFd),
    /// What the child has to mount.
    Mounted { record: &'a Record, bound: Vec<Bound>, read_only: bool },
}

/// Runs `work` in a child that has the container's ids, with the container's root, and `beside` on a
/// thread of this process meanwhile. The child must close its copies of what `beside` holds.
pub fn with_root<T, U>(
    engine: &Engine,
    container: &Container,
    purpose: Purpose,
    work: impl FnOnce(&Root) -> Result<T, EngineError>,
    beside: impl FnOnce() -> U + Send,
) -> Result<(T, U), EngineError>
where
    T: Serialize + DeserializeOwned,
    U: Send,
{
    // The lock keeps a start from mounting the same overlay before the child has ended.
    let (from, _lock) = locate(engine, container, purpose)?;
    elsewhere::beside(
        &container.record.idmap,
        || {
            let fd = match from {
                From::Running(fd) => fd,
                From::Mounted { record, bound, read_only } => {
                    let mounted = tree::mount(&record.rootfs, &bound, read_only);
                    mounted.map_err(|source| EngineError::Launch { id: record.called().to_owned(), source })?
                }
            };
            work(&Root { fd })
        },
        beside,
    )
}

fn locate<'a>(
    engine: &Engine,
    container: &'a Container,
    purpose: Purpose,
) -> Result<(From<'a>, Option<ContainerDir>), EngineError> {
    let called = || container.record.called().to_owned();
    let between = || TransferError::Between(called());
    if let Some(init) = container.init() {
        // While this is open nobody else can have the number.
        let _held = init.open()?.ok_or_else(between)?;
        let path = format!("/proc/{}/root", init.pid);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = openat(CWD, &path, flags, Mode::empty());
        let fd = opened.map_err(|errno| TransferError::Io { op: "open", path, source: errno.into() })?;
        // A process that is on its way out has no root any more, and /proc would show none.
        return if init.is_alive()? { Ok((From::Running(fd), None)) } else { Err(between().into()) };
    }
    if container.status().is_active() {
        return Err(between().into());
    }
    let lock = ContainerDir::take(engine.root(), &container.record)?.ok_or_else(between)?;
    let mounts = container.record.mounts.iter().filter(|_| purpose != Purpose::RootOnly);
    let bound = mounts.filter_map(|mount| {
        let (source, destination) = (mount.source.clone()?, mount.destination.clone());
        Some(Bound { source, destination, read_only: mount.read_only || purpose != Purpose::Write })
    });
    let bound = bound.collect();
    let spec: Option<oci_spec::runtime::Spec> =
        crate::engine::containers::read_json(&container.path.join("config.json"));
    let readonly = spec.and_then(|spec| spec.root().as_ref()?.readonly()).unwrap_or(false);
    let read_only = purpose == Purpose::Write && readonly;
    Ok((From::Mounted { record: &container.record, bound, read_only }, Some(lock)))
}
