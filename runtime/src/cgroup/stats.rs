//! What a cgroup has used. A controller that is not enabled has no numbers, which is no error.
//!
//! libcgroups reads the file formats. Its own collection of statistics is not used: it fails as a
//! whole where one controller is missing, which is the rule for an ordinary user.

use std::collections::BTreeMap;
use std::path::Path;

use libcgroups::stats::{PSIData, parse_nested_keyed_data, parse_single_value, psi_stats};
use serde::{Deserialize, Serialize};

use super::directory::Directory;
use super::settings::Controller;
use super::{Cgroup, CgroupError};

/// Everything that is counted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Processor time; the kernel counts it without a controller too.
    pub cpu: CpuStats,
    /// Without the controller: `None`.
    pub memory: Option<MemoryStats>,
    /// Without the controller: `None`.
    pub pids: Option<PidsStats>,
    /// One for each block device that was used.
    pub io: Vec<IoStats>,
    /// One for each size of huge pages.
    pub hugetlb: Vec<HugetlbStats>,
}

/// `cpu.stat`, in microseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CpuStats {
    /// All of it.
    pub usage_us: u64,
    /// In programs.
    pub user_us: u64,
    /// In the kernel.
    pub system_us: u64,
    /// Periods of cpu.max that have passed.
    pub periods: u64,
    /// Those in which it was held back.
    pub throttled_periods: u64,
    /// For how long.
    pub throttled_us: u64,
    /// `cpu.pressure`.
    pub pressure: Option<Pressure>,
}

/// `memory.*`, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MemoryStats {
    /// memory.current.
    pub usage_bytes: u64,
    /// memory.max; `None` is no limit.
    pub limit_bytes: Option<u64>,
    /// memory.peak, where the kernel has it (5.19).
    pub peak_bytes: Option<u64>,
    /// memory.swap.current.
    pub swap_bytes: u64,
    /// memory.swap.max; `None` is no limit.
    pub swap_limit_bytes: Option<u64>,
    /// How often it ran into its limit (memory.events, max).
    pub limit_hits: u64,
    /// Processes killed for want of memory (memory.events, oom_kill).
    pub oom_kills: u64,
    /// memory.stat as it is.
    pub detail: BTreeMap<String, u64>,
    /// `memory.pressure`.
    pub pressure: Option<Pressure>,
}

impl MemoryStats {
    /// What a person means by "used": without the page cache that the kernel can drop at once.
    pub fn used_bytes(&self) -> u64 {
        self.usage_bytes.saturating_sub(self.detail.get("inactive_file").copied().unwrap_or(0))
    }
}

/// `pids.*`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PidsStats {
    /// Processes and threads.
    pub current: u64,
    /// pids.max; `None` is no limit.
    pub limit: Option<u64>,
}

/// A line of `io.stat`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct IoStats {
    /// Of the device.
    pub major: u64,
    /// Of the device.
    pub minor: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

/// `hugetlb.SIZE.*`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct HugetlbStats {
    /// As in the file names, e.g. `2MB`.
    pub page_size: String,
    /// In use.
    pub usage_bytes: u64,
    /// `None` is no limit.
    pub limit_bytes: Option<u64>,
}

/// Time in which something waited (Documentation/accounting/psi.rst).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Pressure {
    /// At least one task waited: percent of the last 10, 60 and 300 seconds.
    pub some: [f64; 3],
    /// All of them did.
    pub full: [f64; 3],
}

impl Cgroup {
    /// Reads what it has used.
    pub fn stats(&self) -> Result<Stats, CgroupError> {
        let directory = self.directory();
        let cpu = cpu(&directory).map_err(|source| self.failed("read statistics of", source))?;
        let controllers = directory.controllers();
        let has = |one: Controller| controllers.contains(&one);
        Ok(Stats {
            cpu,
            memory: has(Controller::Memory).then(|| memory(&directory)),
            pids: has(Controller::Pids).then(|| pids(directory.path())),
            io: if has(Controller::Io) { io(directory.path()) } else { Vec::new() },
            hugetlb: if has(Controller::Hugetlb) { hugetlb(directory.path()) } else { Vec::new() },
        })
    }
}

fn cpu(directory: &Directory) -> std::io::Result<CpuStats> {
    let stat = keyed(&directory.read("cpu.stat")?);
    let value = |key: &str| stat.get(key).copied().unwrap_or(0);
    Ok(CpuStats {
        usage_us: value("usage_usec"),
        user_us: value("user_usec"),
        system_us: value("system_usec"),
        periods: value("nr_periods"),
        throttled_periods: value("nr_throttled"),
        throttled_us: value("throttled_usec"),
        pressure: pressure(directory, "cpu.pressure"),
    })
}

fn memory(directory: &Directory) -> MemoryStats {
    let path = directory.path();
    let event = |key: &str| directory.keyed("memory.events", key).ok().flatten().unwrap_or(0);
    MemoryStats {
        usage_bytes: number(path, "memory.current").unwrap_or(0),
        limit_bytes: limit(path, "memory.max"),
        peak_bytes: number(path, "memory.peak"),
        swap_bytes: number(path, "memory.swap.current").unwrap_or(0),
        swap_limit_bytes: limit(path, "memory.swap.max"),
        limit_hits: event("max"),
        oom_kills: event("oom_kill"),
        detail: directory.read("memory.stat").map(|text| keyed(&text)).unwrap_or_default(),
        pressure: pressure(directory, "memory.pressure"),
    }
}

fn pids(path: &Path) -> PidsStats {
    PidsStats { current: number(path, "pids.current").unwrap_or(0), limit: limit(path, "pids.max") }
}

fn io(path: &Path) -> Vec<IoStats> {
    let Ok(devices) = parse_nested_keyed_data(&path.join("io.stat")) else { return Vec::new() };
    let mut list: Vec<IoStats> = devices.iter().filter_map(|(name, values)| io_line(name, values)).collect();
    list.sort_by_key(|line| (line.major, line.minor));
    list
}

fn io_line(device: &str, values: &[String]) -> Option<IoStats> {
    let (major, minor) = device.split_once(':')?;
    let value = |key: &str| {
        let found = values.iter().filter_map(|pair| pair.split_once('=')).find(|(name, _)| *name == key);
        found.and_then(|(_, number)| number.parse().ok()).unwrap_or(0)
    };
    Some(IoStats {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        read_bytes: value("rbytes"),
        write_bytes: value("wbytes"),
        reads: value("rios"),
        writes: value("wios"),
    })
}

fn hugetlb(path: &Path) -> Vec<HugetlbStats> {
    let Ok(entries) = fs_err::read_dir(path) else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let sizes = names.filter_map(|name| {
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(".current")?;
        (!size.contains('.')).then(|| size.to_owned())
    });
    let mut list: Vec<HugetlbStats> = sizes
        .map(|page_size| HugetlbStats {
            usage_bytes: number(path, &format!("hugetlb.{page_size}.current")).unwrap_or(0),
            limit_bytes: limit(path, &format!("hugetlb.{page_size}.max")),
            page_size,
        })
        .collect();
    list.sort_by(|one, other| one.page_size.cmp(&other.page_size));
    list
}

fn number(path: &Path, file: &str) -> Option<u64> {
    parse_single_value(&path.join(file)).ok()
}

/// libcgroups reads `max` as the largest number.
fn limit(path: &Path, file: &str) -> Option<u64> {
    number(path, file).filter(|value| *value != u64::MAX)
}

fn keyed(text: &str) -> BTreeMap<String, u64> {
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.filter_map(|(key, value)| Some((key.to_owned(), value.trim().parse().ok()?))).collect()
}

/// `None` where the kernel does not count it; libcgroups stumbles over an empty file.
fn pressure(directory: &Directory, file: &str) -> Option<Pressure> {
    let has_form = |text: String| text.lines().all(|line| line.starts_with("some ") || line.starts_with("full "));
    directory.read(file).ok().filter(|text| !text.is_empty()).filter(|text| has_form(text.clone()))?;
    let stats = psi_stats(&directory.path().join(file)).ok()?;
    let averages = |data: PSIData| [data.avg10, data.avg60, data.avg300];
    Some(Pressure { some: averages(stats.some), full: averages(stats.full) })
}

#[cfg(test)]
mod tests {
    use super::super::Kind;
    use super::*;

    fn cgroup(files: &[(&str, &str)]) -> (tempfile::TempDir, Cgroup) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs_err::write(dir.path().join(name), text).unwrap();
        }
        let path = dir.path().to_owned();
        (dir, Cgroup { path, kind: Kind::Auto, unit: None, limits: Vec::new(), holder: None })
    }

    #[test]
    fn without_controllers_there_is_processor_time() {
        let (_dir, cgroup) = cgroup(&[("cgroup.controllers", ""), ("cpu.stat", "usage_usec 7\nuser_usec 5\n")]);
        let stats = cgroup.stats().unwrap();
        assert_eq!((stats.cpu.usage_us, stats.cpu.user_us, stats.cpu.periods), (7, 5, 0));
        assert_eq!((stats.memory, stats.pids, stats.io.len()), (None, None, 0));
    }

    #[test]
    fn every_controller() {
        let (_dir, cgroup) = cgroup(&[
            ("cgroup.controllers", "cpu io memory pids hugetlb\n"),
            ("cpu.stat", "usage_usec 7\nnr_periods 3\nnr_throttled 2\nthrottled_usec 9\n"),
            ("cpu.pressure", "some avg10=1.50 avg60=0.00 avg300=0.00 total=12\n"),
            ("memory.pressure", ""),
            ("memory.current", "1000\n"),
            ("memory.max", "max\n"),
            ("memory.swap.max", "4096\n"),
            ("memory.events", "low 0\nhigh 0\nmax 4\noom 1\noom_kill 1\n"),
            ("memory.stat", "anon 5\ninactive_file 300\n"),
            ("pids.current", "2\n"),
            ("pids.max", "32\n"),
            ("io.stat", "8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n"),
            ("hugetlb.2MB.current", "0\n"),
            ("hugetlb.2MB.rsvd.current", "0\n"),
            ("hugetlb.2MB.max", "max\n"),
        ]);
        let stats = cgroup.stats().unwrap();
        assert_eq!((stats.cpu.periods, stats.cpu.throttled_periods, stats.cpu.throttled_us), (3, 2, 9));
        assert_eq!(stats.cpu.pressure.unwrap().some, [1.5, 0.0, 0.0]);
        let memory = stats.memory.unwrap();
        assert_eq!((memory.usage_bytes, memory.limit_bytes, memory.swap_limit_bytes), (1000, None, Some(4096)));
        assert_eq!((memory.used_bytes(), memory.limit_hits, memory.oom_kills), (700, 4, 1));
        assert_eq!(memory.pressure, None);
        assert_eq!(stats.pids.unwrap(), PidsStats { current: 2, limit: Some(32) });
        assert_eq!(stats.io, [IoStats { major: 8, minor: 16, read_bytes: 1, write_bytes: 2, reads: 3, writes: 4 }]);
        assert_eq!(stats.hugetlb.len(), 1);
    }
}
