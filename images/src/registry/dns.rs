//! Names to addresses without the C library.
//!
//! The binary is static, so `getaddrinfo` would be a trap; hickory asks the servers of
//! `/etc/resolv.conf`. `localhost` and `/etc/hosts` are answered first and need no server at all: a
//! host without `/etc/resolv.conf` still reaches its own registry. Unlike reqwest's own hickory
//! resolver this one never falls back to somebody else's servers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::destination::{Reach, is_localhost};

/// How long one server gets for an answer; with [`ATTEMPTS`] it stays below the connect timeout.
const SERVER_TIMEOUT: Duration = Duration::from_secs(3);
/// How often a server is asked.
const ATTEMPTS: usize = 2;
/// The largest hosts file that is read; larger ones are block lists, which are cut there.
const HOSTS_SIZE_MAX: u64 = 8 << 20;
/// The most addresses of one name that are tried.
const ADDRESSES_MAX: usize = 16;

/// Why a name gave no address.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// `/etc/resolv.conf` is missing or names no server.
    #[error("no name server is configured in /etc/resolv.conf")]
    NoServer,
    /// The servers answered that there is no such host, or did not answer.
    #[error("the host name does not resolve")]
    Lookup(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Every address is one that the registry may not send us to (security.md A62).
    #[error("the host name resolves to a network that the registry is not on")]
    Inside,
}

/// Resolves names for one HTTP client, dropping addresses that this client may not reach.
#[derive(Clone)]
pub struct Names {
    shared: Arc<Shared>,
    /// The registry's own reach; `None` for the client that talks to the registry itself.
    home: Option<Reach>,
    /// Hosts that the user named (proxies): always allowed.
    trusted: Arc<[String]>,
}

struct Shared {
    hosts_file: PathBuf,
    servers: OnceLock<Option<TokioResolver>>,
}

impl Names {
    /// Makes the resolver of the client that talks to the registry.
    pub fn new(hosts_file: PathBuf, trusted: Vec<String>) -> Names {
        let shared = Arc::new(Shared { hosts_file, servers: OnceLock::new() });
        Names { shared, home: None, trusted: trusted.into() }
    }

    /// Makes the resolver of a client for places that a registry with the reach `home` named.
    pub fn restricted(&self, home: Reach) -> Names {
        Names { home: Some(home), ..self.clone() }
    }

    /// Gives the addresses of `name`.
    pub async fn lookup(&self, name: &str) -> Result<Vec<IpAddr>, ResolveError> {
        let mut addresses = self.shared.lookup(name).await?;
        if let Some(home) = self.home
            && !self.trusted.iter().any(|host| host.eq_ignore_ascii_case(name))
        {
            addresses.retain(|address| home.may_point_to(Reach::of(*address)));
            if addresses.is_empty() {
                return Err(ResolveError::Inside);
            }
        }
        addresses.truncate(ADDRESSES_MAX);
        Ok(addresses)
    }
}

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let names = self.clone();
        Box::pin(async move {
            let addresses = names.lookup(name.as_str()).await?;
            let addresses: Addrs = Box::new(addresses.into_iter().map(|ip| SocketAddr::new(ip, 0)));
            Ok(addresses)
        })
    }
}

impl Shared {
    async fn lookup(&self, name: &str) -> Result<Vec<IpAddr>, ResolveError> {
        if is_localhost(name) {
            return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        let known = self.in_hosts_file(name);
        if !known.is_empty() {
            return Ok(known);
        }
        let servers = self.servers.get_or_init(system_resolver).as_ref();
        let found = servers.ok_or(ResolveError::NoServer)?.lookup_ip(name).await;
        let found = found.map_err(|error| ResolveError::Lookup(Box::new(error)))?;
        Ok(found.iter().collect())
    }

    fn in_hosts_file(&self, name: &str) -> Vec<IpAddr> {
        use std::io::Read;
        let mut text = Vec::new();
        // An unreadable hosts file is an absent one, as it is for the C library.
        let _ = fs_err::File::open(&self.hosts_file)
            .and_then(|file| file.take(HOSTS_SIZE_MAX).read_to_end(&mut text));
        hosts_entries(&String::from_utf8_lossy(&text), name)
    }
}

/// Builds the resolver once; it must be called inside the async runtime.
fn system_resolver() -> Option<TokioResolver> {
    let mut builder = TokioResolver::builder_tokio().ok()?;
    let options = builder.options_mut();
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.timeout = options.timeout.min(SERVER_TIMEOUT);
    options.attempts = options.attempts.min(ATTEMPTS);
    builder.build().ok()
}

/// Finds the addresses of `name` in the text of a hosts file (hosts(5)).
fn hosts_entries(text: &str, name: &str) -> Vec<IpAddr> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let mut found = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let Some(address) = words.next().and_then(|word| word.parse().ok()) else { continue };
        if words.any(|word| word.eq_ignore_ascii_case(name)) {
            found.push(address);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_files_are_read_like_the_c_library_does() {
        let text = "# 1.1.1.1 a\n127.0.0.1 localhost\n10.0.0.1\tA.example  b # c\n::5 b\nbad b\n";
        let list = |name| hosts_entries(text, name).iter().map(IpAddr::to_string).collect::<Vec<_>>();
        assert_eq!(list("a.example"), ["10.0.0.1"]);
        assert_eq!(list("b."), ["10.0.0.1", "::5"]);
        assert!(list("c").is_empty());
        assert!(list("a").is_empty());
    }

    #[tokio::test]
    async fn localhost_and_hosts_need_no_server_and_a62_rebinding_is_caught() {
        let dir = tempfile::tempdir().expect("tempdir");
        let hosts = dir.path().join("hosts");
        fs_err::write(&hosts, "10.9.9.9 cdn.example\n8.8.8.8 both.example\n127.0.0.1 both.example\n").expect("hosts");
        let names = Names::new(hosts, vec!["proxy.localhost".to_owned()]);
        assert_eq!(names.lookup("localhost").await.expect("localhost").len(), 2);
        assert_eq!(names.lookup("cdn.example").await.expect("hosts").len(), 1);
        let away = names.restricted(Reach::Public);
        assert!(matches!(away.lookup("cdn.example").await, Err(ResolveError::Inside)));
        assert!(matches!(away.lookup("localhost").await, Err(ResolveError::Inside)));
        assert_eq!(away.lookup("both.example").await.expect("public part").len(), 1);
        assert!(away.lookup("proxy.localhost").await.is_ok());
        assert!(names.restricted(Reach::Private).lookup("cdn.example").await.is_ok());
    }
}
