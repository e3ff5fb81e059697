//! Names of hosts to addresses without the C library: the binary is static, `getaddrinfo` would be a trap.
//!
//! `localhost` and `/etc/hosts` need no server; everything else is asked of the servers in `/etc/resolv.conf`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// How long a name may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Says why a name gave no address.
#[derive(Debug, thiserror::Error)]
#[error("the host name {name} does not resolve")]
pub struct NameError {
    name: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Gives the addresses of a host; an address is its own.
pub async fn lookup(name: &str) -> Result<Vec<IpAddr>, NameError> {
    if let Ok(address) = name.trim_matches(['[', ']']).parse() {
        return Ok(vec![address]);
    }
    let known = from_hosts(name);
    if !known.is_empty() {
        return Ok(known);
    }
    if name.eq_ignore_ascii_case("localhost") {
        return Ok(vec![Ipv4Addr::LOCALHOST.into()]);
    }
    let failed = |source| NameError { name: name.to_owned(), source };
    let resolver = TokioResolver::builder_tokio().and_then(hickory_resolver::ResolverBuilder::build);
    let resolver = resolver.map_err(|error| failed(Some(error.into())))?;
    match tokio::time::timeout(PATIENCE, resolver.lookup_ip(name)).await {
        Ok(Ok(found)) => Ok(found.iter().collect()),
        Ok(Err(error)) => Err(failed(Some(error.into()))),
        Err(_) => Err(failed(None)),
    }
}

fn from_hosts(name: &str) -> Vec<IpAddr> {
    let text = fs_err::read_to_string("/etc/hosts").unwrap_or_default();
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    let found = lines.filter_map(|line| {
        let mut words = line.split_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
    });
    found.collect()
}

/// The same for HTTP clients.
#[derive(Debug, Clone, Copy, Default)]
pub struct Names;

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = lookup(name.as_str()).await?;
            let addresses: Addrs = Box::new(found.into_iter().map(|ip| SocketAddr::new(ip, 0)));
            Ok(addresses)
        })
    }
}
