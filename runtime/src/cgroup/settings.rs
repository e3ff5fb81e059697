//! From `linux.resources` to lines for files of a cgroup: pure, nothing is opened here.
//!
//! What the unified hierarchy has no file for is refused by its name, never dropped; a value that
//! would reach another file or another line is refused too (row C16).

mod cpu;
mod io;
mod memory;

use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

pub(super) use cpu::parse_list;
pub(super) use memory::is_below_usage;

/// A controller of the unified hierarchy (cgroups(7), Documentation/admin-guide/cgroup-v2.rst).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Controller {
    /// Processor time.
    Cpu,
    /// Which processors and memory nodes.
    Cpuset,
    /// Huge pages.
    Hugetlb,
    /// Block devices.
    Io,
    /// Memory and swap.
    Memory,
    /// Scarce scalar resources of the host.
    Misc,
    /// The number of processes and threads.
    Pids,
    /// Remote direct memory access.
    Rdma,
}

const CONTROLLERS: [Controller; 8] = [
    Controller::Cpu,
    Controller::Cpuset,
    Controller::Hugetlb,
    Controller::Io,
    Controller::Memory,
    Controller::Misc,
    Controller::Pids,
    Controller::Rdma,
];

impl Controller {
    /// Its name in `cgroup.controllers`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cpuset => "cpuset",
            Self::Hugetlb => "hugetlb",
            Self::Io => "io",
            Self::Memory => "memory",
            Self::Misc => "misc",
            Self::Pids => "pids",
            Self::Rdma => "rdma",
        }
    }

    pub(super) fn from_name(name: &str) -> Option<Self> {
        CONTROLLERS.into_iter().find(|controller| controller.name() == name)
    }
}

/// What to do where the kernel has no such file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Absent {
    /// The limit cannot be enforced.
    Fails,
    /// Another setting of the same limit does the work, or the resource does not exist here.
    Harmless,
    /// Harmless where this other file exists.
    ReplacedBy(&'static str),
    /// Swap: harmless only where the kernel has none.
    HarmlessWithoutSwap,
}

/// One line for one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    /// The field of `linux.resources` that asked for it.
    pub(super) field: String,
    pub(super) controller: Controller,
    pub(super) file: String,
    pub(super) value: String,
    pub(super) absent: Absent,
}

impl Setting {
    fn new(field: impl Into<String>, controller: Controller, file: impl Into<String>, value: impl ToString) -> Self {
        let value = value.to_string();
        Self { field: field.into(), controller, file: file.into(), value, absent: Absent::Fails }
    }

    fn absent(self, absent: Absent) -> Self {
        Self { absent, ..self }
    }
}

/// A wish that no cgroup v2 can grant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} = {value}: {reason}")]
pub struct Refusal {
    /// The field of `linux.resources`.
    pub field: String,
    /// What was asked.
    pub value: String,
    /// Why not.
    pub reason: String,
}

/// Settings in the order in which they are written, and what cannot be written at all.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) list: Vec<Setting>,
    pub(super) refused: Vec<Refusal>,
}

impl Settings {
    fn add(&mut self, setting: Setting) {
        self.list.push(setting);
    }

    fn refuse(&mut self, field: impl Into<String>, value: impl ToString, reason: impl Into<String>) {
        self.refused.push(Refusal { field: field.into(), value: value.to_string(), reason: reason.into() });
    }

    /// The controllers that are needed, once each.
    pub(super) fn controllers(&self) -> Vec<Controller> {
        let mut needed: Vec<Controller> = self.list.iter().map(|setting| setting.controller).collect();
        needed.sort();
        needed.dedup();
        needed
    }
}

/// The word for "no limit" in every file that has one.
const MAX: &str = "max";

/// -1 means no limit in the runtime specification.
fn limit_or_max(limit: i64) -> String {
    if limit < 0 { MAX.to_owned() } else { limit.to_string() }
}

/// Maps everything that was asked.
pub(super) fn settings(resources: &LinuxResources) -> Settings {
    let mut made = Settings::default();
    if let Some(memory) = resources.memory() {
        memory::add(memory, &mut made);
    }
    if let Some(cpu) = resources.cpu() {
        cpu::add(cpu, &mut made);
    }
    if let Some(pids) = resources.pids() {
        // 0 and negative numbers mean "no limit" (runtime specification 1.3).
        let value = if pids.limit() > 0 { pids.limit().to_string() } else { MAX.to_owned() };
        made.add(Setting::new("pids.limit", Controller::Pids, "pids.max", value));
    }
    if let Some(block) = resources.block_io() {
        io::add(block, &mut made);
    }
    add_hugetlb(resources, &mut made);
    add_rdma(resources, &mut made);
    if let Some(network) = resources.network() {
        if let Some(class) = network.class_id().filter(|class| *class != 0) {
            made.refuse("network.classID", class, "cgroup v2 has no network controllers");
        }
        if network.priorities().as_ref().is_some_and(|list| !list.is_empty()) {
            made.refuse("network.priorities", "…", "cgroup v2 has no network controllers");
        }
    }
    add_unified(resources, &mut made);
    made
}

/// `2MB`, `1GB`: a part of a file name.
fn is_page_size(text: &str) -> bool {
    let digits = text.trim_start_matches(|c: char| c.is_ascii_digit());
    digits.len() < text.len() && matches!(digits, "KB" | "MB" | "GB")
}

fn add_hugetlb(resources: &LinuxResources, made: &mut Settings) {
    for limit in resources.hugepage_limits().iter().flatten() {
        let size = limit.page_size();
        let field = format!("hugepageLimits.{size}");
        if !is_page_size(size) {
            made.refuse("hugepageLimits", size, "is no page size such as 2MB");
            continue;
        }
        let value = limit_or_max(limit.limit());
        made.add(Setting::new(&field, Controller::Hugetlb, format!("hugetlb.{size}.max"), &value));
        // Reservations too, or a program is killed by SIGBUS where mmap could have failed.
        let reserved = Setting::new(&field, Controller::Hugetlb, format!("hugetlb.{size}.rsvd.max"), &value);
        made.add(reserved.absent(Absent::Harmless));
    }
}

fn add_rdma(resources: &LinuxResources, made: &mut Settings) {
    let Some(devices) = resources.rdma() else { return };
    let mut devices: Vec<_> = devices.iter().collect();
    devices.sort_by_key(|(name, _)| *name);
    for (device, limit) in devices {
        let field = format!("rdma.{device}");
        if device.is_empty() || !device.bytes().all(|byte| byte.is_ascii_graphic()) {
            made.refuse("rdma", device, "is no name of a device");
            continue;
        }
        let or_max = |count: Option<u32>| count.map_or(MAX.to_owned(), |count| count.to_string());
        let value =
            format!("{device} hca_handle={} hca_object={}", or_max(limit.hca_handles()), or_max(limit.hca_objects()));
        made.add(Setting::new(field, Controller::Rdma, "rdma.max", value));
    }
}

/// Files by their own names; `cgroup.*` files are ours and no limits.
fn add_unified(resources: &LinuxResources, made: &mut Settings) {
    let Some(unified) = resources.unified() else { return };
    let mut unified: Vec<_> = unified.iter().collect();
    unified.sort();
    for (file, value) in unified {
        let field = format!("unified.{file}");
        let clean = file.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_'));
        let controller = file.split_once('.').filter(|(_, rest)| !rest.is_empty() && !rest.contains(".."));
        match controller.and_then(|(name, _)| Controller::from_name(name)).filter(|_| clean) {
            // crun's words: its users look for them.
            None => match controller.filter(|_| clean) {
                Some((name, _)) => {
                    made.refuse(field, value, format!("the requested cgroup controller `{name}` is not available"));
                }
                None => {
                    made.refuse(field, value, format!("the specified key has not the form CONTROLLER.VALUE `{file}`"))
                }
            },
            // One write is one line: the kernel looks at the first only.
            Some(controller) => {
                for line in value.lines().filter(|line| !line.is_empty()) {
                    made.add(Setting::new(&field, controller, file, line));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `file=value` for each setting, `!field` for each refusal.
    pub(super) fn lines(json: serde_json::Value) -> Vec<String> {
        let made = settings(&serde_json::from_value(json).unwrap());
        let lines = made.list.iter().map(|setting| format!("{}={}", setting.file, setting.value));
        lines.chain(made.refused.iter().map(|refusal| format!("!{}", refusal.field))).collect()
    }

    #[test]
    fn nothing_asked_is_nothing_set() {
        assert_eq!(settings(&LinuxResources::default()), Settings::default());
        assert!(lines(serde_json::json!({"memory": {}, "cpu": {}, "blockIO": {}, "unified": {}})).is_empty());
    }

    #[test]
    fn pids() {
        for (limit, expect) in [(32, "pids.max=32"), (0, "pids.max=max"), (-1, "pids.max=max")] {
            assert_eq!(lines(serde_json::json!({"pids": {"limit": limit}})), [expect]);
        }
    }

    #[test]
    fn hugetlb_and_rdma() {
        let asked = serde_json::json!({
            "hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}, {"pageSize": "../x", "limit": 1}],
            "rdma": {"mlx5_1": {"hcaHandles": 3}, "a b": {}},
        });
        let expect = [
            "hugetlb.2MB.max=4194304",
            "hugetlb.2MB.rsvd.max=4194304",
            "rdma.max=mlx5_1 hca_handle=3 hca_object=max",
            "!hugepageLimits",
            "!rdma",
        ];
        assert_eq!(lines(asked), expect);
    }

    #[test]
    fn c16_unified_keys_are_files_of_controllers() {
        let good = serde_json::json!({"unified": {"memory.high": "1000", "io.max": "8:0 rbps=1\n8:16 rbps=2\n"}});
        assert_eq!(lines(good), ["io.max=8:0 rbps=1", "io.max=8:16 rbps=2", "memory.high=1000"]);
        for bad in [
            "../cgroup.procs",
            "memory.max\n",
            "cgroup.procs",
            "cgroup.kill",
            "memory/max",
            "memory",
            "memory.",
            "memory../x",
            "nonsense.max",
            "",
        ] {
            assert_eq!(lines(serde_json::json!({"unified": {bad: "1"}})), [format!("!unified.{bad}")], "{bad:?}");
        }
    }

    #[test]
    fn network_classes_are_refused() {
        assert_eq!(lines(serde_json::json!({"network": {"classID": 1}})), ["!network.classID"]);
    }
}
