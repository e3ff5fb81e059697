//! What a container is given when nobody asked for anything else: data, each row with its reason.
//!
//! The engine starts from [`spec`] and lays the image's configuration and the flags over it;
//! `coracle-oci spec` prints the same document. The lists are the union of what Docker and Podman
//! do, and stricter where a rootless container needs less (security.md section 7).

use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Linux, LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, Mount,
    PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process, Root, Spec, User,
};

use rustix::process::{Resource, getrlimit};

use crate::caps::{CapSet, Capability, CapabilitySets};
use crate::seccomp;

/// The version of the runtime specification whose `config.json` this crate writes.
pub const OCI_VERSION: &str = "1.2.0";

/// Size of /dev/shm unless `--shm-size` says otherwise; Docker's value.
pub const SHM_SIZE_BYTES: u64 = 64 << 20;

/// Soft limit of open files: what select(2) can handle, so that old programs do not break.
pub const NOFILE_SOFT: u64 = 1024;

/// The most CPUs whose throttle counters are masked one by one; a mount each, so it is bounded.
const MAX_MASKED_CPUS: usize = 1024;

/// Hard limit of open files: what systemd grants services, and no "infinity" over which programs
/// loop when they close everything.
pub const NOFILE_HARD: u64 = 524_288;

/// The capabilities of root in a container, each with what breaks without it.
///
/// Podman's eleven. Docker adds MKNOD (the kernel refuses it in a user namespace), NET_RAW (ping
/// works through `net.ipv4.ping_group_range`; raw sockets allow ARP and DNS spoofing) and
/// AUDIT_WRITE (the audit log belongs to the host).
const CAPABILITIES: [(Capability, &str); 11] = [
    (Capability::CAP_CHOWN, "package managers set owners"),
    (Capability::CAP_DAC_OVERRIDE, "root expects to read and write files of every user"),
    (Capability::CAP_FOWNER, "root expects to chmod files of every user"),
    (Capability::CAP_FSETID, "setuid bits survive when root copies files"),
    (Capability::CAP_KILL, "init and supervisors signal processes of other users"),
    (Capability::CAP_NET_BIND_SERVICE, "servers listen on ports under 1024 as a user"),
    (Capability::CAP_SETFCAP, "package managers set file capabilities"),
    (Capability::CAP_SETGID, "servers drop to another group"),
    (Capability::CAP_SETPCAP, "servers drop capabilities of their own"),
    (Capability::CAP_SETUID, "servers drop to another user"),
    (Capability::CAP_SYS_CHROOT, "sshd and others confine their children"),
];

/// Paths that read as empty inside, each with what it would tell or do.
const MASKED_PATHS: [(&str, &str); 16] = [
    ("/proc/acpi", "power and firmware state of the host"),
    ("/proc/asound", "sound hardware, also an audio side channel"),
    ("/proc/interrupts", "per-CPU interrupt counts reveal keystrokes and neighbours' traffic"),
    ("/proc/kallsyms", "kernel addresses"),
    ("/proc/kcore", "the host's memory"),
    ("/proc/keys", "keys of every container of the same user"),
    ("/proc/kmsg", "the kernel log"),
    ("/proc/latency_stats", "what other processes wait for"),
    ("/proc/sched_debug", "every process of the host by name"),
    ("/proc/scsi", "disks of the host, and a way to remove them"),
    ("/proc/timer_list", "timers and owners of the whole host"),
    ("/proc/timer_stats", "the older form of timer_list"),
    ("/sys/devices/virtual/powercap", "power counters recover keys (CVE-2020-8694)"),
    ("/sys/firmware", "ACPI and EFI tables with serial numbers and keys"),
    ("/sys/fs/selinux", "switches of the host's security module"),
    ("/sys/dev/block", "serial numbers and layout of the host's disks"),
];

/// Paths that can be read but not written inside, each with what a write would do.
const READONLY_PATHS: [(&str, &str); 6] = [
    ("/proc/asound", "changes mixer settings where it is not masked"),
    ("/proc/bus", "reaches PCI and USB configuration"),
    ("/proc/fs", "tunes filesystems of the host"),
    ("/proc/irq", "moves interrupts between CPUs"),
    ("/proc/sys", "sets kernel parameters; what --sysctl asks for is written before"),
    ("/proc/sysrq-trigger", "reboots the host"),
];

/// A mount that every container has: destination, type, source, options.
struct DefaultMount {
    destination: &'static str,
    kind: &'static str,
    source: &'static str,
    options: &'static [&'static str],
}

const PROC: DefaultMount =
    DefaultMount { destination: "/proc", kind: "proc", source: "proc", options: &["nosuid", "noexec", "nodev"] };

/// Nothing in /dev is executed, and it is small because only nodes and links live there.
const DEV: DefaultMount = DefaultMount {
    destination: "/dev",
    kind: "tmpfs",
    source: "tmpfs",
    options: &["nosuid", "noexec", "strictatime", "mode=755", "size=65536k"],
};

/// `gid=5` is Debian's tty group; a map of a single id has no such group and leaves it out.
const DEVPTS: DefaultMount = DefaultMount {
    destination: "/dev/pts",
    kind: "devpts",
    source: "devpts",
    options: &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
};

const MQUEUE: DefaultMount = DefaultMount {
    destination: "/dev/mqueue",
    kind: "mqueue",
    source: "mqueue",
    options: &["nosuid", "noexec", "nodev"],
};

/// A fresh sysfs shows the container's own network devices; the kernel grants it only together
/// with an own network namespace.
const SYS_FRESH: DefaultMount =
    DefaultMount { destination: "/sys", kind: "sysfs", source: "sysfs", options: &["nosuid", "noexec", "nodev", "ro"] };

/// The host's /sys, for containers that stay in the host's network.
const SYS_BOUND: DefaultMount = DefaultMount {
    destination: "/sys",
    kind: "none",
    source: "/sys",
    options: &["rbind", "rro", "nosuid", "noexec", "nodev"],
};

/// Read-only: a container that writes its own cgroup lifts its own limits (CVE-2023-25809).
const CGROUP: DefaultMount = DefaultMount {
    destination: "/sys/fs/cgroup",
    kind: "cgroup",
    source: "cgroup",
    options: &["nosuid", "noexec", "nodev", "relatime", "ro"],
};

/// What about the host decides the default mounts.
#[derive(Clone, Copy, Debug)]
pub struct MountOptions {
    /// The container has a network namespace of its own.
    pub own_network: bool,
    /// Group 5 (tty) exists in the container's id map.
    pub tty_group_mapped: bool,
    /// Size of /dev/shm.
    pub shm_size_bytes: u64,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self { own_network: true, tty_group_mapped: true, shm_size_bytes: SHM_SIZE_BYTES }
    }
}

/// What decides the shape of [`spec`].
#[derive(Clone, Debug, Default)]
pub struct SpecOptions {
    /// What the mounts depend on.
    pub mounts: MountOptions,
    /// Host user and group that become root inside; `None` leaves the user namespace out.
    pub map_root_to: Option<(u32, u32)>,
}

/// The default capabilities of a container's root.
pub fn capabilities() -> CapSet {
    CAPABILITIES.iter().map(|(capability, _)| *capability).collect()
}

/// The paths that are masked by default, on this host.
///
/// Besides the fixed list, the throttle counters of every CPU where the host has them: they tell
/// what neighbours compute. Each is a mount, so they are named only where they exist.
pub fn masked_paths() -> Vec<String> {
    let mut paths: Vec<String> = MASKED_PATHS.iter().map(|(path, _)| (*path).to_owned()).collect();
    for cpu in 0..MAX_MASKED_CPUS {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/thermal_throttle");
        if !Path::new(&path).exists() {
            break;
        }
        paths.push(path);
    }
    paths
}

/// The paths that are read-only by default.
pub fn readonly_paths() -> Vec<String> {
    READONLY_PATHS.iter().map(|(path, _)| (*path).to_owned()).collect()
}

/// The resource limits that every container starts with.
///
/// Nobody but the host's root may raise a hard limit, so a lower one of the caller's stays.
pub fn rlimits() -> Vec<PosixRlimit> {
    let own = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let (soft, hard) = (NOFILE_SOFT.min(own), NOFILE_HARD.min(own));
    let limit = |kind: PosixRlimitType, soft: u64, hard: u64| {
        PosixRlimitBuilder::default().typ(kind).soft(soft).hard(hard).build().ok()
    };
    [
        limit(PosixRlimitType::RlimitNofile, soft, hard),
        // A core file would land in the host's core_pattern, with whatever secrets it holds.
        limit(PosixRlimitType::RlimitCore, 0, 0),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The mounts of a default container, in the order in which they are made.
pub fn mounts(options: &MountOptions) -> Vec<Mount> {
    let mut list: Vec<Mount> = vec![PROC.build(), DEV.build(), DEVPTS.build()];
    if !options.tty_group_mapped
        && let Some(devpts) = list.last_mut()
        && let Some(devpts_options) = devpts.options_mut()
    {
        devpts_options.retain(|option| !option.starts_with("gid="));
    }
    let mut shm = mount("/dev/shm", "tmpfs", "shm");
    let size = format!("size={}", options.shm_size_bytes);
    shm.set_options(Some(["nosuid", "noexec", "nodev", "mode=1777", &size].map(str::to_owned).to_vec()));
    list.push(shm);
    list.push(MQUEUE.build());
    list.push(if options.own_network { SYS_FRESH.build() } else { SYS_BOUND.build() });
    list.push(CGROUP.build());
    list
}

/// The namespaces of a default container.
pub fn namespaces(options: &SpecOptions) -> Vec<LinuxNamespace> {
    use LinuxNamespaceType::{Cgroup, Ipc, Mount, Network, Pid, User, Uts};
    let mut kinds = vec![Pid, Ipc, Uts, Mount, Cgroup];
    if options.mounts.own_network {
        kinds.push(Network);
    }
    if options.map_root_to.is_some() {
        kinds.push(User);
    }
    kinds.into_iter().filter_map(|kind| LinuxNamespaceBuilder::default().typ(kind).build().ok()).collect()
}

/// A complete `config.json` that runs `sh` in `rootfs/` with the defaults of this file.
pub fn spec(options: &SpecOptions) -> Spec {
    let mut spec = Spec::default();
    let mut root = Root::default();
    root.set_path(PathBuf::from("rootfs")).set_readonly(Some(false));
    spec.set_version(OCI_VERSION.to_owned())
        .set_root(Some(root))
        .set_hostname(Some("coracle".to_owned()))
        .set_mounts(Some(mounts(&options.mounts)))
        .set_process(Some(process()))
        .set_annotations(None)
        .set_linux(Some(linux(options)));
    spec
}

fn process() -> Process {
    let mut process = Process::default();
    process
        .set_terminal(Some(false))
        .set_user(User::default())
        .set_args(Some(vec!["sh".to_owned()]))
        .set_env(Some(vec![
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
            "TERM=xterm".to_owned(),
        ]))
        .set_cwd(PathBuf::from("/"))
        .set_capabilities(Some(CapabilitySets::granting(capabilities()).to_spec()))
        .set_rlimits(Some(rlimits()))
        .set_no_new_privileges(Some(true));
    process
}

fn linux(options: &SpecOptions) -> Linux {
    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces(options)))
        .set_masked_paths(Some(masked_paths()))
        .set_readonly_paths(Some(readonly_paths()))
        .set_resources(None)
        .set_devices(None)
        .set_seccomp(Some(seccomp::default_profile(capabilities())));
    if let Some((uid, gid)) = options.map_root_to {
        linux.set_uid_mappings(Some(single_id(uid))).set_gid_mappings(Some(single_id(gid)));
    }
    linux
}

fn single_id(host: u32) -> Vec<LinuxIdMapping> {
    LinuxIdMappingBuilder::default().container_id(0_u32).host_id(host).size(1_u32).build().into_iter().collect()
}

impl DefaultMount {
    fn build(&self) -> Mount {
        let mut result = mount(self.destination, self.kind, self.source);
        result.set_options(Some(self.options.iter().map(|option| (*option).to_owned()).collect()));
        result
    }
}

fn mount(destination: &str, kind: &str, source: &str) -> Mount {
    let mut result = Mount::default();
    result
        .set_destination(PathBuf::from(destination))
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(PathBuf::from(source)));
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn lists_have_no_duplicates_and_are_absolute() {
        for list in [masked_paths(), readonly_paths()] {
            let unique: HashSet<&String> = list.iter().collect();
            assert_eq!(unique.len(), list.len(), "{list:?}");
            assert!(list.iter().all(|path| path.starts_with("/proc/") || path.starts_with("/sys/")));
        }
    }

    #[test]
    fn a22_default_process_has_podmans_eleven_and_nothing_inheritable() {
        let spec = spec(&SpecOptions::default());
        let process = spec.process().as_ref().expect("a process");
        let sets = CapabilitySets::from_spec(process.capabilities().as_ref()).expect("valid sets");
        assert_eq!(sets.effective.bits(), 0x8004_05fb, "chown..setpcap, net_bind_service, chroot, setfcap");
        assert_eq!(sets.bounding, sets.effective);
        assert!(sets.inheritable.is_empty() && sets.ambient.is_empty());
        assert_eq!(process.no_new_privileges(), Some(true));
    }

    #[test]
    fn host_network_binds_sys_read_only() {
        let options = MountOptions { own_network: false, tty_group_mapped: false, ..Default::default() };
        let list = mounts(&options);
        let find = |path: &str| list.iter().find(|m| m.destination() == &PathBuf::from(path)).expect("mount").clone();
        let has = |path: &str, option: &str| find(path).options().iter().flatten().any(|o| o == option);
        assert!(has("/sys", "rbind") && has("/sys", "rro"));
        assert!(!has("/dev/pts", "gid=5"), "a single id has no group 5");
        assert!(has("/dev/shm", "size=67108864"));
    }

    #[test]
    fn the_document_survives_json() {
        let options = SpecOptions { map_root_to: Some((1000, 1000)), ..Default::default() };
        let written = serde_json::to_string(&spec(&options)).expect("serialise");
        let read: Spec = serde_json::from_str(&written).expect("parse");
        assert_eq!(read, spec(&options));
    }
}
