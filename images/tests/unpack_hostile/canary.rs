//! A picture of a tree: everything about every file that an attack could change (oracle O1).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What is known about one file.
#[derive(Clone, PartialEq, Eq)]
pub struct Node {
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: (i64, i64),
    pub links: u64,
    pub device: u64,
    /// Bytes of a file, target of a link.
    pub content: Vec<u8>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let start = &self.content[..self.content.len().min(20)];
        write!(f, "{:o} {:?} {:?} {} {} ", self.mode, self.owner, self.mtime, self.links, self.device)?;
        write!(f, "{} bytes {} {:?}", self.content.len(), start.escape_ascii(), self.xattrs)
    }
}

/// A tree by relative path; the empty path is the top.
pub type Tree = BTreeMap<PathBuf, Node>;

/// Takes the picture. Directories that cannot be entered are left shut.
pub fn picture(top: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(relative) = todo.pop() {
        let path = if relative.as_os_str().is_empty() { top.to_path_buf() } else { top.join(&relative) };
        let metadata = fs_err::symlink_metadata(&path).expect("metadata");
        if metadata.is_dir() {
            for entry in fs_err::read_dir(&path).into_iter().flatten() {
                todo.push(relative.join(entry.expect("entry").file_name()));
            }
        }
        let content = if metadata.is_file() {
            fs_err::read(&path).unwrap_or_else(|_| b"(unreadable)".to_vec())
        } else if metadata.is_symlink() {
            fs_err::read_link(&path).expect("link").into_os_string().into_vec()
        } else {
            Vec::new()
        };
        let node = Node {
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            // Nobody sees when a whiteout was made.
            mtime: if metadata.file_type().is_char_device() {
                (0, 0)
            } else {
                (metadata.mtime(), metadata.mtime_nsec())
            },
            links: metadata.nlink(),
            device: metadata.rdev(),
            content,
            xattrs: xattrs(&path),
        };
        tree.insert(relative, node);
    }
    tree
}

fn xattrs(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = vec![0; 64 << 10];
    let Ok(length) = rustix::fs::llistxattr(path, &mut names) else { return Vec::new() };
    let mut found: Vec<_> = names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 64 << 10];
            let length = rustix::fs::lgetxattr(path, name, &mut value).expect("xattr");
            value.truncate(length);
            (name.to_vec(), value)
        })
        .collect();
    found.sort();
    found
}

/// Fills a directory with what attacks aim at.
pub fn plant(top: &Path) {
    for directory in ["", "etc", "d", "d/sub"] {
        fs_err::create_dir_all(top.join(directory)).expect("mkdir");
    }
    for file in ["f", "x", "etc/x", "etc/passwd", "d/x", "d/sub/x"] {
        fs_err::write(top.join(file), "canary").expect("write");
    }
    fs_err::os::unix::fs::symlink("f", top.join("l")).expect("symlink");
}

/// The name of a file as text, for messages.
pub fn name(bytes: &[u8]) -> OsString {
    OsString::from_vec(bytes.to_vec())
}
