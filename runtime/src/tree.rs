//! The files of a container that does not run, as it would see them: its root filesystem and volumes
//! mounted in a namespace that nobody else is in, reached through one descriptor.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use nix::sched::{CloneFlags, unshare};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::failure::{LaunchFailure, Stage};
use crate::launch::Rootfs;
use crate::launch::fault::Fault;
use crate::launch::inside::Inside;
use crate::launch::mounting::{attach, clone_tree};
use crate::launch::rootfs::{detach_propagation, mount_root};
use crate::plan::flags;
use crate::sys::{MountAttr, mount_setattr};

const STAGE: Stage = Stage::Rootfs;

/// Is something of the host that a container mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// Of the host.
    pub source: PathBuf,
    /// In the container.
    pub destination: PathBuf,
    /// Nothing may be written there.
    pub read_only: bool,
}

/// Mounts a root filesystem and what is bound into it in a new mount namespace of the calling
/// process, and gives its top; `read_only` is about the root filesystem. Nobody else may have the same
/// overlay mounted.
///
/// The caller is single-threaded and has every capability in its user namespace; there is no way
/// back to the host's mounts. A mount point that the root filesystem does not have yet is left out
/// with what belongs there: nothing is made.
///
/// # Errors
/// `EBUSY` and `EINVAL` of overlayfs (overlayfs.rst), and what open_tree(2) and move_mount(2) say.
pub fn mount(rootfs: &Rootfs, bound: &[Bound], read_only: bool) -> Result<OwnedFd, LaunchFailure> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(|errno| Errno::from_raw_os_error(errno as i32)).fault(
        STAGE,
        "make",
        "mount namespace",
    )?;
    detach_propagation(libc::MS_PRIVATE, false)?;
    // Before anything is covered.
    let sources: Vec<_> = bound.iter().map(|one| clone_tree(&one.source, true)).collect();
    let rootfs = match rootfs {
        // What is written here is not volatile; what an earlier run left in memory is lost or here.
        Rootfs::Overlay { lower, upper, work, .. } => {
            let _ = fs_err::remove_dir(work.join("work/incompat/volatile"));
            Rootfs::Overlay { lower: lower.clone(), upper: upper.clone(), work: work.clone(), volatile: false }
        }
        other => other.clone(),
    };
    let top = mount_root(&rootfs)?;
    for (one, source) in bound.iter().zip(sources) {
        // A source that is gone is gone for the container too.
        let Ok(source) = source else { continue };
        match Inside::new(&top).find(&one.destination) {
            Err(Errno::NOENT) => {}
            found => {
                let found = found.fault(STAGE, "find", one.destination.display())?;
                if one.read_only {
                    forbid_writing(&source, true)?;
                }
                match attach(&source, &found) {
                    // A directory where a file was, or the other way round: the container would not start.
                    Err(Errno::NOTDIR | Errno::INVAL) => {}
                    attached => attached.fault(STAGE, "mount on", one.destination.display())?,
                }
            }
        }
    }
    if read_only {
        forbid_writing(&top, false)?;
    }
    // From above the mounts, which the descriptor of an overlay mount does not see by itself.
    rustix::fs::openat(&top, ".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .fault(STAGE, "open", "root")
}

fn forbid_writing(tree: &OwnedFd, recursive: bool) -> Result<(), LaunchFailure> {
    let attr = MountAttr { set: flags::RDONLY, ..MountAttr::default() };
    mount_setattr(tree.as_fd(), recursive, &attr).fault(STAGE, "set flags of", "read-only mount")
}
