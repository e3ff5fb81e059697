//! What is taken away from the finished tree: sysctls that are set once, hidden and read-only paths.

use std::path::PathBuf;

use oci_spec::runtime::{Linux, Spec};

use super::NamespacePlan;
use super::mounts::clean;
use super::refuse;
use crate::failure::LaunchFailure;
use crate::sys::CloneFlags;

/// Everything that confines the container as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Confinement {
    pub(crate) hostname: Option<String>,
    pub(crate) domainname: Option<String>,
    /// Path below /proc/sys, and what is written there.
    pub(crate) sysctls: Vec<(PathBuf, String)>,
    pub(crate) masked: Vec<PathBuf>,
    pub(crate) readonly: Vec<PathBuf>,
}

/// The kernel's `__NEW_UTS_LEN`.
const HOSTNAME_MAX: usize = 64;

/// The sysctls of `kernel/` that belong to the IPC namespace (ipc_namespaces(7)).
pub const IPC_SYSCTLS: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

pub(super) fn plan(spec: &Spec, linux: &Linux, namespaces: &NamespacePlan) -> Result<Confinement, LaunchFailure> {
    let named = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
    let plan = Confinement {
        hostname: named(spec.hostname()),
        domainname: named(spec.domainname()),
        sysctls: sysctls(linux, namespaces)?,
        masked: paths(linux.masked_paths().as_deref(), "linux.maskedPaths")?,
        readonly: paths(linux.readonly_paths().as_deref(), "linux.readonlyPaths")?,
    };
    for (field, name) in [("hostname", &plan.hostname), ("domainname", &plan.domainname)] {
        let Some(name) = name else { continue };
        check_name(name).map_err(|statement| refuse(field, statement))?;
        if !namespaces.create.contains(CloneFlags::UTS) {
            return Err(refuse(field, "needs a new uts namespace"));
        }
    }
    Ok(plan)
}

fn check_name(name: &str) -> Result<(), &'static str> {
    if name.len() > HOSTNAME_MAX {
        return Err("is longer than 64 bytes");
    }
    if name.bytes().any(|byte| byte.is_ascii_control() || byte == b' ' || byte == b'/') {
        return Err("contains a character that no host name has");
    }
    Ok(())
}

fn sysctls(linux: &Linux, namespaces: &NamespacePlan) -> Result<Vec<(PathBuf, String)>, LaunchFailure> {
    let mut keys: Vec<(&String, &String)> = linux.sysctl().iter().flatten().collect();
    // A map has no order; ours makes failures repeatable.
    keys.sort();
    keys.into_iter()
        .map(|(key, value)| {
            let path = sysctl_path(key, namespaces).map_err(|why| refuse(&format!("sysctl {key:?}"), why))?;
            if value.bytes().any(|byte| byte == 0 || byte == b'\n' || byte == b'\r') {
                return Err(refuse(&format!("sysctl {key:?}"), "has a value of more than one line"));
            }
            Ok((path, value.clone()))
        })
        .collect()
}

/// Where a sysctl lives, if it belongs to a namespace of the container alone (A19).
///
/// As in sysctl(8) the first of `.` and `/` in a key separates; the other stands for itself then.
fn sysctl_path(key: &str, namespaces: &NamespacePlan) -> Result<PathBuf, &'static str> {
    let slashes = key.find('/').is_some_and(|slash| key.find('.').is_none_or(|dot| slash < dot));
    let parts: Vec<String> = if slashes {
        key.split('/').map(str::to_owned).collect()
    } else {
        key.split('.').map(|part| part.replace('/', ".")).collect()
    };
    let fits = |part: &String| {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'@' | b':');
        !part.is_empty() && part != "." && part != ".." && part.bytes().all(known)
    };
    if parts.len() < 2 || !parts.iter().all(fits) {
        return Err("is not a sysctl");
    }
    let dotted = parts.join(".");
    let owner = if parts[0] == "net" {
        CloneFlags::NET
    } else if IPC_SYSCTLS.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.") {
        CloneFlags::IPC
    } else if dotted == "kernel.hostname" {
        return Err("is the specification's own field hostname");
    } else if dotted == "kernel.domainname" {
        CloneFlags::UTS
    } else {
        return Err("does not belong to a namespace of the container");
    };
    if !namespaces.create.contains(owner) {
        return Err("belongs to a namespace that is not the container's own");
    }
    Ok(parts.iter().collect())
}

fn paths(list: Option<&[String]>, field: &str) -> Result<Vec<PathBuf>, LaunchFailure> {
    /// Each path costs a mount, and the kernel allows 100,000 in one namespace.
    const PATHS_MAX: usize = 10_000;
    let list = list.unwrap_or_default();
    if list.len() > PATHS_MAX {
        return Err(refuse(field, "has more than 10000 paths"));
    }
    list.iter()
        .map(|text| {
            let path = PathBuf::from(text);
            if !path.is_absolute() {
                return Err(refuse(&format!("{field}: {text:?}"), "is not absolute"));
            }
            let path = clean(&path)?;
            if path.parent().is_none() {
                return Err(refuse(field, "cannot contain the root"));
            }
            Ok(path)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(key: &str, own: CloneFlags) -> Result<PathBuf, &'static str> {
        sysctl_path(key, &NamespacePlan { create: own, ..NamespacePlan::default() })
    }

    #[test]
    fn a19_only_namespaced_sysctls() {
        let all = CloneFlags::NET.with(CloneFlags::IPC).with(CloneFlags::UTS);
        let good = [
            ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
            ("net/ipv4/conf/eth0.1/rp_filter", "net/ipv4/conf/eth0.1/rp_filter"),
            ("net.ipv4.conf.eth0/1.rp_filter", "net/ipv4/conf/eth0.1/rp_filter"),
            ("kernel.shmmax", "kernel/shmmax"),
            ("fs.mqueue.msg_max", "fs/mqueue/msg_max"),
        ];
        for (key, expect) in good {
            assert_eq!(path(key, all), Ok(PathBuf::from(expect)), "{key}");
        }
        let bad = [
            "kernel.core_pattern",
            "kernel.shm+max",
            "kernel",
            "",
            "net",
            "net..x",
            "net.../x",
            "net/../kernel/core_pattern",
            "net.ipv4.\n",
            "vm.swappiness",
            "fs.file-max",
            "kernel.shmmax/../core_pattern",
            "/net/ipv4/x",
            "net.ipv4.x=1",
        ];
        for key in bad {
            assert!(path(key, all).is_err(), "{key:?}");
        }
        assert!(path("net.ipv4.ip_forward", CloneFlags::IPC).is_err(), "the host's network");
        assert!(path("kernel.shmmax", CloneFlags::NET).is_err(), "the host's ipc");
    }

    #[test]
    fn c17_names() {
        assert!(check_name("web-1.example").is_ok());
        assert!(check_name(&"a".repeat(64)).is_ok());
        for bad in ["a b", "a\n", "a/b", &"a".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn c20_paths() {
        let list = |paths_given: &[&str]| {
            let owned: Vec<String> = paths_given.iter().map(|path| (*path).to_owned()).collect();
            paths(Some(&owned), "linux.maskedPaths")
        };
        assert_eq!(list(&["/proc/kcore"]).expect("fine"), [PathBuf::from("/proc/kcore")]);
        assert!(list(&["proc/kcore"]).is_err());
        assert!(list(&["/"]).is_err());
        assert!(list(&["/proc/../.."]).is_err());
    }
}
