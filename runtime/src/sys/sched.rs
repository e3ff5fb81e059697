//! How a process is scheduled and where its memory comes from.

use std::mem::size_of;

use rustix::io::Errno;

use super::last_errno;

/// `struct sched_attr` of linux/sched/types.h, version 0.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SchedAttr {
    pub(crate) size: u32,
    /// `SCHED_*` of sched(7).
    pub(crate) policy: u32,
    /// `SCHED_FLAG_*`.
    pub(crate) flags: u64,
    /// For the ordinary policies.
    pub(crate) nice: i32,
    /// For the realtime policies.
    pub(crate) priority: u32,
    /// Nanoseconds, for SCHED_DEADLINE, as the next two.
    pub(crate) runtime: u64,
    pub(crate) deadline: u64,
    pub(crate) period: u64,
}

/// sched_setattr(2), Linux 3.14, on the calling process.
///
/// `EPERM` without the rights for a realtime policy or a better nice value.
pub(crate) fn set_scheduler(attr: &SchedAttr) -> Result<(), Errno> {
    let size = u32::try_from(size_of::<SchedAttr>()).map_err(|_| Errno::INVAL)?;
    let attr = SchedAttr { size, ..*attr };
    // SAFETY: 0 means the caller; `attr` carries its own size and lives through the call.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0_u32) };
    if result == -1 { Err(last_errno()) } else { Ok(()) }
}

/// `IOPRIO_WHO_PROCESS` and the place of the class in linux/ioprio.h.
const IOPRIO_WHO_PROCESS: i32 = 1;
const IOPRIO_CLASS_SHIFT: u32 = 13;

/// ioprio_set(2) on the calling process. `EPERM` without the rights for the realtime class.
pub(crate) fn set_io_priority(class: u32, level: u32) -> Result<(), Errno> {
    let value = class << IOPRIO_CLASS_SHIFT | level;
    // SAFETY: the call takes numbers only; 0 means the caller.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, value) };
    if result == -1 { Err(last_errno()) } else { Ok(()) }
}

/// Bits in one word of a node mask.
const WORD_BITS: usize = 64;

/// set_mempolicy(2): where the memory of the calling process, and of the program it executes, comes
/// from. `EINVAL` for nodes that this machine or this cpuset does not have.
pub(crate) fn set_memory_policy(mode: i32, nodes: &[u64]) -> Result<(), Errno> {
    // The kernel reads one bit less than it is told (set_mempolicy(2), BUGS).
    let bits = if nodes.is_empty() { 0 } else { nodes.len() * WORD_BITS + 1 };
    let mut words = nodes.to_vec();
    words.push(0);
    // SAFETY: the mask has more than `bits` bits and lives through the call, which only reads it.
    let result = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, words.as_ptr(), bits) };
    if result == -1 { Err(last_errno()) } else { Ok(()) }
}
