//! What a container shares with the host and what is set in its namespaces: Docker's --sysctl, --domainname, --annotation,
//! --device, --ipc, --uts and --cgroupns. Plain data, laid over a specification; only a device is looked at.

use std::collections::BTreeMap;
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};

use coracle_runtime::IPC_SYSCTLS;
use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};
use serde::{Deserialize, Serialize};

/// Where programs find shared memory and message queues.
const SHM: &str = "/dev/shm";
const MQUEUE: &str = "/dev/mqueue";
/// What a bound device or directory of memory never gets.
const BOUND: [&str; 4] = ["bind", "rprivate", "nosuid", "noexec"];

/// Says why one of these flags cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum IsolationError {
    #[error("sysctl {0:?} is not allowed: expected NAME=VALUE of net.*, fs.mqueue.* or kernel.msg*, sem and shm*")]
    Sysctl(String),
    #[error("sysctl {name:?} is not allowed in the {kind} namespace of the host")]
    SysctlOfHost { name: String, kind: &'static str },
    #[error("sysctl {0:?} is not allowed in the network of another container")]
    SysctlOfOther(String),
    #[error("conflicting options: {0} and the UTS mode")]
    UtsConflict(&'static str),
    #[error("conflicting options: --shm-size and the IPC mode")]
    ShmConflict,
    #[error("invalid annotation {0:?}: expected NAME=VALUE")]
    Annotation(String),
    #[error("invalid domain name {0:?}: 1 to 64 letters, digits, dots and hyphens")]
    Domainname(String),
    #[error("invalid device {device:?}: {reason}")]
    Device { device: String, reason: String },
    #[error("error gathering device information while adding custom device {device:?}")]
    NoDevice { device: String, source: std::io::Error },
}

/// Is what was asked, and what is kept about it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Isolation {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domainname: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
    pub ipc: Ipc,
    /// The host's namespaces instead of own ones.
    pub host_uts: bool,
    pub host_cgroup: bool,
}

/// Is one `--device`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    pub host: PathBuf,
    pub inside: PathBuf,
}

/// Names whose shared memory and queues a container has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ipc {
    /// Its own.
    #[default]
    Private,
    /// Its own, without /dev/shm.
    None,
    Host,
}

impl Ipc {
    /// Gives docker's word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Private => "private",
            Self::None => "none",
            Self::Host => "host",
        }
    }
}

impl Isolation {
    /// Says whether nothing of it was asked for.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Takes one `--sysctl NAME=VALUE`.
    pub fn add_sysctl(&mut self, text: &str) -> Result<(), IsolationError> {
        let fail = || IsolationError::Sysctl(text.to_owned());
        let (name, value) = text.split_once('=').ok_or_else(fail)?;
        let clean = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-./:@".contains(&byte));
        let dotted = name.replace('/', ".");
        let known = IPC_SYSCTLS.contains(&name) || name.starts_with("fs.mqueue.") || dotted.starts_with("net.");
        if !clean || !known || name.ends_with(['.', '/']) || dotted.contains("..") {
            return Err(fail());
        }
        self.sysctls.insert(name.to_owned(), value.to_owned());
        Ok(())
    }

    /// Takes one `--annotation NAME=VALUE`.
    pub fn add_annotation(&mut self, text: &str) -> Result<(), IsolationError> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => {
                self.annotations.insert(name.to_owned(), value.to_owned());
                Ok(())
            }
            _ => Err(IsolationError::Annotation(text.to_owned())),
        }
    }

    /// Takes `--domainname`.
    pub fn set_domainname(&mut self, name: String) -> Result<(), IsolationError> {
        /// The kernel's __NEW_UTS_LEN, uname(2).
        const NAME_BYTES_MAX: usize = 64;
        let clean = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !clean {
            return Err(IsolationError::Domainname(name));
        }
        self.domainname = Some(name);
        Ok(())
    }

    /// Takes one `--device HOST[:INSIDE][:PERMISSIONS]`; it is looked at, not opened.
    pub fn add_device(&mut self, text: &str) -> Result<(), IsolationError> {
        let fail = |reason: &str| IsolationError::Device { device: text.to_owned(), reason: reason.to_owned() };
        let parts: Vec<&str> = text.split(':').collect();
        let is_mode = |part: &str| !part.is_empty() && part.bytes().all(|byte| b"rwm".contains(&byte));
        let (host, inside, mode) = match parts.as_slice() {
            [host] => (*host, *host, "rwm"),
            [host, mode] if is_mode(mode) => (*host, *host, *mode),
            [host, inside] => (*host, *inside, "rwm"),
            [host, inside, mode] if is_mode(mode) => (*host, *inside, *mode),
            [_, _, mode] => return Err(fail(&format!("bad mode specified: {mode}"))),
            _ => return Err(fail("bad format for path")),
        };
        if !mode.contains('r') || !mode.contains('w') {
            return Err(fail("who may read and write it is its own mode's word; fewer rights need root"));
        }
        let plain = |path: &str| {
            let names = Path::new(path).components().skip(1);
            path.starts_with('/') && path != "/" && names.clone().all(|part| matches!(part, Component::Normal(_)))
        };
        if let Some(bad) = [host, inside].into_iter().find(|path| !plain(path)) {
            return Err(fail(&format!("{bad} is not an absolute path")));
        }
        // Names below /dev such as those of disks are links.
        let found = fs_err::canonicalize(host);
        let found = found.and_then(|path| Ok((fs_err::metadata(&path)?.file_type(), path)));
        let (kind, host) = found.map_err(|source| IsolationError::NoDevice { device: text.to_owned(), source })?;
        if !kind.is_char_device() && !kind.is_block_device() {
            return Err(fail("not a device node"));
        }
        self.devices.push(Device { host, inside: inside.into() });
        Ok(())
    }

    /// Gives the host name of a container: its own, or the host's.
    pub fn hostname(&self, asked: Option<&str>, own: &str) -> Result<String, IsolationError> {
        match (self.host_uts, asked) {
            (true, Some(_)) => Err(IsolationError::UtsConflict("hostname")),
            (true, None) if self.domainname.is_some() => Err(IsolationError::UtsConflict("domainname")),
            (true, None) => Ok(rustix::system::uname().nodename().to_string_lossy().into_owned()),
            (false, asked) => Ok(asked.unwrap_or(own).to_owned()),
        }
    }

    /// Refuses what the namespaces that are shared do not allow.
    pub fn check(&self, network: NetworkOf, shm_size: bool) -> Result<(), IsolationError> {
        if shm_size && self.ipc != Ipc::Private {
            return Err(IsolationError::ShmConflict);
        }
        for name in self.sysctls.keys() {
            let of_network = name.starts_with("net");
            match network {
                NetworkOf::Host if of_network => {
                    return Err(IsolationError::SysctlOfHost { name: name.clone(), kind: "network" });
                }
                NetworkOf::Other if of_network => return Err(IsolationError::SysctlOfOther(name.clone())),
                _ if !of_network && self.ipc == Ipc::Host => {
                    return Err(IsolationError::SysctlOfHost { name: name.clone(), kind: "IPC" });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Lays it over a specification.
    pub fn apply(&self, spec: &mut Spec) {
        if let Some(name) = &self.domainname {
            spec.set_domainname(Some(name.clone()));
        }
        if !self.annotations.is_empty() {
            let own = self.annotations.iter().map(|(name, value)| (name.clone(), value.clone()));
            spec.set_annotations(Some(own.collect()));
        }
        if self.host_uts {
            spec.set_hostname(None);
        }
        if let Some(mounts) = spec.mounts_mut() {
            self.share_memory(mounts);
            mounts.extend(self.devices.iter().map(|device| bound(&device.host, &device.inside, &["ro"])));
        }
        let Some(linux) = spec.linux_mut() else { return };
        let mut sysctls = linux.sysctl().clone().unwrap_or_default();
        sysctls.extend(self.sysctls.iter().map(|(name, value)| (name.clone(), value.clone())));
        linux.set_sysctl((!sysctls.is_empty()).then_some(sysctls));
        let shared = |kind: LinuxNamespaceType| match kind {
            LinuxNamespaceType::Uts => self.host_uts,
            LinuxNamespaceType::Cgroup => self.host_cgroup,
            LinuxNamespaceType::Ipc => self.ipc == Ipc::Host,
            _ => false,
        };
        if let Some(namespaces) = linux.namespaces_mut() {
            namespaces.retain(|namespace| !shared(namespace.typ()));
        }
    }

    /// Puts the host's memory and queues where the container's own would be; what the person mounts there stays.
    fn share_memory(&self, mounts: &mut Vec<Mount>) {
        let own = |mount: &Mount, path: &str, kind: &str| {
            mount.destination() == Path::new(path) && mount.source().as_deref() == Some(Path::new(kind))
        };
        match self.ipc {
            Ipc::Private => {}
            Ipc::None => mounts.retain(|mount| !own(mount, SHM, "shm")),
            Ipc::Host => {
                for (path, kind) in [(SHM, "shm"), (MQUEUE, "mqueue")] {
                    let Some(place) = mounts.iter().position(|mount| own(mount, path, kind)) else { continue };
                    if Path::new(path).is_dir() {
                        mounts[place] = bound(Path::new(path), Path::new(path), &["nodev"]);
                    } else {
                        mounts.remove(place);
                    }
                }
            }
        }
    }
}

/// Says whose network a container has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkOf {
    Itself,
    Host,
    Other,
}

fn bound(source: &Path, destination: &Path, more: &[&str]) -> Mount {
    let mut mount = Mount::default();
    let options = BOUND.iter().chain(more).map(|option| (*option).to_owned()).collect();
    mount
        .set_destination(destination.to_owned())
        .set_typ(Some("bind".to_owned()))
        .set_source(Some(source.to_owned()))
        .set_options(Some(options));
    mount
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(text: &str) -> Result<Device, String> {
        let mut isolation = Isolation::default();
        isolation.add_device(text).map_err(|error| crate::report::chain(&error))?;
        Ok(isolation.devices.remove(0))
    }

    #[test]
    fn devices() {
        let zero = |inside: &str| Ok(Device { host: "/dev/zero".into(), inside: inside.into() });
        assert_eq!(device("/dev/zero"), zero("/dev/zero"));
        assert_eq!(device("/dev/zero:rw"), zero("/dev/zero"));
        assert_eq!(device("/dev/zero:/dev/x"), zero("/dev/x"));
        assert_eq!(device("/dev/zero:/dev/x:rwm"), zero("/dev/x"));
        for (bad, reason) in [
            ("/dev/zero:/dev/x:rx", "bad mode specified: rx"),
            ("/dev/zero:r", "fewer rights need root"),
            ("/dev/zero:/dev/x:w", "fewer rights need root"),
            ("/dev/zero:x", "x is not an absolute path"),
            ("/dev/../etc", "not an absolute path"),
            ("/dev/zero:/", "not an absolute path"),
            ("/etc", "not a device node"),
            ("/dev/no-such-device", "no such file or directory"),
            ("vendor.com/class=all", "not an absolute path"),
            ("a:b:c:d", "bad format for path"),
            ("", "not an absolute path"),
        ] {
            let said = device(bad).unwrap_err();
            assert!(said.contains(reason), "{bad}: {said}");
        }
    }

    #[test]
    fn a19_sysctls_of_a_namespace_only() {
        let mut isolation = Isolation::default();
        for good in ["net.ipv4.ip_forward=1", "kernel.msgmax=65536", "fs.mqueue.msg_max=20", "net/ipv4/x=", "net.a=b=c"]
        {
            isolation.add_sysctl(good).unwrap();
        }
        for bad in
            ["kernel.panic=1", "vm.swappiness=1", "net.x", "net..x=1", "net.=1", "kernel.hostname=x", "=1", "net.a b=1"]
        {
            assert!(isolation.add_sysctl(bad).is_err(), "{bad}");
        }
        assert!(isolation.check(NetworkOf::Itself, false).is_ok());
        assert!(isolation.check(NetworkOf::Host, false).is_err());
        assert!(isolation.check(NetworkOf::Other, false).is_err());
        isolation.ipc = Ipc::Host;
        assert!(isolation.check(NetworkOf::Itself, false).unwrap_err().to_string().contains("IPC namespace"));
        assert!(matches!(isolation.check(NetworkOf::Itself, true), Err(IsolationError::ShmConflict)));
    }
}
