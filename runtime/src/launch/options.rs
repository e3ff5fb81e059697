//! What a caller says about a launch. Plain data; nothing here touches the system.

use std::os::fd::{BorrowedFd, RawFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use super::Nest;
use crate::failure::LaunchFailure;
use crate::idmap::IdMap;
use crate::userns::Ahead;

/// Where the root filesystem of the container comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rootfs {
    /// A directory that is used as it is.
    Directory(PathBuf),
    /// Layers joined by overlayfs inside the container's user namespace.
    Overlay {
        /// Unpacked layers, bottom first. At least one.
        lower: Vec<PathBuf>,
        /// The writable layer.
        upper: PathBuf,
        /// Overlayfs' own scratch directory, beside `upper`.
        work: PathBuf,
        /// Skips every fsync: right for containers that are thrown away.
        volatile: bool,
    },
}

/// What the process gets as descriptors 0, 1 and 2.
#[derive(Debug, Clone, Copy, Default)]
pub enum Stdio<'a> {
    /// The caller's own.
    #[default]
    Inherit,
    /// These three.
    Fds([BorrowedFd<'a>; 3]),
    /// A new terminal of the container's devpts; its master is [`super::Running::console`].
    Console,
}

/// When the process executes its program.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Gate {
    /// At once; [`super::launch`] returns after a successful `execve`.
    #[default]
    Immediate,
    /// When [`super::Running::start`] is called in the launching process.
    Wait,
    /// When [`super::open_gate`] is called on this path by any process: the launch makes a socket
    /// there that exists until the container has started.
    Socket(PathBuf),
}

/// The new namespaces, for the caller's own set-up.
#[derive(Debug)]
pub struct Namespaces<'a> {
    /// The container's init as the caller sees it.
    pub pid: i32,
    /// The same process, immune to reuse of the number.
    pub pidfd: BorrowedFd<'a>,
    /// The user namespace.
    pub user: BorrowedFd<'a>,
    /// The network namespace; reach it as `/proc/<own pid>/fd/<n>`, because init's own /proc
    /// entries are closed to everybody while it sets itself up.
    pub net: BorrowedFd<'a>,
}

/// Called in the parent once the ids are mapped, while init prepares its mounts.
pub type OnNamespaces<'a> = &'a mut dyn FnMut(&Namespaces<'_>) -> Result<(), LaunchFailure>;

/// Called in the parent with init's number once the ids are mapped, while init waits.
pub type OnMapped<'a> = &'a mut dyn FnMut(i32) -> Result<(), LaunchFailure>;

/// Everything about one launch.
pub struct LaunchOptions<'a> {
    /// The container's name, for messages and hooks.
    pub id: &'a str,
    /// What to run, and in what.
    pub spec: &'a Spec,
    /// Where relative paths of the specification start.
    pub bundle: &'a Path,
    /// The root filesystem.
    pub rootfs: Rootfs,
    /// The id map; `None` takes it from the specification.
    pub idmap: Option<IdMap>,
    /// A user namespace that was begun before; taken where the container makes its own with the same map.
    pub ahead: Option<Ahead>,
    /// Standard streams.
    pub stdio: Stdio<'a>,
    /// When to execute.
    pub gate: Gate,
    /// Descriptors that the program keeps under their numbers.
    pub keep_fds: &'a [RawFd],
    /// Kills the container when the launching process dies.
    pub die_with_parent: bool,
    /// Runs our own pid 1 that reaps and forwards signals, and the program as its child.
    pub init_reaper: bool,
    /// Moves the root over `/` where `pivot_root` is impossible (initramfs).
    pub no_pivot: bool,
    /// The cgroup (v2) in which init is born.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// The caller's set-up of what init will mount from, in init's own namespaces.
    pub on_mapped: Option<OnMapped<'a>>,
    /// The user namespace in which the container's own is made, instead of the caller's.
    pub nest: Option<Nest<'a>>,
    /// The caller's set-up of the namespaces.
    pub on_namespaces: Option<OnNamespaces<'a>>,
}

impl<'a> LaunchOptions<'a> {
    /// A launch with nothing but the necessary.
    pub fn new(id: &'a str, spec: &'a Spec, bundle: &'a Path, rootfs: Rootfs) -> Self {
        Self {
            id,
            spec,
            bundle,
            rootfs,
            idmap: None,
            ahead: None,
            stdio: Stdio::Inherit,
            gate: Gate::Immediate,
            keep_fds: &[],
            die_with_parent: false,
            init_reaper: false,
            no_pivot: false,
            cgroup: None,
            on_mapped: None,
            nest: None,
            on_namespaces: None,
        }
    }
}
