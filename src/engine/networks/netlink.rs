//! What is asked of the kernel's route netlink (rtnetlink(7)): links, addresses, routes, queues.
//!
//! Sockets are blocking and belong to the network namespace in which they were opened, whatever
//! namespace their process is in later; [`inside`] opens them elsewhere.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Says what the kernel refused.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    #[error("cannot {op} {target}")]
    Refused { op: &'static str, target: String, source: Errno },
    #[error("cannot talk to the kernel's network")]
    Socket(#[source] std::io::Error),
    #[error("the kernel's answer about {target} is not understood")]
    Answer { target: String },
    #[error("cannot enter a network namespace")]
    Namespace(#[source] Errno),
}

impl NetlinkError {
    /// Gives the kernel's own reason.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { source, .. } | Self::Namespace(source) => Some(*source),
            _ => None,
        }
    }
}

/// Is a conversation with one network namespace.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

/// Is a network that is reached directly over a device, or through a gateway.
#[derive(Debug, Clone, Copy)]
pub struct Route {
    /// None is the default route of the gateway's family.
    pub destination: Option<(IpAddr, u8)>,
    pub gateway: Option<IpAddr>,
    pub device: u32,
}

impl Netlink {
    /// Opens a socket in the network namespace of the calling thread.
    pub fn open() -> Result<Self, NetlinkError> {
        let socket = Socket::new(NETLINK_ROUTE).map_err(NetlinkError::Socket)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(NetlinkError::Socket)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Opens a socket in another network namespace.
    pub fn open_in(namespace: impl AsFd) -> Result<Self, NetlinkError> {
        inside(namespace.as_fd(), Self::open)?
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(drop).map_err(NetlinkError::Socket)
    }

    fn receive(&mut self, target: &str) -> Result<NetlinkPayload<RouteNetlinkMessage>, NetlinkError> {
        loop {
            let (bytes, _) = self.socket.recv_from_full().map_err(NetlinkError::Socket)?;
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes)
                .map_err(|_| NetlinkError::Answer { target: target.to_owned() })?;
            // What belongs to a request before this one was given up.
            if answer.header.sequence_number == self.sequence {
                return Ok(answer.payload);
            }
        }
    }

    /// Makes one change.
    pub fn change(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        op: &'static str,
        target: &str,
    ) -> Result<(), NetlinkError> {
        self.send(message, flags | NLM_F_ACK)?;
        match self.receive(target)? {
            NetlinkPayload::Error(error) => match error.code {
                None => Ok(()),
                Some(code) => {
                    let source = Errno::from_raw_os_error(code.get().saturating_abs());
                    Err(NetlinkError::Refused { op, target: target.to_owned(), source })
                }
            },
            _ => Err(NetlinkError::Answer { target: target.to_owned() }),
        }
    }

    /// Finds a device; None where there is none of this name.
    pub fn link(&mut self, name: &str) -> Result<Option<LinkMessage>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.send(RouteNetlinkMessage::GetLink(message), 0)?;
        match self.receive(name)? {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => Ok(Some(link)),
            NetlinkPayload::Error(error) if error.code.map(|code| -code.get()) == Some(Errno::NODEV.raw_os_error()) => {
                Ok(None)
            }
            _ => Err(NetlinkError::Answer { target: name.to_owned() }),
        }
    }

    /// Finds a device that must be there.
    pub fn index(&mut self, name: &str) -> Result<u32, NetlinkError> {
        let missing = || NetlinkError::Refused { op: "find device", target: name.to_owned(), source: Errno::NODEV };
        Ok(self.link(name)?.ok_or_else(missing)?.header.index)
    }

    /// Makes a bridge that is on, unless it is there; gives its number.
    pub fn make_bridge(&mut self, name: &str, address: Option<[u8; 6]>) -> Result<u32, NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        if let Some(address) = address {
            message.attributes.push(LinkAttribute::Address(address.to_vec()));
        }
        message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
        let made = self.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, "make bridge", name);
        match made {
            Err(error) if error.errno() != Some(Errno::EXIST) => Err(error),
            _ => self.index(name),
        }
    }

    /// Makes a pair of devices: one here, on and in `bridge`; the other in `namespace`, off.
    pub fn make_pair(
        &mut self,
        name: &str,
        bridge: Option<u32>,
        (peer, address): (&str, [u8; 6]),
        namespace: Option<BorrowedFd<'_>>,
    ) -> Result<(), NetlinkError> {
        let mut other = LinkMessage::default();
        other.attributes.push(LinkAttribute::IfName(peer.to_owned()));
        other.attributes.push(LinkAttribute::Address(address.to_vec()));
        if let Some(namespace) = namespace {
            other.attributes.push(LinkAttribute::NetNsFd(namespace.as_raw_fd()));
        }
        let mut message = LinkMessage::default();
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        if let Some(bridge) = bridge {
            message.attributes.push(LinkAttribute::Controller(bridge));
        }
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
        ]));
        self.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, "make device", name)
    }

    /// Switches a device on.
    pub fn raise(&mut self, index: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.change(RouteNetlinkMessage::SetLink(message), 0, "switch on device", &index.to_string())
    }

    /// Says how large a packet of a device may be.
    pub fn limit_packets(&mut self, index: u32, mtu: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::Mtu(mtu));
        self.change(RouteNetlinkMessage::SetLink(message), 0, "set packet size of device", &index.to_string())
    }

    /// Puts a device into a bridge.
    pub fn join(&mut self, index: u32, bridge: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::Controller(bridge));
        self.change(RouteNetlinkMessage::SetLink(message), 0, "bridge device", &index.to_string())
    }

    /// Lets no more than so much leave a device, counted in bytes a second, by a token bucket (tc-tbf(8)).
    pub fn shape(&mut self, index: u32, rate_bytes: u64, burst_bytes: u32) -> Result<(), NetlinkError> {
        let mut message = TcMessage::default();
        message.header.index = i32::try_from(index).unwrap_or_default();
        message.header.handle = TcHandle { major: 1, minor: 0 };
        message.header.parent = TcHandle::ROOT;
        message.attributes.push(TcAttribute::Kind("tbf".to_owned()));
        message.attributes.push(TcAttribute::Options(bucket(rate_bytes, burst_bytes)));
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.change(RouteNetlinkMessage::NewQueueDiscipline(message), flags, "shape device", &index.to_string())
    }

    /// Gives what the queue of each device dropped.
    pub fn queue_drops(&mut self) -> Result<Vec<(u32, u64)>, NetlinkError> {
        self.send(RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()), NLM_F_DUMP)?;
        let mut drops = Vec::new();
        loop {
            let (bytes, _) = self.socket.recv_from_full().map_err(NetlinkError::Socket)?;
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let form = || NetlinkError::Answer { target: "queues".to_owned() };
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(|_| form())?;
                let length = usize::try_from(answer.header.length).unwrap_or(0).next_multiple_of(4);
                match answer.payload {
                    NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewQueueDiscipline(queue)) => {
                        let index = u32::try_from(queue.header.index).unwrap_or_default();
                        drops.extend(queue.attributes.iter().filter_map(|attribute| match attribute {
                            TcAttribute::Stats(stats) => Some((index, u64::from(stats.drops))),
                            _ => None,
                        }));
                    }
                    NetlinkPayload::Done(_) => return Ok(drops),
                    _ => return Err(form()),
                }
                rest = rest.get(length.max(1)..).unwrap_or_default();
            }
        }
    }

    /// Says for good which hardware address a neighbour has.
    pub fn add_neighbour(&mut self, index: u32, ip: IpAddr, mac: [u8; 6]) -> Result<(), NetlinkError> {
        let mut message = NeighbourMessage::default();
        message.header.family = family(ip);
        message.header.ifindex = index;
        message.header.state = NeighbourState::Permanent;
        message.attributes.push(NeighbourAttribute::Destination(match ip {
            IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
            IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
        }));
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.change(RouteNetlinkMessage::NewNeighbour(message), flags, "add neighbour", &ip.to_string())
    }

    /// Says for good behind which port of a bridge a hardware address is.
    pub fn pin(&mut self, port: u32, mac: [u8; 6]) -> Result<(), NetlinkError> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = port;
        message.header.state = NeighbourState::Noarp;
        message.header.flags = NeighbourFlags::Controller;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.change(RouteNetlinkMessage::NewNeighbour(message), flags, "pin address of port", &port.to_string())
    }

    /// Lets a bridge take nobody's word for who is behind a port.
    pub fn stop_learning(&mut self, port: u32) -> Result<(), NetlinkError> {
        self.set_port(port, InfoBridgePort::Learning(false))
    }

    /// Lets a port of a bridge reach the bridge itself, and no other port that is isolated too.
    pub fn isolate(&mut self, port: u32) -> Result<(), NetlinkError> {
        self.set_port(port, InfoBridgePort::Isolated(true))
    }

    fn set_port(&mut self, port: u32, what: InfoBridgePort) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = port;
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![what])),
        ]));
        // Not SetLink, in which the kernel passes over what is said about ports.
        self.change(RouteNetlinkMessage::NewLink(message), 0, "set bridge port", &port.to_string())
    }

    /// Removes a device; one that is not there is no error.
    pub fn remove(&mut self, name: &str) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.change(RouteNetlinkMessage::DelLink(message), 0, "remove device", name) {
            Err(error) if error.errno() != Some(Errno::NODEV) => Err(error),
            _ => Ok(()),
        }
    }

    /// Gives a device an address; one that it has is no error.
    pub fn add_address(&mut self, index: u32, ip: IpAddr, prefix: u8) -> Result<(), NetlinkError> {
        let mut message = AddressMessage::default();
        message.header.family = family(ip);
        message.header.prefix_len = prefix;
        message.header.index = index;
        if ip.is_ipv6() {
            // Nobody else can have it, and waiting for that to be found out takes seconds.
            message.header.flags = AddressHeaderFlags::Nodad;
        }
        message.attributes.push(AddressAttribute::Local(ip));
        message.attributes.push(AddressAttribute::Address(ip));
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        match self.change(RouteNetlinkMessage::NewAddress(message), flags, "add address", &ip.to_string()) {
            Err(error) if error.errno() != Some(Errno::EXIST) => Err(error),
            _ => Ok(()),
        }
    }

    /// Adds or replaces a route.
    pub fn add_route(&mut self, route: &Route) -> Result<(), NetlinkError> {
        let message = route_message(route);
        let target = route.destination.map_or_else(|| "default".to_owned(), |(ip, prefix)| format!("{ip}/{prefix}"));
        self.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE, "add route", &target)
    }
}

fn route_message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    let any = route.destination.map(|(ip, _)| ip).or(route.gateway);
    message.header.address_family = any.map_or(AddressFamily::Inet, family);
    message.header.table = MAIN_TABLE;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = if route.gateway.is_some() { RouteScope::Universe } else { RouteScope::Link };
    message.header.kind = RouteType::Unicast;
    if let Some((ip, prefix)) = route.destination {
        message.header.destination_prefix_length = prefix;
        message.attributes.push(RouteAttribute::Destination(route_address(ip)));
    }
    if let Some(gateway) = route.gateway {
        message.attributes.push(RouteAttribute::Gateway(route_address(gateway)));
    }
    message.attributes.push(RouteAttribute::Oif(route.device));
    message
}

/// RT_TABLE_MAIN of linux/rtnetlink.h.
const MAIN_TABLE: u8 = 254;

/// Gives tc's options of a token bucket: struct tc_tbf_qopt of linux/pkt_sched.h, and what is newer.
fn bucket(rate_bytes: u64, burst_bytes: u32) -> Vec<TcOption> {
    const PARMS: u16 = 1;
    const RATE64: u16 = 4;
    const BURST: u16 = 6;
    const LINKLAYER_ETHERNET: u8 = 1;
    /// What waits at most, as a part of a second: TCP fills it, and everybody else waits behind it.
    const QUEUE_PARTS: u64 = 10;
    let small = u32::try_from(rate_bytes).unwrap_or(u32::MAX);
    let queue = u32::try_from(rate_bytes / QUEUE_PARTS).unwrap_or(u32::MAX).saturating_add(burst_bytes);
    let mut parms = vec![0, LINKLAYER_ETHERNET, 0, 0, 0, 0, 0, 0];
    parms.extend(small.to_ne_bytes());
    // No peak rate.
    parms.extend([0; 12]);
    parms.extend(queue.to_ne_bytes());
    // The time that the burst takes and the largest packet: the kernel computes both from BURST.
    parms.extend([0; 8]);
    let mut options = vec![TcOption::Other(DefaultNla::new(PARMS, parms))];
    if small == u32::MAX {
        options.push(TcOption::Other(DefaultNla::new(RATE64, rate_bytes.to_ne_bytes().to_vec())));
    }
    options.push(TcOption::Other(DefaultNla::new(BURST, burst_bytes.to_ne_bytes().to_vec())));
    options
}

fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn route_address(ip: IpAddr) -> RouteAddress {
    match ip {
        IpAddr::V4(ip) => RouteAddress::Inet(ip),
        IpAddr::V6(ip) => RouteAddress::Inet6(ip),
    }
}

/// Runs `work` on a thread that is in another network namespace.
///
/// The caller has CAP_SYS_ADMIN over both namespaces' owners (setns(2)).
pub fn inside<T: Send>(namespace: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> Result<T, NetlinkError> {
    on_thread(|| {
        move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network)).map_err(NetlinkError::Namespace)?;
        Ok(work())
    })
}

/// Makes a network namespace, which exists as long as somebody has it open.
pub fn new_namespace() -> Result<OwnedFd, NetlinkError> {
    on_thread(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
            .map_err(|errno| NetlinkError::Namespace(Errno::from_raw_os_error(errno as i32)))?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::open("/proc/thread-self/ns/net", flags, Mode::empty()).map_err(NetlinkError::Namespace)
    })
}

fn on_thread<T: Send>(work: impl FnOnce() -> Result<T, NetlinkError> + Send) -> Result<T, NetlinkError> {
    std::thread::scope(|scope| match scope.spawn(work).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
