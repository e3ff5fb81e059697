//! The unified hierarchy as this process sees it.

use std::path::{Path, PathBuf};

use super::directory::{Directory, is_unified};

/// Where every distribution mounts it.
const MOUNT: &str = "/sys/fs/cgroup";
/// Exists where systemd is the init (sd_booted(3)).
const SYSTEMD_MARK: &str = "/run/systemd/system";

/// What the choice of a place depends on, in one value so that tests can make their own.
#[derive(Debug, Clone)]
pub(super) struct Host {
    pub(super) mount: PathBuf,
    /// Our own cgroup, from the mount's root: `/` or `/a/b`.
    pub(super) own: String,
    pub(super) uid: u32,
    /// Whether systemd made the directories in it.
    pub(super) systemd: bool,
}

impl Host {
    /// Looks; `None` on a host of version 1 or with both versions (hybrid).
    pub(super) fn detect() -> Option<Self> {
        if !is_unified(Path::new(MOUNT)) {
            return None;
        }
        Some(Self {
            mount: MOUNT.into(),
            own: own_path()?,
            uid: rustix::process::geteuid().as_raw(),
            systemd: Path::new(SYSTEMD_MARK).exists(),
        })
    }

    /// The directory of a path such as /proc/PID/cgroup shows.
    pub(super) fn directory(&self, path: &str) -> Directory {
        Directory::new(self.mount.join(path.trim_start_matches('/')))
    }

    /// The directory of the cgroup that this process is in.
    pub(super) fn own_directory(&self) -> Directory {
        self.directory(&self.own)
    }
}

/// This process's path in the unified hierarchy (cgroups(7), /proc/PID/cgroup).
pub(super) fn own_path() -> Option<String> {
    path_in(&fs_err::read_to_string("/proc/self/cgroup").ok()?)
}

/// Paths outside of our cgroup namespace begin with `/..`: nothing can be made there.
fn path_in(text: &str) -> Option<String> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    let inside = path.starts_with('/') && !path.split('/').any(|part| part == "..");
    inside.then(|| path.trim_end_matches(" (deleted)").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_cgroup() {
        assert_eq!(path_in("1:cpu:/x\n0::/user.slice/a\n").as_deref(), Some("/user.slice/a"));
        assert_eq!(path_in("0::/\n").as_deref(), Some("/"));
        assert_eq!(path_in("0::/../x\n"), None);
        assert_eq!(path_in("1:cpu:/\n"), None);
    }
}
