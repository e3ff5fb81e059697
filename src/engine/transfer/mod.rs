//! Files on their way between a container and the host: cp, export, diff.
//!
//! A container's files are hostile, and so is whoever works on them meanwhile (A41, A42). They are
//! reached through one descriptor of the container's root, in a child that is root of a user
//! namespace with the container's ids and nothing else; what crosses the border is a tar stream. The
//! host's side is the caller's own process with the caller's own rights. Nothing of the image is ever
//! executed for it (A40).

mod copy;
mod ends;
pub(super) mod export;
mod far;
mod root;

use std::path::PathBuf;

pub use copy::{CopyEnd, CopyOptions, copy};
pub use export::{diff, export};
pub use far::{FarCopy, FarOrder, far};
pub use root::Purpose;

pub(super) use root::{Root, with_root};

/// Says why files could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    #[error("{0} does not exist")]
    NoSource(String),
    #[error("{0} is not a directory")]
    NotADirectory(String),
    #[error("{0} is not a directory, and what is copied is one")]
    OverFile(String),
    #[error("the directory {0} does not exist")]
    NoDirectory(String),
    #[error("{0} is made up by the kernel and cannot be copied")]
    Kernel(String),
    #[error("cannot {op} {path}")]
    Io { op: &'static str, path: String, source: std::io::Error },
    #[error("cannot make a pipe")]
    Pipe(#[source] std::io::Error),
    #[error("copying between two containers, or on the host alone, is not implemented: name one container")]
    Ends,
    #[error("container {0} starts or ends this moment")]
    Between(String),
    #[error("container {0} was started without an overlay, so its changes are not known")]
    NoOverlay(String),
    #[error("what container {0} writes is in memory that only it has; --disk SIZE,backend=fuse keeps it")]
    InMemory(String),
    #[error(transparent)]
    Pack(#[from] coracle_images::pack::PackError),
    #[error(transparent)]
    Unpack(#[from] coracle_images::UnpackError),
    #[error(transparent)]
    Changes(#[from] coracle_images::diff::DiffError),
}

/// Is what was copied and what was not.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Copied {
    /// Entries.
    pub entries: u64,
    /// Sockets and devices, which were left out.
    pub left_out: u64,
}

/// Shows a path of a container or the host in an error.
fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// Gives a path of bytes.
fn path_of(bytes: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    PathBuf::from(std::ffi::OsStr::from_bytes(bytes))
}
