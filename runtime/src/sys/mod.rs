//! The system calls for which neither std nor rustix has a safe face; the only unsafe code of coracle.
//!
//! One function is one system call. Everything here is safe to call from the single-threaded
//! processes of this crate; what a function needs beyond that is in its own doc.

mod bpf;
mod clone;
mod descriptor;
mod memory;
mod mount;
mod net;
mod quota;
mod sched;
mod seccomp;
mod signal;

pub(crate) use bpf::{Instruction, attach_device_program, load_device_program};
pub(crate) use clone::{CloneFlags, CloneOptions, Cloned, clone_process, exit_now, fork_process, is_single_threaded};
pub(crate) use descriptor::{close_from, set_inheritable};
pub(crate) use memory::{
    end_in, forget, forget_and_poll, forget_program_segments, forget_unused_stack, sleeping_pages, trim_heap,
};
pub(crate) use mount::{MountAttr, map_owners, mount_setattr};
pub(crate) use net::raise_loopback;
pub(crate) use quota::{
    FsXattr, attributes, create_group, create_subvolume, enable_group_quota, limit_group, set_attributes,
    set_project_limit,
};
pub(crate) use sched::{SchedAttr, set_io_priority, set_memory_policy, set_scheduler};
pub(crate) use seccomp::{load_filter, load_listener};
pub(crate) use signal::{Origin, SignalSet, default_child_signal, reset_signals, send_signal, send_through};

use rustix::io::Errno;

/// One system call that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{op} {target}: {}", crate::failure::describe(*.errno))]
pub struct SysError {
    /// The system call.
    pub op: &'static str,
    /// What it was called on.
    pub target: String,
    /// The kernel's error number.
    pub errno: i32,
}

impl SysError {
    /// Describes a call that failed.
    pub fn new(op: &'static str, target: impl Into<String>, errno: i32) -> Self {
        Self { op, target: target.into(), errno }
    }
}

/// The errno of a raw call that has just returned -1.
fn last_errno() -> Errno {
    let raw = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    Errno::from_raw_os_error(raw)
}
