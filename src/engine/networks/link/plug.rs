//! The devices by which a link plugs its container into a network, or into a gate.

use std::net::IpAddr;
use std::os::fd::AsFd;

use super::life::{Joined, Link};
use super::mac;
use crate::engine::networks::error::NetworksError;
use crate::engine::networks::gate::{Gate, LONE_IP, LONE_IP6, OUTSIDE_PREFIX, Socket};
use crate::engine::networks::holder::BRIDGE;
use crate::engine::networks::netlink::{Netlink, inside};
use crate::engine::networks::rate::Rate;
use crate::engine::networks::relay;

impl Link<'_> {
    /// Makes the pair of devices and gives the container's end its addresses.
    pub fn plug_in(&mut self, joined: &Joined) -> Result<(), NetworksError> {
        let outer = self.outer_device(&joined.device);
        let mut there = Netlink::open_in(&joined.namespace)?;
        let bridge = there.index(BRIDGE)?;
        let prefixes = joined.network.ranges().map(|range| range.subnet.prefix());
        let ips: Vec<(IpAddr, u8)> = joined.ips.iter().copied().zip(prefixes).collect();
        self.forget(&joined.device)?;
        let driver = joined.network.driver()?;
        if let Some(rate) = self.start.rate {
            let socket = Socket { namespace: joined.namespace.as_fd(), bridge, device: &outer, mtu: driver.mtu };
            self.gate_in(&joined.device, ips, &rate, Some(&socket))?;
        } else {
            // One that is left of a link that was killed.
            there.remove(&outer)?;
            let end = (joined.device.as_str(), mac(&joined.ips));
            there.make_pair(&outer, Some(bridge), end, Some(self.namespaces.net.as_fd()))?;
            self.set_up(&joined.device, &ips, driver.mtu)?;
        }
        // Nobody takes over another's address: not its place in the bridge, not what the name server answers.
        let port = there.index(&outer)?;
        there.stop_learning(port)?;
        driver.mtu.map_or(Ok(()), |mtu| there.limit_packets(port, mtu))?;
        if driver.is_apart {
            there.isolate(port)?;
        }
        there.pin(port, mac(&joined.ips))?;
        for ip in &joined.ips {
            there.add_neighbour(bridge, *ip, mac(&joined.ips))?;
        }
        Ok(())
    }

    /// Removes what a killed link left in the container.
    fn forget(&self, device: &str) -> Result<(), NetworksError> {
        if self.again {
            Netlink::open_in(&self.namespaces.net)?.remove(device)?;
        }
        Ok(())
    }

    /// Connects the container through a gate.
    pub fn gate_in(
        &mut self,
        device: &str,
        mut ips: Vec<(IpAddr, u8)>,
        rate: &Rate,
        socket: Option<&Socket<'_>>,
    ) -> Result<(), NetworksError> {
        if socket.is_none() {
            self.forget(device)?;
        }
        // What it has of each family leads outside.
        if !ips.iter().any(|(ip, _)| ip.is_ipv4()) {
            ips.push((LONE_IP.into(), OUTSIDE_PREFIX));
        }
        if !ips.iter().any(|(ip, _)| ip.is_ipv6()) && self.start.outside.is_some() {
            ips.push((LONE_IP6.into(), 128));
        }
        let gate = Gate::build(self.namespaces.net.as_fd(), device, &ips, rate, socket)?;
        self.set_up(device, &ips, socket.and_then(|socket| socket.mtu))?;
        if let Some(outside) = &self.start.outside {
            gate.route(self.namespaces.net.as_fd(), device)?;
            let net = gate.net.try_clone().map_err(NetworksError::Spawn)?;
            relay::serve(&std::sync::Arc::new(net), &outside.ports, gate.behind[0]).map_err(NetworksError::Spawn)?;
        }
        self.gate = Some(gate);
        Ok(())
    }

    /// Gives the container's end its addresses.
    fn set_up(&self, device: &str, ips: &[(IpAddr, u8)], mtu: Option<u32>) -> Result<(), NetworksError> {
        inside(self.namespaces.net.as_fd(), || {
            for file in ["accept_ra", "accept_redirects"] {
                // A kernel without IPv6 has no such file and no such danger.
                let _ = fs_err::write(format!("/proc/sys/net/ipv6/conf/{device}/{file}"), "0");
            }
        })?;
        let mut here = Netlink::open_in(&self.namespaces.net)?;
        let index = here.index(device)?;
        mtu.map_or(Ok(()), |mtu| here.limit_packets(index, mtu))?;
        for (ip, prefix) in ips {
            match here.add_address(index, *ip, *prefix) {
                // A kernel without IPv6 is no reason not to start, where nobody asked for it.
                Err(_) if *ip == IpAddr::V6(LONE_IP6) => {}
                added => added?,
            }
        }
        Ok(here.raise(index)?)
    }

    /// Names the end of a pair that is in the network; a device's name has 15 bytes.
    pub fn outer_device(&self, device: &str) -> String {
        const ID_BYTES: usize = 8;
        let id = self.start.container.get(..ID_BYTES).unwrap_or(&self.start.container);
        format!("{id}.{}", device.trim_start_matches("eth"))
    }
}
