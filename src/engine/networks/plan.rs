//! What a container's record says about its networks.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::driver::Driver;
use super::error::NetworksError;
use super::rate::Rate;
use super::record;
use crate::engine::EngineError;
use crate::engine::containers::{self, Container};
use crate::engine::network::{self, HelperKind, NetworkError, OutsidePlan, Plan};
use crate::engine::options::{Network, RunOptions};
use crate::engine::ports::PortMapping;

/// Is the networks of one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworksPlan {
    pub attachments: Vec<Attachment>,
    /// How it reaches the outside and is reached, while one of its networks leads out; None where none did yet.
    pub outside: Option<OutsidePlan>,
    /// It is in the default network too, which nobody leaves.
    #[serde(default)]
    pub in_default: bool,
    /// Who is asked about names that no network knows, instead of the host's servers.
    #[serde(default)]
    pub servers: Vec<IpAddr>,
    /// It then has one device, which leads through a gate.
    #[serde(default)]
    pub rate: Option<Rate>,
}

impl NetworksPlan {
    /// Plans networks with nothing outside of them.
    pub fn of(attachments: Vec<Attachment>) -> Self {
        Self { attachments, outside: None, in_default: false, servers: Vec::new(), rate: None }
    }

    /// Plans the default network, in a form that can be put into more.
    pub fn of_default(outside: OutsidePlan) -> Self {
        Self { outside: Some(outside), in_default: true, ..Self::of(Vec::new()) }
    }
}

/// Is a container's place in one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    pub network: String,
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Addresses that were asked for.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
}

/// Decides about the network of a new container; the note is for the person.
pub fn decide(
    root: &Path,
    options: &RunOptions,
    publish: &[PortMapping],
    find: &dyn Fn(&str) -> Option<PathBuf>,
) -> Result<(Plan, Option<&'static str>), EngineError> {
    let rate = options.net_rate;
    match &options.network {
        Network::Host | Network::None | Network::Container(_) if rate.is_some() => {
            Err(NetworksError::RateNeedsOwn.into())
        }
        Network::Named(attachments) if rate.is_some() && attachments.len() > 1 => {
            Err(NetworksError::RateNeedsOne.into())
        }
        Network::Auto | Network::Pasta if rate.is_some() => match network::plan(&Network::Pasta, publish, find)? {
            (Plan::Pasta(outside), _) => {
                Ok((Plan::Networks(NetworksPlan { rate, ..NetworksPlan::of_default(outside) }), None))
            }
            other => Ok(other),
        },
        Network::Container(wanted) => {
            let other = shared(root, wanted)?;
            Ok(network::plan(&Network::Container(other.record.id), publish, find)?)
        }
        Network::Named(attachments) => {
            let (all_internal, publish_at) = check(root, attachments)?;
            let publish: Vec<PortMapping> =
                publish.iter().map(|port| PortMapping { ip: publish_at.published(port.ip), ..*port }).collect();
            let (mut plan, note) = if all_internal {
                if !publish.is_empty() {
                    return Err(NetworkError::PublishNeedsPasta.into());
                }
                (NetworksPlan::of(attachments.clone()), None)
            } else {
                match network::plan(&options.network, &publish, find)? {
                    (Plan::Networks(plan), note) => (plan, note),
                    other => return Ok(other),
                }
            };
            let kind = plan.outside.as_ref().map(|outside| outside.kind);
            if rate.is_some() && kind == Some(HelperKind::Slirp4netns) {
                return Err(NetworksError::RateNeedsPasta.into());
            }
            plan.rate = rate;
            plan.servers = options.dns.iter().filter_map(|ip| ip.parse().ok()).collect();
            Ok((Plan::Networks(plan), note))
        }
        plain => Ok(network::plan(plain, publish, find)?),
    }
}

/// Finds every network and its addresses good; says whether nothing leads out of them, and what the first one
/// says about published ports.
fn check(root: &Path, attachments: &[Attachment]) -> Result<(bool, Driver), NetworksError> {
    let (mut all_internal, mut first) = (true, None);
    for (place, attachment) in attachments.iter().enumerate() {
        let network = record::find(root, &attachment.network)?;
        if attachments[..place].iter().any(|other| other.network == attachment.network) {
            return Err(NetworksError::Twice(attachment.network.clone()));
        }
        for ip in &attachment.ips {
            record::check_address(&network, *ip)?;
        }
        all_internal &= network.internal;
        first = first.or(Some(network.driver()?));
    }
    Ok((all_internal, first.unwrap_or_default()))
}

/// Finds the running container whose network is to be shared.
pub fn shared(root: &Path, wanted: &str) -> Result<Container, EngineError> {
    let other = containers::find(root, wanted)?;
    if other.init().is_none() {
        return Err(EngineError::NotRunning(other.record.called().to_owned()));
    }
    Ok(other)
}
