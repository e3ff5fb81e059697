//! The watcher's side of networks: it finds or starts holders, and starts the process that connects
//! its container.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use coracle_runtime::container::Identity;
use coracle_runtime::{IdMap, Namespaces, Nest, UserNs, userns};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::error::NetworksError;
use super::holder::{self, Answer, HOLDER_ARGUMENT, HOLDER_SOCKET};
use super::link::{self, LINK_ARGUMENT, LINK_FILE, LINK_SOCKET, LinkRecord, Reply};
use super::plan::NetworksPlan;
use super::record::{self, NetworkRecord, directory};
use super::wire::{self, WireError};
use crate::engine::container::short_id;
use crate::engine::record::Record;
use crate::engine::{choose_idmap, containers};

/// A holder may end while it is called; one that was just started does not.
const CALLS_MAX: u32 = 8;

/// Is a holder that answers: a connection, and what it holds.
pub struct Held {
    pub socket: OwnedFd,
    pub user: OwnedFd,
    pub net: OwnedFd,
}

/// Finds the holder of a network, or starts one.
///
/// `known` is what the caller has of the network already; `outer` makes the user namespace if nobody
/// has one.
pub fn holder(
    root: &Path,
    network: &NetworkRecord,
    known: Option<(BorrowedFd<'_>, Option<BorrowedFd<'_>>)>,
    outer: &dyn Fn() -> Result<OwnedFd, NetworksError>,
) -> Result<Held, NetworksError> {
    let _lock = record::lock(root)?;
    for _ in 0..CALLS_MAX {
        if let Some(held) = called(&directory(root, &network.name).join(HOLDER_SOCKET))? {
            return Ok(held);
        }
        let started = match known {
            Some((user, Some(net))) => start_holder(root, network, &[user, net]),
            Some((user, None)) => match from_links(root, &network.name) {
                Some((_, Some(net))) => start_holder(root, network, &[user, net.as_fd()]),
                _ => start_holder(root, network, &[user]),
            },
            None => match from_links(root, &network.name) {
                Some((user, Some(net))) => start_holder(root, network, &[user.as_fd(), net.as_fd()]),
                Some((user, None)) => start_holder(root, network, &[user.as_fd()]),
                None => start_holder(root, network, &[any_outer(root, outer)?.as_fd()]),
            },
        };
        match started {
            Err(NetworksError::Wire(WireError::Gone)) => {}
            started => return started,
        }
    }
    Err(NetworksError::Holder { name: network.name.clone(), reason: "its process ends at once".to_owned() })
}

/// Asks whoever listens for its namespaces; None when nobody does.
fn called(path: &Path) -> Result<Option<Held>, NetworksError> {
    let Some(socket) = wire::call(path)? else { return Ok(None) };
    match wire::ask::<_, Answer>(&socket, &holder::Question::Handles, &[]) {
        Ok((Answer::Handles, descriptors)) => Ok(held(socket, descriptors)),
        Ok(_) | Err(WireError::Gone) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn held(socket: OwnedFd, descriptors: Vec<OwnedFd>) -> Option<Held> {
    let mut descriptors = descriptors.into_iter();
    Some(Held { socket, user: descriptors.next()?, net: descriptors.next()? })
}

/// Takes the user namespace of any holder, else makes one.
fn any_outer(root: &Path, outer: &dyn Fn() -> Result<OwnedFd, NetworksError>) -> Result<OwnedFd, NetworksError> {
    for other in record::list(root) {
        if let Ok(Some(held)) = called(&directory(root, &other.name).join(HOLDER_SOCKET)) {
            return Ok(held.user);
        }
    }
    outer()
}

/// Looks at the containers that run for the outer user namespace, and for a network's if one is in it.
///
/// By /proc and not by asking: they may be waiting for the lock that the caller has.
fn from_links(root: &Path, network: &str) -> Option<(OwnedFd, Option<OwnedFd>)> {
    let mut found = None;
    for container in containers::list(root) {
        let Some(link) = containers::read_json::<LinkRecord>(&container.path.join(LINK_FILE)) else { continue };
        let Ok(Some(_process)) = link.process.open() else { continue };
        let pid = link.process.pid;
        let Ok(user) = namespace(&format!("/proc/{pid}/ns/user")) else { continue };
        let net = link.namespaces.get(network).and_then(|fd| namespace(&format!("/proc/{pid}/fd/{fd}")).ok());
        if net.is_some() {
            return Some((user, net));
        }
        found = Some((user, None));
    }
    found
}

fn namespace(path: &str) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

fn start_holder(root: &Path, network: &NetworkRecord, namespaces: &[BorrowedFd<'_>]) -> Result<Held, NetworksError> {
    let (ours, mut child) = spawn(HOLDER_ARGUMENT, &directory(root, &network.name))?;
    let start = holder::Start { root: root.to_owned(), network: network.clone() };
    let answered = wire::ask::<_, Answer>(&ours, &start, namespaces);
    // It has put itself into the background.
    let _ = child.wait();
    match answered? {
        (Answer::Handles, descriptors) => held(ours, descriptors).ok_or(NetworksError::Wire(WireError::Gone)),
        (Answer::Refused { reason }, _) => Err(NetworksError::Holder { name: network.name.clone(), reason }),
        (Answer::Joined { .. }, _) => Err(WireError::Gone.into()),
    }
}

/// Starts this binary under a hidden name, with a socket for its standard input.
///
/// The path only tells a person who looks at processes what it is for.
fn spawn(argument: &str, about: &Path) -> Result<(OwnedFd, Child), NetworksError> {
    let (ours, theirs) = wire::pair()?;
    let child = Command::new("/proc/self/exe")
        .arg(argument)
        .arg(about)
        .env_clear()
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(NetworksError::Spawn)?;
    Ok((ours, child))
}

/// Is everything that is ready before a container with networks is launched.
pub struct Ready {
    user: OwnedFd,
    map: IdMap,
    /// They keep the holders alive until the container's own process is connected.
    _holders: Vec<Held>,
}

/// Brings the networks of a container up.
pub fn prepare(root: &Path, plan: &NetworksPlan) -> Result<Ready, NetworksError> {
    let map = choose_idmap(UserNs::Auto).map_err(|error| NetworksError::Link(crate::report::chain(&error)))?;
    let outer = || userns::create(&map).map_err(NetworksError::Outer);
    let mut holders = Vec::new();
    for attachment in &plan.attachments {
        let network = record::find(root, &attachment.network)?;
        holders.push(holder(root, &network, None, &outer)?);
    }
    let user = match holders.first() {
        Some(held) => held.user.try_clone().map_err(NetworksError::Spawn)?,
        None => outer()?,
    };
    Ok(Ready { user, map, _holders: holders })
}

impl Ready {
    /// Gives where the container's user namespace is to be.
    pub fn nest(&self) -> Nest<'_> {
        Nest { user: self.user.as_fd(), map: self.map.clone() }
    }

    /// Starts to connect a container.
    pub fn connect(
        &self,
        root: &Path,
        record: &Record,
        plan: &NetworksPlan,
        namespaces: &Namespaces<'_>,
    ) -> Result<LinkProcess, NetworksError> {
        let mut names: Vec<String> = record.name.clone().into_iter().collect();
        names.push(short_id(&record.id).to_owned());
        let start = link::Start {
            root: root.to_owned(),
            container: record.id.clone(),
            directory: root.join("containers").join(&record.id),
            names,
            attachments: plan.attachments.clone(),
            servers: plan.servers.clone(),
            outside: plan.outside.clone(),
            in_default: plan.in_default,
            rate: plan.rate,
            pid: namespaces.pid,
        };
        let (ours, process) = spawn(LINK_ARGUMENT, &start.directory)?;
        let link = LinkProcess { socket: ours, process };
        wire::send(&link.socket, &start, &[self.user.as_fd(), namespaces.net, namespaces.user])?;
        Ok(link)
    }
}

/// Is the process that connects a container; it ends when this is dropped.
#[derive(Debug)]
pub struct LinkProcess {
    socket: OwnedFd,
    process: Child,
}

impl LinkProcess {
    /// Waits until the container is connected.
    pub fn wait(&self) -> Result<(), NetworksError> {
        match wire::receive::<Reply>(&self.socket)?.0 {
            Reply::Refused { reason } => Err(NetworksError::Link(reason)),
            _ => Ok(()),
        }
    }

    /// Ends it now.
    pub fn finish(self) {
        let Self { socket, mut process } = self;
        drop(socket);
        // Nothing can be done about one that failed; it has ended in any case.
        let _ = process.wait();
    }
}

/// Asks the process that connects a running container; None when the container has none.
pub fn ask_link(container: &containers::Container, question: &link::Question) -> Result<Option<Reply>, NetworksError> {
    if container.init().map(Identity::is_alive).is_none() {
        return Ok(None);
    }
    match wire::call(&container.path.join(LINK_SOCKET))? {
        Some(socket) => Ok(Some(wire::ask::<_, Reply>(&socket, question, &[])?.0)),
        None => Ok(None),
    }
}
