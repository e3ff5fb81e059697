//! `coracle network`, and the flags that put a container into networks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use clap::Args;

use super::error::CliError;
use crate::engine::networks::{Attachment, Rate};
use crate::engine::options::Network;

/// Is what is said about a container's networks.
#[derive(Args)]
pub struct NetworkArgs {
    /// none, host, pasta, container:NAME or a network's name, more than once too
    /// [default: pasta where it is installed, else host]
    #[arg(long, alias = "net", value_name = "NETWORK[:OPTIONS]")]
    network: Vec<String>,
    /// Address in the network
    #[arg(long, value_name = "IP")]
    ip: Option<Ipv4Addr>,
    /// IPv6 address in the network
    #[arg(long, value_name = "IP")]
    ip6: Option<Ipv6Addr>,
    /// One more name in the network
    #[arg(long, visible_alias = "net-alias", value_name = "NAME")]
    network_alias: Vec<String>,
    /// Rates that hold: up=RATE,down=RATE[,burst=SIZE], as in up=10mbit,down=50mbit
    #[arg(long, value_name = "RATES")]
    pub net_rate: Option<Rate>,
}

impl NetworkArgs {
    /// Puts the flags together.
    pub fn network(&self) -> Result<Network, CliError> {
        let plain = match self.network.as_slice() {
            [] => Some(Network::Auto),
            [one] => match one.as_str() {
                "none" => Some(Network::None),
                "host" => Some(Network::Host),
                "pasta" => Some(Network::Pasta),
                one => one.strip_prefix("container:").map(|name| Network::Container(name.to_owned())),
            },
            _ => None,
        };
        let own = self.ip.is_some() || self.ip6.is_some() || !self.network_alias.is_empty();
        if let Some(plain) = plain {
            if own {
                let problem = "--ip, --ip6 and --network-alias need a user-defined network";
                return Err(CliError::message(problem));
            }
            return Ok(plain);
        }
        let mut attachments = Vec::new();
        for text in &self.network {
            attachments.push(attachment(text)?);
        }
        if let Some(first) = attachments.first_mut() {
            first.ips.extend(self.ip.map(IpAddr::V4).into_iter().chain(self.ip6.map(IpAddr::V6)));
        }
        for name in &self.network_alias {
            check_alias(name)?;
        }
        for attachment in &mut attachments {
            attachment.aliases.extend(self.network_alias.iter().cloned());
        }
        Ok(Network::Named(attachments))
    }
}

/// Reads `NAME[:ip=…,alias=…]`, or docker's `name=NAME,ip=…,alias=…`.
fn attachment(text: &str) -> Result<Attachment, CliError> {
    let fail = |reason: &str| CliError::message(format!("invalid network {text:?}: {reason}"));
    let (name, options) = match text.strip_prefix("name=") {
        Some(rest) => rest.split_once(',').unwrap_or((rest, "")),
        None => text.split_once(':').unwrap_or((text, "")),
    };
    if ["none", "host", "pasta", "container", "bridge", "default"].contains(&name) {
        return Err(fail("it cannot be one of several, and has no options"));
    }
    let mut attachment = Attachment { network: name.to_owned(), aliases: Vec::new(), ips: Vec::new() };
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("ip" | "ip6", ip)) => attachment.ips.push(ip.parse().map_err(|_| fail("the address is none"))?),
            Some(("alias", alias)) => {
                check_alias(alias)?;
                attachment.aliases.push(alias.to_owned());
            }
            _ => return Err(fail("only ip=, ip6= and alias= are implemented")),
        }
    }
    Ok(attachment)
}

/// A name that DNS can carry.
pub fn check_alias(name: &str) -> Result<(), CliError> {
    /// RFC 1035, section 2.3.4.
    const LABEL_BYTES_MAX: usize = 63;
    let label = |part: &str| {
        let clean = part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        clean && (1..=LABEL_BYTES_MAX).contains(&part.len())
    };
    let valid = name.len() < 254 && name.split('.').all(label);
    if valid { Ok(()) } else { Err(CliError::message(format!("invalid network alias {name:?}"))) }
}
