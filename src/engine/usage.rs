//! How much a container has written. Walks by descriptors and never through a link: the container may be
//! running and change its tree meanwhile.

use std::os::fd::OwnedFd;
use std::path::Path;

use coracle_runtime::Rootfs;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};

use super::containers::Container;
use super::{EngineError, elsewhere};

/// Deeper trees are not counted any further: every level keeps a descriptor open, and 1024 is the usual limit.
const DEPTH_MAX: usize = 500;

/// Gives the bytes of all files in the container's writable layer, as apparent sizes.
pub fn written_bytes(container: &Container) -> Result<u64, EngineError> {
    let Rootfs::Overlay { upper, .. } = &container.record.rootfs else { return Ok(0) };
    elsewhere::call(&container.record.idmap, || Ok(tree_bytes(upper)))
}

/// Gives the bytes of all files below a directory; what cannot be read, or has gone, counts as nothing.
pub fn tree_bytes(path: &Path) -> u64 {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_or(0, |directory| below(&directory, flags, 0))
}

fn below(directory: &OwnedFd, flags: OFlags, depth: usize) -> u64 {
    let Ok(entries) = Dir::read_from(directory) else { return 0 };
    let mut bytes = 0u64;
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let Ok(stat) = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory if depth < DEPTH_MAX => {
                if let Ok(inner) = openat(directory, name, flags, Mode::empty()) {
                    bytes = bytes.saturating_add(below(&inner, flags, depth + 1));
                }
            }
            FileType::RegularFile => bytes = bytes.saturating_add(u64::try_from(stat.st_size).unwrap_or(0)),
            _ => {}
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_not_followed() {
        let place = tempfile::tempdir().unwrap();
        fs_err::create_dir_all(place.path().join("tree/a")).unwrap();
        fs_err::write(place.path().join("tree/a/one"), "12345").unwrap();
        fs_err::write(place.path().join("outside"), "much more than that").unwrap();
        std::os::unix::fs::symlink("../outside", place.path().join("tree/link")).unwrap();
        std::os::unix::fs::symlink("..", place.path().join("tree/up")).unwrap();
        assert_eq!(tree_bytes(&place.path().join("tree")), 5);
        assert_eq!(tree_bytes(&place.path().join("missing")), 0);
    }
}
