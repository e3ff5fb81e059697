//! A directory tree as comparable text: what is there, of which kind, with which bytes.

use std::fmt::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{TestEnv, Who};

/// Gives lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Gives the SHA-256 of bytes as hex.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Gives the SHA-256 of a file as hex.
pub fn sha256_file(path: &Path) -> String {
    sha256(&fs_err::read(path).unwrap())
}

/// Lists every attribute of every file below a directory that this user may read.
pub fn attributes(dir: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut waiting = vec![dir.to_owned()];
    while let Some(path) = waiting.pop() {
        let metadata = fs_err::symlink_metadata(&path).unwrap();
        let content = if metadata.is_dir() {
            waiting.extend(fs_err::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            String::new()
        } else if metadata.is_symlink() {
            format!("{:?}", fs_err::read_link(&path).unwrap())
        } else if metadata.is_file() {
            sha256_file(&path)
        } else {
            String::new()
        };
        lines.push(format!(
            "{} mode {:o} owner {}:{} links {} size {} mtime {}.{} ctime {}.{} xattrs {} {content}",
            path.display(),
            metadata.mode(),
            metadata.uid(),
            metadata.gid(),
            metadata.nlink(),
            metadata.size(),
            metadata.mtime(),
            metadata.mtime_nsec(),
            metadata.ctime(),
            metadata.ctime_nsec(),
            xattrs(&path),
        ));
    }
    lines.sort();
    lines
}

fn xattrs(path: &Path) -> String {
    let mut buffer = vec![0_u8; 1 << 16];
    let count = rustix::fs::llistxattr(path, &mut buffer[..]).unwrap_or(0);
    hex(&buffer[..count])
}

/// How a tree is looked at: the directory itself, or layers that the kernel puts together.
pub enum Look {
    /// One directory.
    Directory(PathBuf),
    /// Layers, bottom to top, as an overlay.
    Layers(Vec<PathBuf>),
}

/// Describes names, kinds, modes, times, link targets and contents, from inside a user namespace that
/// may read everything. The result has one line for each file, in byte order.
pub fn describe(env: &TestEnv, look: &Look) -> Vec<String> {
    let mut run = match env.who() {
        Who::Root => env.program("unshare").args(&["--mount"]),
        Who::Single => env.program("unshare").args(&["--user", "--map-root-user", "--mount"]),
        Who::Ranges => env.program("unshare").args(&["--user", "--map-root-user", "--map-auto", "--mount"]),
    };
    run = run.args(&["bash", "-euo", "pipefail", "-c", DESCRIBE, "describe"]);
    let text = match look {
        Look::Directory(dir) => run.args(&[dir]).outcome(),
        Look::Layers(layers) => {
            let merged = env.path("merged");
            let nothing = env.path("nothing");
            fs_err::create_dir_all(&merged).unwrap();
            fs_err::create_dir_all(&nothing).unwrap();
            // The kernel wants at least two layers for a read-only overlay, topmost first.
            let mut lower = vec![nothing.display().to_string()];
            lower.extend(layers.iter().rev().map(|layer| layer.display().to_string()));
            run.args(&[merged.as_os_str(), lower.join(":").as_ref()]).outcome()
        }
    };
    text.ok();
    let mut lines: Vec<String> = text.stdout.split(|byte| *byte == 0).map(readable).collect();
    lines.retain(|line| !line.is_empty());
    lines.sort();
    lines
}

/// Bytes that are not UTF-8 stay distinguishable.
fn readable(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap_or_else(|_| hex(bytes))
}

/// %y kind, %m mode, %T@ time of change, %P name, %l target; then the checksums of the files.
/// A directory's size and link count are the file system's own business.
const DESCRIBE: &str = r#"
[ $# -lt 2 ] || mount -t overlay overlay -o "ro,userxattr,lowerdir=$2" "$1"
cd "$1"
find . -mindepth 1 ! -type l -printf '%P | %y %m %T@\0'
find . -type l -printf '%P | %y %T@ -> %l\0'
find . -type f -print0 | LC_ALL=C sort -z | xargs -0 -r sha256sum -z --
"#;

/// Says where two descriptions differ, shortly.
pub fn difference(left: &[String], right: &[String]) -> String {
    let mut text = String::new();
    for (sign, these, those) in [('-', left, right), ('+', right, left)] {
        let other: std::collections::BTreeSet<&String> = those.iter().collect();
        for line in these.iter().filter(|line| !other.contains(line)).take(20) {
            let _ = writeln!(text, "{sign} {line}");
        }
    }
    text
}
