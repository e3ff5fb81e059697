//! The process that keeps one network: its namespace with the bridge, the list of who is in it, and
//! the name server. It ends with the last connection, and whoever needs it starts another one.
//!
//! Invariant: a member is in the list exactly as long as the process that joined it is connected; after a killed
//! holder so long as it may come back. The namespace outlives a killed holder, because those processes have it open too.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_runtime::detach::detach;
use coracle_runtime::userns;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};

use super::error::NetworksError;
use super::link::mac;
use super::names::Member;
use super::netlink::{Netlink, inside, new_namespace};
use super::record::{self, NetworkRecord, directory};
use super::resolver::{self, Knowledge, Shared, Sockets};
use super::wire::{self, WireError};
use crate::engine::container::publish_json;
use crate::engine::containers::read_json;
use crate::report;

/// The hidden first argument under which the binary becomes a holder.
pub const HOLDER_ARGUMENT: &str = "__network-holder";
/// Where it listens, in the network's directory.
pub const HOLDER_SOCKET: &str = "holder.sock";
/// The bridge in the network's namespace.
pub const BRIDGE: &str = "br0";
/// Who is in the network, for the holders of other networks and for listings.
pub const MEMBERS_FILE: &str = "members.json";
/// Addresses and names that a killed holder gave out wait this long for their owners.
const RESERVED_TIME: Duration = Duration::from_secs(5);
/// Containers of one network and whoever asks at the same time.
const SESSIONS_MAX: usize = 2048;

/// Is what a holder begins with; beside it the user namespace, and the network's own if there is one.
#[derive(Debug, Serialize, Deserialize)]
pub struct Start {
    pub root: PathBuf,
    pub network: NetworkRecord,
}

/// What a holder can be asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Question {
    /// For the two namespaces.
    Handles,
    /// For a place in the list; the addresses are wanted if any are given.
    Join { member: Member, must: bool },
}

/// What a holder answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The user namespace and the network namespace are beside it.
    Handles,
    Joined {
        ips: Vec<IpAddr>,
    },
    Refused {
        reason: String,
    },
}

/// Is the whole life of a holder; its standard input is the connection of whoever wants it.
pub fn main() -> Result<(), NetworksError> {
    let first = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).map_err(WireError::Speak)?;
    let (start, descriptors) = wire::receive::<Start>(&first)?;
    let keep: Vec<i32> = descriptors.iter().chain([&first]).map(AsRawFd::as_raw_fd).collect();
    detach(&keep, move || {
        let result = Holder::bring_up(start, descriptors);
        match result {
            Ok(mut holder) => {
                holder.sessions.push(Session { socket: first, container: None });
                match holder.introduce(0) {
                    Ok(()) => holder.live(),
                    Err(_) => return 1,
                }
            }
            Err(error) => {
                let answer = Answer::Refused { reason: report::chain(&error) };
                // Nobody is left to hear more.
                let _ = wire::send(&first, &answer, &[]);
                return 1;
            }
        }
        0
    })
    .map_err(|errno| NetworksError::Spawn(errno.into()))
}

struct Session {
    socket: OwnedFd,
    container: Option<String>,
}

/// Is what the name server's threads see too.
struct Known {
    root: PathBuf,
    network: NetworkRecord,
    members: Shared<Vec<Member>>,
}

impl Knowledge for Known {
    fn members(&self) -> Vec<Member> {
        self.members.with(|members| members.clone())
    }

    fn others(&self, container: &str) -> Vec<Member> {
        let others = record::list(&self.root).into_iter().filter(|other| other.name != self.network.name);
        let lists = others.filter_map(|other| {
            let path = directory(&self.root, &other.name).join(MEMBERS_FILE);
            read_json::<Vec<Member>>(&path)
        });
        lists.filter(|list| list.iter().any(|member| member.container == container)).flatten().collect()
    }

    fn owns(&self, ip: IpAddr) -> bool {
        self.network.ranges().any(|range| range.subnet.contains(ip))
    }
}

struct Holder {
    known: Arc<Known>,
    user: OwnedFd,
    net: OwnedFd,
    listener: OwnedFd,
    sessions: Vec<Session>,
    /// Members of a killed holder, which may come back.
    reserved: (Vec<Member>, Instant),
}

impl Holder {
    fn bring_up(start: Start, descriptors: Vec<OwnedFd>) -> Result<Self, NetworksError> {
        let mut descriptors = descriptors.into_iter();
        let user = descriptors.next().ok_or(WireError::Gone)?;
        enter_outer(&user)?;
        let known_net = descriptors.next();
        let replaces = known_net.is_some();
        let net = known_net.map_or_else(new_namespace, Ok)?;
        let gateways: Vec<(IpAddr, u8)> =
            start.network.ranges().map(|range| (range.gateway, range.subnet.prefix())).collect();
        let sockets = inside(net.as_fd(), || build(&gateways))??;
        let place = directory(&start.root, &start.network.name);
        let reserved: Vec<Member> = read_json(&place.join(MEMBERS_FILE)).unwrap_or_default();
        let listener = wire::listen_at(&place.join(HOLDER_SOCKET))?;
        let known = Arc::new(Known { root: start.root, network: start.network, members: Shared::default() });
        if replaces {
            // Else those who are back first would hear that the others do not exist.
            known.members.with(|members| members.clone_from(&reserved));
        }
        resolver::serve(sockets, &known).map_err(NetworksError::Spawn)?;
        Ok(Self { known, user, net, listener, sessions: Vec::new(), reserved: (reserved, Instant::now()) })
    }

    /// Serves connections until there is none.
    fn live(&mut self) {
        while !self.sessions.is_empty() {
            let fds: Vec<BorrowedFd<'_>> = std::iter::once(self.listener.as_fd())
                .chain(self.sessions.iter().map(|one| one.socket.as_fd()))
                .collect();
            let mut polled: Vec<PollFd<'_>> =
                fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
            let left = RESERVED_TIME.saturating_sub(self.reserved.1.elapsed());
            let waits = Timespec::try_from(left).ok().filter(|_| !self.reserved.0.is_empty());
            if poll(&mut polled, waits.as_ref()).is_err() {
                continue;
            }
            let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
            self.forget_the_missing();
            // From the last, so that numbers of the others stay.
            for place in (1..ready.len()).rev().filter(|place| ready[*place]) {
                if self.hear(place - 1).is_err() {
                    self.drop_session(place - 1);
                }
            }
            if ready[0]
                && self.sessions.len() < SESSIONS_MAX
                && let Some(socket) = wire::accept(&self.listener)
            {
                self.sessions.push(Session { socket, container: None });
            }
        }
        // Nobody is in it any more.
        let _ = fs_err::remove_file(directory(&self.known.root, &self.known.network.name).join(MEMBERS_FILE));
    }

    /// Takes those from the list who have not come back.
    fn forget_the_missing(&mut self) {
        if self.reserved.1.elapsed() < RESERVED_TIME || self.reserved.0.is_empty() {
            return;
        }
        let gone = std::mem::take(&mut self.reserved.0);
        self.known.members.with(|members| {
            members.retain(|member| !gone.iter().any(|other| other.container == member.container));
        });
        self.publish();
    }

    fn hear(&mut self, place: usize) -> Result<(), NetworksError> {
        let (question, _) = wire::receive::<Question>(&self.sessions[place].socket)?;
        match question {
            Question::Handles => self.introduce(place),
            Question::Join { member, must } => {
                let answer = match self.join(place, member, must) {
                    Ok(ips) => Answer::Joined { ips },
                    Err(error) => Answer::Refused { reason: report::chain(&error) },
                };
                Ok(wire::send(&self.sessions[place].socket, &answer, &[])?)
            }
        }
    }

    fn introduce(&self, place: usize) -> Result<(), NetworksError> {
        let namespaces = [self.user.as_fd(), self.net.as_fd()];
        Ok(wire::send(&self.sessions[place].socket, &Answer::Handles, &namespaces)?)
    }

    fn drop_session(&mut self, place: usize) {
        let session = self.sessions.remove(place);
        // One that took the place of a killed one may have come before that one's end was seen.
        if let Some(container) = session.container
            && !self.sessions.iter().any(|other| other.container.as_ref() == Some(&container))
        {
            self.known.members.with(|members| members.retain(|member| member.container != container));
            self.publish();
        }
    }

    fn join(&mut self, place: usize, mut member: Member, must: bool) -> Result<Vec<IpAddr>, NetworksError> {
        self.forget_the_missing();
        let network = &self.known.network;
        let mut others = self.known.members();
        others.extend(self.reserved.0.iter().cloned());
        others.retain(|other| other.container != member.container);
        let is_taken = |ip: IpAddr| others.iter().any(|other| other.ips.contains(&ip));
        let mut given = Vec::new();
        for range in network.ranges() {
            let wanted = member.ips.iter().copied().find(|ip| range.subnet.contains(*ip));
            let ip = match wanted {
                Some(ip) if !is_taken(ip) => ip,
                Some(ip) if must => return Err(NetworksError::Taken { ip, network: network.name.clone() }),
                _ => {
                    let mut places = (1..range.subnet.places()).map(|place| range.subnet.nth(place));
                    let free = |ip: &IpAddr| range.subnet.is_usable(*ip) && *ip != range.gateway && !is_taken(*ip);
                    places.find(free).ok_or_else(|| NetworksError::Full(network.name.clone()))?
                }
            };
            given.push(ip);
        }
        member.ips.clone_from(&given);
        self.reserved.0.retain(|other| other.container != member.container);
        self.sessions[place].container = Some(member.container.clone());
        self.known.members.with(|members| {
            members.retain(|other| other.container != member.container);
            members.push(member);
        });
        self.publish();
        Ok(given)
    }

    fn publish(&self) {
        let place = directory(&self.known.root, &self.known.network.name);
        // Listings and the holders of other networks show the last list that could be written.
        let _ = publish_json(&place, MEMBERS_FILE, &self.known.members(), false);
    }
}

/// Enters the outer user namespace, unless the process that started this one was in it.
pub fn enter_outer(user: &OwnedFd) -> Result<(), NetworksError> {
    let own = rustix::fs::stat("/proc/self/ns/user").map_err(|errno| NetworksError::Spawn(errno.into()))?;
    let outer = rustix::fs::fstat(user).map_err(|errno| NetworksError::Spawn(errno.into()))?;
    if (own.st_dev, own.st_ino) == (outer.st_dev, outer.st_ino) {
        return Ok(());
    }
    userns::enter(user.as_fd()).map_err(NetworksError::Outer)
}

/// Builds the network in its namespace, or finds it built.
fn build(gateways: &[(IpAddr, u8)]) -> Result<Sockets, NetworksError> {
    let mut netlink = Netlink::open()?;
    let loopback = netlink.index("lo")?;
    netlink.raise(loopback)?;
    let ips: Vec<IpAddr> = gateways.iter().map(|(ip, _)| *ip).collect();
    // An own hardware address: else it is some port's, and another one with every container that comes or goes.
    let bridge = netlink.make_bridge(BRIDGE, Some(mac(&ips)))?;
    // No router of a container's making is believed (CVE-2020-10749).
    for file in ["accept_ra", "accept_redirects"] {
        // A kernel without IPv6 has no such file and no such danger.
        let _ = fs_err::write(format!("/proc/sys/net/ipv6/conf/{BRIDGE}/{file}"), "0");
    }
    for (ip, prefix) in gateways {
        netlink.add_address(bridge, *ip, *prefix)?;
    }
    Sockets::open(&ips).map_err(|source| NetworksError::Io { op: "listen in", path: BRIDGE.into(), source })
}
