//! User-defined networks on disk: `networks/<name>/network.json`.
//!
//! Invariant: no two networks share addresses. Making and removing takes the lock of all networks.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::driver::Driver;
use super::error::NetworksError;
use super::subnet::{Subnet, free_v4, random_v6};
use crate::engine::container::{self, publish_json};
use crate::engine::containers::{self, read_json};
use crate::engine::prepare::now_ns;

/// The form of a network's file; a higher number is refused, not guessed.
const VERSION: u32 = 1;
/// docker's names for what is no network of a user's.
const RESERVED: [&str; 7] = ["none", "host", "pasta", "bridge", "default", "slirp4netns", "private"];
/// Each has a range of addresses of its own.
pub const NETWORKS_MAX: usize = 256;

/// Is what is kept about a network.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NetworkRecord {
    pub version: u32,
    pub id: String,
    pub name: String,
    pub v4: Range,
    #[serde(default)]
    pub v6: Option<Range>,
    /// Nothing leads out of it.
    pub internal: bool,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// Nanoseconds since the epoch.
    pub created_ns: u64,
}

/// Is the addresses of a network and the one that the network itself has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    pub subnet: Subnet,
    pub gateway: IpAddr,
}

/// What a person says about a new network.
#[derive(Debug, Clone, Default)]
pub struct CreateOptions {
    pub internal: bool,
    pub subnets: Vec<Subnet>,
    pub gateways: Vec<IpAddr>,
    pub ipv6: bool,
    pub labels: BTreeMap<String, String>,
    pub options: BTreeMap<String, String>,
}

impl NetworkRecord {
    /// Gives the ranges of both families.
    pub fn ranges(&self) -> impl Iterator<Item = Range> {
        std::iter::once(self.v4).chain(self.v6)
    }

    /// Gives what its options say.
    pub fn driver(&self) -> Result<Driver, NetworksError> {
        Driver::read(&self.options, self.v6.is_some())
    }
}

/// Gives where a network keeps what it has.
pub fn directory(root: &Path, name: &str) -> PathBuf {
    root.join("networks").join(name)
}

/// Waits for the lock of all networks: held while one is made, removed, or gets its holder.
pub fn lock(root: &Path) -> Result<File, NetworksError> {
    let dir = root.join("networks");
    let fail = |op: &'static str| {
        let path = dir.clone();
        move |source: std::io::Error| NetworksError::Io { op, path, source }
    };
    fs_err::create_dir_all(&dir).map_err(fail("make"))?;
    let open = fs_err::OpenOptions::new().write(true).create(true).truncate(false).open(dir.join("lock"));
    let file = open.map_err(fail("lock"))?.into_file();
    rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))
        .map_err(|errno| fail("lock")(errno.into()))?;
    Ok(file)
}

/// Finds a network by its name, or by its whole id.
pub fn find(root: &Path, wanted: &str) -> Result<NetworkRecord, NetworksError> {
    let unknown = || NetworksError::Unknown(wanted.to_owned());
    if container::check_name(wanted).is_ok()
        && let Some(record) = read(root, wanted)?
    {
        return Ok(record);
    }
    list(root).into_iter().find(|record| record.id == wanted).ok_or_else(unknown)
}

fn read(root: &Path, name: &str) -> Result<Option<NetworkRecord>, NetworksError> {
    let found: Option<NetworkRecord> = read_json(&directory(root, name).join("network.json"));
    match found {
        Some(record) if record.version > VERSION => {
            Err(NetworksError::Newer { name: name.to_owned(), version: record.version })
        }
        found => Ok(found),
    }
}

/// Lists the networks by name; one that cannot be read is left out.
pub fn list(root: &Path) -> Vec<NetworkRecord> {
    let entries = fs_err::read_dir(root.join("networks")).into_iter().flatten();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut all: Vec<NetworkRecord> = names.filter_map(|name| read(root, &name).ok().flatten()).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// Makes a network.
pub fn create(root: &Path, name: &str, options: &CreateOptions) -> Result<NetworkRecord, NetworksError> {
    check_name(name)?;
    let _lock = lock(root)?;
    let others = list(root);
    if others.iter().any(|other| other.name == name) {
        return Err(NetworksError::Exists(name.to_owned()));
    }
    if others.len() >= NETWORKS_MAX {
        return Err(NetworksError::TooMany);
    }
    let taken: Vec<Subnet> = others.iter().flat_map(|other| other.ranges().map(|range| range.subnet)).collect();
    let (v4, v6) = choose(options, &taken)?;
    Driver::read(&options.options, v6.is_some())?;
    let record = NetworkRecord {
        version: VERSION,
        id: container::new_id()?,
        name: name.to_owned(),
        v4,
        v6,
        internal: options.internal,
        labels: options.labels.clone(),
        options: options.options.clone(),
        created_ns: now_ns(),
    };
    let path = directory(root, name);
    fs_err::create_dir_all(&path).map_err(|source| NetworksError::Io { op: "make", path: path.clone(), source })?;
    publish_json(&path, "network.json", &record, true)?;
    Ok(record)
}

fn check_name(name: &str) -> Result<(), NetworksError> {
    container::check_name(name).map_err(|_| NetworksError::Name(name.to_owned()))?;
    if RESERVED.contains(&name) { Err(NetworksError::Reserved(name.to_owned())) } else { Ok(()) }
}

fn choose(options: &CreateOptions, taken: &[Subnet]) -> Result<(Range, Option<Range>), NetworksError> {
    if let Some(subnet) = options.subnets.iter().find(|subnet| taken.iter().any(|other| other.overlaps(subnet))) {
        return Err(NetworksError::Overlap(*subnet));
    }
    let given = |v6: bool| {
        let mut of_family = options.subnets.iter().filter(|subnet| subnet.is_ipv6() == v6);
        let first = of_family.next().copied();
        of_family.next().map_or(Ok(first), |second| Err(NetworksError::TwoSubnets(*second)))
    };
    let v4 = match given(false)? {
        Some(subnet) => subnet,
        None => free_v4(taken).ok_or(NetworksError::NoSubnet)?,
    };
    let v6 = match given(true)? {
        Some(subnet) => Some(subnet),
        None if options.ipv6 => Some(random_v6()?),
        None => None,
    };
    let mut gateways = options.gateways.clone();
    let mut range = |subnet: Subnet| {
        let place = gateways.iter().position(|ip| subnet.contains(*ip));
        let gateway = place.map(|place| gateways.remove(place)).unwrap_or_else(|| subnet.nth(1));
        if subnet.is_usable(gateway) { Ok(Range { subnet, gateway }) } else { Err(NetworksError::Gateway(gateway)) }
    };
    let ranges = (range(v4)?, v6.map(&mut range).transpose()?);
    match gateways.first() {
        Some(left) => Err(NetworksError::Gateway(*left)),
        None => Ok(ranges),
    }
}

/// Names the containers that are to be in a network, running or not.
pub fn users(root: &Path, name: &str) -> Vec<String> {
    let all = containers::list(root).into_iter();
    let uses = |plan: &crate::engine::network::Plan| plan.attachments().iter().any(|one| one.network == name);
    all.filter(|found| uses(&found.record.network)).map(|found| found.record.called().to_owned()).collect()
}

/// Removes a network that no container is to be in.
pub fn remove(root: &Path, wanted: &str) -> Result<NetworkRecord, NetworksError> {
    let _lock = lock(root)?;
    let record = find(root, wanted)?;
    if let Some(container) = users(root, &record.name).into_iter().next() {
        return Err(NetworksError::InUse { name: record.name, container });
    }
    let path = directory(root, &record.name);
    fs_err::remove_dir_all(&path).map_err(|source| NetworksError::Io { op: "remove", path, source })?;
    Ok(record)
}

/// Says whether an address fits a network and is not the network's own.
pub fn check_address(record: &NetworkRecord, ip: IpAddr) -> Result<(), NetworksError> {
    let fits = record.ranges().any(|range| range.subnet.contains(ip) && range.subnet.is_usable(ip));
    if fits && !record.ranges().any(|range| range.gateway == ip) {
        return Ok(());
    }
    Err(NetworksError::Address { ip, network: record.name.clone() })
}
