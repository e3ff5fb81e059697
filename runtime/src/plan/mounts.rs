//! The mounts of a container as steps with everything decided.
//!
//! /proc, /sys and /dev are special: only their own kinds may be mounted there, and nothing but a
//! short list of files may be covered below /proc (A15), because our own checks and masks rely on
//! what these trees say.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, LinuxIdMapping, Mount};

use super::flags::{self, OptionWords};
use super::refuse;
use crate::failure::LaunchFailure;
use crate::idmap::{IdMap, IdRange};
use crate::sys::MountAttr;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountStep {
    /// Absolute, without `.` and `..`.
    pub(crate) destination: PathBuf,
    pub(crate) source: MountSource,
    pub(crate) attr: MountAttr,
    pub(crate) recursive_attr: MountAttr,
    /// Fills an empty source or a new tmpfs with what the image has at the destination.
    pub(crate) copy_up: bool,
    /// Shows the owners of a bind mount through an id map.
    pub(crate) owners: Option<MountOwners>,
    /// The destination must be an ordinary directory: no link may lead there (A05, A09).
    pub(crate) plain: bool,
}

/// An id-mapped mount (mount_setattr(2), MOUNT_ATTR_IDMAP).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountOwners {
    /// `None` means the container's own map.
    pub(crate) map: Option<IdMap>,
    pub(crate) recursive: bool,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MountSource {
    /// A file or directory of the host.
    Bind { path: PathBuf, recursive: bool },
    /// A new filesystem.
    New { kind: String, source: Option<String>, data: Vec<(String, Option<String>)> },
    /// procfs of the container's own processes.
    Proc { data: Vec<(String, Option<String>)> },
    /// sysfs of the container's own network, or the host's where the kernel refuses that.
    Sys { data: Vec<(String, Option<String>)> },
    /// The container's own cgroup.
    Cgroup { data: Vec<(String, Option<String>)> },
    /// A tmpfs with the device nodes of a container.
    Devices { data: Vec<(String, Option<String>)>, nodes: Vec<DeviceNode> },
}

/// A device of the host that appears in the container's /dev.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceNode {
    /// Below /dev, the same on both sides; absolute where it is elsewhere in the container.
    pub(crate) name: PathBuf,
    /// Character device (else block).
    pub(crate) character: bool,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    /// Whether a host without it is fine.
    pub(crate) optional: bool,
    /// Whether the specification asks for it; others are what every container has.
    pub(crate) asked: bool,
    /// Of a node that is made and not bound, as the next two.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl DeviceNode {
    /// Where it is in the container.
    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }
}

/// What a made device gets that names no mode, as from runc.
const DEVICE_MODE: u32 = 0o666;

/// Every container has these (runtime-spec, "Default Devices"), with the numbers that prove them.
const DEFAULT_DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Files below /proc that may be covered: what lxcfs provides, and nothing that grants or reveals.
const PROC_FILES: [&str; 10] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/net/dev",
    "/proc/sys/kernel/ns_last_pid",
];

/// Filesystems that a user namespace may mount and that no image can feed (CVE-2020-15229).
const NEW_KINDS: [&str; 6] = ["tmpfs", "devpts", "mqueue", "ramfs", "overlay", "binfmt_misc"];

/// What nobody asked for but every /dev has.
const DEV_DATA: [(&str, &str); 2] = [("mode", "755"), ("size", "65536k")];

pub(super) fn plan(mounts: &[Mount]) -> Result<Vec<MountStep>, LaunchFailure> {
    mounts.iter().map(step).collect()
}

fn step(mount: &Mount) -> Result<MountStep, LaunchFailure> {
    let destination = clean(mount.destination())?;
    let shown = destination.display().to_string();
    let words = flags::parse(mount.options().as_deref().unwrap_or_default())?;
    let source = source(mount, &destination, &words)?;
    let owners = owners(mount, &words, &shown)?;
    if owners.is_some() && !matches!(source, MountSource::Bind { .. }) {
        return Err(refuse(&shown, "only a bind mount can have its owners mapped"));
    }
    guard_special(&destination, &source)?;
    let mut step = MountStep {
        plain: matches!(shown.as_str(), "/proc" | "/sys" | "/dev") || destination.starts_with("/proc"),
        destination,
        attr: words.attr,
        recursive_attr: words.recursive_attr,
        copy_up: words.copy_up,
        owners,
        source,
    };
    let (propagation, recursive) = words.propagation.unwrap_or((flags::PRIVATE, true));
    if recursive {
        step.recursive_attr.propagation = propagation;
    } else {
        step.recursive_attr.propagation = flags::PRIVATE;
        step.attr.propagation = propagation;
    }
    Ok(step)
}

/// How a mount shows its owners: by mappings of its own, or with a bare `idmap` by the container's.
fn owners(mount: &Mount, words: &OptionWords, shown: &str) -> Result<Option<MountOwners>, LaunchFailure> {
    let recursive = words.owners.unwrap_or(false);
    match (mount.uid_mappings(), mount.gid_mappings()) {
        (None, None) => Ok(words.owners.map(|recursive| MountOwners { map: None, recursive })),
        (Some(uids), Some(gids)) => {
            let map = IdMap { uids: ranges(uids), gids: ranges(gids) };
            map.check().map_err(|error| refuse(shown, &error.to_string()))?;
            Ok(Some(MountOwners { map: Some(map), recursive }))
        }
        _ => Err(refuse(shown, "uidMappings and gidMappings belong together")),
    }
}

/// The mappings of a specification.
pub(super) fn ranges(list: &[LinuxIdMapping]) -> Vec<IdRange> {
    list.iter().map(|one| IdRange { container: one.container_id(), host: one.host_id(), size: one.size() }).collect()
}

fn source(mount: &Mount, destination: &Path, words: &OptionWords) -> Result<MountSource, LaunchFailure> {
    let shown = destination.display().to_string();
    let kind = mount.typ().as_deref().unwrap_or("bind");
    let data = words.data.clone();
    let given = mount.source().as_deref();
    if words.bind || matches!(kind, "bind" | "rbind" | "none") {
        let path = given.ok_or_else(|| refuse(&shown, "a bind mount needs a source"))?;
        if let Some((word, _)) = data.first() {
            return Err(refuse(&shown, &format!("bind mounts have no option {word:?}")));
        }
        let recursive = words.recursive_bind || kind == "rbind";
        return Ok(MountSource::Bind { path: path.to_owned(), recursive });
    }
    Ok(match kind {
        "proc" => MountSource::Proc { data },
        "sysfs" => MountSource::Sys { data },
        "cgroup" | "cgroup2" => MountSource::Cgroup { data },
        "tmpfs" if destination == Path::new("/dev") => MountSource::Devices { data, nodes: default_nodes() },
        kind if NEW_KINDS.contains(&kind) => {
            MountSource::New { kind: kind.to_owned(), source: given.map(|source| source.display().to_string()), data }
        }
        kind => {
            return Err(refuse(&shown, &format!("mount type {kind:?} is not supported")));
        }
    })
}

/// Refuses what would replace the trees that confinement relies on.
fn guard_special(destination: &Path, source: &MountSource) -> Result<(), LaunchFailure> {
    let shown = destination.display();
    let host = match source {
        MountSource::Bind { path, .. } => Some(path.as_path()),
        _ => None,
    };
    let only = |what: &str| Err(refuse(&shown.to_string(), &format!("only {what} may be mounted there")));
    if destination == Path::new("/") {
        return Err(refuse("/", "a mount cannot replace the root"));
    }
    if destination == Path::new("/proc") {
        let fits = matches!(source, MountSource::Proc { .. }) || host == Some(Path::new("/proc"));
        return if fits { Ok(()) } else { only("proc") };
    }
    if destination == Path::new("/sys") {
        let fits = matches!(source, MountSource::Sys { .. }) || host == Some(Path::new("/sys"));
        return if fits { Ok(()) } else { only("sysfs") };
    }
    if destination == Path::new("/dev") {
        let fits = matches!(source, MountSource::Devices { .. }) || host == Some(Path::new("/dev"));
        return if fits { Ok(()) } else { only("tmpfs") };
    }
    if destination.starts_with("/proc") && !may_cover(destination) {
        return Err(refuse(&shown.to_string(), "nothing may be mounted below /proc"));
    }
    if matches!(source, MountSource::Proc { .. } | MountSource::Sys { .. }) {
        return Err(refuse(&shown.to_string(), "proc and sysfs belong to /proc and /sys"));
    }
    Ok(())
}

/// Whether this file of procfs may be covered.
pub(crate) fn may_cover(destination: &Path) -> bool {
    PROC_FILES.iter().any(|file| destination == Path::new(file))
}

/// An absolute path without `.`, `..` and NUL; `..` goes no further than the root.
pub(super) fn clean(path: &Path) -> Result<PathBuf, LaunchFailure> {
    use std::os::unix::ffi::OsStrExt;
    let shown = path.display().to_string();
    if path.as_os_str().is_empty() || path.as_os_str().as_bytes().contains(&0) {
        return Err(refuse(&format!("path {shown:?}"), "is not a path"));
    }
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Ok(clean)
}

fn default_nodes() -> Vec<DeviceNode> {
    let node = |(name, major, minor): (&str, u32, u32)| DeviceNode {
        name: PathBuf::from(name),
        character: true,
        major,
        minor,
        optional: false,
        asked: false,
        mode: DEVICE_MODE,
        uid: 0,
        gid: 0,
    };
    DEFAULT_DEVICES.into_iter().map(node).collect()
}

/// Gives the container a /dev of its own if it has none (A08), and the devices it asks for.
/// Those that are elsewhere than in /dev are returned.
pub(super) fn add_devices(
    steps: &mut Vec<MountStep>,
    devices: &[LinuxDevice],
) -> Result<Vec<DeviceNode>, LaunchFailure> {
    if !steps.iter().any(|step| step.destination == Path::new("/dev")) {
        steps.insert(0, own_dev());
    }
    let (mut extra, mut elsewhere) = (Vec::new(), Vec::new());
    for device in devices {
        let node = node(device)?;
        if node.name.is_absolute() {
            elsewhere.push(node);
        } else if !DEFAULT_DEVICES.iter().any(|(name, _, _)| node.name == Path::new(name)) {
            extra.push(node);
        }
    }
    let place = steps.iter_mut().find_map(|step| match &mut step.source {
        MountSource::Devices { nodes, .. } => Some(nodes),
        _ => None,
    });
    match place {
        Some(nodes) => nodes.extend(extra),
        // A bound /dev has whatever the host has.
        None if extra.is_empty() => {}
        None => return Err(refuse("linux.devices", "needs a /dev that is a tmpfs")),
    }
    Ok(elsewhere)
}

fn own_dev() -> MountStep {
    let data = DEV_DATA.iter().map(|(key, value)| ((*key).to_owned(), Some((*value).to_owned())));
    MountStep {
        destination: PathBuf::from("/dev"),
        source: MountSource::Devices { data: data.collect(), nodes: default_nodes() },
        attr: MountAttr { set: flags::NOSUID | flags::NOEXEC, ..MountAttr::default() },
        recursive_attr: MountAttr { propagation: flags::PRIVATE, ..MountAttr::default() },
        copy_up: false,
        owners: None,
        plain: true,
    }
}

fn node(device: &LinuxDevice) -> Result<DeviceNode, LaunchFailure> {
    let path = clean(device.path())?;
    let shown = format!("device {}", path.display());
    let name = path.strip_prefix("/dev").unwrap_or(&path).to_owned();
    let kernel = ["/proc", "/sys"].iter().any(|tree| path.starts_with(tree));
    if name.as_os_str().is_empty() || path.parent().is_none() || kernel {
        return Err(refuse(&shown, "is no place for a device"));
    }
    let character = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => true,
        LinuxDeviceType::B => false,
        other => return Err(refuse(&shown, &format!("type {other:?} is not supported"))),
    };
    let number = |value: i64| u32::try_from(value).map_err(|_| refuse(&shown, "has an invalid number"));
    Ok(DeviceNode {
        name,
        character,
        major: number(device.major())?,
        minor: number(device.minor())?,
        optional: false,
        asked: true,
        mode: device.file_mode().unwrap_or(DEVICE_MODE) & 0o7777,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}

/// Drops `uid=` and `gid=` options that name ids the container does not have; every image and every
/// tool writes `gid=5` for devpts, and the kernel answers a bare `EINVAL`.
pub(crate) fn fit_ids(steps: &mut [MountStep], idmap: &IdMap) {
    for step in steps {
        let MountSource::New { kind, data, .. } = &mut step.source else {
            continue;
        };
        if kind != "devpts" {
            continue;
        }
        data.retain(|(key, value)| {
            let Some(id) = value.as_deref().and_then(|value| value.parse().ok()) else {
                return true;
            };
            match key.as_str() {
                "uid" => idmap.host_uid(id).is_some(),
                "gid" => idmap.host_gid(id).is_some(),
                _ => true,
            }
        });
    }
}
