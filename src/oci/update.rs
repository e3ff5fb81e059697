//! `update`: other limits for a running container.

use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

use coracle_runtime::container::{Id, Status};
use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value, json};

use super::Context;
use super::arguments::{Given, Grammar, Words, valued};
use super::error::OciError;

/// Limits have a few lines; a file without an end must not fill our memory.
const RESOURCES_BYTES_MAX: u64 = 1 << 20;

/// `update`.
pub const UPDATE: Grammar = Grammar {
    name: "update",
    about: "Change the limits of a container",
    flags: &[&[
        valued(
            "resources",
            "FILE",
            "Read limits from FILE, in the form of \"linux.resources\"; - is the standard input",
        )
        .short('r'),
        valued("blkio-weight", "N", "Weight of block I/O, 10 to 1000"),
        valued("cpu-period", "US", "Length of a period in microseconds"),
        valued("cpu-quota", "US", "CPU time in a period in microseconds, -1 for no limit"),
        valued("cpu-burst", "US", "CPU time that may be saved up, in microseconds"),
        valued("cpu-share", "N", "Relative weight against other containers"),
        valued("cpu-shares", "N", ""),
        valued("cpu-rt-period", "US", NOT_IN_V2),
        valued("cpu-rt-runtime", "US", NOT_IN_V2),
        valued("cpuset-cpus", "LIST", "The processors, as 0-3,7"),
        valued("cpuset-mems", "LIST", "The memory nodes"),
        valued("cpu-idle", "0|1", "1: only CPU time that nobody else wants"),
        valued("kernel-memory", "BYTES", NOT_IN_V2),
        valued("kernel-memory-tcp", "BYTES", NOT_IN_V2),
        valued("memory", "BYTES", "Memory in bytes, or with k, m, g; -1 for no limit"),
        valued("memory-reservation", "BYTES", "Memory that is left alone when memory is scarce"),
        valued("memory-swap", "BYTES", "Memory and swap together; -1 for no limit"),
        valued("pids-limit", "N", "Number of processes; -1 for no limit"),
        valued("l3-cache-schema", "SCHEMA", "Not supported"),
        valued("mem-bw-schema", "SCHEMA", "Not supported"),
    ]],
    words: Words::Id,
};

const NOT_IN_V2: &str = "Not possible with cgroup v2";

/// The flags that nothing can be done about.
const REFUSED: [&str; 6] =
    ["cpu-rt-period", "cpu-rt-runtime", "kernel-memory", "kernel-memory-tcp", "l3-cache-schema", "mem-bw-schema"];

/// Runs `update`.
pub fn update(context: &Context, given: &Given) -> Result<ExitCode, OciError> {
    let id: Id = given.id()?.parse()?;
    let resources = resources(given)?;
    let container = context.place.container(&id)?;
    let lock = container.lock()?;
    let state = container.state()?;
    let status = container.status(state.as_ref())?;
    let Some(mut state) = state.filter(|_| !matches!(status, Status::Stopped | Status::Creating)) else {
        return Err(OciError::Status { verb: "update", id, status });
    };
    let mut cgroup = state.cgroup()?.ok_or(OciError::NoCgroup { verb: "update", id })?;
    cgroup.update(&resources, false)?;
    state.set_cgroup(Some(&cgroup))?;
    lock.publish(&state)?;
    Ok(ExitCode::SUCCESS)
}

/// The file's limits with what the flags change.
fn resources(given: &Given) -> Result<LinuxResources, OciError> {
    if let Some(flag) = REFUSED.into_iter().find(|flag| given.has(flag)) {
        return Err(OciError::UnknownFlag(format!("--{flag}")));
    }
    let mut value = match given.path("resources") {
        Some(path) => read(&path)?,
        None => json!({}),
    };
    let unsigned = |flag| Ok::<_, OciError>(given.number::<u64>(flag)?.map(Value::from));
    let signed = |flag| Ok::<_, OciError>(given.number::<i64>(flag)?.map(Value::from));
    let text = |flag| Ok::<_, OciError>(given.text(flag)?.map(Value::from));
    let memory = |flag| bytes(flag, given.text(flag)?.as_deref());
    put(&mut value, "blockIO", [("weight", unsigned("blkio-weight")?)])?;
    let shares = match unsigned("cpu-share")? {
        None => unsigned("cpu-shares")?,
        given => given,
    };
    put(
        &mut value,
        "cpu",
        [
            ("period", unsigned("cpu-period")?),
            ("quota", signed("cpu-quota")?),
            ("burst", unsigned("cpu-burst")?),
            ("shares", shares),
            ("cpus", text("cpuset-cpus")?),
            ("mems", text("cpuset-mems")?),
            ("idle", signed("cpu-idle")?),
        ],
    )?;
    put(
        &mut value,
        "memory",
        [
            ("limit", memory("memory")?),
            ("reservation", memory("memory-reservation")?),
            ("swap", memory("memory-swap")?),
        ],
    )?;
    put(&mut value, "pids", [("limit", signed("pids-limit")?)])?;
    let resources: LinuxResources = serde_json::from_value(value).map_err(OciError::Resources)?;
    if resources.devices().as_ref().is_some_and(|rules| !rules.is_empty()) {
        return Err(OciError::DeviceRules);
    }
    Ok(resources)
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
    let wrong = || OciError::Usage(format!("invalid value {text:?} for --{flag}: a number of bytes, or with k, m, g"));
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
        let read = |text: &str| bytes("memory", Some(text)).ok().flatten().and_then(|value| value.as_i64());
        assert_eq!(read("64m"), Some(64 << 20));
        assert_eq!(read("1GB"), Some(1 << 30));
        assert_eq!(read("0"), Some(0));
        assert_eq!(read("-1"), Some(-1));
        for bad in ["", "m", "-2", "+1", "1.5m", "9999999999999999g", "1t", "0x10", " 1"] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }
}
