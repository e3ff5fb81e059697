//! Reads a file of an image without mounting it: what overlayfs would show at a path.
//!
//! Layers are hostile, so the path is walked by descriptors, one component at a time, with links
//! resolved inside the image. Whiteouts and opaque directories count as overlayfs counts them.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{self, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::limits;
use crate::unpack;

/// Why a file of an image cannot be read.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each text says what the variant means")]
pub enum LookupError {
    #[error("cannot read {} in the image", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} in the image is not a regular file", path.display())]
    NotAFile { path: PathBuf },
    #[error("{} in the image has too many symbolic links", path.display())]
    SymlinkLoop { path: PathBuf },
}

/// What a name means in the merged tree.
pub(crate) enum Found {
    Nothing,
    /// The directories that are merged there, topmost first.
    Directory(Vec<OwnedFd>),
    Link(Vec<u8>),
    File(OwnedFd),
    Other,
}

/// Opens the regular file `path` of an image whose unpacked layers are `layers`, bottom to top.
/// `None` when nothing is there.
///
/// # Errors
/// When something else than a regular file is there, or it cannot be read.
pub fn open_in_layers(layers: &[PathBuf], path: &Path) -> Result<Option<std::fs::File>, LookupError> {
    match resolve(layers, path)? {
        Found::Nothing => Ok(None),
        Found::File(file) => Ok(Some(file.into())),
        _ => Err(LookupError::NotAFile { path: path.to_path_buf() }),
    }
}

/// Opens what is merged at the directory `path` of an image, topmost first, links followed inside
/// the image. `None` when nothing is there, or no directory.
pub(crate) fn open_directory(layers: &[PathBuf], path: &Path) -> Result<Option<Vec<OwnedFd>>, LookupError> {
    match resolve(layers, path)? {
        Found::Directory(merged) => Ok(Some(merged)),
        _ => Ok(None),
    }
}

/// Finds what a path means, links followed to the end.
fn resolve(layers: &[PathBuf], path: &Path) -> Result<Found, LookupError> {
    let failed = |errno: Errno| LookupError::Io { path: path.to_path_buf(), source: errno.into() };
    let mut todo: VecDeque<Vec<u8>> = components(path.as_os_str().as_bytes()).collect();
    let mut done: Vec<Vec<u8>> = Vec::new();
    let mut here = root(layers).map_err(failed)?;
    let mut links_left = limits::SYMLINKS_FOLLOWED_MAX;
    while let Some(name) = todo.pop_front() {
        if name == b".." {
            done.pop();
            here = walk(layers, &done).map_err(failed)?;
            continue;
        }
        match find(&here, &name).map_err(failed)? {
            Found::Nothing => return Ok(Found::Nothing),
            Found::Directory(merged) => {
                here = merged;
                done.push(name);
            }
            Found::Link(target) => {
                links_left =
                    links_left.checked_sub(1).ok_or_else(|| LookupError::SymlinkLoop { path: path.to_path_buf() })?;
                if target.starts_with(b"/") {
                    done.clear();
                    here = root(layers).map_err(failed)?;
                }
                for part in components(&target).collect::<Vec<_>>().into_iter().rev() {
                    todo.push_front(part);
                }
            }
            // A file has nothing below it.
            Found::File(_) if !todo.is_empty() => return Ok(Found::Nothing),
            other => return Ok(other),
        }
    }
    Ok(Found::Directory(here))
}

fn components(path: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").map(<[u8]>::to_vec)
}

/// The merged root directory, topmost first.
pub(crate) fn root(layers: &[PathBuf]) -> Result<Vec<OwnedFd>, Errno> {
    let mut merged = Vec::with_capacity(layers.len());
    for layer in layers.iter().rev() {
        let directory = fs::openat(CWD, layer, DIRECTORY_FLAGS, Mode::empty())?;
        let is_last = is_opaque(directory.as_fd())?;
        merged.push(directory);
        if is_last {
            break;
        }
    }
    Ok(merged)
}

/// Goes down to a directory that was reached before.
fn walk(layers: &[PathBuf], path: &[Vec<u8>]) -> Result<Vec<OwnedFd>, Errno> {
    let mut here = root(layers)?;
    for name in path {
        match find(&here, name)? {
            Found::Directory(merged) => here = merged,
            _ => return Err(Errno::STALE),
        }
    }
    Ok(here)
}

const DIRECTORY_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Looks a name up as overlayfs does: the topmost entry wins, directories merge down to the first
/// opaque one, anything that is no directory ends the merging.
pub(crate) fn find(here: &[OwnedFd], name: &[u8]) -> Result<Found, Errno> {
    let mut merged = Vec::new();
    for directory in here {
        match find_in_layer(directory.as_fd(), name)? {
            Found::Nothing => {}
            Found::Directory(mut below) => {
                let is_last = below.iter().map(|fd| is_opaque(fd.as_fd())).any(|opaque| opaque.unwrap_or(true));
                merged.append(&mut below);
                if is_last {
                    break;
                }
            }
            _ if !merged.is_empty() => break,
            // The mark of a whiteout; devices of images are never unpacked.
            Found::Other if is_whiteout(directory.as_fd(), name)? => return Ok(Found::Nothing),
            found => return Ok(found),
        }
    }
    Ok(if merged.is_empty() { Found::Nothing } else { Found::Directory(merged) })
}

fn find_in_layer(directory: BorrowedFd<'_>, name: &[u8]) -> Result<Found, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = match fs::openat(directory, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(Found::Nothing),
        other => other?,
    };
    match FileType::from_raw_mode(fs::fstat(&found)?.st_mode) {
        FileType::Directory => {
            fs::openat(directory, name, DIRECTORY_FLAGS, Mode::empty()).map(|fd| Found::Directory(vec![fd]))
        }
        FileType::Symlink => Ok(Found::Link(fs::readlinkat(&found, "", Vec::new())?.into_bytes())),
        FileType::RegularFile => {
            // Never blocks and never becomes a terminal, should it be swapped meanwhile.
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = fs::openat(directory, name, flags, Mode::empty())?;
            let is_file = FileType::from_raw_mode(fs::fstat(&file)?.st_mode) == FileType::RegularFile;
            Ok(if is_file { Found::File(file) } else { Found::Other })
        }
        _ => Ok(Found::Other),
    }
}

fn is_whiteout(directory: BorrowedFd<'_>, name: &[u8]) -> Result<bool, Errno> {
    let stat = fs::statat(directory, name, fs::AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0)
}

fn is_opaque(directory: BorrowedFd<'_>) -> Result<bool, Errno> {
    unpack::is_opaque(directory).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fs_err as fs;
    use std::io::Read;

    struct Layers {
        _root: tempfile::TempDir,
        paths: Vec<PathBuf>,
    }

    fn layers(count: usize) -> Layers {
        let root = tempfile::tempdir().expect("temp dir");
        let paths: Vec<_> = (0..count).map(|at| root.path().join(at.to_string())).collect();
        paths.iter().for_each(|path| fs::create_dir(path).expect("mkdir"));
        Layers { _root: root, paths }
    }

    impl Layers {
        fn write(&self, layer: usize, path: &str, content: &str) {
            let path = self.paths[layer].join(path);
            fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
            fs::write(path, content).expect("write");
        }

        fn link(&self, layer: usize, path: &str, target: &str) {
            let path = self.paths[layer].join(path);
            fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
            fs::os::unix::fs::symlink(target, path).expect("symlink");
        }

        fn whiteout(&self, layer: usize, path: &str) {
            let path = self.paths[layer].join(path);
            fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
            super::fs::mknodat(CWD, &path, FileType::CharacterDevice, Mode::empty(), 0).expect("mknod");
        }

        fn opaque(&self, layer: usize, path: &str) {
            let flags = super::fs::XattrFlags::empty();
            super::fs::setxattr(self.paths[layer].join(path), unpack::OPAQUE_XATTR, b"y", flags).expect("setxattr");
        }

        fn check(&self, path: &str, expect: Option<&str>) {
            let file = open_in_layers(&self.paths, Path::new(path)).expect(path);
            let text = file.map(|mut file| {
                let mut text = String::new();
                file.read_to_string(&mut text).expect("read");
                text
            });
            assert_eq!(text.as_deref(), expect, "{path}");
        }
    }

    #[test]
    fn merges_like_overlayfs() {
        let layers = layers(3);
        layers.write(0, "etc/passwd", "0");
        layers.write(0, "etc/group", "0");
        layers.write(0, "gone/x", "0");
        layers.write(0, "opaque/x", "0");
        layers.write(0, "file-over/x", "0");
        layers.write(1, "etc/passwd", "1");
        layers.whiteout(1, "etc/group");
        layers.whiteout(1, "gone");
        layers.write(1, "opaque/y", "1");
        layers.opaque(1, "opaque");
        layers.write(1, "file-over", "1");
        layers.write(2, "gone/y", "2");
        layers.write(2, "opaque/z", "2");
        layers.check("etc/passwd", Some("1"));
        layers.check("/etc/group", None);
        layers.check("gone/x", None);
        layers.check("gone/y", Some("2"));
        layers.check("opaque/x", None);
        layers.check("opaque/y", Some("1"));
        layers.check("opaque/z", Some("2"));
        layers.check("file-over", Some("1"));
        layers.check("file-over/x", None);
        layers.check("missing/x", None);
        layers.opaque(2, "");
        layers.check("etc/passwd", None);
    }

    #[test]
    fn links_stay_inside() {
        let layers = layers(2);
        layers.write(0, "usr/lib/passwd", "lib");
        layers.link(1, "etc/passwd", "../../../../usr/lib/passwd");
        layers.link(1, "absolute", "/usr/lib/passwd");
        layers.link(1, "lib", "usr/./lib");
        layers.link(1, "loop", "loop");
        layers.link(1, "escape", "../../../../../../../../etc/hostname");
        layers.link(1, "magic", "/proc/self/fd/0");
        layers.check("etc/passwd", Some("lib"));
        layers.check("absolute", Some("lib"));
        layers.check("lib/passwd", Some("lib"));
        layers.check("lib/../lib/passwd", Some("lib"));
        layers.check("escape", None);
        layers.check("magic", None);
        let error = open_in_layers(&layers.paths, Path::new("loop")).expect_err("loop");
        assert!(matches!(error, LookupError::SymlinkLoop { .. }));
    }

    #[test]
    fn only_regular_files() {
        let layers = layers(1);
        fs::create_dir(layers.paths[0].join("dir")).expect("mkdir");
        super::fs::mknodat(CWD, layers.paths[0].join("fifo"), FileType::Fifo, Mode::RWXU, 0).expect("mkfifo");
        for path in ["dir", "fifo", "", "/"] {
            let error = open_in_layers(&layers.paths, Path::new(path)).expect_err(path);
            assert!(matches!(error, LookupError::NotAFile { .. }), "{path}");
        }
    }
}
