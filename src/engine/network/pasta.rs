//! pasta (passt.top, pasta(1)), from Debian 12's version on, which is the one that is tested.
//!
//! Debian 12's loses the answers of a UDP port that has another number inside, where the caller is on the host's own
//! loopback; callers from elsewhere and equal numbers are well (`tests/network_outside.rs`).
//!
//! Newer ones, by their manual and source: from October 2024 a caller on the host's loopback reaches the container's
//! own address and no more its loopback (`--host-lo-to-ns-lo` is the old way), which is what docker does; behind a gate
//! that address is routed to the container, so that the relay only idles. `--no-map-gw` keeps its meaning beside
//! `--map-host-loopback` and `--map-guest-addr`. `--dns-forward` also takes TCP, and asks the server of `--dns-host`
//! or the host's first one, loopback or not; names of user-defined networks never go through pasta.

use std::net::IpAddr;
use std::path::Path;

use coracle_shim::{Helper, Keeper, Manner};

use super::{NetworkError, OutsidePlan, Place};
use crate::engine::files::FORWARDED_DNS;
use crate::engine::networks;
use crate::engine::ports::Protocol;

/// Starts it; the container's first process may still wait.
pub fn start(plan: &OutsidePlan, place: Place<'_>, directory: &Path) -> Result<Keeper, NetworkError> {
    let pid_file = directory.join("pasta.pid");
    let mut arguments = arguments(plan, place, &pid_file);
    if rustix::process::geteuid().is_root() {
        // Else it would become nobody, who may not join root's namespaces.
        arguments.extend(["--runas".to_owned(), "0:0".to_owned()]);
    }
    let manner = Manner::Background(&pid_file);
    let (input, again) = match place {
        Place::Container { .. } => (None, true),
        // The routes behind it have to be made again too.
        Place::Gate { net, .. } => (Some(net), false),
    };
    plan.keep(&Helper { program: &plan.program, arguments: &arguments, directory, input, manner, again })
}

fn arguments(plan: &OutsidePlan, place: Place<'_>, pid_file: &Path) -> Vec<String> {
    let mut arguments: Vec<String> = ["--quiet", "--no-map-gw"].map(str::to_owned).to_vec();
    match place {
        Place::Container { .. } => {
            arguments.push("--config-net".to_owned());
            if let Some(device) = &plan.device {
                arguments.extend(["--ns-ifname".to_owned(), device.clone()]);
            }
        }
        Place::Gate { behind, .. } => {
            arguments.extend(["--ns-ifname".to_owned(), networks::OUTSIDE.to_owned()]);
            arguments.extend(behind.iter().flat_map(|ip| ["--address".to_owned(), ip.to_string()]));
            arguments.extend(["--netmask".to_owned(), networks::OUTSIDE_PREFIX.to_string()]);
            let routers = [IpAddr::V4(networks::OUTSIDE_ROUTER), IpAddr::V6(networks::OUTSIDE_ROUTER6)];
            arguments.extend(routers.iter().flat_map(|ip| ["--gateway".to_owned(), ip.to_string()]));
        }
    }
    for (flag, protocol) in [("-t", Protocol::Tcp), ("-u", Protocol::Udp)] {
        let mut any = false;
        for mapping in plan.ports.iter().filter(|mapping| mapping.protocol == protocol) {
            any = true;
            let address = mapping.ip.map(|ip| format!("{ip}/")).unwrap_or_default();
            arguments.extend([flag.to_owned(), format!("{address}{}:{}", mapping.host, mapping.container)]);
        }
        if !any {
            arguments.extend([flag.to_owned(), "none".to_owned()]);
        }
    }
    // No way from inside to the host's own loopback services.
    arguments.extend(["-T", "none", "-U", "none"].map(str::to_owned));
    if plan.forward_dns {
        arguments.extend(["--dns-forward".to_owned(), FORWARDED_DNS.to_owned()]);
    }
    arguments.extend(["--pid".to_owned(), pid_file.display().to_string()]);
    match place {
        // It opens the second from within the first, where descriptors of this process are out of its reach.
        Place::Container { pid, .. } => {
            arguments.extend(["--userns".to_owned(), format!("/proc/{pid}/ns/user")]);
            arguments.extend(["--netns".to_owned(), format!("/proc/{pid}/ns/net")]);
        }
        // Having dropped capabilities it may not look at this process's descriptors.
        Place::Gate { .. } => {
            arguments.extend(["--netns-only", "--netns", "/proc/self/fd/0"].map(str::to_owned));
        }
    }
    arguments
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::super::HelperKind;
    use super::*;
    use crate::engine::ports::parse_publish;

    fn said(publish: &[&str]) -> String {
        let ports = publish.iter().flat_map(|text| parse_publish(text).unwrap()).collect();
        let program = "/usr/bin/pasta".into();
        let plan = OutsidePlan { kind: HelperKind::Pasta, program, ports, forward_dns: false, device: None };
        let any = std::io::stdin();
        let place = Place::Container { pid: 7, user: any.as_fd(), net: any.as_fd() };
        arguments(&plan, place, Path::new("/p")).join(" ")
    }

    #[test]
    fn a71_nothing_is_forwarded_unless_published() {
        let text = said(&[]);
        for part in ["--no-map-gw", "-t none", "-u none", "-T none", "-U none"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn published_ports_become_pastas_specification() {
        let text = said(&["127.0.0.1:8080:80", "53:5353/udp"]);
        assert!(text.contains("-t 127.0.0.1/8080:80") && text.contains("-u 53:5353"), "{text}");
        assert!(!text.contains("-t none"));
    }
}
