//! What a person asks for: `SIZE[,inodes=N][,backend=NAME]`, on the command line or once for all containers.

use std::path::PathBuf;

use serde::Deserialize;

use super::{Backend, QuotaError};
use crate::engine::size::parse_size_bytes;
use crate::env;

/// Less than this cannot hold what overlayfs itself makes.
const BYTES_MIN: u64 = 1 << 20;
/// One inode for every page of the limit, as nobody needs more, and never fewer than this many.
const INODES_MIN: u64 = 16 * 1024;
const BYTES_PER_INODE: u64 = 4096;
/// The administrator's file; a person's own, in the directory for configuration, comes before it.
const SYSTEM_FILE: &str = "/etc/coracle/config.json";

/// Is a size with what was said about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSize {
    pub bytes: u64,
    pub inodes: Option<u64>,
    /// Absent for the best one.
    pub backend: Option<Backend>,
}

/// Is what was said on the command line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DiskAsk {
    /// Nothing: the configuration decides.
    #[default]
    Default,
    /// `none`.
    Unlimited,
    Size(DiskSize),
}

impl std::str::FromStr for DiskSize {
    type Err = QuotaError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = || QuotaError::Syntax { text: text.to_owned() };
        let mut parts = text.split(',');
        let bytes = parse_size_bytes(parts.next().unwrap_or_default())?;
        let (mut inodes, mut backend) = (None, None);
        for part in parts {
            match part.split_once('=') {
                Some(("inodes", number)) if inodes.is_none() => {
                    inodes = Some(number.parse().ok().filter(|number| *number > 0).ok_or_else(fail)?);
                }
                // What is chosen when nothing is said.
                Some(("backend", "auto")) if backend.is_none() => {}
                Some(("backend", word)) if backend.is_none() => {
                    backend = Some(Backend::named(word).ok_or_else(fail)?);
                }
                _ => return Err(fail()),
            }
        }
        if bytes < BYTES_MIN {
            return Err(fail());
        }
        Ok(Self { bytes, inodes, backend })
    }
}

impl std::str::FromStr for DiskAsk {
    type Err = QuotaError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "none" { Ok(Self::Unlimited) } else { Ok(Self::Size(text.parse()?)) }
    }
}

impl DiskAsk {
    /// Gives the size, from the configuration where nothing was said.
    pub fn size(self) -> Result<Option<DiskSize>, QuotaError> {
        match self {
            Self::Default => configured(),
            Self::Unlimited => Ok(None),
            Self::Size(size) => Ok(Some(size)),
        }
    }
}

impl DiskSize {
    /// Fills in how many inodes there may be.
    pub fn inodes(&self) -> u64 {
        self.inodes.unwrap_or_else(|| (self.bytes / BYTES_PER_INODE).max(INODES_MIN))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Configuration {
    /// The limit of containers that are made without `--disk`.
    disk: Option<String>,
}

/// Gives the default limit: of a person's own file, else of the administrator's.
pub fn configured() -> Result<Option<DiskSize>, QuotaError> {
    let own = env::xdg_config_home().or_else(|| Some(env::home()?.join(".config")));
    let own = own.map(|directory| directory.join("coracle/config.json"));
    for path in own.into_iter().chain([PathBuf::from(SYSTEM_FILE)]) {
        let text = match fs_err::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(source) => return Err(QuotaError::Prepare { path, source }),
        };
        let found: Configuration =
            serde_json::from_slice(&text).map_err(|source| QuotaError::Configuration { path: path.clone(), source })?;
        let Some(disk) = found.disk else { continue };
        let ask: DiskAsk =
            disk.parse().map_err(|source| QuotaError::ConfiguredSize { path, source: Box::new(source) })?;
        // A person's `none` is not overruled by the administrator's default: it is no ceiling.
        return Ok(match ask {
            DiskAsk::Size(size) => Some(size),
            _ => None,
        });
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let parse = |text: &str| text.parse::<DiskSize>().ok();
        let size = |bytes, inodes, backend| Some(DiskSize { bytes, inodes, backend });
        assert_eq!(parse("64m"), size(64 << 20, None, None));
        assert_eq!(parse("1g,inodes=500"), size(1 << 30, Some(500), None));
        assert_eq!(parse("1g,backend=fuse,inodes=5"), size(1 << 30, Some(5), Some(Backend::Fuse)));
        assert_eq!(parse("1g,backend=auto"), size(1 << 30, None, None));
        for bad in ["", "1k", "64m,", "64m,inodes=", "64m,inodes=0", "64m,files=3", "-1", "64m,inodes=5,inodes=6"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert_eq!(parse("64m,backend=xfs"), None);
        assert_eq!("none".parse::<DiskAsk>().ok(), Some(DiskAsk::Unlimited));
    }

    #[test]
    fn inodes_follow_the_size() {
        let inodes = |bytes, inodes| DiskSize { bytes, inodes, backend: None }.inodes();
        assert_eq!(inodes(1 << 20, None), 16 * 1024);
        assert_eq!(inodes(1 << 30, None), 1 << 18);
        assert_eq!(inodes(1 << 30, Some(7)), 7);
    }
}
