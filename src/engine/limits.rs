//! From Docker's limit options to `linux.resources`: pure but for the numbers of block devices.
//!
//! The bounds are Docker's own, so that what it refuses is refused here in the same words' meaning;
//! whether the host can enforce the rest is the cgroup's business (`runtime::cgroup`).

use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Docker's smallest memory limit: below it, nothing starts.
const MEMORY_BYTES_MIN: u64 = 6 << 20;
/// Docker's bandwidth period where `--cpus` is given.
const PERIOD_US: u64 = 100_000;
/// The kernel's bounds of a period (kernel/sched/core.c, max_bw_quota_period_us and min_).
const PERIOD_US_MIN: u64 = 1_000;
const PERIOD_US_MAX: u64 = 1_000_000;
/// The kernel's smallest quota.
const QUOTA_US_MIN: i64 = 1_000;
const NANO: u64 = 1_000_000_000;

/// Is everything that can be limited, with Docker's meanings. `None` and 0 are "not asked".
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LimitOptions {
    /// Billionths of a processor.
    pub nano_cpus: Option<u64>,
    pub cpu_shares: Option<u64>,
    pub cpu_period_us: Option<u64>,
    pub cpu_quota_us: Option<i64>,
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    pub memory_bytes: Option<u64>,
    pub memory_reservation_bytes: Option<u64>,
    /// Memory and swap together; -1 is no limit for swap.
    pub memory_swap_bytes: Option<i64>,
    /// 0 and -1 are no limit.
    pub pids: Option<i64>,
    pub rates: Vec<Rate>,
    pub blkio_weight: Option<u16>,
    pub blkio_weight_device: Vec<(PathBuf, u16)>,
    /// Files of the cgroup by name.
    pub unified: Vec<(String, String)>,
    /// What cannot be enforced is reported instead of refused.
    pub best_effort: bool,
}

/// Is one `--device-read-bps` and the like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    pub kind: RateKind,
    pub device: PathBuf,
    /// Bytes or operations.
    pub per_second: u64,
}

/// Says what a rate counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RateKind {
    ReadBytes,
    WriteBytes,
    ReadOperations,
    WriteOperations,
}

impl RateKind {
    fn key(self) -> &'static str {
        match self {
            Self::ReadBytes => "throttleReadBpsDevice",
            Self::WriteBytes => "throttleWriteBpsDevice",
            Self::ReadOperations => "throttleReadIOPSDevice",
            Self::WriteOperations => "throttleWriteIOPSDevice",
        }
    }
}

/// Says why limits were refused before any container was made.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    #[error("{option} {value}: {reason}")]
    Value { option: &'static str, value: String, reason: String },
    #[error("{one} and {other} exclude each other")]
    Conflict { one: &'static str, other: &'static str },
    #[error("cannot limit the device {path}")]
    Device { path: PathBuf, source: std::io::Error },
    #[error("limits have no form of the runtime specification")]
    Form(#[source] serde_json::Error),
}

impl LimitError {
    fn value(option: &'static str, value: impl ToString, reason: impl ToString) -> Self {
        Self::Value { option, value: value.to_string(), reason: reason.to_string() }
    }
}

/// What the mapping has to know about the host.
pub struct Facts<'a> {
    /// Gives the number of processors that this process may run on.
    pub processors: &'a dyn Fn() -> u64,
    /// Gives a block device's numbers.
    pub device: &'a dyn Fn(&Path) -> std::io::Result<(u64, u64)>,
}

impl LimitOptions {
    /// Maps the options to the runtime specification; `None` where nothing is asked.
    pub fn resources(&self, facts: &Facts<'_>) -> Result<Option<LinuxResources>, LimitError> {
        let mut made = Map::new();
        for (key, part) in [
            ("memory", self.memory()?),
            ("cpu", self.cpu(facts.processors)?),
            ("pids", self.pids()),
            ("blockIO", self.block(facts)?),
            ("unified", self.unified.iter().map(|(key, value)| (key.clone(), json!(value))).collect()),
        ] {
            if !part.is_empty() {
                made.insert(key.to_owned(), Value::Object(part));
            }
        }
        if made.is_empty() {
            return Ok(None);
        }
        serde_json::from_value(Value::Object(made)).map(Some).map_err(LimitError::Form)
    }

    fn memory(&self) -> Result<Map<String, Value>, LimitError> {
        let limit = self.memory_bytes.filter(|limit| *limit != 0);
        let reservation = self.memory_reservation_bytes.filter(|bytes| *bytes != 0);
        let swap = self.memory_swap_bytes.filter(|swap| *swap != 0);
        for (option, bytes) in [("--memory", limit), ("--memory-reservation", reservation)] {
            if let Some(bytes) = bytes.filter(|bytes| *bytes < MEMORY_BYTES_MIN) {
                return Err(LimitError::value(option, bytes, "is below 6m, in which nothing starts"));
            }
        }
        let mut made = Map::new();
        if let Some(limit) = limit {
            made.insert("limit".into(), signed("--memory", limit)?);
            // Docker's default: as much swap as memory.
            let swap = match swap {
                Some(swap) => swap,
                None => i64::try_from(limit.saturating_mul(2)).unwrap_or(i64::MAX),
            };
            if u64::try_from(swap).is_ok_and(|swap| swap < limit) {
                return Err(LimitError::value(
                    "--memory-swap",
                    swap,
                    "is memory and swap together, so not below --memory",
                ));
            }
            made.insert("swap".into(), json!(swap));
        } else if let Some(swap) = swap.filter(|swap| *swap > 0) {
            return Err(LimitError::value("--memory-swap", swap, "needs --memory"));
        }
        if swap.is_some_and(|swap| swap < -1) {
            return Err(LimitError::value("--memory-swap", swap.unwrap_or_default(), "is neither a size nor -1"));
        }
        if let Some(bytes) = reservation {
            if limit.is_some_and(|limit| limit < bytes) {
                return Err(LimitError::value("--memory-reservation", bytes, "is above --memory"));
            }
            made.insert("reservation".into(), signed("--memory-reservation", bytes)?);
        }
        Ok(made)
    }

    fn cpu(&self, processors: &dyn Fn() -> u64) -> Result<Map<String, Value>, LimitError> {
        let mut made = Map::new();
        let period = self.cpu_period_us.filter(|period| *period != 0);
        let quota = self.cpu_quota_us.filter(|quota| *quota != 0);
        if let Some(nano) = self.nano_cpus.filter(|nano| *nano != 0) {
            for (other, given) in [("--cpu-period", period.is_some()), ("--cpu-quota", quota.is_some())] {
                if given {
                    return Err(LimitError::Conflict { one: "--cpus", other });
                }
            }
            let (quota, processors) = (nano / (NANO / PERIOD_US), processors());
            if nano > processors * NANO || quota < QUOTA_US_MIN.unsigned_abs() {
                let value = format!("{}.{:09}", nano / NANO, nano % NANO);
                return Err(LimitError::value("--cpus", value, format!("is not between 0.01 and {processors}")));
            }
            made.insert("quota".into(), json!(quota));
            made.insert("period".into(), json!(PERIOD_US));
        }
        if let Some(period) = period {
            if !(PERIOD_US_MIN..=PERIOD_US_MAX).contains(&period) {
                return Err(LimitError::value("--cpu-period", period, "is not between 1000 and 1000000 microseconds"));
            }
            made.insert("period".into(), json!(period));
        }
        if let Some(quota) = quota {
            if (0..QUOTA_US_MIN).contains(&quota) {
                return Err(LimitError::value("--cpu-quota", quota, "is below 1000 microseconds"));
            }
            made.insert("quota".into(), json!(quota));
        }
        if let Some(shares) = self.cpu_shares.filter(|shares| *shares != 0) {
            made.insert("shares".into(), json!(shares));
        }
        for (key, list) in [("cpus", &self.cpuset_cpus), ("mems", &self.cpuset_mems)] {
            if let Some(list) = list.as_deref().filter(|list| !list.is_empty()) {
                made.insert(key.into(), json!(list));
            }
        }
        Ok(made)
    }

    fn pids(&self) -> Map<String, Value> {
        self.pids.map(|limit| ("limit".to_owned(), json!(limit))).into_iter().collect()
    }

    fn block(&self, facts: &Facts<'_>) -> Result<Map<String, Value>, LimitError> {
        let mut made = Map::new();
        let weight = |option, weight: u16| match weight {
            10..=1000 => Ok(json!(weight)),
            other => Err(LimitError::value(option, other, "is not between 10 and 1000")),
        };
        if let Some(asked) = self.blkio_weight.filter(|weight| *weight != 0) {
            made.insert("weight".into(), weight("--blkio-weight", asked)?);
        }
        let numbers =
            |path: &Path| (facts.device)(path).map_err(|source| LimitError::Device { path: path.to_owned(), source });
        let mut list = Vec::new();
        for (path, asked) in &self.blkio_weight_device {
            let (major, minor) = numbers(path)?;
            list.push(json!({"major": major, "minor": minor, "weight": weight("--blkio-weight-device", *asked)?}));
        }
        if !list.is_empty() {
            made.insert("weightDevice".into(), Value::Array(list));
        }
        for rate in &self.rates {
            let (major, minor) = numbers(&rate.device)?;
            let list = made.entry(rate.kind.key()).or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(list) = list {
                list.push(json!({"major": major, "minor": minor, "rate": rate.per_second}));
            }
        }
        Ok(made)
    }
}

fn signed(option: &'static str, bytes: u64) -> Result<Value, LimitError> {
    let value = i64::try_from(bytes).map_err(|_| LimitError::value(option, bytes, "is more than any machine has"))?;
    Ok(json!(value))
}

/// Gives the numbers of a block device.
pub fn block_device(path: &Path) -> std::io::Result<(u64, u64)> {
    let stat = rustix::fs::stat(path)?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::BlockDevice {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a block device"));
    }
    Ok((rustix::fs::major(stat.st_rdev).into(), rustix::fs::minor(stat.st_rdev).into()))
}

/// Gives the number of processors that this process may run on.
pub fn processors() -> u64 {
    std::thread::available_parallelism().map_or(1, |count| count.get() as u64)
}

/// Parses `--cpus 1.5` into billionths, without rounding.
pub fn parse_nano_cpus(text: &str) -> Result<u64, LimitError> {
    /// Digits of a billionth.
    const DIGITS: usize = 9;
    let fail = || LimitError::value("--cpus", text, "is no number such as 1.5");
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let fraction = fraction.trim_end_matches('0');
    if !digits(whole) || !digits(fraction) || fraction.len() > DIGITS || text.trim_matches('.').is_empty() {
        return Err(fail());
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| fail())? };
    let fraction: u64 = format!("{fraction:0<DIGITS$}").parse().map_err(|_| fail())?;
    whole.checked_mul(NANO).and_then(|nano| nano.checked_add(fraction)).ok_or_else(fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(options: &LimitOptions) -> Result<Value, String> {
        let device = |path: &Path| {
            if path == Path::new("/dev/sda") { Ok((8, 0)) } else { Err(std::io::ErrorKind::NotFound.into()) }
        };
        let resources = options.resources(&Facts { processors: &|| 2, device: &device });
        resources.map(|made| serde_json::to_value(made).unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_asked_is_none() {
        let options = LimitOptions { best_effort: true, memory_bytes: Some(0), ..LimitOptions::default() };
        assert_eq!(mapped(&options), Ok(Value::Null));
    }

    #[test]
    fn memory_as_docker_means_it() {
        let with = |memory, swap, reservation| {
            mapped(&LimitOptions {
                memory_bytes: memory,
                memory_swap_bytes: swap,
                memory_reservation_bytes: reservation,
                ..LimitOptions::default()
            })
        };
        let m = 1 << 20;
        assert_eq!(with(Some(64 * m), None, None), Ok(json!({"memory": {"limit": 64 * m, "swap": 128 * m}})));
        assert_eq!(with(Some(64 * m), Some(-1), None), Ok(json!({"memory": {"limit": 64 * m, "swap": -1}})));
        assert_eq!(with(Some(64 * m), Some(64 * m as i64), None).unwrap()["memory"]["swap"], 64 * m);
        assert_eq!(with(None, None, Some(8 * m)), Ok(json!({"memory": {"reservation": 8 * m}})));
        for (memory, swap, reservation) in [
            (Some(1), None, None),
            (Some(64 * m), Some(63 * m as i64), None),
            (Some(64 * m), Some(-2), None),
            (None, Some(64 * m as i64), None),
            (Some(64 * m), None, Some(65 * m)),
            (None, None, Some(5)),
            (Some(u64::MAX), None, None),
        ] {
            assert!(with(memory, swap, reservation).is_err(), "{memory:?} {swap:?} {reservation:?}");
        }
    }

    #[test]
    fn cpus_as_docker_means_them() {
        let cpus = |nano| mapped(&LimitOptions { nano_cpus: Some(nano), ..LimitOptions::default() });
        assert_eq!(cpus(200_000_000), Ok(json!({"cpu": {"quota": 20000, "period": 100_000}})));
        assert_eq!(cpus(2_000_000_000).unwrap()["cpu"]["quota"], 200_000);
        assert_eq!(cpus(2_000_000_001).unwrap_err(), "--cpus 2.000000001: is not between 0.01 and 2");
        assert!(cpus(9_000_000).is_err());
        let both = LimitOptions { nano_cpus: Some(NANO), cpu_quota_us: Some(5000), ..LimitOptions::default() };
        assert_eq!(mapped(&both).unwrap_err(), "--cpus and --cpu-quota exclude each other");
        for (period, quota) in [(Some(999), None), (Some(1_000_001), None), (None, Some(999))] {
            let options = LimitOptions { cpu_period_us: period, cpu_quota_us: quota, ..LimitOptions::default() };
            assert!(mapped(&options).is_err(), "{period:?} {quota:?}");
        }
        let set = LimitOptions { cpuset_cpus: Some("0-1".into()), cpu_shares: Some(512), ..LimitOptions::default() };
        assert_eq!(mapped(&set), Ok(json!({"cpu": {"shares": 512, "cpus": "0-1"}})));
    }

    #[test]
    fn devices_by_number() {
        let rate = |device: &str| Rate { kind: RateKind::WriteBytes, device: device.into(), per_second: 1024 };
        let options =
            LimitOptions { rates: vec![rate("/dev/sda")], blkio_weight: Some(500), ..LimitOptions::default() };
        let expect = json!({"weight": 500, "throttleWriteBpsDevice": [{"major": 8, "minor": 0, "rate": 1024}]});
        assert_eq!(mapped(&options), Ok(json!({"blockIO": expect})));
        let absent = LimitOptions { rates: vec![rate("/dev/none")], ..LimitOptions::default() };
        assert_eq!(mapped(&absent).unwrap_err(), "cannot limit the device /dev/none");
        assert!(mapped(&LimitOptions { blkio_weight: Some(9), ..LimitOptions::default() }).is_err());
    }

    #[test]
    fn no_processes_limit_is_asked_by_0_or_minus_1() {
        let pids = |limit| mapped(&LimitOptions { pids: Some(limit), ..LimitOptions::default() });
        assert_eq!(pids(32), Ok(json!({"pids": {"limit": 32}})));
        assert_eq!(pids(-1), Ok(json!({"pids": {"limit": -1}})));
    }

    #[test]
    fn cpus_grammar() {
        for (text, nano) in [
            ("0.2", 200_000_000),
            ("2", 2 * NANO),
            (".5", NANO / 2),
            ("1.000000001", NANO + 1),
            ("1.50000000000", 3 * NANO / 2),
        ] {
            assert_eq!(parse_nano_cpus(text).unwrap(), nano, "{text}");
        }
        for bad in ["", ".", "x", "-1", "1e3", "0.0000000001", "1.2.3", "99999999999999999999"] {
            assert!(parse_nano_cpus(bad).is_err(), "{bad}");
        }
    }
}
