//! What this host offers to rootless containers, and the command that mends what it lacks.
//!
//! Each fact is found by trying where trying is cheap, because settings, kernels and security
//! modules disagree about what is allowed. Only [`probe`] and its helpers touch the system; which
//! command mends what is decided by pure functions on what was read.

use std::path::Path;

use serde::Serialize;

use crate::idmap::HostIds;
use crate::subid;

mod cgroups;
mod trial;

pub use trial::{limit_holds, overlay_works};

/// One fact about the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fact {
    /// A stable name, e.g. `subordinate-ids`.
    pub name: &'static str,
    /// What was found, in a few words.
    pub value: String,
    /// What is missing, if anything.
    pub missing: Option<Missing>,
}

/// Something the host lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// Whether containers cannot run at all without it.
    pub fatal: bool,
    /// What does not work.
    pub effect: String,
    /// The command that mends it.
    pub fix: String,
}

/// Everything found out about the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HostFacts {
    /// In the order in which they are shown.
    pub facts: Vec<Fact>,
}

impl HostFacts {
    /// The fact of this name.
    pub fn get(&self, name: &str) -> Option<&Fact> {
        self.facts.iter().find(|fact| fact.name == name)
    }
}

impl Fact {
    fn fine(name: &'static str, value: impl Into<String>) -> Self {
        Self { name, value: value.into(), missing: None }
    }

    fn lacking(
        name: &'static str,
        value: impl Into<String>,
        fatal: bool,
        effect: &str,
        fix: impl Into<String>,
    ) -> Self {
        let missing = Missing { fatal, effect: effect.to_owned(), fix: fix.into() };
        Self { name, value: value.into(), missing: Some(missing) }
    }
}

/// The oldest kernel whose overlayfs and mount API we rely on (userxattr, mount_setattr: 5.12).
const KERNEL_OLDEST: (u32, u32) = (5, 12);

/// Finds out. `state` is where layers and containers are kept; overlayfs is tried there.
///
/// The caller must be single-threaded: trying means cloning.
pub fn probe(state: &Path) -> HostFacts {
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut facts = vec![kernel_fact(&kernel)];
    let user_namespaces = trial::user_namespace();
    facts.push(user_namespace_fact(&user_namespaces, &Settings::read()));
    match HostIds::probe() {
        Ok(ids) => {
            facts.push(helper_fact(&ids));
            facts.push(range_fact(&ids));
            facts.extend(review_fact());
        }
        Err(error) => facts.push(Fact::lacking(
            "subordinate-ids",
            "unreadable",
            false,
            &format!("containers have one user only: {error}"),
            "correct that line, then run coracle info again",
        )),
    }
    facts.push(overlay_fact(state, user_namespaces.is_ok()));
    facts.push(cgroups::fact());
    facts.push(network_fact());
    facts.push(device_fact("/dev/net/tun", "tun", "networking by pasta and slirp4netns does not work"));
    facts.push(device_fact("/dev/fuse", "fuse", "filesystems in user space do not work"));
    HostFacts { facts }
}

fn kernel_fact(release: &str) -> Fact {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= KERNEL_OLDEST {
        return Fact::fine("kernel", release);
    }
    Fact::lacking("kernel", release, true, "Linux 5.12 or newer is needed", "install a newer kernel")
}

/// The settings that switch user namespaces off. Absent files are `None`.
#[derive(Debug, Default)]
struct Settings {
    max_user_namespaces: Option<u64>,
    unprivileged_userns_clone: Option<u64>,
    apparmor_restricts: Option<u64>,
}

impl Settings {
    fn read() -> Self {
        let number = |path: &str| fs_err::read_to_string(path).ok()?.trim().parse().ok();
        Self {
            max_user_namespaces: number("/proc/sys/user/max_user_namespaces"),
            unprivileged_userns_clone: number("/proc/sys/kernel/unprivileged_userns_clone"),
            apparmor_restricts: number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
        }
    }

    /// What is to be changed so that user namespaces work.
    fn fix(&self) -> &'static str {
        if self.max_user_namespaces == Some(0) {
            "sudo sysctl -w user.max_user_namespaces=28633"
        } else if self.unprivileged_userns_clone == Some(0) {
            "sudo sysctl -w kernel.unprivileged_userns_clone=1"
        } else if self.apparmor_restricts == Some(1) {
            "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
        } else {
            "ask the administrator of this host to allow user namespaces"
        }
    }
}

fn user_namespace_fact(tried: &Result<(), trial::Refused>, settings: &Settings) -> Fact {
    match tried {
        Ok(()) => Fact::fine("user-namespaces", "allowed"),
        Err(refused) => Fact::lacking(
            "user-namespaces",
            format!("refused ({})", refused.describe()),
            true,
            "containers cannot be started",
            settings.fix(),
        ),
    }
}

fn helper_fact(ids: &HostIds) -> Fact {
    const NAME: &str = "id-helpers";
    let (Some(users), Some(groups)) = (&ids.newuidmap, &ids.newgidmap) else {
        return Fact::lacking(
            NAME,
            "newuidmap or newgidmap not found",
            false,
            "containers have one user only (single-id mode)",
            "sudo apt install uidmap",
        );
    };
    for helper in [users, groups] {
        if !trial::is_privileged(helper) {
            let shown = helper.display();
            return Fact::lacking(
                NAME,
                format!("{shown} is not setuid root"),
                false,
                "containers have one user only (single-id mode)",
                format!("sudo chmod u+s {shown}"),
            );
        }
    }
    Fact::fine(NAME, format!("{}, {}", users.display(), groups.display()))
}

fn range_fact(ids: &HostIds) -> Fact {
    const NAME: &str = "subordinate-ids";
    let count = |grants: &[(u32, u32)]| grants.iter().map(|(_, count)| u64::from(*count)).sum::<u64>();
    if ids.uid == 0 {
        return Fact::fine(NAME, "not needed: root maps its own ids");
    }
    let value = format!("{} users, {} groups", count(&ids.subuids), count(&ids.subgids));
    if !ids.subuids.is_empty() && !ids.subgids.is_empty() {
        return Fact::fine(NAME, value);
    }
    let user = ids.user.clone().unwrap_or_else(|| ids.uid.to_string());
    Fact::lacking(
        NAME,
        value,
        false,
        "containers have one user only (single-id mode)",
        format!("sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}"),
    )
}

/// Other people's lines that endanger somebody (A31). Nothing is said when all is well.
fn review_fact() -> Option<Fact> {
    let people = subid::people(Path::new("/etc/passwd")).unwrap_or_default();
    let files = ["/etc/subuid", "/etc/subgid"];
    let problems: Vec<String> = files
        .iter()
        .flat_map(|file| {
            // Group ids are other numbers than the ids of people.
            let people: &[(String, u32)] = if *file == "/etc/subuid" { &people } else { &[] };
            subid::review(Path::new(file), people).unwrap_or_default()
        })
        .collect();
    let first = problems.first()?;
    Some(Fact::lacking(
        "subordinate-id-files",
        format!("{} problems", problems.len()),
        false,
        first,
        "sudoedit /etc/subuid /etc/subgid",
    ))
}

fn overlay_fact(state: &Path, can_try: bool) -> Fact {
    const NAME: &str = "overlay";
    if !can_try {
        return Fact::fine(NAME, "not tried: no user namespaces");
    }
    match overlay_works(state) {
        Ok(()) => Fact::fine(NAME, format!("native, in {}", state.display())),
        Err(failure) => Fact::lacking(
            NAME,
            format!("refused ({failure})"),
            false,
            "each container copies its image, which takes time and space",
            "put the state directory on a local ext4, xfs or btrfs: coracle --root DIR",
        ),
    }
}

fn network_fact() -> Fact {
    const NAME: &str = "network-helper";
    match ["pasta", "slirp4netns"].into_iter().find_map(crate::programs::find) {
        Some(path) if path.ends_with("pasta") => Fact::fine(NAME, path.display().to_string()),
        Some(path) => Fact::lacking(
            NAME,
            path.display().to_string(),
            false,
            "ports and addresses are those of slirp4netns, slower than pasta's",
            "sudo apt install passt",
        ),
        None => Fact::lacking(
            NAME,
            "none",
            false,
            "containers have no network of their own but the host's",
            "sudo apt install passt",
        ),
    }
}

fn device_fact(path: &'static str, module: &str, effect: &str) -> Fact {
    use rustix::fs::{Access, access};
    use rustix::io::Errno;
    match access(path, Access::READ_OK | Access::WRITE_OK) {
        Ok(()) => Fact::fine(path, "usable"),
        Err(Errno::NOENT) => Fact::lacking(path, "absent", false, effect, format!("sudo modprobe {module}")),
        Err(_) => Fact::lacking(path, "not for this user", false, effect, format!("sudo chmod 0666 {path}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(user: u32, ranges: bool) -> HostIds {
        let grants = if ranges { vec![(100_000, 65536)] } else { Vec::new() };
        HostIds {
            uid: user,
            gid: user,
            user: Some("ann".to_owned()),
            subuids: grants.clone(),
            subgids: grants,
            newuidmap: None,
            newgidmap: None,
            own_uids: Vec::new(),
            own_gids: Vec::new(),
        }
    }

    fn fix(fact: &Fact) -> &str {
        fact.missing.as_ref().map_or("", |missing| missing.fix.as_str())
    }

    #[test]
    fn kernels_are_compared_as_numbers() {
        for fine in ["5.12.0", "5.15.0-91-generic", "6.18.44-fc", "10.0"] {
            assert_eq!(kernel_fact(fine).missing, None, "{fine}");
        }
        for old in ["5.9.1", "4.18.0-513.el8", "5.4", ""] {
            assert!(kernel_fact(old).missing.is_some_and(|missing| missing.fatal), "{old}");
        }
    }

    #[test]
    fn each_switch_has_its_own_fix() {
        let refused = Err(trial::Refused::Create(rustix::io::Errno::NOSPC));
        let fact = |settings: Settings| user_namespace_fact(&refused, &settings);
        let off = fact(Settings { max_user_namespaces: Some(0), ..Settings::default() });
        assert!(fix(&off).contains("max_user_namespaces"), "{off:?}");
        let debian = fact(Settings { unprivileged_userns_clone: Some(0), ..Settings::default() });
        assert!(fix(&debian).contains("unprivileged_userns_clone=1"), "{debian:?}");
        let ubuntu =
            fact(Settings { apparmor_restricts: Some(1), max_user_namespaces: Some(9), ..Settings::default() });
        assert!(fix(&ubuntu).contains("apparmor_restrict_unprivileged_userns=0"), "{ubuntu:?}");
        assert!(fix(&fact(Settings::default())).contains("administrator"));
    }

    #[test]
    fn missing_ranges_name_the_user() {
        assert!(fix(&range_fact(&ids(1000, false))).ends_with(" ann"));
        assert_eq!(range_fact(&ids(1000, true)).missing, None);
        assert_eq!(range_fact(&ids(0, false)).missing, None);
        assert!(fix(&helper_fact(&ids(1000, true))).contains("uidmap"));
    }
}
