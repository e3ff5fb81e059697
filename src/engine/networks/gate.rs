//! The network namespace through which everything of a container with a rate goes. The container has no
//! way into it: it belongs to the outer user namespace, and the container sees one end of one device.
//!
//! ```text
//! container eth0 ── e0 [mb0] q0 ── q1 [mb1] x0 ── the bridge of a network
//!                                      '── routed ── tap0 ── pasta, which takes it for the container
//! ```
//! What the container receives leaves `e0`, what it sends leaves `q0`: two queues that the kernel shapes.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::error::NetworksError;
use super::link::mac;
use super::netlink::{Netlink, Route, inside, new_namespace};
use super::rate::Rate;

/// What the container believes to be its router; it is asked for on this device only.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(169, 254, 77, 1);
const ROUTER_MAC: [u8; 6] = [0x02, 0x42, 169, 254, 77, 1];
/// pasta's device in the gate, the gate's address on it, and the router that pasta plays.
pub const OUTSIDE: &str = "tap0";
const OUTSIDE_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
pub const OUTSIDE_ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub const OUTSIDE_PREFIX: u8 = 24;
/// The address of a container that is in no user-defined network.
pub const LONE_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 3, 100);
/// The devices whose queues are shaped: towards the container, and away from it.
const TO_CONTAINER: &str = "e0";
const FROM_CONTAINER: &str = "q0";

/// Is a gate; it ends with its process.
pub struct Gate {
    pub net: OwnedFd,
}

/// Is where a gate's far side is plugged in: a network's namespace, its bridge and the device's name.
pub struct Socket<'a> {
    pub namespace: BorrowedFd<'a>,
    pub bridge: u32,
    pub device: &'a str,
}

impl Gate {
    /// Makes the gate and the container's device in `container`.
    pub fn build(
        container: BorrowedFd<'_>,
        device: &str,
        ips: &[(IpAddr, u8)],
        rate: &Rate,
        socket: Option<&Socket<'_>>,
    ) -> Result<Self, NetworksError> {
        let net = new_namespace()?;
        let mut gate = Netlink::open_in(&net)?;
        let loopback = gate.index("lo")?;
        gate.raise(loopback)?;
        let near = gate.make_bridge("mb0", None)?;
        let far = gate.make_bridge("mb1", Some(ROUTER_MAC))?;
        let addresses: Vec<IpAddr> = ips.iter().map(|(ip, _)| *ip).collect();
        gate.make_pair(TO_CONTAINER, Some(near), (device, mac(&addresses)), Some(container))?;
        gate.make_pair(FROM_CONTAINER, Some(near), ("q1", [0x02, 0x42, 0, 0, 0, 1]), None)?;
        let middle = gate.index("q1")?;
        gate.join(middle, far)?;
        gate.raise(middle)?;
        if let Some(socket) = socket {
            let mut there = Netlink::open_in(socket.namespace)?;
            there.remove(socket.device)?;
            let end = ("x0", [0x02, 0x42, 0, 0, 0, 2]);
            there.make_pair(socket.device, Some(socket.bridge), end, Some(net.as_fd()))?;
            let end = gate.index("x0")?;
            gate.join(end, far)?;
            gate.raise(end)?;
        }
        let gate = Self { net };
        gate.shape(rate)?;
        Ok(gate)
    }

    /// Sets the rates, at once.
    pub fn shape(&self, rate: &Rate) -> Result<(), NetworksError> {
        let mut gate = Netlink::open_in(&self.net)?;
        for (device, bits) in [(TO_CONTAINER, rate.down_bits), (FROM_CONTAINER, rate.up_bits)] {
            if let Some(bits) = bits {
                let index = gate.index(device)?;
                gate.shape(index, bits / 8, rate.burst(bits))?;
            }
        }
        Ok(())
    }

    /// Gives the packets that the queues had no room for: to the container, and from it.
    pub fn drops(&self) -> Result<(u64, u64), NetworksError> {
        let mut gate = Netlink::open_in(&self.net)?;
        let (to, from) = (gate.index(TO_CONTAINER)?, gate.index(FROM_CONTAINER)?);
        let drops = gate.queue_drops()?;
        let of = |index: u32| drops.iter().filter(|(device, _)| *device == index).map(|(_, count)| count).sum();
        Ok((of(to), of(from)))
    }

    /// Lets the container's packets through to where pasta will be.
    pub fn route(&self, container: BorrowedFd<'_>, device: &str, ip: Ipv4Addr) -> Result<(), NetworksError> {
        inside(self.net.as_fd(), || fs_err::write("/proc/sys/net/ipv4/ip_forward", "1"))?
            .map_err(|source| NetworksError::Io { op: "write", path: "ip_forward".into(), source })?;
        let mut gate = Netlink::open_in(&self.net)?;
        let far = gate.index("mb1")?;
        gate.add_address(far, ROUTER.into(), 32)?;
        gate.add_route(&Route { destination: Some((ip.into(), 32)), gateway: None, device: far })?;
        let mut inner = Netlink::open_in(container)?;
        let index = inner.index(device)?;
        inner.add_neighbour(index, ROUTER, ROUTER_MAC)?;
        inner.add_route(&Route { destination: Some((ROUTER.into(), 32)), gateway: None, device: index })?;
        inner
            .add_route(&Route { destination: None, gateway: Some(ROUTER.into()), device: index })
            .map_err(NetworksError::from)
    }

    /// Leads out over pasta's device, once that is there.
    pub fn open(&self) -> Result<(), NetworksError> {
        let mut gate = Netlink::open_in(&self.net)?;
        let tap = gate.index(OUTSIDE)?;
        gate.add_address(tap, OUTSIDE_IP.into(), OUTSIDE_PREFIX)?;
        gate.raise(tap)?;
        Ok(gate.add_route(&Route { destination: None, gateway: Some(OUTSIDE_ROUTER.into()), device: tap })?)
    }
}
