//! The process that connects one container: it lives beside it, joins its networks, and comes back to
//! them when a holder was killed. It ends with the watcher of its container.
//!
//! It is root of the outer user namespace, inside which the container's own is; that is what lets it
//! work on both ends of a pair of devices.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use coracle_runtime::container::Identity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SocketFlags, accept_with};
use serde::{Deserialize, Serialize};

use super::error::NetworksError;
use super::gate::{Gate, LONE_IP, OUTSIDE_PREFIX, Socket};
use super::holder::{self, Answer, BRIDGE};
use super::names::Member;
use super::netlink::{Netlink, inside};
use super::plan::Attachment;
use super::rate::Rate;
use super::record::{self, NetworkRecord};
use super::wire::{self, WireError};
use super::{relay, watch};
use crate::engine::container::publish_json;
use crate::engine::ports::PortMapping;
use crate::report;

/// The hidden first argument under which the binary becomes this process.
pub const LINK_ARGUMENT: &str = "__network-link";
/// Where it listens, in the container's directory.
pub const LINK_SOCKET: &str = "link.sock";
/// What it writes down there.
pub const LINK_FILE: &str = "link.json";
/// How soon a holder that could not be brought up is tried again.
const RETRY_TIME: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
/// Callers at once; each says one thing.
const CALLERS_MAX: usize = 16;

/// Is what it begins with; beside it the outer user namespace and the container's network.
#[derive(Debug, Serialize, Deserialize)]
pub struct Start {
    pub root: PathBuf,
    pub container: String,
    pub directory: PathBuf,
    pub names: Vec<String>,
    pub attachments: Vec<Attachment>,
    pub servers: Vec<IpAddr>,
    pub outside: bool,
    /// It is connected through a gate.
    pub rate: Option<Rate>,
    pub ports: Vec<PortMapping>,
}

/// What it can be asked while the container runs.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Question {
    Connect {
        attachment: Attachment,
    },
    Disconnect {
        network: String,
    },
    /// For a gate that leads out: pasta is there now.
    Open,
    Rate {
        rate: Rate,
    },
    /// For what the rates dropped.
    Drops,
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    Done,
    /// The container is connected through a gate: a descriptor of this process.
    Gate {
        fd: i32,
        ip: Ipv4Addr,
    },
    /// Packets to the container, and from it.
    Drops {
        to: u64,
        from: u64,
    },
    Refused {
        reason: String,
    },
}

/// Is where the namespaces of a link are: descriptors of its process.
#[derive(Debug, Serialize, Deserialize)]
pub struct LinkRecord {
    pub process: Identity,
    pub namespaces: BTreeMap<String, i32>,
}

/// Is the whole life of the process; its standard input is the connection of the container's watcher.
pub fn main() -> Result<(), NetworksError> {
    // A signal of the terminal is for the container; this process ends when that has.
    let _ = rustix::process::setsid();
    let watcher = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).map_err(WireError::Speak)?;
    let (start, descriptors) = wire::receive::<Start>(&watcher)?;
    let mut descriptors = descriptors.into_iter();
    let (Some(user), Some(net)) = (descriptors.next(), descriptors.next()) else {
        return Err(WireError::Gone.into());
    };
    match Link::bring_up(start, user, net) {
        Ok(mut link) => {
            wire::send(&watcher, &link.ready(), &[])?;
            link.live(&watcher);
            Ok(())
        }
        Err(error) => Ok(wire::send(&watcher, &Reply::Refused { reason: report::chain(&error) }, &[])?),
    }
}

/// Is a network that the container is in.
struct Joined {
    network: NetworkRecord,
    attachment: Attachment,
    device: String,
    ips: Vec<IpAddr>,
    /// None while it cannot be brought up.
    holder: Option<OwnedFd>,
    namespace: OwnedFd,
}

struct Link {
    start: Start,
    user: OwnedFd,
    net: OwnedFd,
    listener: OwnedFd,
    joined: Vec<Joined>,
    gate: Option<(Gate, Ipv4Addr)>,
}

impl Link {
    fn bring_up(start: Start, user: OwnedFd, net: OwnedFd) -> Result<Self, NetworksError> {
        holder::enter_outer(&user)?;
        let listener = wire::listen_at(&start.directory.join(LINK_SOCKET))?;
        let mut link = Self { start, user, net, listener, joined: Vec::new(), gate: None };
        for attachment in link.start.attachments.clone() {
            link.connect(attachment)?;
        }
        if let (Some(rate), true) = (link.start.rate, link.joined.is_empty()) {
            link.gate_in("eth0", &[(LONE_IP.into(), OUTSIDE_PREFIX)], &rate, None)?;
        }
        Ok(link)
    }

    /// Writes down where the namespaces are found when there is no holder to ask.
    fn publish(&self) {
        let namespaces = self.joined.iter().map(|one| (one.network.name.clone(), one.namespace.as_raw_fd())).collect();
        let Ok(process) = Identity::of(rustix::process::getpid().as_raw_pid()) else { return };
        // Without it a holder that was killed is replaced by this process alone.
        let _ = publish_json(&self.start.directory, LINK_FILE, &LinkRecord { process, namespaces }, false);
    }

    fn connect(&mut self, attachment: Attachment) -> Result<(), NetworksError> {
        let network = record::find(&self.start.root, &attachment.network)?;
        if self.joined.iter().any(|joined| joined.network.name == network.name) {
            return Err(NetworksError::Joined { container: self.called(), network: network.name });
        }
        let held = watch::holder(&self.start.root, &network, Some((self.user.as_fd(), None)), &|| {
            self.user.try_clone().map_err(NetworksError::Spawn)
        })?;
        let ips = self.enlist(&held.socket, &attachment, &attachment.ips, true)?;
        let device = self.free_device();
        let joined = Joined { network, attachment, device, ips, holder: Some(held.socket), namespace: held.net };
        self.plug_in(&joined)?;
        self.joined.push(joined);
        self.changed();
        Ok(())
    }

    fn called(&self) -> String {
        self.start.names.first().cloned().unwrap_or_else(|| self.start.container.clone())
    }

    fn free_device(&self) -> String {
        let mut names = (0..).map(|number: u32| format!("eth{number}"));
        names.find(|name| !self.joined.iter().any(|joined| joined.device == *name)).unwrap_or_default()
    }

    /// Takes a place in a network's list; gives the addresses.
    fn enlist(
        &self,
        holder: &OwnedFd,
        attachment: &Attachment,
        ips: &[IpAddr],
        must: bool,
    ) -> Result<Vec<IpAddr>, NetworksError> {
        let mut names = self.start.names.clone();
        names.extend(attachment.aliases.iter().cloned());
        let member = Member {
            container: self.start.container.clone(),
            names,
            ips: ips.to_vec(),
            servers: self.start.servers.clone(),
            outside: self.start.outside,
        };
        match wire::ask(holder, &holder::Question::Join { member, must }, &[])?.0 {
            Answer::Joined { ips } => Ok(ips),
            Answer::Refused { reason } => Err(NetworksError::Link(reason)),
            Answer::Handles => Err(WireError::Gone.into()),
        }
    }

    /// Makes the pair of devices and gives the container's end its addresses.
    fn plug_in(&mut self, joined: &Joined) -> Result<(), NetworksError> {
        let outer = self.outer_device(&joined.device);
        let mut there = Netlink::open_in(&joined.namespace)?;
        let bridge = there.index(BRIDGE)?;
        let prefixes = joined.network.ranges().map(|range| range.subnet.prefix());
        let ips: Vec<(IpAddr, u8)> = joined.ips.iter().copied().zip(prefixes).collect();
        if let Some(rate) = self.start.rate {
            let socket = Socket { namespace: joined.namespace.as_fd(), bridge, device: &outer };
            return self.gate_in(&joined.device, &ips, &rate, Some(&socket));
        }
        // One that is left of a link that was killed.
        there.remove(&outer)?;
        there.make_pair(&outer, Some(bridge), (&joined.device, mac(&joined.ips)), Some(self.net.as_fd()))?;
        self.set_up(&joined.device, &ips)
    }

    /// Connects the container through a gate.
    fn gate_in(
        &mut self,
        device: &str,
        ips: &[(IpAddr, u8)],
        rate: &Rate,
        socket: Option<&Socket<'_>>,
    ) -> Result<(), NetworksError> {
        let gate = Gate::build(self.net.as_fd(), device, ips, rate, socket)?;
        self.set_up(device, ips)?;
        let v4 = ips.iter().find_map(|(ip, _)| match ip {
            IpAddr::V4(ip) => Some(*ip),
            IpAddr::V6(_) => None,
        });
        let ip = v4.unwrap_or(LONE_IP);
        if self.start.outside {
            gate.route(self.net.as_fd(), device, ip)?;
        }
        self.gate = Some((gate, ip));
        Ok(())
    }

    /// Says that the container is connected, and what is still to be done outside.
    fn ready(&self) -> Reply {
        match &self.gate {
            Some((gate, ip)) => Reply::Gate { fd: gate.net.as_raw_fd(), ip: *ip },
            None => Reply::Done,
        }
    }

    /// Leads out through the gate.
    fn open(&self) -> Result<(), NetworksError> {
        let Some((gate, ip)) = &self.gate else { return Ok(()) };
        gate.open()?;
        let net = gate.net.try_clone().map_err(NetworksError::Spawn)?;
        relay::serve(&Arc::new(net), &self.start.ports, IpAddr::V4(*ip)).map_err(NetworksError::Spawn)
    }

    /// Changes the rates of the gate.
    fn change_rate(&mut self, rate: Rate) -> Result<(), NetworksError> {
        let Some((gate, _)) = &self.gate else { return Err(NetworksError::NoRate(self.called())) };
        gate.shape(&rate)?;
        self.start.rate = Some(rate);
        Ok(())
    }

    /// Gives the container's end its addresses.
    fn set_up(&self, device: &str, ips: &[(IpAddr, u8)]) -> Result<(), NetworksError> {
        inside(self.net.as_fd(), || {
            for file in ["accept_ra", "accept_redirects"] {
                // A kernel without IPv6 has no such file and no such danger.
                let _ = fs_err::write(format!("/proc/sys/net/ipv6/conf/{device}/{file}"), "0");
            }
        })?;
        let mut here = Netlink::open_in(&self.net)?;
        let index = here.index(device)?;
        for (ip, prefix) in ips {
            here.add_address(index, *ip, *prefix)?;
        }
        Ok(here.raise(index)?)
    }

    /// Names the end of a pair that is in the network; a device's name has 15 bytes.
    fn outer_device(&self, device: &str) -> String {
        const ID_BYTES: usize = 8;
        let id = self.start.container.get(..ID_BYTES).unwrap_or(&self.start.container);
        format!("{id}.{}", device.trim_start_matches("eth"))
    }

    fn disconnect(&mut self, network: &str) -> Result<(), NetworksError> {
        let place = self.joined.iter().position(|joined| joined.network.name == network);
        let missing = || NetworksError::NotJoined { container: self.called(), network: network.to_owned() };
        let joined = self.joined.remove(place.ok_or_else(missing)?);
        Netlink::open_in(&joined.namespace)?.remove(&self.outer_device(&joined.device))?;
        self.changed();
        Ok(())
    }

    fn changed(&self) {
        self.write_servers();
        self.publish();
    }

    /// Names the networks' servers in the container's resolv.conf, in place: the file is mounted.
    fn write_servers(&self) {
        let path = self.start.directory.join("resolv.conf");
        let text = fs_err::read_to_string(&path).unwrap_or_default();
        let mut lines: Vec<String> =
            text.lines().filter(|line| !line.starts_with("nameserver ")).map(str::to_owned).collect();
        let gateways = self.joined.iter().map(|joined| joined.network.v4.gateway);
        lines.extend(gateways.map(|ip| format!("nameserver {ip}")));
        // The container goes on with the names it had.
        let _ = fs_err::write(&path, lines.join("\n") + "\n");
    }

    /// Serves until the watcher is gone.
    fn live(&mut self, watcher: &OwnedFd) {
        let mut callers: Vec<OwnedFd> = Vec::new();
        loop {
            let fds: Vec<BorrowedFd<'_>> = [watcher.as_fd(), self.listener.as_fd()]
                .into_iter()
                .chain(callers.iter().map(AsFd::as_fd))
                .chain(self.joined.iter().filter_map(|joined| joined.holder.as_ref()).map(AsFd::as_fd))
                .collect();
            let mut polled: Vec<PollFd<'_>> =
                fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
            let complete = self.joined.iter().all(|joined| joined.holder.is_some());
            if poll(&mut polled, if complete { None } else { Some(&RETRY_TIME) }).is_err() {
                continue;
            }
            let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
            // It says one thing at most, when its helper works; everything else is its end.
            if ready[0] && self.hear(watcher).is_err() {
                return;
            }
            let mut holders = ready[2 + callers.len()..].iter();
            for joined in self.joined.iter_mut().filter(|joined| joined.holder.is_some()) {
                // A holder says nothing unasked: this is its end.
                if holders.next() == Some(&true) {
                    joined.holder = None;
                }
            }
            self.come_back();
            for place in (2..2 + callers.len()).rev().filter(|place| ready[*place]) {
                // Whoever hangs up hears nothing.
                let _ = self.hear(&callers.remove(place - 2));
            }
            if ready[1]
                && callers.len() < CALLERS_MAX
                && let Ok(socket) = accept_with(&self.listener, SocketFlags::CLOEXEC)
            {
                callers.push(socket);
            }
        }
    }

    /// Takes the places in lists once more whose holders have gone.
    fn come_back(&mut self) {
        for place in 0..self.joined.len() {
            let joined = &self.joined[place];
            if joined.holder.is_some() {
                continue;
            }
            let known = Some((self.user.as_fd(), Some(joined.namespace.as_fd())));
            let outer = || self.user.try_clone().map_err(NetworksError::Spawn);
            let back = watch::holder(&self.start.root, &joined.network, known, &outer)
                .and_then(|held| self.enlist(&held.socket, &joined.attachment, &joined.ips, true).map(|_| held.socket));
            // Addresses work meanwhile; names come back with the next holder.
            self.joined[place].holder = back.ok();
        }
    }

    fn hear(&mut self, caller: &OwnedFd) -> Result<(), NetworksError> {
        let (question, _) = wire::receive::<Question>(caller)?;
        let reply = |result: Result<(), NetworksError>| match result {
            Ok(()) => Reply::Done,
            Err(error) => Reply::Refused { reason: report::chain(&error) },
        };
        let answer = match question {
            Question::Connect { attachment } => reply(self.connect(attachment)),
            Question::Open => reply(self.open()),
            Question::Rate { rate } => reply(self.change_rate(rate)),
            Question::Drops => match self.gate.as_ref().map(|(gate, _)| gate.drops()) {
                Some(Ok((to, from))) => Reply::Drops { to, from },
                _ => Reply::Drops { to: 0, from: 0 },
            },
            Question::Disconnect { network } => reply(self.disconnect(&network)),
        };
        Ok(wire::send(caller, &answer, &[])?)
    }
}

/// Makes a hardware address out of an IPv4 one, as docker does: unique where that is.
pub fn mac(ips: &[IpAddr]) -> [u8; 6] {
    let v4 = ips.iter().find_map(|ip| match ip {
        IpAddr::V4(ip) => Some(ip.octets()),
        IpAddr::V6(_) => None,
    });
    let [a, b, c, d] = v4.unwrap_or_default();
    [0x02, 0x42, a, b, c, d]
}
