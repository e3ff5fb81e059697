//! Names to addresses without the C library.
//!
//! The binary is static, so `getaddrinfo` would be a trap; hickory asks the servers of
//! `/etc/resolv.conf`. `localhost` and `/etc/hosts` are answered first and need no server at all: a
//! host without `/etc/resolv.conf` still reaches its own registry. Unlike reqwest's own hickory
//! resolver this one never falls back to somebody else's servers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, ResolveHosts};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::system_conf::parse_resolv_conf;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::destination::{Reach, is_localhost};

/// How long one server gets for an answer.
const SERVER_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a server is asked.
const ATTEMPTS: usize = 2;
/// How long a name may take, search domains and all: below the connect timeout of 10 s, so that a
/// silent name server is told apart from a silent registry.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(6);
/// The largest resolv.conf that is read.
const RESOLV_CONF_SIZE_MAX: u64 = 64 << 10;
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
    /// No server answered.
    #[error("the name server does not answer")]
    TimedOut,
    /// The servers answered that there is no such host.
    #[error("the host name does not resolve")]
    Lookup(#[source] NetError),
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

/// The files that say how names are resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameFiles {
    /// Names that need no server, hosts(5).
    pub hosts: PathBuf,
    /// The servers, resolv.conf(5).
    pub resolv_conf: PathBuf,
}

impl Default for NameFiles {
    fn default() -> Self {
        NameFiles { hosts: "/etc/hosts".into(), resolv_conf: "/etc/resolv.conf".into() }
    }
}

struct Shared {
    files: NameFiles,
    servers: OnceLock<Option<TokioResolver>>,
    patience: Duration,
}

impl Names {
    /// Makes the resolver of the client that talks to the registry.
    pub fn new(files: NameFiles, trusted: Vec<String>) -> Names {
        let shared = Arc::new(Shared { files, servers: OnceLock::new(), patience: LOOKUP_TIMEOUT });
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
        let servers = self.servers.get_or_init(|| self.start_resolver()).as_ref();
        let asking = servers.ok_or(ResolveError::NoServer)?.lookup_ip(name);
        match tokio::time::timeout(self.patience, asking).await {
            Ok(Ok(found)) => Ok(found.iter().collect()),
            Ok(Err(NetError::Timeout | NetError::NoConnections | NetError::Io(_))) | Err(_) => {
                Err(ResolveError::TimedOut)
            }
            Ok(Err(error)) => Err(ResolveError::Lookup(error)),
        }
    }

    /// Builds the resolver once; it must be called inside the async runtime.
    fn start_resolver(&self) -> Option<TokioResolver> {
        let text = read_start(&self.files.resolv_conf, RESOLV_CONF_SIZE_MAX);
        let (config, mut options) = parse_resolv_conf(text).ok()?;
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        options.timeout = options.timeout.min(SERVER_TIMEOUT);
        options.attempts = options.attempts.min(ATTEMPTS);
        options.use_hosts_file = ResolveHosts::Never;
        let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        builder.with_options(options).build().ok()
    }

    fn in_hosts_file(&self, name: &str) -> Vec<IpAddr> {
        let text = read_start(&self.files.hosts, HOSTS_SIZE_MAX);
        hosts_entries(&String::from_utf8_lossy(&text), name)
    }
}

/// Reads at most `max_bytes`; an unreadable file is an empty one, as it is for the C library.
fn read_start(path: &Path, max_bytes: u64) -> Vec<u8> {
    use std::io::Read;
    let mut text = Vec::new();
    let _ = fs_err::File::open(path).and_then(|file| file.take(max_bytes).read_to_end(&mut text));
    text
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
    use hickory_resolver::config::{NameServerConfig, ResolverConfig};

    #[test]
    fn hosts_files_are_read_like_the_c_library_does() {
        let text = "# 1.1.1.1 a\n127.0.0.1 localhost\n10.0.0.1\tA.example  b # c\n::5 b\nbad b\n";
        let list = |name| hosts_entries(text, name).iter().map(IpAddr::to_string).collect::<Vec<_>>();
        assert_eq!(list("a.example"), ["10.0.0.1"]);
        assert_eq!(list("b."), ["10.0.0.1", "::5"]);
        assert!(list("c").is_empty());
        assert!(list("a").is_empty());
    }

    fn names(dir: &Path, hosts: &str) -> Names {
        let files = NameFiles { hosts: dir.join("hosts"), resolv_conf: dir.join("resolv.conf") };
        fs_err::write(&files.hosts, hosts).expect("hosts");
        Names::new(files, vec!["proxy.localhost".to_owned()])
    }

    /// A resolver whose only server is the UDP socket at `port` of this machine.
    fn with_server(port: u16, patience: Duration) -> Names {
        let mut server = NameServerConfig::udp(Ipv4Addr::LOCALHOST.into());
        server.connections.iter_mut().for_each(|connection| connection.port = port);
        let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
        let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let servers = OnceLock::from(Some(builder.build().expect("resolver")));
        let files = NameFiles { hosts: "/nonexistent".into(), resolv_conf: "/nonexistent".into() };
        Names { shared: Arc::new(Shared { files, servers, patience }), home: None, trusted: Arc::default() }
    }

    #[tokio::test]
    async fn localhost_and_hosts_need_no_server_and_a62_rebinding_is_caught() {
        let dir = tempfile::tempdir().expect("tempdir");
        let names = names(dir.path(), "10.9.9.9 cdn.example\n8.8.8.8 both.example\n127.0.0.1 both.example\n");
        assert_eq!(names.lookup("localhost").await.expect("localhost").len(), 2);
        assert_eq!(names.lookup("cdn.example").await.expect("hosts").len(), 1);
        let away = names.restricted(Reach::Public);
        assert!(matches!(away.lookup("cdn.example").await, Err(ResolveError::Inside)));
        assert!(matches!(away.lookup("localhost").await, Err(ResolveError::Inside)));
        assert_eq!(away.lookup("both.example").await.expect("public part").len(), 1);
        assert!(away.lookup("proxy.localhost").await.is_ok());
        assert!(names.restricted(Reach::Private).lookup("cdn.example").await.is_ok());
    }

    #[tokio::test]
    async fn f30_without_a_resolv_conf_only_servers_are_missing() {
        let dir = tempfile::tempdir().expect("tempdir");
        for resolv_conf in [None, Some("# nothing\n"), Some("\u{0}junk")] {
            if let Some(text) = resolv_conf {
                fs_err::write(dir.path().join("resolv.conf"), text).expect("resolv.conf");
            }
            let names = names(dir.path(), "127.0.0.1 here\n");
            assert!(names.lookup("here").await.is_ok());
            assert!(matches!(names.lookup("elsewhere.example").await, Err(ResolveError::NoServer)), "{resolv_conf:?}");
        }
    }

    #[tokio::test]
    async fn f30_servers_answer_or_do_not() {
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("socket");
        let names = with_server(socket.local_addr().expect("address").port(), Duration::from_secs(5));
        tokio::spawn(async move {
            let mut query = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut query).await {
                let _ = socket.send_to(&answer(&query[..length]), from).await;
            }
        });
        assert_eq!(names.lookup("a.example").await.expect("answer"), [IpAddr::from([10, 1, 2, 3])]);
        assert!(matches!(names.restricted(Reach::Public).lookup("a.example").await, Err(ResolveError::Inside)));
        assert!(matches!(names.lookup("none.example").await, Err(ResolveError::Lookup(_))));
        let silent = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("socket");
        let names = with_server(silent.local_addr().expect("address").port(), Duration::from_millis(200));
        assert!(matches!(names.lookup("a.example").await, Err(ResolveError::TimedOut)));
    }

    /// Answers a question for an IPv4 address with 10.1.2.3, one for `none.example` with "no such
    /// name", and any other with nothing (RFC 1035).
    fn answer(query: &[u8]) -> Vec<u8> {
        const HEADER_BYTES: usize = 12;
        const TYPE_A: [u8; 2] = [0, 1];
        let name_end = HEADER_BYTES + query[HEADER_BYTES..].iter().position(|byte| *byte == 0).expect("name") + 1;
        let is_none = query[HEADER_BYTES..name_end].windows(4).any(|window| window == b"none");
        let has_answer = !is_none && query[name_end..name_end + 2] == TYPE_A;
        let mut reply = query[..2].to_vec();
        reply.extend([0x81, if is_none { 0x83 } else { 0x80 }, 0, 1, 0, u8::from(has_answer), 0, 0, 0, 0]);
        reply.extend(&query[HEADER_BYTES..name_end + 4]);
        if has_answer {
            reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 1, 2, 3]);
        }
        reply
    }
}
