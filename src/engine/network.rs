//! The network of a container: which one it gets, and the helper that connects an own network namespace
//! to the outside without root: pasta, or slirp4netns where there is no pasta.
//!
//! Invariant: nothing of the host's loopback is reachable from inside, and nothing inside from
//! outside but the published ports. A helper has no way to learn that a container is gone, so a keeper
//! process ends it: it also does when coracle was killed.

mod pasta;
mod slirp;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use coracle_shim::Keeper;
use serde::{Deserialize, Serialize};

use super::files::FORWARDED_DNS;
use super::networks::{Attachment, NetworksPlan};
use super::options::Network;
use super::ports::{PortMapping, Protocol};

/// Says why a network could not be given.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("pasta is not installed")]
    NoPasta,
    #[error("neither pasta nor slirp4netns is installed")]
    NoHelper,
    #[error("cannot open /dev/net/tun")]
    NoTun(#[source] std::io::Error),
    #[error("ports can be published with an own network only")]
    PublishNeedsPasta,
    #[error("port {port} of the host needs privilege")]
    PortPrivileged { port: SocketAddr },
    #[error("port {port} is in use on the host")]
    PortInUse { port: SocketAddr, source: std::io::Error },
    #[error("port {port} cannot be published: slirp4netns, which stands in for pasta, knows IPv4 only")]
    PortFamily { port: SocketAddr },
    #[error("port {port} cannot be published: {reason}")]
    Port { port: SocketAddr, reason: String },
    #[error("cannot run {program}")]
    Spawn { program: &'static str, source: std::io::Error },
    #[error("{program} failed: {complaint}")]
    Helper { program: &'static str, complaint: String },
}

/// Is the network a container will get.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Plan {
    /// Loopback only.
    None,
    Host,
    /// An own one that leads outside, whatever helper does that.
    Pasta(OutsidePlan),
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
    pub fn outside(&self) -> Option<&OutsidePlan> {
        match self {
            Self::Pasta(outside) => Some(outside),
            Self::Networks(plan) => plan.outside.as_ref(),
            _ => None,
        }
    }
}

/// Is the program that connects a container to the outside.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HelperKind {
    #[default]
    Pasta,
    /// Without IPv6, and callers of published ports have its own address.
    Slirp4netns,
}

impl HelperKind {
    pub fn program(self) -> &'static str {
        match self {
            Self::Pasta => "pasta",
            Self::Slirp4netns => "slirp4netns",
        }
    }
}

/// Is everything a helper has to be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutsidePlan {
    #[serde(default)]
    pub kind: HelperKind,
    pub program: PathBuf,
    pub ports: Vec<PortMapping>,
    pub forward_dns: bool,
    /// What the device inside is called; the helper's own choice else.
    #[serde(default)]
    pub device: Option<String>,
}

/// Is where a helper's device is to be.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    /// In a container.
    Container {
        /// Its first process.
        pid: i32,
        user: BorrowedFd<'a>,
        net: BorrowedFd<'a>,
    },
    /// In the gate in front of one; the caller is in the user namespace that owns it.
    Gate { net: BorrowedFd<'a>, behind: [IpAddr; 2] },
}

/// The device that leads outside, beside those of user-defined networks.
pub const OUTSIDE_DEVICE: &str = "out0";
/// What a person hears who gets slirp4netns.
const SLIRP_NOTE: &str = "pasta is not installed, so slirp4netns connects the container: no IPv6, whoever calls a published \
                          port has its address, and UDP from this host itself gets no answer";
/// What a person hears who gets the host's network.
const HOST_NOTE: &str = "this host gives no own network (see coracle info); the container shares the host's";

type Find<'a> = &'a dyn Fn(&str) -> Option<PathBuf>;

/// Decides; the note says what a person should know about a decision they did not make.
pub fn plan(
    asked: &Network,
    publish: &[PortMapping],
    find: Find<'_>,
) -> Result<(Plan, Option<&'static str>), NetworkError> {
    match asked {
        Network::Container(_) if !publish.is_empty() => Err(NetworkError::PublishNeedsPasta),
        Network::Container(id) => Ok((Plan::Container(id.clone()), None)),
        Network::Named(attachments) => {
            let (outside, note) = named_outside(publish, find)?;
            Ok((Plan::Networks(NetworksPlan { outside: Some(outside), ..NetworksPlan::of(attachments.clone()) }), note))
        }
        Network::None | Network::Host if !publish.is_empty() => Err(NetworkError::PublishNeedsPasta),
        Network::None => Ok((Plan::None, None)),
        Network::Host => Ok((Plan::Host, None)),
        Network::Pasta => Ok((Plan::Pasta(outside_plan(publish, HelperKind::Pasta, find)?), None)),
        Network::Auto => match any_outside(publish, find) {
            Ok((outside, note)) => Ok((Plan::Pasta(outside), note)),
            Err(NetworkError::NoHelper | NetworkError::NoTun(_)) if publish.is_empty() => {
                Ok((Plan::Host, Some(HOST_NOTE)))
            }
            Err(error) => Err(error),
        },
    }
}

/// Plans the way out of a container with user-defined networks.
pub fn named_outside(
    publish: &[PortMapping],
    find: Find<'_>,
) -> Result<(OutsidePlan, Option<&'static str>), NetworkError> {
    let (outside, note) = any_outside(publish, find)?;
    Ok((OutsidePlan { device: Some(OUTSIDE_DEVICE.to_owned()), ..outside }, note))
}

fn any_outside(publish: &[PortMapping], find: Find<'_>) -> Result<(OutsidePlan, Option<&'static str>), NetworkError> {
    match outside_plan(publish, HelperKind::Pasta, find) {
        Err(NetworkError::NoPasta) => {
            outside_plan(publish, HelperKind::Slirp4netns, find).map(|plan| (plan, Some(SLIRP_NOTE)))
        }
        found => found.map(|plan| (plan, None)),
    }
}

fn outside_plan(publish: &[PortMapping], kind: HelperKind, find: Find<'_>) -> Result<OutsidePlan, NetworkError> {
    let program = find(kind.program()).ok_or(match kind {
        HelperKind::Pasta => NetworkError::NoPasta,
        HelperKind::Slirp4netns => NetworkError::NoHelper,
    })?;
    fs_err::OpenOptions::new().read(true).write(true).open("/dev/net/tun").map_err(NetworkError::NoTun)?;
    let ports = publish.iter().map(|mapping| free_port(*mapping)).collect::<Result<Vec<_>, _>>()?;
    let foreign = ports.iter().find(|mapping| mapping.ip.is_some_and(|ip| ip.is_ipv6()));
    if let (HelperKind::Slirp4netns, Some(mapping)) = (kind, foreign) {
        return Err(NetworkError::PortFamily { port: host_side(mapping) });
    }
    Ok(OutsidePlan { kind, program, ports, forward_dns: false, device: None })
}

fn host_side(mapping: &PortMapping) -> SocketAddr {
    SocketAddr::new(mapping.ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), mapping.host)
}

/// Checks that the host port is free, or picks one for port 0, before anything is made.
fn free_port(mapping: PortMapping) -> Result<PortMapping, NetworkError> {
    let port = host_side(&mapping);
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

impl OutsidePlan {
    /// Starts the helper under a keeper; when this returns, the network works.
    pub fn start(&self, place: Place<'_>, directory: &Path) -> Result<Keeper, NetworkError> {
        match self.kind {
            HelperKind::Pasta => pasta::start(self, place, directory),
            HelperKind::Slirp4netns => slirp::start(self, place, directory),
        }
    }

    /// Gives the address where the helper answers DNS for a host whose own resolver listens on loopback.
    pub fn forwarder(&self) -> &'static str {
        match self.kind {
            HelperKind::Pasta => FORWARDED_DNS,
            HelperKind::Slirp4netns => slirp::FORWARDED_DNS,
        }
    }

    fn keep(&self, helper: &coracle_shim::Helper<'_>) -> Result<Keeper, NetworkError> {
        let program = self.kind.program();
        let started = Keeper::start(helper).map_err(|source| NetworkError::Spawn { program, source })?;
        started.map_err(|complaint| NetworkError::Helper { program, complaint: last_line(&complaint) })
    }
}

/// Picks the last thing a helper said that is not about its own log.
fn last_line(text: &str) -> String {
    let said = text.lines().rev().find(|line| !line.trim().is_empty() && !line.starts_with("Failed to send"));
    said.unwrap_or("no message").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ports::parse_publish;

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
        assert!(matches!(plan(&Network::Auto, &publish, nowhere), Err(NetworkError::NoHelper)));
        assert!(matches!(plan(&Network::Host, &publish, nowhere), Err(NetworkError::PublishNeedsPasta)));
    }

    #[test]
    fn slirp4netns_stands_in_for_pasta_and_says_so() {
        let only_slirp = &|name: &str| (name == "slirp4netns").then(|| PathBuf::from("/usr/bin/slirp4netns"));
        // Where the device cannot be opened neither would do.
        let Ok((Plan::Pasta(found), note)) = plan(&Network::Auto, &[], only_slirp) else { return };
        assert_eq!((found.kind, note), (HelperKind::Slirp4netns, Some(SLIRP_NOTE)));
        assert!(matches!(plan(&Network::Pasta, &[], only_slirp), Err(NetworkError::NoPasta)));
        let six = parse_publish("[::1]::80").unwrap();
        assert!(plan(&Network::Auto, &six, only_slirp).is_err());
    }
}
