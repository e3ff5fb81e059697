//! Gives a process its scheduler, I/O priority, memory nodes and personality.

use rustix::thread::sched_setaffinity;

use super::fault::Fault;
use crate::failure::{LaunchFailure, Stage};
use crate::plan::Scheduling;
use crate::sys::{set_io_priority, set_memory_policy, set_scheduler};

const STAGE: Stage = Stage::Identity;

/// Applies everything but the processors. What the kernel refuses is an error: nothing is weakened.
pub(crate) fn schedule(plan: &Scheduling) -> Result<(), LaunchFailure> {
    if let Some(attr) = &plan.scheduler {
        set_scheduler(attr).fault(STAGE, "set", "process.scheduler")?;
    }
    if let Some((class, level)) = plan.io_priority {
        set_io_priority(class, level).fault(STAGE, "set", "process.ioPriority")?;
    }
    if let Some((mode, nodes)) = &plan.memory {
        set_memory_policy(*mode, nodes).fault(STAGE, "set", "linux.memoryPolicy")?;
    }
    if let Some(persona) = plan.personality {
        nix::sys::personality::set(persona).fault(STAGE, "set", "linux.personality")?;
    }
    Ok(())
}

/// Binds a joining process to processors: at once, and when it is in its cgroup.
pub(crate) fn bind_first(plan: &Scheduling) -> Result<(), LaunchFailure> {
    match &plan.exec_cpus.0 {
        Some(cpus) => sched_setaffinity(None, cpus).fault(STAGE, "set", "process.execCPUAffinity.initial"),
        None => Ok(()),
    }
}

/// As [`bind_first`], for the program itself.
pub(crate) fn bind_last(plan: &Scheduling) -> Result<(), LaunchFailure> {
    match &plan.exec_cpus.1 {
        Some(cpus) => sched_setaffinity(None, cpus).fault(STAGE, "set", "process.execCPUAffinity.final"),
        None => Ok(()),
    }
}
