//! Reading a bundle's `config.json`: bounded, of a version that we know, nothing asked for in vain.
//!
//! The specification wants unknown fields ignored and known ones honoured. Fields that we know and
//! cannot honour are refused by name, here where the typed form would lose or mistake them and in
//! `plan` for all others.

use std::io::Read;
use std::path::Path;

use oci_spec::runtime::{LinuxResources, Process, Spec};
use rustix::fs::{Mode, OFlags};
use serde_json::Value;

use crate::caps;
use crate::sys::SysError;

/// The name of the file in a bundle.
pub const CONFIG: &str = "config.json";

/// A large configuration with thousands of mounts has a few hundred KiB (C22).
const CONFIG_BYTES_MAX: u64 = 8 << 20;

/// The only major version there is; runtimes accept any minor version of it.
const MAJOR_VERSION: &str = "1";

/// The sets of `process.capabilities`.
const CAPABILITY_SETS: [&str; 5] = ["bounding", "effective", "permitted", "inheritable", "ambient"];

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The file cannot be read.
    #[error(transparent)]
    Read(#[from] SysError),
    /// The file is larger than any sensible configuration.
    #[error("{what} is larger than {CONFIG_BYTES_MAX} bytes")]
    TooLarge {
        /// The file.
        what: String,
    },
    /// The text is not JSON or a value has the wrong type.
    #[error("{what} is not a valid configuration")]
    Form {
        /// The file.
        what: String,
        /// Where it is wrong.
        source: serde_json::Error,
    },
    /// The version is absent, malformed or of another major version.
    #[error("ociVersion {version:?} is not supported, only versions 1.x.y are")]
    Version {
        /// As it is written.
        version: String,
    },
    /// A field that the specification requires.
    #[error("{field} is missing")]
    Missing {
        /// Its path.
        field: &'static str,
    },
    /// A limit that nothing would enforce.
    #[error("{field} cannot be enforced without a cgroup")]
    Limit {
        /// Its path.
        field: &'static str,
    },
}

/// What to do with limits where there is no cgroup to put them on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limits {
    /// A limit that is asked for is an error.
    Refuse,
    /// The caller has said that limits do not matter.
    Ignore,
}

/// A configuration and what could not be honoured of it.
#[derive(Debug)]
pub struct Config {
    /// The specification.
    pub spec: Spec,
    /// The text it was read from.
    pub text: Vec<u8>,
    /// What the specification wants warned about.
    pub warnings: Vec<String>,
}

/// Reads `config.json` of a bundle, or the `file` that takes its place; a relative one is in the bundle.
pub fn read(bundle: &Path, file: Option<&Path>, limits: Limits) -> Result<Config, BundleError> {
    let path = bundle.join(file.unwrap_or(Path::new(CONFIG)));
    let text = read_bounded(&path)?;
    parse(text, &path.display().to_string(), limits)
}

/// Reads a process from a file of its own, as `exec --process` takes it.
pub fn read_process(path: &Path) -> Result<(Process, Vec<String>), BundleError> {
    let what = path.display().to_string();
    let mut value: Value = serde_json::from_slice(&read_bounded(path)?)
        .map_err(|source| BundleError::Form { what: what.clone(), source })?;
    let warnings = drop_unknown_capabilities(&mut value);
    let process = serde_json::from_value(value).map_err(|source| BundleError::Form { what, source })?;
    Ok((process, warnings))
}

/// Understands the text of a `config.json`; `what` names it in errors.
pub fn parse(text: Vec<u8>, what: &str, limits: Limits) -> Result<Config, BundleError> {
    let form = |source| BundleError::Form { what: what.to_owned(), source };
    let mut value: Value = serde_json::from_slice(&text).map_err(form)?;
    check_version(&value)?;
    let warnings = value.get_mut("process").map(drop_unknown_capabilities).unwrap_or_default();
    let spec: Spec = serde_json::from_value(value).map_err(form)?;
    if spec.root().is_none() {
        return Err(BundleError::Missing { field: "root" });
    }
    if limits == Limits::Refuse
        && let Some(resources) = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref())
        && let Some(field) = limited(resources)
    {
        return Err(BundleError::Limit { field });
    }
    Ok(Config { spec, text, warnings })
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, BundleError> {
    let failed = |op, errno: i32| SysError::new(op, path.display().to_string(), errno);
    // NONBLOCK: a fifo in the bundle must not hold us.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| failed("open", errno.raw_os_error()))?;
    let mut text = Vec::new();
    std::fs::File::from(file)
        .take(CONFIG_BYTES_MAX + 1)
        .read_to_end(&mut text)
        .map_err(|error| failed("read", error.raw_os_error().unwrap_or(libc::EIO)))?;
    if text.len() as u64 > CONFIG_BYTES_MAX {
        return Err(BundleError::TooLarge { what: path.display().to_string() });
    }
    Ok(text)
}

/// Accepts `1.x.y`, with or without a pre-release behind a dash.
fn check_version(value: &Value) -> Result<(), BundleError> {
    let version = value.get("ociVersion").and_then(Value::as_str).unwrap_or_default();
    let core = version.split_once(['-', '+']).map_or(version, |(core, _)| core);
    let parts: Vec<&str> = core.split('.').collect();
    let numbers = parts.iter().all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()));
    if parts.len() == 3 && numbers && parts[0] == MAJOR_VERSION {
        Ok(())
    } else {
        Err(BundleError::Version { version: version.to_owned() })
    }
}

/// Takes out capability names that nobody knows; the specification wants a warning for them (C09).
fn drop_unknown_capabilities(process: &mut Value) -> Vec<String> {
    let mut unknown: Vec<String> = Vec::new();
    let Some(sets) = process.get_mut("capabilities") else {
        return unknown;
    };
    for set in CAPABILITY_SETS {
        let Some(names) = sets.get_mut(set).and_then(Value::as_array_mut) else {
            continue;
        };
        names.retain(|name| match name.as_str() {
            Some(name) if caps::parse(name).is_err() => {
                if !unknown.iter().any(|known| known == name) {
                    unknown.push(name.to_owned());
                }
                false
            }
            // What is no text is an error of form, reported by the typed parser.
            _ => true,
        });
    }
    unknown.into_iter().map(|name| format!("unknown capability {name:?} is not granted")).collect()
}

/// The first limit that asks for a controller.
///
/// Rules for devices are left out: nothing in a user namespace can make a device node, and the
/// nodes that are there are bound one by one.
fn limited(resources: &LinuxResources) -> Option<&'static str> {
    // An empty object asks for nothing.
    fn asks<T: serde::Serialize>(part: Option<&T>) -> bool {
        let value = part.and_then(|part| serde_json::to_value(part).ok());
        match value {
            Some(Value::Object(map)) => {
                map.values().any(|value| !value.is_null() && *value != Value::Array(Vec::new()))
            }
            Some(Value::Array(list)) => !list.is_empty(),
            _ => false,
        }
    }
    let pids = resources.pids().as_ref().is_some_and(|pids| {
        serde_json::to_value(pids).is_ok_and(|value| {
            // 0 and negative numbers mean "no limit" (runtime specification 1.3).
            value.get("limit").and_then(Value::as_i64).is_some_and(|limit| limit > 0)
        })
    });
    [
        ("linux.resources.memory", asks(resources.memory().as_ref())),
        ("linux.resources.cpu", asks(resources.cpu().as_ref())),
        ("linux.resources.pids", pids),
        ("linux.resources.blockIO", asks(resources.block_io().as_ref())),
        ("linux.resources.hugepageLimits", asks(resources.hugepage_limits().as_ref())),
        ("linux.resources.network", asks(resources.network().as_ref())),
        ("linux.resources.rdma", asks(resources.rdma().as_ref())),
        ("linux.resources.unified", asks(resources.unified().as_ref())),
    ]
    .into_iter()
    .find_map(|(field, asked)| asked.then_some(field))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHAT: &str = "config.json";

    fn with_version(version: &str) -> Vec<u8> {
        format!(r#"{{"ociVersion":{version},"root":{{"path":"rootfs"}}}}"#).into_bytes()
    }

    fn parsed(text: &str) -> Result<Config, BundleError> {
        parse(text.as_bytes().to_vec(), WHAT, Limits::Refuse)
    }

    #[test]
    fn c22_versions() {
        for good in ["\"1.0.0\"", "\"1.0.2-dev\"", "\"1.0.2-rc1\"", "\"1.2.0\"", "\"1.99.0+build\""] {
            assert!(parse(with_version(good), WHAT, Limits::Refuse).is_ok(), "{good}");
        }
        for bad in [
            "\"0.9.0\"",
            "\"0.9\"",
            "\"99.0.0\"",
            "\"\"",
            "\"1\"",
            "\"1.0\"",
            "\"1..0\"",
            "\"11.0.0\"",
            "\"v1.0.0\"",
            "1",
            "null",
        ] {
            assert!(
                matches!(parse(with_version(bad), WHAT, Limits::Refuse), Err(BundleError::Version { .. })),
                "{bad}"
            );
        }
    }

    #[test]
    fn c22_form() {
        let good = r#"{"ociVersion":"1.0.0","root":{"path":"r"}}"#;
        assert!(parsed(good).is_ok());
        let utf16: Vec<u8> = good.encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert!(parse(utf16, WHAT, Limits::Refuse).is_err(), "UTF-16");
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        for bad in ["", "null", "[]", "{", &format!("{good} x"), &format!("// c\n{good}"), &deep] {
            assert!(parsed(bad).is_err(), "{:.40}", bad);
        }
        let double = r#"{"ociVersion":"1.0.0","root":{"path":"r","path":"/"}}"#;
        let path = parsed(double).expect("valid JSON").spec.root().as_ref().map(|root| root.path().clone());
        assert_eq!(path, Some("/".into()), "the last one counts, as for everybody else");
        assert!(matches!(parsed(r#"{"ociVersion":"1.0.0"}"#), Err(BundleError::Missing { field: "root" })));
        let unknown = r#"{"ociVersion":"1.0.0","root":{"path":"r"},"future":{"x":1},"linux":{"other":2}}"#;
        assert!(parsed(unknown).is_ok(), "the specification wants unknown fields ignored");
    }

    #[test]
    fn c22_size() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = fs_err::File::create(dir.path().join(CONFIG)).expect("a file");
        file.set_len(1 << 30).expect("a sparse GiB");
        assert!(matches!(read(dir.path(), None, Limits::Refuse), Err(BundleError::TooLarge { .. })));
    }

    #[test]
    fn c09_unknown_capabilities_are_warned_about() {
        let config = parsed(
            r#"{"ociVersion":"1.0.0","root":{"path":"r"},"process":{"cwd":"/","user":{"uid":0,"gid":0},
                "capabilities":{"bounding":["CAP_KILL","CAP_FOO"],"effective":["CAP_FOO","CAP_KILL"]}}}"#,
        )
        .expect("valid");
        assert_eq!(config.warnings, ["unknown capability \"CAP_FOO\" is not granted"]);
        let process = config.spec.process().as_ref().expect("a process");
        let bounding = process.capabilities().as_ref().and_then(|caps| caps.bounding().clone());
        assert_eq!(bounding.map(|set| set.len()), Some(1));
    }

    #[test]
    fn limits_need_somebody_to_enforce_them() {
        let with = |resources: &str| {
            format!(r#"{{"ociVersion":"1.0.0","root":{{"path":"r"}},"linux":{{"resources":{resources}}}}}"#)
        };
        for (resources, field) in [
            (r#"{"memory":{"limit":1000000}}"#, Some("linux.resources.memory")),
            (r#"{"cpu":{"shares":100}}"#, Some("linux.resources.cpu")),
            (r#"{"pids":{"limit":10}}"#, Some("linux.resources.pids")),
            (r#"{"unified":{"memory.high":"1"}}"#, Some("linux.resources.unified")),
            (r#"{"pids":{"limit":0},"memory":{},"devices":[{"allow":false,"access":"rwm"}]}"#, None),
        ] {
            let text = with(resources).into_bytes();
            match (parse(text.clone(), WHAT, Limits::Refuse), field) {
                (Err(BundleError::Limit { field: found }), Some(field)) => assert_eq!(found, field),
                (Ok(_), None) => {}
                (other, _) => panic!("{resources}: {other:?}"),
            }
            assert!(parse(text, WHAT, Limits::Ignore).is_ok(), "{resources}");
        }
    }
}
