//! What a process is worth to the kernel: scheduler, I/O priority, CPUs, NUMA nodes, personality.

use nix::sys::personality::Persona;
use oci_spec::runtime::{
    IOPriorityClass, Linux, LinuxPersonalityDomain, LinuxSchedulerFlag, LinuxSchedulerPolicy, MemoryPolicyFlagType,
    MemoryPolicyModeType, Process, Scheduler,
};
use rustix::thread::CpuSet;

use super::refuse;
use crate::failure::LaunchFailure;
use crate::sys::SchedAttr;

/// Everything of that kind; what is `None` stays as the caller has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Scheduling {
    pub(crate) scheduler: Option<SchedAttr>,
    /// Class and level of ioprio_set(2).
    pub(crate) io_priority: Option<(u32, u32)>,
    /// For a process that joins a container: before it has its cgroup, and for its program.
    pub(crate) exec_cpus: (Option<CpuSet>, Option<CpuSet>),
    /// Mode with flags of set_mempolicy(2), and the nodes as bits.
    pub(crate) memory: Option<(i32, Vec<u64>)>,
    pub(crate) personality: Option<Persona>,
}

/// The kernel's MAX_NUMNODES is never larger.
const NODES_MAX: usize = 1024;
const WORD_BITS: usize = 64;

impl Scheduling {
    /// Reads what the process itself asks for.
    pub(super) fn of_process(process: &Process) -> Result<Self, LaunchFailure> {
        let mut plan = Self { scheduler: process.scheduler().as_ref().map(scheduler).transpose()?, ..Self::default() };
        if let Some(wanted) = process.io_priority() {
            let class = match wanted.class() {
                IOPriorityClass::IoprioClassRt => 1,
                IOPriorityClass::IoprioClassBe => 2,
                IOPriorityClass::IoprioClassIdle => 3,
            };
            let level = u32::try_from(wanted.priority()).ok().filter(|level| *level <= 7);
            let level = level.ok_or_else(|| refuse("process.ioPriority", "has a priority that is not 0 to 7"))?;
            plan.io_priority = Some((class, level));
        }
        if let Some(affinity) = process.exec_cpu_affinity() {
            let cpus = |list: &Option<String>, field| list.as_deref().map(|list| cpus(list, field)).transpose();
            plan.exec_cpus = (
                cpus(affinity.initial(), "process.execCPUAffinity.initial")?,
                cpus(affinity.cpu_affinity_final(), "process.execCPUAffinity.final")?,
            );
        }
        Ok(plan)
    }

    /// Adds what holds for every process of the container.
    pub(crate) fn add_container(&mut self, linux: &Linux) -> Result<(), LaunchFailure> {
        if let Some(wanted) = linux.personality() {
            if wanted.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
                return Err(refuse("linux.personality.flags", "is not supported"));
            }
            self.personality = Some(match wanted.domain() {
                LinuxPersonalityDomain::PerLinux => Persona::empty(),
                // PER_LINUX32 of sys/personality.h.
                LinuxPersonalityDomain::PerLinux32 => Persona::from_bits_retain(0x8),
            });
        }
        let Some(wanted) = linux.memory_policy() else { return Ok(()) };
        // linux/mempolicy.h
        let mode = match wanted.mode() {
            MemoryPolicyModeType::MpolDefault => 0,
            MemoryPolicyModeType::MpolPreferred => 1,
            MemoryPolicyModeType::MpolBind => 2,
            MemoryPolicyModeType::MpolInterleave => 3,
            MemoryPolicyModeType::MpolLocal => 4,
            MemoryPolicyModeType::MpolPreferredMany => 5,
            MemoryPolicyModeType::MpolWeightedInterleave => 6,
        };
        let flags = wanted.flags().iter().flatten().fold(0, |bits, flag| {
            bits | match flag {
                MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
                MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
                MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
            }
        });
        let mut nodes = Vec::new();
        for node in numbers(wanted.nodes().as_deref().unwrap_or_default(), NODES_MAX)
            .ok_or_else(|| refuse("linux.memoryPolicy.nodes", "is not a list of nodes"))?
        {
            nodes.resize(nodes.len().max(node / WORD_BITS + 1), 0_u64);
            nodes[node / WORD_BITS] |= 1 << (node % WORD_BITS);
        }
        self.memory = Some((mode | flags, nodes));
        Ok(())
    }
}

fn scheduler(wanted: &Scheduler) -> Result<SchedAttr, LaunchFailure> {
    let field = "process.scheduler";
    use LinuxSchedulerPolicy::{SchedBatch, SchedDeadline, SchedFifo, SchedIdle, SchedIso, SchedOther, SchedRr};
    // sched(7)
    let policy = match wanted.policy() {
        SchedOther => 0,
        SchedFifo => 1,
        SchedRr => 2,
        SchedBatch => 3,
        SchedIdle => 5,
        SchedDeadline => 6,
        SchedIso => return Err(refuse(field, "policy SCHED_ISO is in no kernel")),
    };
    let ordinary = matches!(wanted.policy(), SchedOther | SchedBatch | SchedIdle);
    let realtime = matches!(wanted.policy(), SchedFifo | SchedRr);
    let nice = wanted.nice().unwrap_or(0);
    if !(-20..=19).contains(&nice) {
        return Err(refuse(field, "nice is not between -20 and 19"));
    }
    let priority = wanted.priority().unwrap_or(0);
    if priority != 0 && !realtime {
        return Err(refuse(field, "priority is only for SCHED_FIFO and SCHED_RR"));
    }
    let times = [wanted.runtime(), wanted.deadline(), wanted.period()].map(|time| time.unwrap_or(0));
    if times != [0; 3] && *wanted.policy() != SchedDeadline {
        return Err(refuse(field, "runtime, deadline and period are only for SCHED_DEADLINE"));
    }
    let mut flags = 0;
    for flag in wanted.flags().iter().flatten() {
        flags |= match flag {
            LinuxSchedulerFlag::SchedResetOnFork => 0x1,
            LinuxSchedulerFlag::SchedFlagReclaim => 0x2,
            LinuxSchedulerFlag::SchedFlagDLOverrun => 0x4,
            LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x8,
            LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
            LinuxSchedulerFlag::SchedFlagUtilClampMin | LinuxSchedulerFlag::SchedFlagUtilClampMax => {
                return Err(refuse(field, "utilisation clamps have no values in a specification"));
            }
        };
    }
    let priority = u32::try_from(priority).map_err(|_| refuse(field, "priority is negative"))?;
    let [runtime, deadline, period] = times;
    let nice = if ordinary { nice } else { 0 };
    Ok(SchedAttr { policy, flags, nice, priority, runtime, deadline, period, ..SchedAttr::default() })
}

fn cpus(list: &str, field: &str) -> Result<CpuSet, LaunchFailure> {
    let numbers = numbers(list, CpuSet::MAX_CPU).filter(|list| !list.is_empty());
    let mut set = CpuSet::new();
    for number in numbers.ok_or_else(|| refuse(field, "is not a list of processors"))? {
        set.set(number);
    }
    Ok(set)
}

/// Reads a list as the kernel writes them: `0-3,7`. `None` when it is none or a number is not below `bound`.
fn numbers(list: &str, bound: usize) -> Option<Vec<usize>> {
    let mut numbers = Vec::new();
    for part in list.trim().split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<usize>().ok().filter(|number| digits && *number < bound)
        };
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn process(value: Value) -> Result<Scheduling, LaunchFailure> {
        let mut whole = json!({ "cwd": "/", "user": { "uid": 0, "gid": 0 } });
        whole.as_object_mut().expect("object").extend(value.as_object().expect("object").clone());
        Scheduling::of_process(&serde_json::from_value(whole).expect("a process"))
    }

    #[test]
    fn c21_lists() {
        assert_eq!(numbers("0-2,5", 8), Some(vec![0, 1, 2, 5]));
        assert_eq!(numbers("", 8), Some(vec![]));
        for bad in ["8", "3-1", "a", "1-", "-1", "+1", "0-999999999999999999999"] {
            assert_eq!(numbers(bad, 8), None, "{bad}");
        }
    }

    #[test]
    fn c21_schedulers() {
        let plan = process(json!({ "scheduler": { "policy": "SCHED_BATCH", "nice": 3 } })).expect("a plan");
        assert_eq!(plan.scheduler.map(|attr| (attr.policy, attr.nice)), Some((3, 3)));
        for bad in [
            json!({ "policy": "SCHED_OTHER", "nice": 20 }),
            json!({ "policy": "SCHED_OTHER", "priority": 1 }),
            json!({ "policy": "SCHED_FIFO", "priority": 1, "runtime": 5 }),
            json!({ "policy": "SCHED_ISO" }),
        ] {
            assert!(process(json!({ "scheduler": bad })).is_err());
        }
        assert!(process(json!({ "ioPriority": { "class": "IOPRIO_CLASS_BE", "priority": 8 } })).is_err());
        assert!(process(json!({ "ioPriority": { "class": "IOPRIO_CLASS_BE", "priority": -1 } })).is_err());
        assert!(process(json!({ "execCPUAffinity": { "initial": "99999999" } })).is_err());
    }

    #[test]
    fn c21_memory_policies() {
        let linux: Linux = serde_json::from_value(json!({
            "memoryPolicy": { "mode": "MPOL_INTERLEAVE", "nodes": "0,65", "flags": ["MPOL_F_STATIC_NODES"] }
        }))
        .expect("linux");
        let mut plan = Scheduling::default();
        plan.add_container(&linux).expect("a plan");
        assert_eq!(plan.memory, Some((3 | 1 << 15, vec![1, 2])));
    }
}
