//! How much of a limit is used, as a small file that the server keeps up to date and anybody reads.

use std::fs::File;
use std::io::Result;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Written whole over the last one, padded, so that a reader never sees a mixture of two lengths.
const FILE_BYTES: usize = 512;

/// Says what the filesystem is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It answers.
    Serving,
    /// It was unmounted.
    Ended,
    /// Its server died and could not be replaced: the container gets EIO.
    Lost,
    /// More was written than is allowed, and the container was killed for it.
    Exceeded,
}

/// Is what is used of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// What the filesystem is doing.
    pub phase: Phase,
    /// What may be used at most.
    pub limit_bytes: u64,
    /// What is allocated on the host.
    pub used_bytes: u64,
    /// How many inodes there may be.
    pub limit_inodes: u64,
    /// How many there are.
    pub used_inodes: u64,
    /// How many servers died and were replaced.
    pub takeovers: u32,
}

impl Usage {
    /// Writes it down.
    pub fn write(&self, file: &File) -> Result<()> {
        let mut text = serde_json::to_vec(self)?;
        text.resize(FILE_BYTES, b' ');
        file.write_all_at(&text, 0)
    }

    /// Reads what was written last; `None` when there is nothing.
    pub fn read(path: &Path) -> Option<Self> {
        Self::parse(&fs_err::read(path).ok()?)
    }

    pub(super) fn of(file: &File) -> Option<Self> {
        let mut text = [0; FILE_BYTES];
        file.read_exact_at(&mut text, 0).ok()?;
        Self::parse(&text)
    }

    fn parse(text: &[u8]) -> Option<Self> {
        serde_json::from_slice(text).ok()
    }
}
