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
    /// Who we are outside of a user namespace that we may be in.
    pub(super) uid: u32,
    /// Whether we are root of the host.
    pub(super) root: bool,
    /// Whether systemd made the directories in it.
    pub(super) systemd: bool,
}

impl Host {
    /// Looks; `None` on a host of version 1 or with both versions (hybrid).
    pub(super) fn detect() -> Option<Self> {
        if !is_unified(Path::new(MOUNT)) {
            return None;
        }
        let (uid, root) = who();
        Some(Self { mount: MOUNT.into(), own: own_path()?, uid, root, systemd: Path::new(SYSTEMD_MARK).exists() })
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
pub(super) fn path_in(text: &str) -> Option<String> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    let inside = path.starts_with('/') && !path.split('/').any(|part| part == "..");
    inside.then(|| path.trim_end_matches(" (deleted)").to_owned())
}

/// Our id outside of our user namespace, and whether we are root of the host.
///
/// podman runs its runtime as root of a namespace that it has made.
fn who() -> (u32, bool) {
    let euid = rustix::process::geteuid().as_raw();
    let map = fs_err::read_to_string("/proc/self/uid_map").unwrap_or_default();
    outside(euid, &map)
}

fn outside(euid: u32, map: &str) -> (u32, bool) {
    let lines = map.lines().filter_map(|line| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<u32>);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?))
    });
    for (inside, outside, count) in lines {
        if euid.checked_sub(inside).is_some_and(|offset| offset < count) {
            // The first namespace of a host maps every id to itself.
            let first = (inside, outside, count) == (0, 0, u32::MAX);
            return (outside.saturating_add(euid - inside), euid == 0 && first);
        }
    }
    (euid, euid == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_outside() {
        assert_eq!(outside(0, "         0          0 4294967295\n"), (0, true));
        assert_eq!(outside(1000, "         0          0 4294967295\n"), (1000, false));
        assert_eq!(outside(0, "0 1000 1\n1 100000 65536\n"), (1000, false));
        assert_eq!(outside(7, "0 1000 1\n1 100000 65536\n"), (100_006, false));
    }

    #[test]
    fn own_cgroup() {
        assert_eq!(path_in("1:cpu:/x\n0::/user.slice/a\n").as_deref(), Some("/user.slice/a"));
        assert_eq!(path_in("0::/\n").as_deref(), Some("/"));
        assert_eq!(path_in("0::/../x\n"), None);
        assert_eq!(path_in("1:cpu:/\n"), None);
    }
}
