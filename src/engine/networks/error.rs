//! What can go wrong with a user-defined network.

use std::net::IpAddr;
use std::path::PathBuf;

use super::netlink::NetlinkError;
use super::subnet::Subnet;
use super::wire::WireError;
use crate::engine::container::ContainerError;
use crate::engine::network::NetworkError;

/// Says why a network cannot be made, used or removed.
#[derive(Debug, thiserror::Error)]
pub enum NetworksError {
    #[error("no such network: {0}")]
    Unknown(String),
    #[error("network {0} exists already")]
    Exists(String),
    #[error("invalid network name {0:?}: it starts with a letter or digit, then also . _ and -")]
    Name(String),
    #[error("network name {0} has a meaning of its own")]
    Reserved(String),
    #[error("network {name} is used by container {container}")]
    InUse { name: String, container: String },
    #[error("network {name} was written by a newer coracle (form {version})")]
    Newer { name: String, version: u32 },
    #[error("there are {max} networks already", max = super::record::NETWORKS_MAX)]
    TooMany,
    #[error("no range of addresses is free")]
    NoSubnet,
    #[error("invalid range of addresses {0:?}: expected ADDRESS/BITS of 8 to 30 bits, or 48 to 126 for IPv6")]
    Subnet(String),
    #[error("range {0} overlaps another network's")]
    Overlap(Subnet),
    #[error("range {0} is a second one of its family")]
    TwoSubnets(Subnet),
    #[error("gateway {0} is in none of the network's ranges")]
    Gateway(IpAddr),
    #[error("network option {0} is not implemented")]
    Option(String),
    #[error("network option {key} cannot be {value:?}: {reason}")]
    OptionValue { key: String, value: String, reason: &'static str },
    #[error("address {ip} is not one that a container of network {network} can have")]
    Address { ip: IpAddr, network: String },
    #[error("address {ip} of network {network} is in use")]
    Taken { ip: IpAddr, network: String },
    #[error("network {0} has no free address")]
    Full(String),
    #[error("container {container} is in network {network} already")]
    Joined { container: String, network: String },
    #[error("network {0} is given twice")]
    Twice(String),
    #[error("container {container} is not in network {network}")]
    NotJoined { container: String, network: String },
    #[error("container {0} was not started in a user-defined network, so none can be connected while it runs")]
    NotConnectable(String),
    #[error("container {0} has other ids inside, so its network cannot be shared")]
    OtherIds(String),
    #[error("a network rate needs a network of the container's own: not none, host or another container's")]
    RateNeedsOwn,
    #[error("a network rate needs pasta; with slirp4netns it is not implemented")]
    RateNeedsPasta,
    #[error("a network rate and more than one network exclude each other")]
    RateNeedsOne,
    #[error("container {0} was made without a network rate, so it has none to change")]
    NoRate(String),
    #[error("cannot {op} {}", path.display())]
    Io { op: &'static str, path: PathBuf, source: std::io::Error },
    #[error("network {name} cannot be brought up: {reason}")]
    Holder { name: String, reason: String },
    #[error("the container cannot be connected: {0}")]
    Link(String),
    #[error("cannot start a process of the network")]
    Spawn(#[source] std::io::Error),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Outside(#[from] NetworkError),
    #[error(transparent)]
    State(#[from] ContainerError),
    #[error("cannot make the user namespace of the networks")]
    Outer(#[source] coracle_runtime::LaunchFailure),
}
