//! The process that connects one container: it lives beside it, joins its networks, leads it outside
//! through a helper, and comes back to a network whose holder was killed. It ends with the watcher of its
//! container.
//!
//! It is root of the outer user namespace, inside which the container's own is; that is what lets it
//! work on both ends of a pair of devices.
//!
//! It is two processes: the second does everything, and the first starts another one if it is killed,
//! which takes the same places with the same addresses.

mod life;
mod plug;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use coracle_runtime::container::Identity;
use coracle_runtime::fork::fork;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};

use self::life::Link;
use super::error::NetworksError;
use super::plan::Attachment;
use super::rate::Rate;
use super::wire::{self, WireError};
use crate::engine::containers::read_json;
use crate::engine::network::OutsidePlan;
use crate::report;

/// The hidden first argument under which the binary becomes this process.
pub const LINK_ARGUMENT: &str = "__network-link";
/// Where it listens, in the container's directory.
pub const LINK_SOCKET: &str = "link.sock";
/// What it writes down there.
pub const LINK_FILE: &str = "link.json";
/// How soon what could not be brought up is tried again.
const RETRY_TIME: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Is what it begins with; beside it the outer user namespace, the container's network and the
/// container's user namespace.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Start {
    pub root: PathBuf,
    pub container: String,
    pub directory: PathBuf,
    pub names: Vec<String>,
    pub attachments: Vec<Attachment>,
    pub servers: Vec<IpAddr>,
    /// How it is led outside while one of its networks does, or the default one.
    pub outside: Option<OutsidePlan>,
    pub in_default: bool,
    /// It is connected through a gate.
    pub rate: Option<Rate>,
    /// The container's first process.
    pub pid: i32,
}

/// What it can be asked while the container runs.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Question {
    Connect {
        attachment: Attachment,
        /// Taken where it has none.
        outside: Option<OutsidePlan>,
    },
    Disconnect {
        network: String,
    },
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
    /// Packets to the container, and from it.
    Drops {
        to: u64,
        from: u64,
    },
    Refused {
        reason: String,
    },
}

/// Is where the namespaces of a link are, descriptors of its process, and how it stands.
#[derive(Debug, Serialize, Deserialize)]
pub struct LinkRecord {
    pub process: Identity,
    pub namespaces: BTreeMap<String, i32>,
    /// What another one would begin with, addresses included.
    pub now: Start,
}

/// Is the namespaces that a link works on.
struct Namespaces {
    /// The outer one, in which it lives.
    outer: OwnedFd,
    net: OwnedFd,
    user: OwnedFd,
}

/// Is the whole life of the process; its standard input is the connection of the container's watcher.
pub fn main() -> Result<(), NetworksError> {
    // A signal of the terminal is for the container; this process ends when that has.
    let _ = rustix::process::setsid();
    let watcher = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).map_err(WireError::Speak)?;
    let (start, descriptors) = wire::receive::<Start>(&watcher)?;
    let Ok([outer, net, user]) = <[OwnedFd; 3]>::try_from(descriptors) else {
        return Err(WireError::Gone.into());
    };
    let namespaces = Namespaces { outer, net, user };
    let mut again = false;
    loop {
        let exit = fork(|| i32::from(live(&start, &namespaces, &watcher, again).is_err()))
            .and_then(|child| child.wait())
            .map_err(NetworksError::Spawn)?;
        // A first one that failed has said why; one that ended well has nobody to live for.
        if exit.signal.is_none() && (exit.code == 0 || !again) {
            return Ok(());
        }
        if again && poll(&mut [PollFd::new(&watcher, PollFlags::IN)], Some(&RETRY_TIME)) != Ok(0) {
            return Ok(());
        }
        again = true;
    }
}

/// Is the life of the second process.
fn live(first: &Start, namespaces: &Namespaces, watcher: &OwnedFd, again: bool) -> Result<(), NetworksError> {
    if again {
        let written: Option<LinkRecord> = read_json(&first.directory.join(LINK_FILE));
        let start = written.map_or_else(|| first.clone(), |written| written.now);
        Link::bring_up(start, namespaces, true)?.live(watcher);
        return Ok(());
    }
    match Link::bring_up(first.clone(), namespaces, false) {
        Ok(mut link) => {
            wire::send(watcher, &Reply::Done, &[])?;
            link.live(watcher);
            Ok(())
        }
        Err(error) => Ok(wire::send(watcher, &Reply::Refused { reason: report::chain(&error) }, &[])?),
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
