//! `update`: other limits for a running container.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use coracle_runtime::container::{Id, Status};
use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value, json};

use super::Context;
use super::error::OciError;

/// Limits have a few lines; a file without an end must not fill our memory.
const RESOURCES_BYTES_MAX: u64 = 1 << 20;

/// Change the limits of a container
#[derive(Args)]
pub struct UpdateArgs {
    /// Read limits from FILE, in the form of config.json's "linux.resources"; - is the standard input
    #[arg(short, long, value_name = "FILE")]
    resources: Option<PathBuf>,
    /// Weight of block I/O, 10 to 1000
    #[arg(long, value_name = "N")]
    blkio_weight: Option<u64>,
    /// Length of a period in microseconds
    #[arg(long, value_name = "US")]
    cpu_period: Option<u64>,
    /// CPU time in a period in microseconds, -1 for no limit
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    cpu_quota: Option<i64>,
    /// CPU time that may be saved up, in microseconds
    #[arg(long, value_name = "US")]
    cpu_burst: Option<u64>,
    /// Relative weight against other containers
    #[arg(long, value_name = "N", alias = "cpu-shares")]
    cpu_share: Option<u64>,
    /// Not possible with cgroup v2
    #[arg(long, value_name = "US")]
    cpu_rt_period: Option<u64>,
    /// Not possible with cgroup v2
    #[arg(long, value_name = "US")]
    cpu_rt_runtime: Option<i64>,
    /// The processors, as 0-3,7
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// The memory nodes
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// 1: only CPU time that nobody else wants
    #[arg(long, value_name = "0|1", allow_hyphen_values = true)]
    cpu_idle: Option<i64>,
    /// Not possible with cgroup v2
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    kernel_memory: Option<String>,
    /// Not possible with cgroup v2
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    kernel_memory_tcp: Option<String>,
    /// Memory in bytes, or with k, m, g; -1 for no limit
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory: Option<String>,
    /// Memory that is left alone when memory is scarce
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory_reservation: Option<String>,
    /// Memory and swap together; -1 for no limit
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// Number of processes; -1 for no limit
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pids_limit: Option<i64>,
    /// Not supported
    #[arg(long, value_name = "SCHEMA")]
    l3_cache_schema: Option<String>,
    /// Not supported
    #[arg(long, value_name = "SCHEMA")]
    mem_bw_schema: Option<String>,
    /// The container's id
    id: String,
}

/// Runs `update`.
pub fn update(context: &Context, args: &UpdateArgs) -> Result<ExitCode, OciError> {
    let id: Id = args.id.parse()?;
    let resources = args.resources()?;
    let container = context.place.container(&id)?;
    let lock = container.lock()?;
    let state = container.state()?;
    let status = container.status(state.as_ref())?;
    let Some(mut state) = state.filter(|_| !matches!(status, Status::Stopped | Status::Creating)) else {
        return Err(OciError::Status { verb: "update", id, status });
    };
    let mut cgroup = state.cgroup()?.ok_or(OciError::NoCgroup { verb: "update", id })?;
    cgroup.update(&resources)?;
    state.set_cgroup(Some(&cgroup))?;
    lock.publish(&state)?;
    Ok(ExitCode::SUCCESS)
}

impl UpdateArgs {
    /// The file's limits with what the flags change.
    fn resources(&self) -> Result<LinuxResources, OciError> {
        let refused = [
            ("--cpu-rt-period", self.cpu_rt_period.is_some()),
            ("--cpu-rt-runtime", self.cpu_rt_runtime.is_some()),
            ("--kernel-memory", self.kernel_memory.is_some()),
            ("--kernel-memory-tcp", self.kernel_memory_tcp.is_some()),
            ("--l3-cache-schema", self.l3_cache_schema.is_some()),
            ("--mem-bw-schema", self.mem_bw_schema.is_some()),
        ];
        if let Some((flag, _)) = refused.into_iter().find(|(_, given)| *given) {
            return Err(OciError::Flag(flag));
        }
        let mut value = match &self.resources {
            Some(path) => read(path)?,
            None => json!({}),
        };
        put(&mut value, "blockIO", [("weight", self.blkio_weight.map(Value::from))])?;
        put(
            &mut value,
            "cpu",
            [
                ("period", self.cpu_period.map(Value::from)),
                ("quota", self.cpu_quota.map(Value::from)),
                ("burst", self.cpu_burst.map(Value::from)),
                ("shares", self.cpu_share.map(Value::from)),
                ("cpus", self.cpuset_cpus.clone().map(Value::from)),
                ("mems", self.cpuset_mems.clone().map(Value::from)),
                ("idle", self.cpu_idle.map(Value::from)),
            ],
        )?;
        put(
            &mut value,
            "memory",
            [
                ("limit", bytes("--memory", self.memory.as_deref())?),
                ("reservation", bytes("--memory-reservation", self.memory_reservation.as_deref())?),
                ("swap", bytes("--memory-swap", self.memory_swap.as_deref())?),
            ],
        )?;
        put(&mut value, "pids", [("limit", self.pids_limit.map(Value::from))])?;
        serde_json::from_value(value).map_err(OciError::Resources)
    }
}

fn put<const N: usize>(value: &mut Value, group: &str, fields: [(&str, Option<Value>); N]) -> Result<(), OciError> {
    let not_one = || OciError::Usage("limits must be a JSON object of objects".to_owned());
    for (name, field) in fields {
        let Some(field) = field else { continue };
        let whole = value.as_object_mut().ok_or_else(not_one)?;
        let part = whole.entry(group).or_insert_with(|| Value::Object(Map::new()));
        part.as_object_mut().ok_or_else(not_one)?.insert(name.to_owned(), field);
    }
    Ok(())
}

fn read(path: &Path) -> Result<Value, OciError> {
    let failed = |error: std::io::Error| OciError::file("read", path, &error);
    let mut text = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().take(RESOURCES_BYTES_MAX).read_to_end(&mut text).map_err(failed)?;
    } else {
        let file = fs_err::File::open(path).map_err(failed)?;
        file.take(RESOURCES_BYTES_MAX).read_to_end(&mut text).map_err(failed)?;
    }
    serde_json::from_slice(&text).map_err(OciError::Resources)
}

/// A number of bytes with Docker's suffixes, powers of 1024; -1 is no limit.
fn bytes(flag: &'static str, text: Option<&str>) -> Result<Option<Value>, OciError> {
    let Some(text) = text else { return Ok(None) };
    let wrong = || OciError::Usage(format!("invalid value {text:?} for {flag}: a number of bytes, or with k, m, g"));
    if text == "-1" {
        return Ok(Some(json!(-1)));
    }
    let lower = text.to_ascii_lowercase();
    let lower = lower.strip_suffix('b').unwrap_or(&lower);
    let (digits, shift) = match lower.as_bytes().last() {
        Some(b'k') => (&lower[..lower.len() - 1], 10),
        Some(b'm') => (&lower[..lower.len() - 1], 20),
        Some(b'g') => (&lower[..lower.len() - 1], 30),
        _ => (lower, 0),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let number: i64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).map(|number| Some(json!(number))).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c16_numbers_of_bytes() {
        let read = |text: &str| bytes("--memory", Some(text)).ok().flatten().and_then(|value| value.as_i64());
        assert_eq!(read("64m"), Some(64 << 20));
        assert_eq!(read("1GB"), Some(1 << 30));
        assert_eq!(read("0"), Some(0));
        assert_eq!(read("-1"), Some(-1));
        for bad in ["", "m", "-2", "+1", "1.5m", "9999999999999999g", "1t", "0x10", " 1"] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }
}
