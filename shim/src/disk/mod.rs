//! A limit on what a container writes, without root: a FUSE filesystem of our own that passes everything
//! on to a directory and counts blocks and inodes. The kernel's overlayfs has its upper directory on it,
//! so what the container only reads of its image never comes here.
//!
//! ```text
//! coracle run or shim ── exec ──> guard ── fork ──> server (threads)
//!                                  holds /dev/fuse      answers the kernel
//! ```
//! Both are in the container's user namespace and outside of its other namespaces and its cgroup. The
//! guard starts another server when one dies; requests wait meanwhile. Nothing is kept on disk but the
//! directory itself: usage is measured when a server starts.
//!
//! Two simpler kinds share its way into the container's namespaces: a filesystem in memory, which needs no process
//! once it is mounted, and a watch, which kills a container that has written too much.

mod account;
mod attributes;
mod data;
mod filesystem;
mod filter;
mod guard;
mod memory;
mod names;
mod nodes;
mod parting;
mod passthrough;
mod quick;
mod scan;
mod serve;
mod teller;
mod turns;
mod usage;
mod watch;

use std::ffi::CStr;
use std::io::{Read, Result};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

pub use guard::guard;
pub use usage::{Phase, Usage};
pub use watch::measure;

/// The hidden first argument under which the binary becomes a guard.
pub const GUARD_ARGUMENT: &str = "__serve-disk";
/// Where deleted files stay while the kernel knows them, beside the directories that are served.
pub const ORPHANS: &CStr = c"orphans";
/// What the guard says when the filesystem is mounted.
const READY: &str = "ready";
/// What it says when another container has the same directory in use.
pub const IN_USE: &str = "in use by another container";
/// What is read of a guard's complaint.
const COMPLAINT_BYTES_MAX: u64 = 16 * 1024;
/// Unmounting is over in milliseconds, unless somebody still uses a file of the container.
const END_TIMEOUT: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// Says how a limit is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A filesystem of our own that passes everything on.
    Passthrough,
    /// A tmpfs: what is written is lost with the container.
    Memory,
    /// Nothing is mounted; a container that has written too much is killed.
    Watch,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Passthrough => "passthrough",
            Self::Memory => "memory",
            Self::Watch => "watch",
        }
    }
}

/// Is what a filesystem is served by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskOptions {
    /// How the limit is kept.
    pub kind: Kind,
    /// The directory that everything is passed on to; it has a directory [`ORPHANS`].
    pub backing: PathBuf,
    /// An empty directory.
    pub mount_point: PathBuf,
    /// Further directories on the same filesystem, charged together with it; they are seen as
    /// [`volume_name`] of their number in the mount.
    pub volumes: Vec<PathBuf>,
    /// Where [`Usage`] is written.
    pub usage: PathBuf,
    /// What may be used at most, in bytes.
    pub limit_bytes: u64,
    /// How many files, directories and links there may be.
    pub limit_inodes: u64,
}

/// Is the watcher's side of a guard.
#[derive(Debug)]
pub struct Disk {
    process: Child,
    pidfd: OwnedFd,
}

impl Disk {
    /// Mounts the filesystem in the user and mount namespaces of a process, which waits for it.
    ///
    /// The outer error is ours, the inner one the guard's complaint.
    pub fn start(options: &DiskOptions, pid: i32) -> Result<std::result::Result<Self, String>> {
        let mut process = Command::new("/proc/self/exe")
            .arg(GUARD_ARGUMENT)
            .arg(options.kind.word())
            .args([&options.backing, &options.mount_point, &options.usage])
            .args([pid.to_string(), options.limit_bytes.to_string(), options.limit_inodes.to_string()])
            .args(&options.volumes)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let number = i32::try_from(process.id()).ok().and_then(Pid::from_raw).ok_or(rustix::io::Errno::SRCH)?;
        let pidfd = pidfd_open(number, PidfdFlags::empty())?;
        let mut answer = Vec::new();
        if let Some(stdout) = process.stdout.take() {
            stdout.take(COMPLAINT_BYTES_MAX).read_to_end(&mut answer)?;
        }
        let disk = Self { process, pidfd };
        if answer == READY.as_bytes() {
            return Ok(Ok(disk));
        }
        disk.finish();
        Ok(Err(String::from_utf8_lossy(&answer).into_owned()))
    }

    /// Waits until the filesystem is unmounted and everything is written down; the container has ended.
    pub fn finish(mut self) {
        let ended = poll(&mut [PollFd::from_borrowed_fd(self.pidfd.as_fd(), PollFlags::IN)], Some(&END_TIMEOUT));
        if !matches!(ended, Ok(1..)) {
            // Whoever still has a file open gets an error from now on.
            let _ = self.process.kill();
        }
        // It has ended in any case.
        let _ = self.process.wait();
    }
}

/// Names a further directory at the top of the mount.
pub fn volume_name(number: usize) -> String {
    format!("volume{number}")
}
