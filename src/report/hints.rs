//! What a person can do about an error, by its type.

use std::error::Error;
use std::io::ErrorKind;

use coracle_images::registry::{RegistryError, TlsFault};
use coracle_runtime::cgroup::CgroupError;
use coracle_runtime::{IdMapError, LaunchFailure, Stage};

use super::walk::walk;
use crate::engine::quota::QuotaError;
use crate::engine::{Elsewhere, EngineError, NetworkError, SpecError};

/// Gives the hints for an error and its causes, most specific first; at most one is the rule.
pub fn hints(error: &(dyn Error + 'static)) -> Vec<String> {
    walk(error)
        .find_map(|link| {
            if let Some(elsewhere) = link.downcast_ref::<Elsewhere>() {
                return Some(elsewhere.hints.clone());
            }
            hint(link).map(|text| vec![text])
        })
        .unwrap_or_default()
}

/// Gives the exit code where the error decides it: 126 and 127 of a program that cannot be run.
pub fn exit_code(error: &(dyn Error + 'static)) -> Option<u8> {
    walk(error).find_map(|link| {
        if let Some(elsewhere) = link.downcast_ref::<Elsewhere>() {
            return elsewhere.exit_code;
        }
        u8::try_from(link.downcast_ref::<LaunchFailure>()?.exit_code()).ok()
    })
}

fn hint(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(error) = error.downcast_ref::<std::io::Error>() {
        return io_hint(error).map(str::to_owned);
    }
    if let Some(error) = error.downcast_ref::<RegistryError>() {
        return registry_hint(error);
    }
    if let Some(error) = error.downcast_ref::<LaunchFailure>() {
        return launch_hint(error).map(str::to_owned);
    }
    if let Some(error) = error.downcast_ref::<NetworkError>() {
        return network_hint(error).map(str::to_owned);
    }
    if let Some(error) = error.downcast_ref::<IdMapError>() {
        return idmap_hint(error);
    }
    if let Some(error) = error.downcast_ref::<CgroupError>() {
        return error.fix();
    }
    if let Some(SpecError::UnmappedUser { .. } | SpecError::UnmappedGroup { .. }) = error.downcast_ref::<SpecError>() {
        return Some("coracle info shows how many ids this host gives you".into());
    }
    if let Some(error) = error.downcast_ref::<QuotaError>() {
        return error.hint();
    }
    match error.downcast_ref::<EngineError>()? {
        EngineError::NoImage(name) => Some(format!("coracle pull {name}")),
        EngineError::UnknownImage(_) => Some("coracle images lists what is here".into()),
        EngineError::UnknownContainer(_) => Some("coracle ps --all lists what is here".into()),
        EngineError::WrongPlatform { found, .. } => {
            Some(format!("pull it for this machine, or name --platform {found} if an emulator is installed"))
        }
        EngineError::NoTerminal => Some("leave -t out when the input is no terminal".into()),
        EngineError::ForeignState { .. } => Some("name a directory of your own with --root".into()),
        _ => None,
    }
}

fn io_hint(error: &std::io::Error) -> Option<&'static str> {
    match error.kind() {
        ErrorKind::StorageFull => Some("make room, or keep images elsewhere with --root"),
        ErrorKind::QuotaExceeded => Some("your quota on this filesystem is used up; --root can name another one"),
        ErrorKind::ReadOnlyFilesystem => Some("name a writable directory with --root"),
        _ => None,
    }
}

fn registry_hint(error: &RegistryError) -> Option<String> {
    match error {
        RegistryError::UnknownImage { .. } => Some("check the name and the tag".into()),
        RegistryError::Denied { authenticated: false, .. } => {
            Some("check the name; for a private image log in first (coracle login)".into())
        }
        RegistryError::Denied { .. } => Some("the account that is logged in may not do that".into()),
        RegistryError::Unauthorized { registry, rejected: false } => Some(format!("coracle login {registry}")),
        RegistryError::Unauthorized { registry, rejected: true } => {
            Some(format!("check user name and password: coracle login {registry}"))
        }
        RegistryError::Unreachable { .. } => {
            Some("check the name of the registry, the network and the proxy settings".into())
        }
        RegistryError::Tls { host, fault: TlsFault::NotTls, .. } => {
            Some(format!("if {host} speaks plain http only, name it in CORACLE_INSECURE_REGISTRIES"))
        }
        RegistryError::Tls { host, fault: TlsFault::UnknownAuthority, .. } => {
            Some(format!("put its authority's certificate into ~/.config/containers/certs.d/{host}/ca.crt"))
        }
        RegistryError::Tls { fault: TlsFault::Expired, .. } => Some("check the clock of this machine".into()),
        RegistryError::Realm { .. } => {
            Some("if you trust that host, allow it in CORACLE_TOKEN_HOSTS=REGISTRY=TOKEN_HOST".into())
        }
        RegistryError::RateLimited { .. } => Some("log in for a higher limit, or wait".into()),
        _ => None,
    }
}

fn launch_hint(error: &LaunchFailure) -> Option<&'static str> {
    match (error.stage, error.errno) {
        (Stage::Namespaces, nix::libc::EPERM | nix::libc::EACCES) => {
            Some("this host does not let ordinary users make namespaces; coracle info says which switch it is")
        }
        (Stage::Namespaces, nix::libc::ENOSPC | nix::libc::EUSERS) => {
            Some("user namespaces are switched off or used up; an administrator can set user.max_user_namespaces=10000")
        }
        (Stage::Ids, _) => Some("coracle info checks newuidmap and /etc/subuid; --userns=single needs neither"),
        (Stage::Rootfs | Stage::Mounts, nix::libc::ENOSPC) => {
            Some("the filesystem is full; --root can name another one")
        }
        (Stage::Exec, nix::libc::ENOEXEC) => Some("the program is for another machine, or a script without #!"),
        _ => None,
    }
}

fn network_hint(error: &NetworkError) -> Option<&'static str> {
    match error {
        NetworkError::NoPasta | NetworkError::NoHelper => {
            Some("apt install passt, or use --network=host or --network=none")
        }
        NetworkError::NoTun(_) => {
            Some("an administrator can run chmod 0666 /dev/net/tun; --network=host works without")
        }
        NetworkError::PublishNeedsPasta => Some("leave -p out, or leave --network out"),
        NetworkError::PortPrivileged { .. } => {
            Some("choose one from 1024 on, or an administrator can lower net.ipv4.ip_unprivileged_port_start")
        }
        NetworkError::PortInUse { .. } => Some("choose another host port, or leave it out to get a free one"),
        _ => None,
    }
}

fn idmap_hint(error: &IdMapError) -> Option<String> {
    match error {
        IdMapError::NoHelper { .. } => Some("apt install uidmap, or run with --userns=single".into()),
        IdMapError::Subordinate { file, .. } => {
            Some(format!("mend that line of {}, or use --userns=single", file.display()))
        }
        _ => None,
    }
}
