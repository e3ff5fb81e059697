//! A bundle becomes a process: namespaces, mounts, ids, capabilities, seccomp, execve.
//!
//! No threads and no tokio: the caller forks, so it must be single-threaded. All unsafe code is in
//! `sys`; paths inside a container are reached only through its root's descriptor.

pub mod bundle;
pub mod caps;
pub mod cgroup;
pub mod container;
pub mod defaults;
pub mod detach;
pub mod exec;
pub mod failpoint;
pub mod failure;
pub mod fork;
pub mod hooks;
pub mod host;
pub mod idmap;
pub mod launch;
pub mod memory;
mod plan;
pub mod programs;
pub mod quota;
pub mod seal;
pub mod seccomp;
mod subid;
#[expect(unsafe_code, reason = "the one place for system calls without a safe face")]
mod sys;
pub mod tree;
pub mod userns;

pub use exec::{ExecOptions, exec};
pub use failure::{LaunchFailure, Stage};
pub use idmap::{HostIds, IdMap, IdMapError, IdRange, UserNs};
pub use launch::{
    Exit, Gate, LaunchOptions, Namespaces, Nest, Rootfs, Running, Stdio, launch, open_gate, signal_process,
};
pub use plan::IPC_SYSCTLS;
pub use sys::SysError;
