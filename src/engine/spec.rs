//! From an image's configuration and a person's options to an OCI runtime specification.
//!
//! Pure: paths are not opened, users are already resolved, so a whole container can be compared as
//! data. Labels, annotations and unknown keys of the image are never looked at (CVE-2026-53488).

use std::path::{Path, PathBuf};

use coracle_runtime::caps::{self, CapError, CapabilitySets};
use coracle_runtime::defaults::{self, MountOptions, SpecOptions};
use coracle_runtime::{IdMap, seccomp};
use oci_spec::runtime::{
    LinuxCapabilities, LinuxIdMapping, LinuxIdMappingBuilder, LinuxResources, Mount, PosixRlimitBuilder,
    PosixRlimitType, RootBuilder, Spec, UserBuilder,
};

use super::mounts::{MountRequest, MountSource};
use super::options::RunOptions;
use super::user::ProcessUser;

/// Says why no specification could be made.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    #[error("two mounts at {0}")]
    DuplicateMount(PathBuf),
    #[error("invalid capability option")]
    Capability(#[from] CapError),
    #[error("invalid host name {0:?}: 1 to 64 letters, digits, dots and hyphens")]
    Hostname(String),
    #[error("seccomp profile")]
    Seccomp(#[from] seccomp::DockerProfileError),
    #[error("user id {uid} is not in the container's id map")]
    UnmappedUser { uid: u32 },
    #[error("group id {gid} is not in the container's id map")]
    UnmappedGroup { gid: u32 },
}

/// The kernel's __NEW_UTS_LEN, uname(2).
const HOSTNAME_BYTES_MAX: usize = 64;
/// Which groups may open sockets for ICMP echo; nobody in a new network namespace.
const PING_GROUPS: &str = "net.ipv4.ping_group_range";
/// The kernel takes no higher one there.
const GROUP_MAX: u32 = i32::MAX.unsigned_abs();
/// Debian's tty group, the owner of terminals where the id map has it.
const TTY_GID: u32 = 5;

/// Is everything that is decided before the specification is written.
pub struct SpecInputs<'a> {
    pub options: &'a RunOptions,
    pub argv: Vec<String>,
    pub env: Vec<String>,
    pub cwd: String,
    pub user: &'a ProcessUser,
    pub idmap: &'a IdMap,
    pub hostname: &'a str,
    pub own_network: bool,
    /// Everybody inside may ping, which costs a program with rights elsewhere.
    pub ping: bool,
    /// Files that coracle puts over the image's: destination and source.
    pub files: Vec<(&'static str, PathBuf)>,
    /// Every mount, sources absolute; anonymous ones already have a directory.
    pub mounts: Vec<ResolvedMount>,
    /// None switches the filter off.
    pub seccomp: Option<SeccompInput>,
    pub resources: Option<LinuxResources>,
}

/// Names the filter that goes into the specification.
pub enum SeccompInput {
    Default,
    /// The text of a profile, in Docker's form or the specification's.
    Profile(Vec<u8>),
}

/// Is a mount request whose source is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedMount {
    pub request: MountRequest,
    /// The host directory or file; None for tmpfs.
    pub source: Option<PathBuf>,
    /// The volume's name.
    pub volume: Option<String>,
}

/// Builds the specification.
pub fn build(inputs: &SpecInputs) -> Result<Spec, SpecError> {
    check_hostname(inputs.hostname)?;
    check_mapped(inputs)?;
    let mount_options = MountOptions {
        own_network: inputs.own_network,
        tty_group_mapped: inputs.idmap.gids.iter().any(|range| maps(range.container, range.size, TTY_GID)),
        shm_size_bytes: inputs.options.shm_size_bytes.unwrap_or(MountOptions::default().shm_size_bytes),
    };
    let spec_options = SpecOptions { mounts: mount_options, map_root_to: Some((0, 0)) };
    let mut spec = defaults::spec(&spec_options);
    let granted = caps::adjust(defaults::capabilities(), &inputs.options.cap_add, &inputs.options.cap_drop)?;
    spec.set_root(RootBuilder::default().path(PathBuf::from("rootfs")).readonly(inputs.options.read_only).build().ok());
    spec.set_hostname(Some(inputs.hostname.to_owned()));
    spec.set_mounts(Some(all_mounts(inputs, &mount_options)?));
    if let Some(process) = spec.process_mut() {
        let mut sets = CapabilitySets::granting(granted);
        if inputs.user.uid != 0 {
            // An ordinary user starts with nothing; the bounding set still lets a file grant it.
            sets.effective = Default::default();
            sets.permitted = Default::default();
        }
        process
            .set_terminal(Some(inputs.options.terminal.tty))
            .set_args(Some(inputs.argv.clone()))
            .set_env(Some(inputs.env.clone()))
            .set_cwd(PathBuf::from(&inputs.cwd))
            // Docker's default: the caller's own score, which may protect it, is not the container's.
            .set_oom_score_adj(Some(inputs.options.oom_score_adj.unwrap_or(0)))
            .set_capabilities(Some(sets.to_spec()))
            .set_no_new_privileges(Some(inputs.options.security.no_new_privileges));
        let user = UserBuilder::default().uid(inputs.user.uid).gid(inputs.user.gid);
        if let Ok(user) = user.additional_gids(inputs.user.groups.clone()).build() {
            process.set_user(user);
        }
        let mut rlimits = process.rlimits().clone().unwrap_or_default();
        for ulimit in &inputs.options.ulimits {
            let name = ulimit.spec_name();
            let kind = serde_json::from_value::<PosixRlimitType>(serde_json::Value::String(name));
            if let Ok(kind) = kind {
                rlimits.retain(|limit| limit.typ() != kind);
                rlimits.extend(PosixRlimitBuilder::default().typ(kind).soft(ulimit.soft).hard(ulimit.hard).build());
            }
        }
        process.set_rlimits(Some(rlimits));
    }
    if let Some(linux) = spec.linux_mut() {
        if inputs.ping {
            linux.set_sysctl(ping_groups(inputs.idmap).map(|range| [(PING_GROUPS.to_owned(), range)].into()));
        }
        linux
            .set_uid_mappings(Some(mappings(&inputs.idmap.uids)))
            .set_gid_mappings(Some(mappings(&inputs.idmap.gids)))
            .set_resources(inputs.resources.clone())
            .set_seccomp(match &inputs.seccomp {
                None => None,
                Some(SeccompInput::Default) => Some(seccomp::default_profile(granted)),
                Some(SeccompInput::Profile(text)) => {
                    Some(seccomp::read_profile(text, seccomp::Conditioned::here(granted))?)
                }
            });
    }
    inputs.options.isolation.apply(&mut spec);
    Ok(spec)
}

/// Gives the first and the last group of a map, as the sysctl wants them (icmp(7)).
fn ping_groups(idmap: &IdMap) -> Option<String> {
    let first = idmap.gids.iter().map(|range| range.container).min()?;
    let last = idmap.gids.iter().map(|range| range.container.saturating_add(range.size - 1)).max()?;
    Some(format!("{first} {}", last.min(GROUP_MAX)))
}

fn check_hostname(name: &str) -> Result<(), SpecError> {
    let clean = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
    if name.is_empty() || name.len() > HOSTNAME_BYTES_MAX || !clean || name.starts_with(['-', '.']) {
        return Err(SpecError::Hostname(name.to_owned()));
    }
    Ok(())
}

fn check_mapped(inputs: &SpecInputs) -> Result<(), SpecError> {
    check_user(inputs.idmap, inputs.user)
}

/// Refuses a user whose ids the map does not have.
pub fn check_user(idmap: &IdMap, user: &ProcessUser) -> Result<(), SpecError> {
    let mapped = |ranges: &[coracle_runtime::IdRange], id| ranges.iter().any(|r| maps(r.container, r.size, id));
    if !mapped(&idmap.uids, user.uid) {
        return Err(SpecError::UnmappedUser { uid: user.uid });
    }
    let mut gids = std::iter::once(user.gid).chain(user.groups.iter().copied());
    match gids.find(|gid| !mapped(&idmap.gids, *gid)) {
        Some(gid) => Err(SpecError::UnmappedGroup { gid }),
        None => Ok(()),
    }
}

/// Gives a further user of a container what its bounding set grants: root all of it, others nothing.
pub fn capabilities_for(own: Option<&LinuxCapabilities>, user: &ProcessUser) -> Result<LinuxCapabilities, SpecError> {
    let mut sets = CapabilitySets::from_spec(own)?;
    let granted = if user.uid == 0 { sets.bounding } else { Default::default() };
    (sets.effective, sets.permitted) = (granted, granted);
    Ok(sets.to_spec())
}

fn maps(first: u32, size: u32, id: u32) -> bool {
    id >= first && id - first < size
}

fn mappings(ranges: &[coracle_runtime::IdRange]) -> Vec<LinuxIdMapping> {
    ranges
        .iter()
        .filter_map(|range| {
            let mapping = LinuxIdMappingBuilder::default().container_id(range.container).host_id(range.host);
            mapping.size(range.size).build().ok()
        })
        .collect()
}

/// Puts the kernel filesystems first, then everything else, parents before children.
fn all_mounts(inputs: &SpecInputs, options: &MountOptions) -> Result<Vec<Mount>, SpecError> {
    let mut list = defaults::mounts(options);
    let mut asked: Vec<&ResolvedMount> = inputs.mounts.iter().collect();
    asked.sort_by_key(|mount| mount.request.destination.components().count());
    for (index, mount) in asked.iter().enumerate() {
        let destination = &mount.request.destination;
        if asked[..index].iter().any(|earlier| earlier.request.destination == *destination) {
            return Err(SpecError::DuplicateMount(destination.clone()));
        }
    }
    // What the person mounts at or above a file of ours is theirs: nothing is written into it.
    for (destination, source) in &inputs.files {
        let covered = asked.iter().any(|mount| Path::new(destination).starts_with(&mount.request.destination));
        if !covered {
            list.push(new_mount(
                Path::new(destination),
                "bind",
                source,
                &["rbind", "rprivate", "nosuid", "nodev", "noexec"],
            ));
        }
    }
    for mount in asked {
        list.retain(|other| *other.destination() != mount.request.destination);
        list.push(requested_mount(mount));
    }
    Ok(list)
}

fn requested_mount(mount: &ResolvedMount) -> Mount {
    let request = &mount.request;
    let given = |flag: &str| request.options.iter().any(|option| option == flag);
    let mut options: Vec<String> = Vec::new();
    let kind = match &request.source {
        MountSource::Tmpfs { size_bytes, mode } => {
            options.extend(size_bytes.map(|size| format!("size={size}")));
            options.push(format!("mode={:o}", mode.unwrap_or(0o1777)));
            if !given("exec") {
                options.push("noexec".into());
            }
            "tmpfs"
        }
        MountSource::Bind { .. } | MountSource::Anonymous | MountSource::Volume { .. } => {
            options.push(if given("bind") { "bind" } else { "rbind" }.into());
            if !request.options.iter().any(|option| option.ends_with("private") || option.ends_with("slave")) {
                options.push("rprivate".into());
            }
            if matches!(request.source, MountSource::Anonymous) {
                options.push("copyup".into());
            }
            "bind"
        }
    };
    options.extend(["nosuid".to_owned(), "nodev".to_owned()]);
    options
        .extend(request.options.iter().filter(|option| !matches!(option.as_str(), "bind" | "rbind" | "exec")).cloned());
    if request.read_only {
        options.push(if kind == "bind" { "rro" } else { "ro" }.into());
    }
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let source = mount.source.clone().unwrap_or_else(|| PathBuf::from(kind));
    new_mount(&request.destination, kind, &source, &options)
}

fn new_mount(destination: &Path, kind: &str, source: &Path, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(destination.to_owned())
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(source.to_owned()))
        .set_options(Some(options.iter().map(|option| (*option).to_owned()).collect()));
    mount
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::size::ULIMIT_NAMES;
    use coracle_runtime::IdRange;

    fn idmap() -> IdMap {
        let ranges =
            vec![IdRange { container: 0, host: 1000, size: 1 }, IdRange { container: 1, host: 100_000, size: 65536 }];
        IdMap { uids: ranges.clone(), gids: ranges }
    }

    fn with(options: &RunOptions, user: &ProcessUser, mounts: Vec<ResolvedMount>) -> Result<Spec, SpecError> {
        build(&SpecInputs {
            options,
            argv: vec!["/bin/true".into()],
            env: vec!["A=1".into()],
            cwd: "/".into(),
            user,
            idmap: &idmap(),
            hostname: "box",
            own_network: true,
            ping: false,
            files: vec![("/etc/hosts", "/state/hosts".into())],
            mounts,
            seccomp: Some(SeccompInput::Default),
            resources: None,
        })
    }

    fn root() -> ProcessUser {
        ProcessUser { uid: 0, gid: 0, groups: vec![], home: "/root".into() }
    }

    fn bind(source: &str, destination: &str) -> ResolvedMount {
        ResolvedMount {
            request: MountRequest::from_volume(&format!("{source}:{destination}")).unwrap(),
            source: Some(source.into()),
            volume: None,
        }
    }

    fn destinations(spec: &Spec) -> Vec<String> {
        spec.mounts().iter().flatten().map(|mount| mount.destination().display().to_string()).collect()
    }

    #[test]
    fn parents_come_before_children_and_ours_yield() {
        let spec = with(&RunOptions::default(), &root(), vec![bind("/b", "/etc/x/y"), bind("/a", "/etc/x")]).unwrap();
        let list = destinations(&spec);
        let at = |path: &str| list.iter().position(|item| item == path);
        assert!(at("/etc/x") < at("/etc/x/y"));
        assert!(at("/etc/hosts").is_some());
        let spec = with(&RunOptions::default(), &root(), vec![bind("/a", "/etc")]).unwrap();
        assert!(!destinations(&spec).contains(&"/etc/hosts".to_owned()), "nothing of ours lands in the person's /etc");
        assert!(with(&RunOptions::default(), &root(), vec![bind("/a", "/x"), bind("/b", "/x")]).is_err());
    }

    #[test]
    fn binds_are_nosuid_nodev_and_read_only_all_the_way_down() {
        let mut mount = bind("/a", "/x");
        mount.request.read_only = true;
        let spec = with(&RunOptions::default(), &root(), vec![mount]).unwrap();
        let mounts = spec.mounts().clone().unwrap();
        let options = mounts.last().unwrap().options().clone().unwrap();
        for wanted in ["rbind", "rprivate", "nosuid", "nodev", "rro"] {
            assert!(options.iter().any(|option| option == wanted), "{wanted} in {options:?}");
        }
    }

    #[test]
    fn a30_an_ordinary_user_starts_without_capabilities() {
        let user = ProcessUser { uid: 33, gid: 33, groups: vec![4], home: "/".into() };
        let spec = with(&RunOptions::default(), &user, vec![]).unwrap();
        let process = spec.process().clone().unwrap();
        let sets = process.capabilities().clone().unwrap();
        assert!(sets.effective().iter().flatten().next().is_none());
        assert!(sets.permitted().iter().flatten().next().is_none());
        assert!(sets.bounding().iter().flatten().next().is_some());
        assert_eq!(process.user().additional_gids().clone(), Some(vec![4]));
    }

    #[test]
    fn ids_outside_the_map_are_refused() {
        let user = ProcessUser { uid: 70_000, ..root() };
        assert!(matches!(with(&RunOptions::default(), &user, vec![]), Err(SpecError::UnmappedUser { uid: 70_000 })));
        let user = ProcessUser { groups: vec![65_537], ..root() };
        assert!(matches!(with(&RunOptions::default(), &user, vec![]), Err(SpecError::UnmappedGroup { .. })));
    }

    #[test]
    fn host_names() {
        for bad in ["", "a b", "-x", "a\nb", "a:b", &"x".repeat(65)] {
            assert!(check_hostname(bad).is_err(), "{bad:?}");
        }
        assert!(check_hostname("db-1.example_x").is_ok());
    }

    #[test]
    fn every_ulimit_has_a_place_in_the_specification() {
        for name in ULIMIT_NAMES {
            let options = RunOptions { ulimits: vec![format!("{name}=7:8").parse().unwrap()], ..RunOptions::default() };
            let spec = with(&options, &root(), vec![]).unwrap();
            let limits = spec.process().clone().unwrap().rlimits().clone().unwrap();
            assert_eq!(limits.iter().filter(|limit| limit.soft() == 7 && limit.hard() == 8).count(), 1, "{name}");
        }
    }
}
