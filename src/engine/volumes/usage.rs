//! Who uses a volume, and how much it holds.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, statat};
use rustix::io::Errno;

use crate::engine::containers;

/// Deeper directories are not counted; no path reaches further (PATH_MAX / 2).
const DEPTH_MAX: usize = 2048;
/// Unit of `st_blocks` (stat(2)).
const BLOCK_BYTES: u64 = 512;

/// Gives the ids of the containers whose record names the volume.
pub fn users_of(root: &Path, name: &str) -> Vec<String> {
    let names = |container: &containers::Container| {
        container.record.mounts.iter().any(|mount| mount.kind == "volume" && mount.name.as_deref() == Some(name))
    };
    containers::list(root).into_iter().filter(names).map(|container| container.record.id).collect()
}

/// Gives what the files below a directory take on disk, as far as they can be seen. Links are not
/// followed; a file with several names may count several times.
pub fn size_of_tree(path: &Path) -> u64 {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |parent: &OwnedFd, name: &std::ffi::CStr| openat(parent, name, flags, Mode::empty());
    let Ok(top) = openat(CWD, path, flags, Mode::empty()) else { return 0 };
    let mut levels: Vec<(OwnedFd, Dir)> = Vec::new();
    let mut bytes = 0u64;
    let push = |fd: OwnedFd, levels: &mut Vec<(OwnedFd, Dir)>| -> Result<(), Errno> {
        let entries = Dir::read_from(&fd)?;
        levels.push((fd, entries));
        Ok(())
    };
    if push(top, &mut levels).is_err() {
        return 0;
    }
    while let Some((here, entries)) = levels.last_mut() {
        let Some(Ok(entry)) = entries.read() else {
            levels.pop();
            continue;
        };
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let Ok(stat) = statat(here.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * BLOCK_BYTES;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            && levels.len() < DEPTH_MAX
            && let Some((here, _)) = levels.last()
            && let Ok(next) = open(here, name)
        {
            let _ = push(next, &mut levels);
        }
    }
    bytes
}
