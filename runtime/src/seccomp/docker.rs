//! Docker's own form of a seccomp profile, made into the form of a `config.json`.
//!
//! Docker's files have conditions that the runtime specification lacks: rules for some architectures,
//! for some capabilities, for kernels from some version on. They are decided here, for one container
//! on this machine; reading such a file as a plain profile would allow what it forbids.

use oci_spec::runtime::LinuxSeccomp;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::names::Architecture;
use crate::caps::{self, CapSet};

/// Why a profile in Docker's form cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DockerProfileError {
    /// The text is not of that form.
    #[error("not a seccomp profile")]
    Form(#[from] serde_json::Error),
    /// Both ways of naming architectures at once.
    #[error("architectures and archMap exclude each other")]
    Architectures,
    /// Both ways of naming calls at once.
    #[error("name and names exclude each other")]
    Names,
    /// A condition that is not known would silently not hold.
    #[error("unknown condition {0:?}")]
    Condition(String),
    /// A version that is not `major.minor`.
    #[error("invalid kernel version {0:?}")]
    Kernel(String),
}

/// One entry of `archMap`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchEntry {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

/// When a rule counts, or when it does not.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Conditions {
    #[serde(default)]
    arches: Option<Vec<String>>,
    #[serde(default)]
    caps: Option<Vec<String>>,
    #[serde(default)]
    min_kernel: Option<String>,
    #[serde(flatten)]
    unknown: Map<String, Value>,
}

/// The container and machine for which conditions are decided.
#[derive(Debug, Clone, Copy)]
pub struct Conditioned {
    /// The container's bounding set.
    pub capabilities: CapSet,
    /// The running kernel's major and minor version.
    pub kernel: (u32, u32),
}

impl Conditioned {
    /// For a container with these capabilities on the running kernel.
    pub fn here(capabilities: CapSet) -> Self {
        let release = rustix::system::uname();
        let kernel = version(&release.release().to_string_lossy()).unwrap_or((0, 0));
        Self { capabilities, kernel }
    }
}

/// Reads a profile of either form.
pub fn read_profile(text: &[u8], for_whom: Conditioned) -> Result<LinuxSeccomp, DockerProfileError> {
    let mut value: Value = serde_json::from_slice(text)?;
    let Some(profile) = value.as_object_mut() else {
        return Ok(serde_json::from_value(value)?);
    };
    // What they say in words is said in numbers beside it.
    profile.remove("defaultErrno");
    if let Some(map) = profile.remove("archMap").filter(|map| !map.is_null()) {
        if profile.get("architectures").and_then(Value::as_array).is_some_and(|list| !list.is_empty()) {
            return Err(DockerProfileError::Architectures);
        }
        let entries: Vec<ArchEntry> = serde_json::from_value(map)?;
        profile.insert("architectures".to_owned(), architectures(&entries));
    }
    let rules = match profile.remove("syscalls") {
        Some(Value::Array(rules)) => rules,
        Some(Value::Null) | None => Vec::new(),
        Some(other) => {
            return Err(serde_json::from_value::<Vec<Value>>(other)
                .err()
                .map_or(DockerProfileError::Names, Into::into));
        }
    };
    let mut kept = Vec::new();
    for rule in rules {
        kept.extend(decide(rule, for_whom)?);
    }
    profile.insert("syscalls".to_owned(), Value::Array(kept));
    Ok(serde_json::from_value(value)?)
}

/// The machine's own architecture and those that it runs too.
fn architectures(entries: &[ArchEntry]) -> Value {
    let own = match Architecture::native() {
        Architecture::X86_64 | Architecture::X86 => "SCMP_ARCH_X86_64",
        Architecture::Aarch64 | Architecture::Arm => "SCMP_ARCH_AARCH64",
    };
    let subs =
        entries.iter().find(|entry| entry.architecture == own).and_then(|entry| entry.sub_architectures.as_ref());
    json!(std::iter::once(own).chain(subs.into_iter().flatten().map(String::as_str)).collect::<Vec<&str>>())
}

/// The rule without its conditions; `None` where they do not hold.
fn decide(mut rule: Value, for_whom: Conditioned) -> Result<Option<Value>, DockerProfileError> {
    let Some(fields) = rule.as_object_mut() else { return Ok(Some(rule)) };
    let mut conditions = |name: &str| -> Result<Conditions, DockerProfileError> {
        let given = fields.remove(name).filter(|value| !value.is_null());
        let conditions: Conditions = given.map_or_else(|| Ok(Conditions::default()), serde_json::from_value)?;
        match conditions.unknown.keys().next() {
            Some(unknown) => Err(DockerProfileError::Condition(unknown.clone())),
            None => Ok(conditions),
        }
    };
    let (includes, excludes) = (conditions("includes")?, conditions("excludes")?);
    fields.remove("errno");
    fields.remove("comment");
    if let Some(name) = fields.remove("name").filter(|name| name.as_str().is_some_and(|name| !name.is_empty())) {
        if fields.get("names").and_then(Value::as_array).is_some_and(|names| !names.is_empty()) {
            return Err(DockerProfileError::Names);
        }
        fields.insert("names".to_owned(), json!([name]));
    }
    if fields.get("args").is_some_and(Value::is_null) {
        fields.remove("args");
    }
    Ok((holds(&includes, for_whom)? && !stands_against(&excludes, for_whom)?).then_some(rule))
}

/// Everything that is asked for must be there.
fn holds(asked: &Conditions, for_whom: Conditioned) -> Result<bool, DockerProfileError> {
    let arches = asked.arches.as_deref().unwrap_or_default();
    let caps = asked.caps.as_deref().unwrap_or_default();
    let kernel = asked.min_kernel.as_deref().map(parsed).transpose()?;
    Ok((arches.is_empty() || arches.iter().any(|arch| arch == own_name()))
        && caps.iter().all(|name| has(for_whom, name))
        && kernel.is_none_or(|least| for_whom.kernel >= least))
}

/// One of them is enough.
fn stands_against(asked: &Conditions, for_whom: Conditioned) -> Result<bool, DockerProfileError> {
    let kernel = asked.min_kernel.as_deref().map(parsed).transpose()?;
    Ok(asked.arches.iter().flatten().any(|arch| arch == own_name())
        || asked.caps.iter().flatten().any(|name| has(for_whom, name))
        || kernel.is_some_and(|least| for_whom.kernel >= least))
}

/// A capability that nobody knows is one that the container has not.
fn has(for_whom: Conditioned, name: &str) -> bool {
    caps::parse(name).is_ok_and(|capability| for_whom.capabilities.contains(capability))
}

/// The architecture in Go's words.
fn own_name() -> &'static str {
    match Architecture::native() {
        Architecture::X86_64 | Architecture::X86 => "amd64",
        Architecture::Aarch64 | Architecture::Arm => "arm64",
    }
}

fn parsed(text: &str) -> Result<(u32, u32), DockerProfileError> {
    version(text).ok_or_else(|| DockerProfileError::Kernel(text.to_owned()))
}

/// The first two numbers of a version.
fn version(text: &str) -> Option<(u32, u32)> {
    let (major, rest) = text.split_once('.')?;
    let end = rest.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(rest.len());
    Some((major.parse().ok()?, rest[..end].parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(rule: &str, capabilities: CapSet) -> usize {
        let text = format!(r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{rule}]}}"#);
        let profile = read_profile(text.as_bytes(), Conditioned { capabilities, kernel: (6, 1) }).expect("a profile");
        profile.syscalls().as_ref().map_or(0, Vec::len)
    }

    #[test]
    fn conditions_decide() {
        let admin = CapSet::EMPTY.with(caps::parse("CAP_SYS_ADMIN").expect("known"));
        let rule = |conditions: &str| format!(r#"{{"names":["mount"],"action":"SCMP_ACT_ALLOW",{conditions}}}"#);
        for (conditions, capabilities, expect) in [
            (r#""includes":{"caps":["CAP_SYS_ADMIN"]}"#, CapSet::EMPTY, 0),
            (r#""includes":{"caps":["CAP_SYS_ADMIN"]}"#, admin, 1),
            (r#""includes":{"caps":["CAP_SYS_ADMIN","CAP_KILL"]}"#, admin, 0),
            (r#""excludes":{"caps":["CAP_KILL","CAP_SYS_ADMIN"]}"#, admin, 0),
            (r#""excludes":{"caps":["CAP_NO_SUCH"]}"#, admin, 1),
            (r#""includes":{"arches":["s390x"]}"#, admin, 0),
            (r#""includes":{"arches":["amd64","arm64"]}"#, admin, 1),
            (r#""includes":{"minKernel":"4.8"}"#, admin, 1),
            (r#""includes":{"minKernel":"6.2"}"#, admin, 0),
            (r#""excludes":{"minKernel":"6.1"}"#, admin, 0),
            (r#""includes":{},"excludes":null,"comment":"x","args":null"#, admin, 1),
        ] {
            assert_eq!(kept(&rule(conditions), capabilities), expect, "{conditions}");
        }
    }

    #[test]
    fn a34_what_cannot_be_decided_is_refused() {
        let read =
            |text: &str| read_profile(text.as_bytes(), Conditioned { capabilities: CapSet::EMPTY, kernel: (6, 1) });
        for bad in [
            r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["a"],"action":"SCMP_ACT_ALLOW","includes":{"moon":1}}]}"#,
            r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["a"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"x"}}]}"#,
            r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"name":"a","names":["b"],"action":"SCMP_ACT_ALLOW"}]}"#,
            r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_ARM"],"archMap":[]}"#,
            r#"{"defaultAction":"SCMP_ACT_NO"}"#,
            "[]",
            "",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
