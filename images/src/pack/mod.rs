//! Writes a tree into a tar archive: for export, cp and new layers.
//!
//! The tree may be hostile and may change while it is read: a process inside swaps files for links,
//! fifos and devices (A41, A42). So everything is reached from an open descriptor by one name at a
//! time that is never followed, kept by `O_PATH` and looked at before it is opened for reading, and
//! only regular files and directories ever are. What disappears meanwhile was never there; a file
//! that shrinks is filled up with zeros, one that grows is cut off, because its size has been said.

mod walk;
mod writer;

use std::io;

pub use walk::{PackOptions, PackReport, Style, pack};

/// Why a tree cannot be written.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each text says what the variant means")]
pub enum PackError {
    #[error("cannot {op} {path}")]
    Read {
        op: &'static str,
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot write the archive")]
    Write {
        #[source]
        source: io::Error,
    },
    #[error("{path} is nested too deep")]
    TooDeep { path: String },
}
