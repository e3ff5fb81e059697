//! The network namespace through which everything of a container with a rate goes. The container has no
//! way into it: it belongs to the outer user namespace, and the container sees one end of one device.
//!
//! ```text
//! container eth0 ── e0 [mb0] q0 ── q1 [mb1] x0 ── the bridge of a network
//!                                      '── routed ── tap0 ── pasta, which takes it for the container
//! ```
//! What the container receives leaves `e0`, what it sends leaves `q0`: two queues that the kernel shapes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::error::NetworksError;
use super::link::mac;
use super::netlink::{Netlink, NetlinkError, Route, inside, new_namespace};
use super::rate::Rate;

/// What the container believes to be its router; it is asked for on this device only.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(169, 254, 77, 1);
const ROUTER6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0x77, 1);
const ROUTER_MAC: [u8; 6] = [0x02, 0x42, 169, 254, 77, 1];
/// pasta's device in the gate, the gate's address on it, and the router that pasta plays.
pub const OUTSIDE: &str = "tap0";
const OUTSIDE_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
pub const OUTSIDE_ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub const OUTSIDE_PREFIX: u8 = 24;
pub const OUTSIDE_ROUTER6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// The addresses of a container whose network gives it none of that family.
pub const LONE_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 3, 100);
pub const LONE_IP6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x100);
/// The devices whose queues are shaped: towards the container, and away from it.
const TO_CONTAINER: &str = "e0";
const FROM_CONTAINER: &str = "q0";

/// Is a gate; it ends with its process.
pub struct Gate {
    pub net: OwnedFd,
    /// The container's addresses by which it is known outside, one of each family.
    pub behind: [IpAddr; 2],
    mac: [u8; 6],
}

/// Is where a gate's far side is plugged in: a network's namespace, its bridge and the device's name.
pub struct Socket<'a> {
    pub namespace: BorrowedFd<'a>,
    pub bridge: u32,
    pub device: &'a str,
    /// The network's largest packet, if it has one of its own.
    pub mtu: Option<u32>,
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
            // What comes from there is nobody that this gate has to know.
            gate.stop_learning(end)?;
            gate.raise(end)?;
            for device in [TO_CONTAINER, FROM_CONTAINER, "q1", "x0"] {
                let index = gate.index(device)?;
                socket.mtu.map_or(Ok(()), |mtu| gate.limit_packets(index, mtu))?;
            }
        }
        let first =
            |v6: bool, else_ip: IpAddr| addresses.iter().copied().find(|ip| ip.is_ipv6() == v6).unwrap_or(else_ip);
        let behind = [first(false, LONE_IP.into()), first(true, LONE_IP6.into())];
        let gate = Self { net, behind, mac: mac(&addresses) };
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
    pub fn route(&self, container: BorrowedFd<'_>, device: &str) -> Result<(), NetworksError> {
        inside(self.net.as_fd(), || {
            // A kernel without IPv6 forwards none.
            let _ = fs_err::write("/proc/sys/net/ipv6/conf/all/forwarding", "1");
            fs_err::write("/proc/sys/net/ipv4/ip_forward", "1")
        })?
        .map_err(|source| NetworksError::Io { op: "write", path: "ip_forward".into(), source })?;
        let mut gate = Netlink::open_in(&self.net)?;
        let far = gate.index("mb1")?;
        let mut inner = Netlink::open_in(container)?;
        let index = inner.index(device)?;
        for (router, prefix, ip) in [(ROUTER.into(), 32, self.behind[0]), (ROUTER6.into(), 64, self.behind[1])] {
            let made = self.route_one(&mut gate, far, (router, prefix), ip).and_then(|()| {
                inner.add_neighbour(index, router, ROUTER_MAC)?;
                if router.is_ipv4() {
                    inner.add_route(&Route { destination: Some((router, 32)), gateway: None, device: index })?;
                }
                inner.add_route(&Route { destination: None, gateway: Some(router), device: index })
            });
            // IPv6 is more than was promised where the kernel has none.
            if router.is_ipv4() {
                made?;
            }
        }
        Ok(())
    }

    fn route_one(
        &self,
        gate: &mut Netlink,
        far: u32,
        (router, prefix): (IpAddr, u8),
        ip: IpAddr,
    ) -> Result<(), NetlinkError> {
        let whole = if ip.is_ipv4() { 32 } else { 128 };
        gate.add_address(far, router, prefix)?;
        gate.add_route(&Route { destination: Some((ip, whole)), gateway: None, device: far })?;
        // Others of the same network may have the same one for the outside.
        gate.add_neighbour(far, ip, self.mac)
    }

    /// Leads out over pasta's device, once that is there.
    pub fn open(&self) -> Result<(), NetworksError> {
        let mut gate = Netlink::open_in(&self.net)?;
        let tap = gate.index(OUTSIDE)?;
        gate.add_address(tap, OUTSIDE_IP.into(), OUTSIDE_PREFIX)?;
        gate.raise(tap)?;
        // Only where the kernel has IPv6.
        let _ = gate.add_route(&Route { destination: None, gateway: Some(OUTSIDE_ROUTER6.into()), device: tap });
        Ok(gate.add_route(&Route { destination: None, gateway: Some(OUTSIDE_ROUTER.into()), device: tap })?)
    }
}
