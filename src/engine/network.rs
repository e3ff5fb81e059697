//! The network of a container: which one it gets, and pasta, the helper that connects an own
//! network namespace to the outside without root (passt.top, pasta(1)).
//!
//! Invariant: nothing of the host's loopback is reachable from inside, and nothing inside from
//! outside but the published ports. pasta has no way to learn that a container is gone, so a keeper
//! process ends it: it also does when coracle was killed.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};

use coracle_shim::Keeper;
use serde::{Deserialize, Serialize};

use super::files::FORWARDED_DNS;
use super::networks::{self, Attachment, NetworksPlan};
use super::options::Network;
use super::ports::{PortMapping, Protocol};

/// Says why a network could not be given.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("pasta is not installed")]
    NoPasta,
    #[error("cannot open /dev/net/tun")]
    NoTun(#[source] std::io::Error),
    #[error("ports can be published with an own network only")]
    PublishNeedsPasta,
    #[error("port {port} of the host needs privilege")]
    PortPrivileged { port: SocketAddr },
    #[error("port {port} is in use on the host")]
    PortInUse { port: SocketAddr, source: std::io::Error },
    #[error("cannot run pasta")]
    Spawn(#[source] std::io::Error),
    #[error("pasta failed: {complaint}")]
    Pasta { complaint: String },
}

/// Is the network a container will get.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Plan {
    /// Loopback only.
    None,
    Host,
    Pasta(PastaPlan),
    /// User-defined ones.
    Networks(NetworksPlan),
    /// Another container's, by its id.
    Container(String),
}

impl Plan {
    /// Gives the user-defined networks.
    pub fn attachments(&self) -> &[Attachment] {
        match self {
            Self::Networks(plan) => &plan.attachments,
            _ => &[],
        }
    }

    /// Gives what connects it to the outside.
    pub fn outside(&self) -> Option<&PastaPlan> {
        match self {
            Self::Pasta(pasta) => Some(pasta),
            Self::Networks(plan) => plan.outside.as_ref(),
            _ => None,
        }
    }
}

/// Is everything pasta has to be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastaPlan {
    pub program: PathBuf,
    pub ports: Vec<PortMapping>,
    pub forward_dns: bool,
    /// What the device inside is called; pasta's own choice else, which is the host's name for it.
    #[serde(default)]
    pub device: Option<String>,
}

/// The device that leads outside, beside those of user-defined networks.
pub const OUTSIDE_DEVICE: &str = "out0";

/// Decides; the note says what a person should know about a decision they did not make.
pub fn plan(
    asked: &Network,
    publish: &[PortMapping],
    find: &dyn Fn(&str) -> Option<PathBuf>,
) -> Result<(Plan, Option<&'static str>), NetworkError> {
    match asked {
        Network::Container(_) if !publish.is_empty() => Err(NetworkError::PublishNeedsPasta),
        Network::Container(id) => Ok((Plan::Container(id.clone()), None)),
        Network::Named(attachments) => {
            let outside = pasta_plan(publish, find)?;
            let outside = Some(PastaPlan { device: Some(OUTSIDE_DEVICE.to_owned()), ..outside });
            let plan = NetworksPlan { attachments: attachments.clone(), outside, servers: Vec::new(), rate: None };
            Ok((Plan::Networks(plan), None))
        }
        Network::None | Network::Host if !publish.is_empty() => Err(NetworkError::PublishNeedsPasta),
        Network::None => Ok((Plan::None, None)),
        Network::Host => Ok((Plan::Host, None)),
        Network::Pasta | Network::Auto => match pasta_plan(publish, find) {
            Ok(plan) => Ok((Plan::Pasta(plan), None)),
            Err(NetworkError::NoPasta | NetworkError::NoTun(_)) if *asked == Network::Auto && publish.is_empty() => {
                Ok((
                    Plan::Host,
                    Some("this host gives no own network (see coracle info); the container shares the host's"),
                ))
            }
            Err(error) => Err(error),
        },
    }
}

fn pasta_plan(publish: &[PortMapping], find: &dyn Fn(&str) -> Option<PathBuf>) -> Result<PastaPlan, NetworkError> {
    let program = find("pasta").ok_or(NetworkError::NoPasta)?;
    fs_err::OpenOptions::new().read(true).write(true).open("/dev/net/tun").map_err(NetworkError::NoTun)?;
    let ports = publish.iter().map(|mapping| free_port(*mapping)).collect::<Result<_, _>>()?;
    Ok(PastaPlan { program, ports, forward_dns: false, device: None })
}

/// Checks that the host port is free, or picks one for port 0, before anything is made.
fn free_port(mapping: PortMapping) -> Result<PortMapping, NetworkError> {
    let ip = mapping.ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let port = SocketAddr::new(ip, mapping.host);
    let bound = match mapping.protocol {
        Protocol::Tcp => TcpListener::bind(port).and_then(|socket| socket.local_addr()),
        Protocol::Udp => UdpSocket::bind(port).and_then(|socket| socket.local_addr()),
    };
    let bound = bound.map_err(|source| match source.kind() {
        std::io::ErrorKind::PermissionDenied => NetworkError::PortPrivileged { port },
        _ => NetworkError::PortInUse { port, source },
    })?;
    Ok(PortMapping { host: bound.port(), ..mapping })
}

impl PastaPlan {
    /// Gives pasta's arguments.
    ///
    /// `behind` is the address of a container behind a gate, which routes to it itself.
    fn arguments(&self, (user, net): (&str, &str), behind: Option<Ipv4Addr>, pid_file: &Path) -> Vec<String> {
        let mut arguments: Vec<String> = ["--quiet", "--no-map-gw"].map(str::to_owned).to_vec();
        match behind {
            None => arguments.push("--config-net".to_owned()),
            Some(ip) => {
                arguments.push("--ipv4-only".to_owned());
                arguments.extend(["--ns-ifname".to_owned(), networks::OUTSIDE.to_owned()]);
                arguments.extend(["--address".to_owned(), ip.to_string()]);
                arguments.extend(["--netmask".to_owned(), networks::OUTSIDE_PREFIX.to_string()]);
                arguments.extend(["--gateway".to_owned(), networks::OUTSIDE_ROUTER.to_string()]);
            }
        }
        for (flag, protocol) in [("-t", Protocol::Tcp), ("-u", Protocol::Udp)] {
            let mut any = false;
            for mapping in self.ports.iter().filter(|mapping| mapping.protocol == protocol) {
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
        if self.forward_dns {
            arguments.extend(["--dns-forward".to_owned(), FORWARDED_DNS.to_owned()]);
        }
        if let (Some(device), None) = (&self.device, behind) {
            arguments.extend(["--ns-ifname".to_owned(), device.clone()]);
        }
        arguments.extend(["--pid".to_owned(), pid_file.display().to_string()]);
        arguments.extend(["--userns".to_owned(), user.to_owned(), "--netns".to_owned(), net.to_owned()]);
        arguments
    }

    /// Starts pasta under a keeper; when this returns, the network works.
    ///
    /// `pid` is the container's first process, which waits: pasta opens the second namespace from
    /// within the first, where descriptors of this process are out of its reach.
    pub fn start(&self, pid: i32, directory: &Path) -> Result<Keeper, NetworkError> {
        let path = |kind: &str| format!("/proc/{pid}/ns/{kind}");
        self.start_at(&path("user"), &path("net"), None, directory)
    }

    /// Starts pasta in a network namespace, for the container itself or for one behind it.
    pub fn start_at(
        &self,
        user: &str,
        net: &str,
        behind: Option<Ipv4Addr>,
        directory: &Path,
    ) -> Result<Keeper, NetworkError> {
        let pid_file = directory.join("pasta.pid");
        let mut arguments = self.arguments((user, net), behind, &pid_file);
        if rustix::process::geteuid().is_root() {
            // Else it would become nobody, who may not join root's namespaces.
            arguments.extend(["--runas".to_owned(), "0:0".to_owned()]);
        }
        let started = Keeper::start(&pid_file, &self.program, &arguments).map_err(NetworkError::Spawn)?;
        started.map_err(|complaint| NetworkError::Pasta { complaint: last_line(&complaint) })
    }
}

/// Picks the last thing pasta said that is not about its own log.
fn last_line(text: &str) -> String {
    let said = text.lines().rev().find(|line| !line.trim().is_empty() && !line.starts_with("Failed to send"));
    said.unwrap_or("no message").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ports::parse_publish;

    fn arguments(publish: &[&str]) -> String {
        let ports = publish.iter().flat_map(|text| parse_publish(text).unwrap()).collect();
        let plan = PastaPlan { program: "/usr/bin/pasta".into(), ports, forward_dns: false, device: None };
        plan.arguments(("U", "N"), None, Path::new("/p")).join(" ")
    }

    #[test]
    fn a71_nothing_is_forwarded_unless_published() {
        let text = arguments(&[]);
        for part in ["--no-map-gw", "-t none", "-u none", "-T none", "-U none"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn published_ports_become_pastas_specification() {
        let text = arguments(&["127.0.0.1:8080:80", "53:5353/udp"]);
        assert!(text.contains("-t 127.0.0.1/8080:80") && text.contains("-u 53:5353"), "{text}");
        assert!(!text.contains("-t none"));
    }

    #[test]
    fn a_port_in_use_is_refused_before_anything_is_made() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let mapping = parse_publish(&format!("127.0.0.1:{port}:80")).unwrap()[0];
        assert!(matches!(free_port(mapping), Err(NetworkError::PortInUse { .. })));
        let any = parse_publish("127.0.0.1::80").unwrap()[0];
        assert_ne!(free_port(any).unwrap().host, 0);
    }

    #[test]
    fn without_pasta_auto_shares_and_publish_fails() {
        let nowhere = &|_: &str| None;
        let (shared, note) = plan(&Network::Auto, &[], nowhere).unwrap();
        assert_eq!(shared, Plan::Host);
        assert!(note.is_some());
        let publish = parse_publish("8080:80").unwrap();
        assert!(matches!(plan(&Network::Auto, &publish, nowhere), Err(NetworkError::NoPasta)));
        assert!(matches!(plan(&Network::Host, &publish, nowhere), Err(NetworkError::PublishNeedsPasta)));
    }
}
